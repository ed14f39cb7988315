"""The partial file: what a writer appends to until it is the blob, with what may happen to it.

Other programs can truncate, replace or remove a file at any time. Its length is therefore compared
with what was written before every write, and its name before it becomes the final one, so that
what is published is what was appended (I2), or an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmstream.errors import DamagedPartial, StreamExists, naming_shortages
from shmstream.system.locks import WHOLE_FILE, KernelLock, file_identity

if TYPE_CHECKING:
    from typing_extensions import Buffer


_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate  # musl has but the latter
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
REAPER = (0, 1)  # what a reaper locks: no writer is alive then, and it hides none's death


class PartialFile:
    """The file beside `path`, locked for this writer; `size` bytes were appended to it."""

    def __init__(self, lock: KernelLock, name: str, path: str, size: int = 0) -> None:
        """Own `lock`, which has the descriptor to write to; `size` bytes are there already."""
        self._lock = lock
        self._name = name
        self._final = path
        self.fd = lock.fd
        self.path = partial_path(path)
        self.size = size

    def append(self, data: Buffer, count: int) -> None:
        """Write all `count` bytes of `data`.

        Raises:
            DamagedPartial: somebody else changed the file.
            OutOfResources: the disk is full.
            OSError: it cannot be written to.
            TypeError: `data` is not contiguous; nothing was written.
        """
        try:
            self._check()
            written = os.write(self.fd, data)
            if written < count:
                with memoryview(data) as whole, whole.cast("B") as view:
                    while written < count:
                        written += os.write(self.fd, view[written:])
        except BufferError as error:
            raise TypeError("data is one contiguous buffer; this one has gaps") from error
        except OSError:
            with naming_shortages(self._name, os.path.dirname(self.path)):
                raise
        self.size += count

    def receive(self, move: Callable[[int, int], int], limit: int) -> int:
        """Have `move(descriptor, limit)` write at the file's position; how many bytes it has.

        Raises:
            DamagedPartial: somebody else changed the file.
            OutOfResources: the disk is full.
            OSError: it cannot be written to; or whatever else `move` raises.
        """
        self._check()
        try:
            count = move(self.fd, limit)
        except OSError:
            with naming_shortages(self._name, os.path.dirname(self.path)):
                raise
        self.size += count
        return count

    def _check(self) -> None:
        """Go to the end of the file, which is where we left it."""
        if os.lseek(self.fd, 0, os.SEEK_END) != self.size:
            raise self._damaged(f"was truncated or written to (it had {self.size} bytes)")

    def reserve(self, size: int) -> None:
        """Have the space for all `size` bytes of the blob.

        Raises:
            OutOfResources: the disk has no such space.
        """
        with naming_shortages(self._name, os.path.dirname(self.path)):
            reserve(self.fd, size)

    def truncate(self, size: int) -> None:
        """Keep the first `size` bytes and go on from there.

        Raises:
            DamagedPartial: there are not so many.
        """
        there = os.fstat(self.fd).st_size
        if there < size:
            raise self._damaged(f"is shorter than {size} bytes")
        if there > size:  # else the space that was reserved would go, too
            os.ftruncate(self.fd, size)
        self.size = size

    def trim(self) -> int:
        """Give back the space that was reserved beyond the file's end; how many bytes it has."""
        there = os.fstat(self.fd).st_size
        os.ftruncate(self.fd, there)
        return there

    def move(self, *, durable: bool) -> None:
        """Give it its final name, replacing what has it; after that, `unlink` does nothing.

        With `durable` the bytes, then the name, are on the disk when this returns.

        Raises:
            DamagedPartial: it is not what was appended, or not where it was.
            OSError: the disk failed.
        """
        if os.fstat(self.fd).st_size != self.size or not self._lock.is_at(self.path):
            raise self._damaged("was truncated, replaced or removed")
        os.utime(self.fd)  # it is the most recently used of its store
        if durable:
            os.fdatasync(self.fd)
        os.rename(self.path, self._final)
        if durable:
            sync_folder(os.path.dirname(self.path))

    def unlink(self) -> None:
        """Remove it, if it is still at its path."""
        if self._lock.is_at(self.path):
            os.unlink(self.path)

    def close(self) -> None:
        """Close and unlock it. Idempotent."""
        self._lock.close()

    def _damaged(self, how: str) -> DamagedPartial:
        return DamagedPartial(self._name, self.size, self.path, f"{how} by somebody else")


def sync_folder(path: str) -> None:
    """Have the names in a folder on the disk."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# Claiming and removing the file.


def partial_path(path: str) -> str:
    """The partial file of the blob that will be at `path`."""
    return path + ".shmstream-partial"


def claim_partial(path: str, name: str, *, adopt: bool = False) -> KernelLock:
    """Make the partial file at `path` anew and lock it; the lock's descriptor writes to it.

    What a dead writer left there is removed; or with `adopt` it is taken as it is.

    Raises:
        StreamExists: a live writer holds it.
        OSError: the folder cannot be written to, or something that is no file is there.
    """
    while True:
        try:
            lock = KernelLock(path, os.O_CREAT | (0 if adopt else os.O_EXCL))
        except FileExistsError:
            if not remove_partial(path) and is_written(path):
                raise StreamExists(name, path, "another writer") from None
            continue
        if lock.try_acquire(WHOLE_FILE) and lock.is_at(path):
            return lock
        lock.close()
        if adopt and is_written(path):
            raise StreamExists(name, path, "another writer")


def reserve(fd: int, size: int) -> None:
    """Reserve the space for `size` bytes in a file, which stays as long as it is.

    A full disk is found before the first byte, and writing becomes about a tenth cheaper, since
    no block has to be found for each write. File systems that cannot are left alone.

    Raises:
        OSError: there is no such space.
    """
    while _fallocate(fd, _KEEP_SIZE, 0, size) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def remove_partial(path: str, only: tuple[int, int, int] | None = None) -> bool:
    """Unlink a partial file that nobody writes; False if somebody does.

    With `only` (see `file_identity`), a file that is not that one is left alone.
    """
    try:
        lock = KernelLock(path)
    except FileNotFoundError:
        return True
    try:
        if only not in (None, file_identity(lock.fd)):
            return True
        if not lock.try_acquire(REAPER):
            return False
        if lock.is_at(path):
            os.unlink(path)
        return True
    finally:
        lock.close()


def is_written(path: str) -> bool:
    """Whether the partial file at `path` has a live writer."""
    try:
        lock = KernelLock(path)
    except FileNotFoundError:
        return False
    try:
        return lock.is_held_elsewhere((1, 0))
    finally:
        lock.close()
