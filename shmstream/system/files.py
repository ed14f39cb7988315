"""Opens files that other programs may have put there: no link is followed, and nothing blocks.

A FIFO would block its reader, a device may do anything, a file may be as large as the disk. So the
type is looked at first, and what is read as a whole is bounded.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO)
"""Errors of opening a file that is not there, or where something else lies."""
LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
"""Errors of a process or a disk that lacks something now, and may have it in a moment."""
UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO)
"""Errors of opening or reading a file that is there, and whose content nobody here can know."""
_STEP = 1 << 16  # bytes
_HOLES = 1 << 30  # bytes; so many holes cost a second to read


def says_none(error: OSError) -> bool:
    """Whether opening a file failed because there is none for this process: see `GONE`.

    So it is also with the file of another user. After any other error nothing is known of the file:
    this process lacks descriptors or memory now, or the disk fails. Then what was kept is not lost,
    and may not be treated as if it were.
    """
    return error.errno in GONE or isinstance(error, PermissionError)


def open_file(path: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """A descriptor of the regular file at `path`; the caller closes it.

    A file that is made in a folder which a group shares is that group's, too.

    Raises:
        OSError: there is none, or it cannot be opened. EINVAL: a FIFO, a device, or a folder lies
            there; ELOOP: a symbolic link; ENXIO: a socket.
    """
    return _open(path, flags, mode)[0]


def _open(path: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> tuple[int, os.stat_result]:
    """As `open_file`; also what `os.fstat` tells."""
    fd = os.open(path, flags | _SAFELY, mode)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        if flags & os.O_CREAT:
            _share(fd, facts, os.path.dirname(path) or ".")
    except BaseException:
        os.close(fd)
        raise
    return fd, facts


def _share(fd: int, facts: os.stat_result, folder: str) -> None:
    """Let the group use a file of ours that is made in its folder."""
    is_ours = facts.st_uid == os.geteuid() and not facts.st_mode & stat.S_IWGRP
    if is_ours and is_for_group(os.stat(folder)):
        os.fchmod(fd, 0o660)


def open_unnamed(folder: str) -> int:
    """A descriptor of a new file in `folder` that has no name; the caller closes it.

    As `open_file`, it is the group's if the folder is.

    Raises:
        OSError: it cannot be made. EOPNOTSUPP, EISDIR, EINVAL: this file system has no such files.
    """
    fd = os.open(folder, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, 0o600)
    try:
        _share(fd, os.fstat(fd), folder)
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
    return read_with_facts(path, limit)[0]


def read_with_facts(path: str, limit: int) -> tuple[bytes, os.stat_result]:
    """As `read_file`; also what `os.fstat` tells of the file."""
    fd = os.open(path, _SAFELY)  # as `_open`, without a frame: a check reads many records
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        size, data = facts.st_size, b""
        if size <= limit:
            data = os.read(fd, size + 1)
        if len(data) != size <= limit:  # it changes, or the kernel tells no size of it
            while len(data) <= limit and (more := os.read(fd, _STEP)):
                data += more
    finally:
        os.close(fd)
    if size > limit or len(data) > limit:
        raise OSError(errno.EINVAL, f"it is larger than {limit} bytes", path)
    return data, facts


def write_file(path: str, data: bytes, *, durable: bool = False) -> None:
    """Have a file at `path` with these bytes, whole or not at all; it replaces an older one.

    A process that is killed leaves the old file or the new one, and perhaps `<path>.<8 hex digits>`
    beside it. `durable`: the bytes are on the disk before their name is there.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    temporary = f"{path}.{os.urandom(4).hex()}"
    fd = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def is_hollow(fd: int) -> bool:
    """Whether more than 1 GiB of a file are holes. Such a file can seem larger than any disk.

    To read such a file may take for ever. A process that writes all that it receives makes no
    holes.
    """
    facts = os.fstat(fd)
    if facts.st_size - facts.st_blocks * 512 <= _HOLES:
        return False
    return os.lseek(fd, 0, os.SEEK_HOLE) < facts.st_size  # the file system may not tell the blocks
