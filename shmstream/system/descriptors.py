"""Makes room for descriptors before they are needed, because growing their table may take 20 ms.

The kernel's table of a process begins with 64 entries. If the table is full, the next call that
opens a file waits until it has grown. In a process with threads, which share the table, that lasts
until no processor uses the old table any more (`synchronize_rcu`: 11 and 20 ms were measured). A
server with thirty clients would wait during their first requests. The table never shrinks, but a
forked child begins with a small one.
"""

from __future__ import annotations

import fcntl
import os
import resource
from contextlib import suppress
from functools import cache

from shmstream.system import process

_ROOM = 4096  # entries of 8 bytes; a process rarely needs more


@cache
def make_room() -> None:
    """Make room for all descriptors that this process may open, up to 4,096; also in its forks.

    Takes microseconds, or 20 ms if there are other threads. Only the first call does anything.
    """
    _grow()
    process.after_fork(_grow)


def _grow() -> None:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = (_ROOM if allowed == resource.RLIM_INFINITY else min(allowed, _ROOM)) - 1
    with suppress(OSError):  # that descriptor is in use, or memory is short: it grows later
        some = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, last))
        finally:
            os.close(some)
