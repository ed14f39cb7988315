"""Opening files that other programs may have put there: no link is followed, and nothing blocks.

A FIFO would block its reader, a device may do anything, a file may be as large as the disk. So the
type is looked at first, and what is read as a whole is bounded.
"""

from __future__ import annotations

import errno
import os
import stat

_HOLES = 1 << 30  # bytes; so many holes cost a second to read


def open_file(path: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """A descriptor of the regular file at `path`; the caller closes it.

    A file that is made in a folder which a group shares is that group's, too.

    Raises:
        OSError: there is none, or it cannot be opened. EINVAL: a FIFO, a device, or a folder lies
            there; ELOOP: a symbolic link; ENXIO: a socket.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        is_ours = facts.st_uid == os.geteuid() and not facts.st_mode & stat.S_IWGRP
        if flags & os.O_CREAT and is_ours and is_for_group(os.stat(os.path.dirname(path) or ".")):
            os.fchmod(fd, 0o660)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_for_group(facts: os.stat_result) -> bool:
    """Whether a folder is for all users of its group, and for no others: its mode is 2770.

    What is made there is of the same group. A sticky folder is not: there each user could remove
    only what it has made.
    """
    return stat.S_IMODE(facts.st_mode) & ~0o005 == 0o2770


def read_file(path: str, limit: int) -> bytes:
    """All bytes of the regular file at `path`, which has `limit` bytes at most.

    Raises:
        OSError: as `open_file`. EINVAL: it is larger.
    """
    fd = open_file(path)
    try:
        data = b""
        if (size := os.fstat(fd).st_size) <= limit:
            while len(data) <= limit and (more := os.read(fd, max(size - len(data), 0) + 1)):
                data += more
    finally:
        os.close(fd)
    if max(size, len(data)) > limit:
        raise OSError(errno.EINVAL, f"it is larger than {limit} bytes", path)
    return data


def is_hollow(fd: int) -> bool:
    """Whether more than 1 GiB of a file are holes. Such a file can seem larger than any disk.

    To read such a file may take for ever. A process that writes all that it receives makes no
    holes.
    """
    facts = os.fstat(fd)
    if facts.st_size - facts.st_blocks * 512 <= _HOLES:
        return False
    return os.lseek(fd, 0, os.SEEK_HOLE) < facts.st_size  # the file system may not tell the blocks
