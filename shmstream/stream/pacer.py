"""Decides when appended bytes are published, so that there are few wake-ups and no byte waits long.

Waking sixteen readers for every 64 KiB costs half as much again as waking them for every MiB. So
bytes are published when `publish_bytes` have gathered, or when `publish_interval` has passed since
the last publish, whichever is first. After a pause the first bytes are published at once. But
however fast bytes arrive, readers are woken at most 250 times a second (or once in each
`publish_interval`, if that is shorter than 4 ms), for two reasons: waking a
sleeping processor takes 15 to 20 us, as long as writing 64 KiB; and a reader that is close behind
the writer takes the bytes out of the cache of the writer's processor, which cost a twentieth of the
throughput. If the source goes quiet, a thread publishes the remaining bytes, so no byte that may be
published waits longer than the interval. (With a digest, the writer withholds the last chunk.)

While one of the readers gives the bytes to another host, they are published at least 100 times a
second: how long they wait adds up from host to host.

The thread is started when it is first needed. It is not needed for a caller of `is_time`, which
promises to ask again in time. While bytes keep coming the thread sleeps from deadline to deadline,
without being signalled. When a deadline finds no remaining bytes, it sleeps until it is signalled.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from shmstream.arguments import seconds, whole
from shmstream.system import threads

_HURRY = (1 << 20, 0.01)  # bytes and seconds, at most, while the pacer hurries
_APART = 0.004  # s; the least from one publish to the next, however fast bytes come
_AT_ONCE = 1e-4  # s; not 0, which would tell the caller to wait for new bytes
_LOOK = 0.02  # s; the longest sleep of the thread while there are bytes to publish


class Pacer:
    """Calls `publish` in time. The caller of every method but `due_in` and `join` holds `lock`.

    `publish` must be a bound method. It is held weakly, so that its owner can be collected without
    being closed.
    """

    def __init__(
        self,
        lock: threading.RLock,
        publish: Callable[[], None],
        publish_bytes: int,
        publish_interval: float,
    ) -> None:
        self._condition = threading.Condition(lock)
        self._publish = weakref.WeakMethod(publish)
        self._calm = (publish_bytes, publish_interval)
        self.bytes: int = publish_bytes
        """Publish when that many have gathered."""
        self._interval = publish_interval
        self._apart = min(_APART, publish_interval)
        self._soonest = 0.0
        self._due = 0.0
        self._pending = False
        self._promised = False
        self._ripe = False
        self._parked = False
        self._thread: threads.Call | None = None
        self._closed = False

    def is_due(self, waiting: int) -> bool:
        """Whether to publish `waiting` bytes now. If not, the thread publishes them in time."""
        if self._is_ripe(waiting):
            return True
        if self._pending:  # the thread watches the deadline
            return False
        if time.monotonic() >= self._due:
            return True
        self._pending = True
        if self._parked:
            self._condition.notify()
        elif self._thread is None:
            return not self._start()
        return False

    def _is_ripe(self, waiting: int) -> bool:
        if waiting >= self.bytes:
            if time.monotonic() >= self._soonest:
                return True
            self._ripe = True
        return False

    def is_time(self, waiting: int) -> bool:
        """`is_due` for a caller that asks again in `due_in` seconds: it needs no thread."""
        self._promised = not (self._is_ripe(waiting) or time.monotonic() >= self._due)
        return not self._promised

    def due_in(self) -> float:
        """Seconds until it is time to publish; 0: nothing waits, so wait for new bytes."""
        remaining = (self._soonest if self._ripe else self._due) - time.monotonic()
        return max(remaining, _AT_ONCE if self._promised else 0.0)

    def hurry(self, *, hurries: bool) -> None:
        """Whether to publish often from now on, whatever was asked for."""
        most, longest = _HURRY if hurries else self._calm
        count, interval = min(self._calm[0], most), min(self._calm[1], longest)
        if interval != self._interval or count != self.bytes:
            self.bytes, self._interval = count, interval
            self._due = min(self._due, time.monotonic() + interval)

    def published(self) -> None:
        """Note that all bytes have just been published."""
        now = time.monotonic()
        self._soonest = now + self._apart
        self._due = now + self._interval
        self._pending = self._promised = self._ripe = False

    def forget(self) -> None:
        """Have the next bytes published at once, as after a pause: readers have waited for them."""
        self._soonest = self._due = 0.0

    def _start(self) -> bool:
        """Start the thread; False if no thread can be started, as when the interpreter ends."""
        thread = threads.Call(self._run, "shmstream-pacer")
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        with self._condition:
            while not self._closed:
                if not self._pending:
                    self._parked = True
                    self._condition.wait()
                    self._parked = False
                    continue
                deadline = self._soonest if self._ripe else self._due
                remaining = deadline - time.monotonic()
                if remaining > 0:  # a short sleep, as `publish_bytes` may gather any moment
                    self._condition.wait(min(remaining, _LOOK))
                elif not self._call():
                    return

    def _call(self) -> bool:
        """Publish; False if the owner has been collected."""
        publish = self._publish()
        if publish is None:
            return False
        publish()
        return True

    def close(self) -> None:
        """End the thread; it has ended when `join` returns."""
        self._closed = True
        self._condition.notify()

    def join(self) -> None:
        """Wait a second at most for the thread to end: a caller in a signal handler may hold the
        lock that the thread needs to end.
        """
        if self._thread is not None:
            self._thread.join(1.0)


def check_pacing(publish_bytes: int, publish_interval: float) -> tuple[int, float]:
    """The arguments of a pacer, as numbers.

    Raises:
        TypeError, ValueError: one is no number, negative or not finite.
    """
    what = "a number of seconds, which is finite and not negative"
    return (
        whole("publish_bytes", publish_bytes, "a number of bytes, which is not negative"),
        seconds("publish_interval", publish_interval, what, threading.TIMEOUT_MAX),
    )
