"""Flight permits: at most so many flights of one store at a time, counted over all its processes.

A permit is a kernel lock on one byte of the store's mark, far beyond its end. The kernel frees the
lock when its process ends, however it ends, so that no permit is ever lost and nobody has to count.
"""

from __future__ import annotations

import os

from shmstream.storage.layout import PERMITS, Layout
from shmstream.system.locks import KernelLock


def take_permit(layout: Layout, limit: int) -> KernelLock | None:
    """Take one of the `limit` permits of this store; None if all are taken. Never blocks.

    Closing the lock gives the permit back.
    """
    permit = KernelLock(layout.mark)
    start = int.from_bytes(os.urandom(4)) % max(limit, 1)  # else all would try the same bytes first
    for index in range(limit):
        if permit.try_acquire((PERMITS + (start + index) % limit, 1)):
            return permit
    permit.close()
    return None
