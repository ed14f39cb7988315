"""The parent of the workers: starts them, replaces a worker that dies, ends them.

    SIGTERM, SIGINT    stop: nobody listens any more, so that new clients are refused at once. Each
                       worker lets its clients finish for `grace` seconds; a worker that lives a
                       little longer is killed. The second such signal kills all at once
    SIGHUP             start new workers, which read the certificates anew, and stop the old ones as
                       above. If a terminal was closed, SIGHUP means to stop

With a `Keeper` nobody waits for clients at SIGHUP: when the new workers are ready, the old workers
hand their connections over and end. A worker that dies is succeeded by the others in the same way.
So it is safe to kill a worker that is stuck: a worker tells ten times a second that it makes
progress.

uvicorn's own supervisor is not used: it kills a worker that is too busy to answer, waits for ever
for a worker that does not end, leaves its workers alone when it is killed itself, and its workers
print tracebacks when Ctrl-C meets them while they start. Here each worker reads from a pipe that
ends with the parent, and has a process group of its own, so that Ctrl-C in a terminal reaches only
the parent.

All processes have the same listening socket, so closing it in one of them ends nothing. `shutdown`
ends it for all, and resets the connections that were not accepted yet. So the parent waits until
there are none, which takes moments unless the workers are stuck:

    parent                                        the keeper; without one, the workers
    1 a connection waits: look again soon         accepts it
    2 none waits: shut the socket down            accepts no more
                                                  the workers
    3 SIGTERM to all workers                      let their clients finish

A worker has a number, which no other worker has at the same time. Its metrics have the same number.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from shmstream.registry.server.keeper import Keeper
from shmstream.registry.server.starting import Forked, Process, Starter
from shmstream.registry.server.worker import CANNOT_START, LAST_PATIENCE, POST, WORKER

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_WATCHED = {*_STOPPING, signal.SIGHUP, signal.SIGCHLD}
_SHORT_LIFE = 10.0  # s; if workers die earlier again and again, there is a pause before the next
_LONGEST_PAUSE = 10.0  # s
_KILL = 1 / 50  # of an early death: a worker that is killed while it serves is not at fault
_AGAIN = 1.0  # s; the least time until the next try to start a worker
_LONGEST_START = 20.0  # s; at SIGHUP, workers that are replaced wait so long for the new ones
_LAST_CONNECTIONS = 1.0  # s; in which the connections that have come are accepted

_log = logging.getLogger("shmstream")


@dataclass(eq=False)
class Worker:
    """One worker process, from its start until the parent has seen its end."""

    number: int
    process: Process
    started: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    """The time at which it is killed if it has not ended; None while it should run."""
    was_ready: bool = False
    """Whether it had begun to take connections when it ended. Only with a keeper."""
    leaves_at: float | None = None
    """The time at which it is stopped if its successor is not ready; None while it should stay."""

    def stop(self, patience: float) -> None:
        """Ask it to end within `patience` seconds; at once if it was asked before."""
        if self.deadline is None:
            self.deadline = time.monotonic() + patience
            self.process.terminate()
        else:
            self.deadline = 0.0


class Workers:
    """All workers. Call `run` in the main thread of a process without other threads."""

    def __init__(
        self,
        count: int,
        grace: float,
        listener: socket.socket,
        environment: Mapping[str, str],
        gone: Callable[[int], None],
        keeper: Keeper | None = None,
        stuck_after: float = 0.0,
        module: str = WORKER,
    ) -> None:
        """`gone` is called with the number of each worker that has ended.

        `keeper` keeps the connections; it is closed at the end. A worker that makes no progress for
        `stuck_after` seconds is killed if there is a keeper; 0: never. `module`: see `Starter`.
        """
        self._count = count
        self._patience = grace + LAST_PATIENCE
        self._listener = listener
        self._starter = Starter(module, listener.fileno(), environment)
        self._gone = gone
        self._keeper = keeper
        self._stuck_after = stuck_after
        self._workers: list[Worker] = []
        self._is_stopping = False
        self._cannot_start = False
        self._short_lives = 0.0  # in a row
        self._not_before = 0.0  # on the monotonic clock, for the next start
        self._looked = time.monotonic()  # likewise, when it last looked for workers that are stuck
        self._spared_until = 0.0  # likewise; no worker counts as stuck before

    def run(self, started: Callable[[], None], may_renew: Callable[[], bool]) -> bool:
        """Keep the workers running until a signal; False if the workers cannot start.

        `started` is called after the first start; `may_renew` at SIGHUP: whether new workers could
        start.
        """
        ignored = {each for each in _WATCHED if signal.getsignal(each) == signal.SIG_IGN}
        watched = _WATCHED - ignored
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            self._starter.prepare()
            if self._keeper is not None:
                self._keeper.start(lambda: os.kill(os.getpid(), signal.SIGCHLD))  # to look again
            self._fill()
            started()
            while self._workers or not self._is_stopping:
                info = signal.sigtimedwait(watched, self._wait())
                signalled = None if info is None else info.si_signo
                if signalled in _STOPPING or (signalled == signal.SIGHUP and _has_terminal()):
                    self._stop()
                elif signalled == signal.SIGHUP and not self._is_stopping and may_renew():
                    _log.info("SIGHUP: other workers replace these")
                    self._renew()
                self._reap()
                self._let_leave()
                self._kill_the_late()
                self._kill_the_stuck()
                self._fill()
        finally:
            if self._keeper is not None:
                self._keeper.stop()
            for worker in list(self._workers):
                worker.process.kill()
                self._forget(worker)
            if self._keeper is not None:
                self._keeper.close()
            while signal.sigtimedwait(watched, 0) is not None:  # the server has stopped already
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return not self._cannot_start

    def tell(self, variable: str, text: str) -> None:
        """Have workers that are started from now on find this in their environment."""
        self._starter.tell(variable, text)

    def _wait(self) -> float:
        """Seconds until the next deadline or start."""
        due = [each.deadline for each in self._workers if each.deadline is not None]
        due += [
            each.leaves_at
            for each in self._workers
            if each.leaves_at is not None and each.deadline is None
        ]
        if self._keeper is not None and self._stuck_after:
            due.append(time.monotonic() + self._stuck_after / 4)
        if self._are_missing():
            due.append(self._not_before)
        return max(min(due, default=float("inf")) - time.monotonic(), 0.0) if due else 3600.0

    def _are_missing(self) -> bool:
        wanted = sum(each.deadline is None and each.leaves_at is None for each in self._workers)
        return wanted < self._count and not self._is_stopping

    def _fill(self) -> None:
        """Start workers until there are `count` that should run."""
        while self._are_missing() and time.monotonic() >= self._not_before:
            try:
                self._workers.append(self._start())
            except OSError as error:  # no memory, or too many processes: try again soon
                pause = self._put_off(1.0, _AGAIN)
                _log.error("no worker can be started: %s; the next try is%s", error, _in(pause))

    def _start(self) -> Worker:
        number = min(set(range(len(self._workers) + 1)) - {each.number for each in self._workers})
        if self._keeper is None:
            return Worker(number, self._open(number))
        channel, table = self._keeper.enlist(number)
        with channel:
            try:
                return Worker(number, self._open(number, channel.fileno(), table))
            except BaseException:
                self._keeper.ended(number)
                raise

    def _open(self, number: int, *post: int) -> Process:
        """Start the process of a worker, which gets these descriptors of the keeper."""
        still = None if self._keeper is None else self._keeper.still()
        return self._starter.start(number, {POST: " ".join(map(str, post))}, post, still)

    def _reap(self) -> None:
        for worker in [each for each in self._workers if each.process.poll() is not None]:
            self._forget(worker)
            if worker.deadline is None:
                self._mourn(worker)

    def _mourn(self, worker: Worker) -> None:
        """A worker that should run has died."""
        code, now = worker.process.wait(), time.monotonic()
        known = [worker, *self._workers]
        if code == CANNOT_START and all(now - each.started < _SHORT_LIFE for each in known):
            self._cannot_start = True  # and no worker has served for long
            self._stop()
            return
        if now - worker.started >= _SHORT_LIFE:
            self._short_lives = 0.0
            pause = self._put_off(0.0)
        else:
            was_killed = code == -signal.SIGKILL and worker.was_ready
            pause = self._put_off(_KILL if was_killed else 1.0)
        told = f"died {_how(code)}; another one replaces it{_in(pause)}"
        _log.error("worker %d %s", worker.process.pid, told)

    def _put_off(self, lives: float, least: float = 0.0) -> float:
        """Start no worker for some time, after so many more short lives; how long, in seconds."""
        self._short_lives += lives
        pause, beyond = least, self._short_lives - self._count  # all workers may die once
        if beyond > 0:
            pause = max(least, min(0.1 * 2 ** min(beyond, 10), _LONGEST_PAUSE))
        self._not_before = time.monotonic() + pause
        return pause

    def _forget(self, worker: Worker) -> None:
        worker.process.wait()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        self._workers.remove(worker)
        if self._keeper is not None:
            worker.was_ready = self._keeper.is_ready(worker.number)
            self._keeper.ended(worker.number)
        self._gone(worker.number)

    def _renew(self) -> None:
        """Have other workers take the places of all that run."""
        self._starter.renew()
        for worker in self._workers:
            if self._keeper is None:
                worker.stop(self._patience)
            elif worker.leaves_at is None:
                worker.leaves_at = time.monotonic() + _LONGEST_START

    def _let_leave(self) -> None:
        """Stop the workers that are to leave, when the others can take their connections."""
        leaving = [each for each in self._workers if each.leaves_at and each.deadline is None]
        if self._keeper is None or not leaving:
            return
        staying = [each for each in self._workers if each.leaves_at is None]
        are_ready = sum(self._keeper.is_ready(each.number) for each in staying) >= self._count
        for worker in leaving:
            if are_ready:
                self._keeper.leave(worker.number)
            if are_ready or (worker.leaves_at or 0.0) <= time.monotonic():
                worker.stop(self._patience)

    def _stop(self) -> None:
        if not self._is_stopping:
            self._end_listening()
        self._is_stopping = True
        for worker in self._workers:
            worker.stop(self._patience)

    def _end_listening(self) -> None:
        """Refuse new clients from now on. Waits a moment for those that are not accepted yet."""
        deadline = time.monotonic() + _LAST_CONNECTIONS
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        while waiting.poll(0) and time.monotonic() < deadline:
            time.sleep(0.001)
        if self._keeper is not None:
            self._keeper.stop()
        with suppress(OSError):  # a kind of socket that cannot be shut down
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _kill_the_late(self) -> None:
        now = time.monotonic()
        for worker in [
            each for each in self._workers if each.deadline is not None and each.deadline <= now
        ]:
            _log.warning("worker %d has not ended and is killed", worker.process.pid)
            worker.process.kill()
            self._forget(worker)

    def _kill_the_stuck(self) -> None:
        """Kill the workers that make no progress; they are mourned like any that dies.

        If this process was stopped, they were, too, as when a container is paused. Then they have
        time to go on.
        """
        if self._keeper is None or not self._stuck_after:
            return
        now, before = time.monotonic(), self._looked
        self._looked = now
        if now - before > self._stuck_after / 2:
            self._spared_until = now + self._stuck_after
        if now < self._spared_until:
            return
        for worker in self._workers:
            silence = self._keeper.silence(worker.number)
            if not silence and isinstance(worker.process, Forked):  # others may use no table
                silence = now - worker.started - _LONGEST_START
            is_stuck = silence > self._stuck_after and worker.deadline is None
            if is_stuck and worker.process.poll() is None:
                what = f"has made no progress for {silence:.0f} s and is killed"
                _log.error("worker %d %s", worker.process.pid, what)
                worker.process.kill()


def _how(code: int) -> str:
    """How a worker has died: its exit code, or what signal it was; not each has a name."""
    if code >= 0:
        return f"with exit code {code}"
    with suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"by signal {-code}"


def _in(pause: float) -> str:
    return f" in {pause:.1f} s" if pause else ""


def _has_terminal() -> bool:
    """Whether this process has a terminal, so that SIGHUP means that it was closed."""
    return sys.stdin is not None and sys.stdin.isatty()
