"""`Turns`: one process of the host at a time does something, such as asking an origin for a URL.

A turn has a name, such as the URL. It is a kernel lock on one byte of the store's mark; the name
decides which byte. The kernel frees the lock when its process ends, so a question that dies with
its process holds up nobody.

    process A                                    process B
    1 takes the turn; asks
                                                 2 waits for the turn
    3 the head of the answer is there: begins
      the flight of its body, keeps the head
    4 gives the turn back
                                                 5 takes the turn; reads what is kept: it is fresh,
                                                   so B follows the flight, and asks nothing

B waits for the head only, never for the body. If it has waited for as long as it may, it asks
without a turn.
"""

from __future__ import annotations

import hashlib
import time
from typing import Protocol

from shmstream.storage.layout import TURNS
from shmstream.system.locks import KernelLock

_COUNT = 1 << 59
_PAUSES = (0.002, 0.05)  # s; between two looks, growing


class Turn(Protocol):
    """The turn of this process."""

    def close(self) -> None:
        """Give it back. Idempotent."""


class Turns:
    """The turns of one store; from `Store.turns`."""

    def __init__(self, mark: str, longest: float) -> None:
        """`mark` is the path of the store's mark. `longest`: seconds to wait for a turn."""
        self._mark = mark
        self._longest = longest

    def take(self, name: str) -> Turn | None:
        """Wait for the turn of that name, and take it. None: there is none to be had.

        So it is in a store that can only be read, or after a long wait. Blocks.
        """
        hashed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        span = (TURNS + hashed % _COUNT, 1)
        try:
            turn = KernelLock(self._mark)
        except OSError:
            return None
        until, pause = time.monotonic() + self._longest, _PAUSES[0]
        try:
            while not turn.try_acquire(span):
                if time.monotonic() > until:
                    turn.close()
                    return None
                time.sleep(pause)
                pause = min(pause * 1.5, _PAUSES[1])
        except BaseException:
            turn.close()
            raise
        return turn
