"""`Announcer`: has one process of a node tell the directory what the node's store has.

    at the start          the process that has the lock tells all
    every 20 s or so      it greets the directory. If that does not know the node, because it came
                          back empty, it tells all again; and twice a day, because the directory
                          forgets holders after a day
    that process ends     another one of the node finds the lock free at its next turn

The lock is that of `<store>/cluster/announcer`. Where that file cannot be made, each process tells.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable

from shmstream.system import process, threads
from shmstream.system.locks import WHOLE_FILE, KernelLock

EVERY = 20.0
"""Seconds from one greeting to the next, and up to a quarter more."""
_AGAIN = 12 * 3600.0  # s

_log = logging.getLogger("shmstream")


class Announcer:
    """Calls `tell(all)` in a thread, from time to time, until `close`. Any thread may call it.

    `tell` returns whether the directory knows all now. It must not keep its node alive.
    """

    def __init__(self, folder: str, tell: Callable[[bool], bool]) -> None:
        """`folder` is the store's."""
        self._path = os.path.join(folder, "cluster", "announcer")
        self._tell = tell
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()  # guards the next two
        self._is_closed = False
        self._thread: threads.Call | None = None
        self._lock: KernelLock | None = None  # of the thread

    def start(self) -> None:
        """Begin, unless this process has. Does not wait."""
        with self._changed:
            if self._thread is not None or self._is_closed:
                return
            process.register(self)  # also in a forked child, which begins with nothing registered
            self._thread = threads.Call(self._run, "shmstream-announce")
            try:
                self._thread.start()
            except RuntimeError:  # no thread can be started
                self._thread = None

    def _run(self) -> None:
        told = float("-inf")  # when all was told
        while True:
            if self._is_mine():
                now = time.monotonic()
                must = now - told > _AGAIN
                if not self._tell(must):
                    told = float("-inf")
                elif must:
                    told = now
            with self._changed:
                if not self._is_closed:
                    self._changed.wait(EVERY * random.uniform(1.0, 1.25))
                if self._is_closed:
                    break
        if self._lock is not None:
            self._lock.close()

    def _is_mine(self) -> bool:
        """Whether it is for this process to tell."""
        if self._lock is not None:
            return True
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            lock = KernelLock(self._path, os.O_CREAT)
        except OSError as error:
            _log.debug("%s: %s", self._path, str(error))
            return True
        if lock.try_acquire(WHOLE_FILE):
            self._lock = lock
            return True
        lock.close()
        return False

    def close(self) -> None:
        """End it; waits 1.5 s at most. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            running = self._thread
        if running is not None:
            running.join(1.5)

    def abandon(self) -> None:
        """In a forked child: the thread and the lock are the parent's."""
        self._begin()
