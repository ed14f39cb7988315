"""`Turns`: one process of the host at a time asks an origin for a URL.

A turn is a kernel lock on one byte of the store's mark, which the URL decides. The kernel frees it
when its process ends, so a question that dies with its process holds up nobody.

    process A                                    process B
    1 takes the turn; asks
                                                 2 waits for the turn
    3 the head of the answer is there: begins
      the flight of its body, keeps the head
    4 gives the turn back
                                                 5 takes the turn; reads what is kept: it is fresh,
                                                   so B follows the flight, and asks nothing

B waits for the head only, never for the body. After `_LONGEST` it asks without a turn.
"""

from __future__ import annotations

import hashlib
import os
import time

from shmstream.system.locks import KernelLock

_FIRST = 1 << 60  # flight permits begin above, at 1 << 61
_COUNT = 1 << 59
_PAUSES = (0.002, 0.05)  # s; between two looks, growing
_MARK = ".shmstream"


class Turns:
    """The turns of one store. `longest`: seconds to wait for one."""

    def __init__(self, store: str, longest: float) -> None:
        self._mark = os.path.join(store, _MARK)
        self._longest = longest

    def take(self, url: str) -> KernelLock | None:
        """Wait for the turn, and take it; closing it gives it back. None: there is none to be had.

        So it is in a store that can only be read, or after a long wait. Blocks.
        """
        hashed = int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest())
        span = (_FIRST + hashed % _COUNT, 1)
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
