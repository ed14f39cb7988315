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
import time
from collections.abc import Callable

from shmstream.system import process
from shmstream.system.locks import WHOLE_FILE, KernelLock
from shmstream.system.repeating import Repeating

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
        self._repeating = Repeating(self._turn, "shmstream-announce")
        # Of the thread:
        self._lock: KernelLock | None = None
        self._told = float("-inf")  # when all was told

    def start(self) -> None:
        """Begin, unless this process has. Does not wait."""
        process.register(self)  # also in a forked child, which begins with nothing registered
        self._repeating.wake()

    def _turn(self) -> float:
        if self._is_mine():
            now = time.monotonic()
            must = now - self._told > _AGAIN
            if not self._tell(must):
                self._told = float("-inf")
            elif must:
                self._told = now
        return EVERY * random.uniform(1.0, 1.25)

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
        self._repeating.close(1.5)
        if self._lock is not None:
            self._lock.close()

    def abandon(self) -> None:
        """In a forked child: the thread and the lock are the parent's."""
        self._begin()
