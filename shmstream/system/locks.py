"""Kernel locks: they tell whether a writer or a reader is alive, because they die with it.

Process ids never decide whether a writer or a reader is alive. A process that writes a region of
the control block holds a kernel lock on exactly those bytes: the writer on the header, a reader on
its slot. The kernel frees the lock when the process ends, however it ends, and neither pid reuse
nor pid namespaces matter. The same kind of lock on the partial file keeps a second writer away
from a path.

The locks are open-file-description locks (`F_OFD_SETLK`). Unlike classic POSIX locks they belong
to one open file, so two threads of one process exclude each other, and closing another descriptor
of the file loses nothing. Unlike `flock` they cover ranges, and a process can test them
(`F_OFD_GETLK`) without taking them. So a reader that checks the writer's lock hinders no other
process, even if it is stopped during the check.

A forked child closes the locks that it inherited; see `process`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import time
from collections.abc import Callable

from shmstream.system import process
from shmstream.system.files import open_file

if not hasattr(fcntl, "F_OFD_SETLK"):  # pragma: no cover
    raise ImportError("shmstream needs open-file-description locks: Linux 3.15 or later")

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid

_GET_GENERATION = 0x80087601  # FS_IOC_GETVERSION

_NO_LOCKS = (errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_FREED = 1.0  # s; a lock must be freed within that time after its holder is gone

WHOLE_FILE = (0, 0)
"""The range of a lock on all bytes of a file, however long it grows."""


class KernelLock:
    """Locks on byte ranges of one open file, freed by the kernel when their process ends.

    The object owns `fd`, which must be open for writing. A range is `(start, length)` in bytes and
    may lie beyond the end of the file. No method blocks.
    """

    fd: int = -1

    def __init__(self, path: str, flags: int = 0) -> None:
        with process.fork_lock:
            self.fd = open_file(path, os.O_RDWR | flags)
            process.track(self)

    @classmethod
    def reopen(cls, fd: int) -> KernelLock:
        """A lock on the file of `fd`, through a descriptor that is opened anew.

        `mmap` keeps a duplicate of its descriptor, and in a forked child the duplicate would keep a
        lock alive. A newly opened file shares its locks with no other descriptor.
        """
        lock = cls.__new__(cls)
        lock.fd = -1
        with process.fork_lock:
            lock.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
            process.track(lock)
        return lock

    def try_acquire(self, span: tuple[int, int]) -> bool:
        """Lock `span`; False if another open file holds a lock on any byte of it."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, *span, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def release(self, span: tuple[int, int]) -> None:
        """Unlock `span`."""
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, *span, 0))

    def is_held_elsewhere(self, span: tuple[int, int]) -> bool:
        """Whether another open file holds a lock on any byte of `span`; takes no lock."""
        return is_held(self.fd, span)

    def is_at(self, path: str, facts: os.stat_result | None = None) -> bool:
        """Whether `path` still names this file. Check it after locking a file, before using it.

        `facts`: what `os.fstat` tells of the file, if the caller has asked.
        """
        try:
            there = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, facts or os.fstat(self.fd))

    def close(self) -> None:
        """Close the descriptor, which frees every range. Idempotent."""
        with process.fork_lock:
            if self.fd >= 0:
                fd, self.fd = self.fd, -1
                os.close(fd)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter ends, the kernel closes the descriptor, and `fork_lock` may be held
        # for ever by a thread that was stopped. At the very end a module has lost its names.
        if not is_finalizing():
            self.close()

    def __repr__(self) -> str:
        return f"<KernelLock fd={self.fd}>"


def is_held(fd: int, span: tuple[int, int]) -> bool:
    """Whether an open file other than that of `fd` holds a byte of `span`; takes no lock."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, *span, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def trouble_with_locks(path: str) -> str | None:
    """What is wrong with locks on the file at `path`, to follow "its file system"; or None.

    Some file systems have no locks, and some grant every lock to every process. A file system in
    user space that keeps locks itself may never free them: the kernel tells it when the holder of a
    classic lock is gone, but not when the holder of one of these locks is gone.

    Takes milliseconds; a second in the last case.
    """
    holder, other = KernelLock(path), KernelLock(path)
    span = (int.from_bytes(os.urandom(7)), 1)  # no other process tries that byte
    try:
        works = holder.try_acquire(span) and other.is_held_elsewhere(span)
        if not works or other.try_acquire(span):
            return "grants one lock to two holders"
        holder.close()
        deadline = time.monotonic() + _FREED
        while not other.try_acquire(span):
            if time.monotonic() > deadline:
                return "keeps a lock whose holder is gone"
            time.sleep(0.001)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return f"has no working locks ({error.strerror})"
    finally:
        holder.close()
        other.close()
    return None


def file_identity(fd: int) -> tuple[int, int, int]:
    """Device, inode and the inode's generation: an inode number may be used again at once.

    The generation is 0 on file systems that cannot tell it; these, such as tmpfs, never use a
    number again.
    """
    facts = os.fstat(fd)
    try:
        [generation] = struct.unpack_from("I", fcntl.ioctl(fd, _GET_GENERATION, bytes(8)))
    except OSError:
        generation = 0
    return facts.st_dev, facts.st_ino, generation
