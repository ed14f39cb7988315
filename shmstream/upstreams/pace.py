"""Limits of what one upstream is asked for, which all processes of the host keep together.

    Pace       so many bytes a second: a reader that is ahead waits
    Quota      so many requests in so long: a request beyond it is refused, and told when to return

    <store>/registry/rates/<...>      8 bytes: when what was taken so far is paid for

Time is what bytes and requests cost. A reader that has some bytes adds what they cost to the time
in the file, and reads on when that time has come. So processes and threads that read at once get
about equal shares, clients are slowed down, and none fails. A `Quota` may be as far ahead as it is
long: all of it may be used at once, and comes back little by little.

A request that was counted, and that gets nothing, is given back. If nothing is left to pay for
then, the file is removed: names that are never right leave no files. A process that has waited for
the lock of a removed file opens the next file of that name.

`Pace` has the time of the host's monotonic clock, which all processes of a host share; after a
restart of the host it may be far ahead, and counts no more. `Quota` has the time of day.

    process A                            process B
    1 locks the file, reads 10.0 s
    2 writes 10.1 s, frees it            locks the file: waits some microseconds
    3 waits until 10.1 s                 reads 10.1 s, writes 10.2 s, frees it
                                         waits until 10.2 s

    A is killed in 1 or 2: the kernel frees the lock; the file has the old time or the new one.
    A is stopped in 1 or 2: B does not get the lock, and counts for itself until A goes on.

What holds bytes back tells for how long (`Feed.held`). So the limit is not taken for an upstream
that crawls.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shmstream.sources.base import Feed
from shmstream.system.buffers import octets
from shmstream.upstreams.notes import Notes

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BURST = 0.1  # s; a reader that wakes too late gets so much back
_LONGEST = 60.0  # s; a `Pace` is no further ahead, so such a time is of before a restart
_PIECES = 8  # a second
_LARGEST_PIECE, _SMALLEST_PIECE = 1 << 16, 128  # bytes
_TRIES, _MOMENT = 20, 0.001  # to get the lock; s
_ROUNDING = 1e-6  # s
_NOTHING = 0.0  # the time in a file that nothing is left to pay for
_now, _today = time.monotonic, time.time
_TIME = struct.Struct("=d")


class _Time:
    """The time in a file, which all that use the same `notes` and `name` change in turn."""

    def __init__(self, notes: Notes, *name: str) -> None:
        self._notes = notes
        self._name = name
        self._lock = threading.Lock()  # guards `_own`
        self._own = 0.0  # as the file, for this process alone: if the file cannot be used

    def change(self, decide: Callable[[float], tuple[float, float]]) -> float:
        """Store the first of what `decide` makes of the time; the second is returned.

        If the first is `_NOTHING`, the file is removed.
        """
        try:
            fd = self._open()
            try:
                data = os.pread(fd, _TIME.size, 0)
                then = _TIME.unpack(data)[0] if len(data) == _TIME.size else _NOTHING
                then, found = decide(then)
                if then == _NOTHING:
                    self._notes.remove(self._name)
                else:
                    os.pwrite(fd, _TIME.pack(then), 0)
            finally:
                os.close(fd)
        except OSError:  # the store is gone, its disk is full, or a process is stopped
            with self._lock:
                self._own, found = decide(self._own)
        return found

    def _open(self) -> int:
        """A descriptor of the file, which is locked and has its name."""
        for _ in range(_TRIES):
            fd = self._notes.open(self._name)
            try:
                _lock(fd)
                has_name = os.fstat(fd).st_nlink > 0
            except BaseException:
                os.close(fd)
                raise
            if has_name:
                return fd
            os.close(fd)  # the process that had the lock has removed the file
        raise OSError(errno.ESTALE, "a file is removed again and again")


class Quota:
    """`count` requests in `seconds` for all that use the same `notes` and `name`.

    Any thread may use it.
    """

    def __init__(self, notes: Notes, name: tuple[str, ...], count: int, seconds: float) -> None:
        self._time = _Time(notes, *name)
        self._cost = seconds / count
        self._seconds = seconds

    def take(self) -> float:
        """0 if a request may be sent, which is counted; else for how many seconds none may."""
        return self._time.change(self._after)

    def give_back(self) -> None:
        """Count one request less: a request that was counted has got nothing."""
        self._time.change(self._before)

    def _after(self, paid: float) -> tuple[float, float]:
        now = _today()
        paid = self._bounded(paid, now)
        over = paid + self._cost - (now + self._seconds)
        return (paid, over) if over > _ROUNDING else (paid + self._cost, 0.0)

    def _before(self, paid: float) -> tuple[float, float]:
        now = _today()
        paid = self._bounded(paid, now) - self._cost
        return (paid if paid > now + _ROUNDING else _NOTHING), 0.0

    def _bounded(self, paid: float, now: float) -> float:
        return min(max(paid, now), now + self._seconds)  # the clock may have been set back


class Pace:
    """`rate` bytes a second for all that use the same `notes` and `name`. Any thread may use it.

    Nobody waits for more than a minute, because a time that is further ahead counts for nothing. So
    more than 480 readers at one time may together exceed the rate.
    """

    def __init__(self, notes: Notes, name: str, rate: int) -> None:
        self._time = _Time(notes, name)
        self.rate: int = rate

    def take(self, count: int) -> float:
        """Note that so many bytes were read; for how many seconds to read none now."""
        return self._time.change(lambda paid: self._after(paid, count))

    def _after(self, paid: float, count: int) -> tuple[float, float]:
        now = _now()
        begin = paid if now - _BURST < paid <= now + _LONGEST else now - _BURST
        paid = min(begin + count / self.rate, now + _LONGEST)
        return paid, max(paid - now, 0.0)

    def slow(self, feed: Feed) -> Feed:
        """The same feed, at this pace. Closing it ends a wait."""
        holding = _Holding(self)
        close = feed.close

        def close_both() -> None:
            holding.is_over.set()
            close()

        feed.data, feed.by_kernel = holding.data(feed.data), None
        feed.close, feed.held = close_both, holding.held
        return feed


class _Holding:
    """How one feed is held back, by the one thread that reads it."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._held = 0.0
        self.is_over = threading.Event()

    def held(self) -> float:
        held, self._held = self._held, 0.0
        return held

    def data(self, given: Iterator[Buffer]) -> Iterator[Buffer]:
        size = max(min(self._pace.rate // _PIECES, _LARGEST_PIECE), _SMALLEST_PIECE)
        for each in given:
            with octets(each) as view:
                for start in range(0, len(view), size):
                    yield view[start : start + size]
                    self._hold(self._pace.take(min(size, len(view) - start)))

    def _hold(self, seconds: float) -> None:
        if seconds > 0:
            began = time.monotonic()
            self.is_over.wait(seconds)
            self._held += time.monotonic() - began


def _lock(fd: int) -> None:
    """Raises `OSError`: another process has it, and is stopped."""
    for _ in range(_TRIES - 1):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_MOMENT)
        else:
            return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
