"""Room for descriptors, made before they are needed: growing their table may take 20 ms.

The kernel's table of a process begins with 64 places. When it is full, whoever opens one more waits
for the table to grow; and where there are threads, which share it, that is until every processor
has let go of the old one (`synchronize_rcu`: 11 and 20 ms were seen). A server that is asked by
thirty clients at once gets there in the middle of their first requests. The table never shrinks,
but a forked child begins with a small one.
"""

from __future__ import annotations

import fcntl
import os
import resource
from contextlib import suppress
from functools import cache

from shmstream.system import process

_ROOM = 4096  # places, of 8 bytes; growing from there on is rare


@cache
def make_room() -> None:
    """Have room for as many as this process may open, up to 4,096; in its forks, too.

    Takes microseconds, or 20 ms if there are other threads. Once in a process.
    """
    _grow()
    process.after_fork(_grow)


def _grow() -> None:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = (_ROOM if allowed == resource.RLIM_INFINITY else min(allowed, _ROOM)) - 1
    with suppress(OSError):  # that place is taken, or there is no memory: it grows when it must
        some = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, last))
        finally:
            os.close(some)
