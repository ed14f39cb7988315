"""`place_file`: gives a complete blob a second name elsewhere, without copying it if that can be.

    reflink      the new file shares the blocks of the blob until one is changed (btrfs, xfs)
    hard link    the new name leads to the very file of the blob: do not write to it
    copy         the kernel copies: the name is on another file system

The name appears with the whole blob or not at all, and replaces an older file of that name.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress

_FICLONE = 0x40049409
_SPAN = 64 << 20  # bytes; what is copied at one time
# No reflink, or no hard link, between these two files.
_NOT_HERE = frozenset(
    (
        errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM,
        errno.EMLINK, errno.EBADF, errno.ENOENT, errno.ETXTBSY, errno.EACCES,
    )
)  # fmt: skip


def place_file(fd: int, path: str | os.PathLike[str]) -> str:
    """Have `path` lead to the bytes of the file `fd`: `reflink`, `hard link` or `copy`.

    A symbolic link at `path` stays, and what it leads to is replaced.

    Raises:
        OSError: `path` cannot be written to, for example because it is a folder.
    """
    path = os.path.realpath(os.path.expanduser(path))
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    temporary = os.path.join(os.path.dirname(path), f".shmstream-{os.urandom(8).hex()}")
    ways: tuple[tuple[str, Callable[[int, str], None]], ...] = (
        ("reflink", _clone), ("hard link", _link), ("copy", _copy),
    )  # fmt: skip
    for how, way in ways:
        try:
            way(fd, temporary)
            os.rename(temporary, path)
        except OSError as error:
            if how == "copy" or error.errno not in _NOT_HERE:
                raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
        else:
            return how
        finally:
            # Also after a success: if both names lead to one file, `rename` does nothing.
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    raise AssertionError("a copy succeeds or raises")


def _make(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _clone(fd: int, path: str) -> None:
    fresh = _make(path)
    try:
        fcntl.ioctl(fresh, _FICLONE, fd)
    finally:
        os.close(fresh)


def _link(fd: int, path: str) -> None:
    # With a descriptor of a folder, `link` follows the name in /proc. Of a file that was evicted
    # meanwhile there is no name left, and so no link: ENOENT.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)


def _copy(fd: int, path: str) -> None:
    fresh = _make(path)
    try:
        offset = 0
        while count := os.sendfile(fresh, fd, offset, _SPAN):
            offset += count
    finally:
        os.close(fresh)
