"""The partial file: the writer appends to it until it is the blob.

Other programs can truncate, replace or remove the file at any time. So the writer compares its
length with the number of bytes written before every write, and checks its name before it gives it
the final name. Either the published bytes are the appended bytes (I2), or there is an error.

The file of a resumable stream outlives its writer, and then nobody looks after it. So the writer
notes in the block when it changed the file last (`Changing`), and a successor compares:

    writer                                    successor, or reaper
    1 store the time in `writing`             the file's time is `changed`: only writers had it
    2 change the file                         else a writer died between 2 and 3, if the time is
    3 store the file's time in `changed`        that of `writing`, within a second
    4 store 0 in `writing`                    else another program has written to the file

The time is `st_ctime`, because every program may set `st_mtime` to what it was.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from shmstream.errors import DamagedPartial, StreamExists, naming_shortages_beside
from shmstream.stream.writeback import Writeback
from shmstream.system.locks import WHOLE_FILE, KernelLock, file_identity

if TYPE_CHECKING:
    from typing_extensions import Buffer


_SMALL, _MUCH = 64 << 10, 64 << 20  # bytes; of a blob, and of free disk space
_PATIENCE = 1.0  # s; so long a process waits for a reaper
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate  # musl has only the second
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
REAPER = (0, 1)  # a reaper locks only byte 0: the free bytes after it still show a dead writer
_TICK = 20_000_000  # ns; the kernel's clock for files is coarser than that of processes
_CHANGE = 1_000_000_000  # ns; a change begins in less, after its time was stored in `writing`


class Noting(Protocol):
    """What of a control block notes the changes of its file."""

    def change_begins(self, when: int) -> None:
        """Note that it is changed from now on, unless another program has cut the block off."""

    def change_ended(self, changed: int) -> None:
        """Note likewise when it was changed last, and that no change is in progress."""

    @property
    def changed(self) -> int:
        """When it was changed last."""

    @property
    def writing(self) -> int:
        """When the change in progress began; 0 between changes."""


class Changing:
    """Around each change of the partial file of `lock`: notes in `block` when it was changed."""

    def __init__(self, lock: KernelLock, block: Noting) -> None:
        self._lock = lock
        self._block = block

    def __enter__(self) -> None:
        self._block.change_begins(time.time_ns())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._block.change_ended(os.fstat(self._lock.fd).st_ctime_ns)


def is_untouched(fd: int, block: Noting) -> bool:
    """Whether only writers of the stream have changed the partial file `fd`, as far as is known.

    True if the writer noted nothing.
    """
    changed, began = os.fstat(fd).st_ctime_ns, block.writing
    if block.changed in (0, changed):
        return True
    return began > 0 and -_TICK < changed - began < _CHANGE


LIFE = (1, 0)  # only a writer locks these


class Patience:
    """Waits for a reaper that has locked what this process wants to claim.

    A reaper needs microseconds, unless it was stopped (SIGSTOP) or the disk hangs.
    """

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self._until = time.monotonic() + _PATIENCE
        self._pause = 0.001

    def wait(self) -> None:
        """Wait a moment: a millisecond at first.

        Raises:
            StreamExists: a second has passed since the construction.
        """
        if time.monotonic() > self._until:
            reaper = "a process that has not finished removing what a dead writer left: is it "
            raise StreamExists(self._name, self._what, reaper + "stopped, or does its disk hang?")
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, 0.05)


class PartialFile:
    """The file beside `path`, locked for this writer; `size` bytes were appended to it."""

    def __init__(
        self,
        lock: KernelLock,
        name: str,
        path: str,
        size: int = 0,
        block: Noting | None = None,
        *,
        durable: bool = False,
    ) -> None:
        """Own `lock` and its descriptor, to which bytes are written; `size` bytes exist already.

        Changes of the file are noted in `block`, if it is given. `durable` is for `move`.
        """
        self._lock = lock
        self._block = block
        self._durable = durable
        self._writeback = Writeback(lock.fd, size) if durable else None
        # Without a block nothing is noted. To enter a lock runs no Python, unlike a `nullcontext`.
        self._changing: AbstractContextManager[object] = (
            threading.RLock() if block is None else Changing(lock, block)
        )
        self._name = name
        self._final = path
        self.path: str = partial_path(path)
        self.size: int = size

    @property
    def fd(self) -> int:
        """The descriptor; -1 once it is closed, because the kernel gives its number away again."""
        return self._lock.fd

    def append(self, data: Buffer, count: int) -> None:
        """Write all `count` bytes of `data`.

        Raises:
            DamagedPartial: another program changed the file.
            OutOfResources: the disk is full.
            OSError: the file cannot be written to.
            TypeError: `data` is not contiguous; nothing was written.
        """
        try:
            self._check()
            with self._changing:
                written = os.write(self._lock.fd, data)
                if written < count:
                    with memoryview(data) as whole, whole.cast("B") as view:
                        while written < count:
                            written += os.write(self._lock.fd, view[written:])
        except BufferError as error:
            raise TypeError("data is one contiguous buffer; this one has gaps") from error
        except OSError:
            with naming_shortages_beside(self._name, self.path):
                raise
        self._grown(count)

    def receive(self, move: Callable[[int, int], int], limit: int) -> int:
        """Have `move(descriptor, limit)` write at the file's position; the bytes that it wrote.

        Raises:
            DamagedPartial: another program changed the file.
            OutOfResources: the disk is full.
            OSError: the file cannot be written to, or `move` raised it.
        """
        self._check()
        try:
            with self._changing:
                count = move(self._lock.fd, limit)
        except OSError:
            with naming_shortages_beside(self._name, self.path):
                raise
        self._grown(count)
        return count

    def _grown(self, count: int) -> None:
        self.size += count
        if self._writeback is not None:
            self._writeback.update(self.size)

    def _check(self) -> None:
        """Go to the end of the file, which must be where the last write left it."""
        if os.lseek(self._lock.fd, 0, os.SEEK_END) != self.size:
            raise self._damaged(f"was truncated or written to (it had {self.size} bytes)")

    def reserve(self, size: int) -> None:
        """Reserve the disk space for all `size` bytes of the blob.

        A small blob goes without, if the disk has much: the first write takes all that it needs.

        Raises:
            OutOfResources: the disk has less free space.
        """
        if size <= _SMALL and _free(self.fd) >= _MUCH:
            return
        with naming_shortages_beside(self._name, self.path), self._changing:
            reserve(self.fd, size)

    def truncate(self, size: int) -> None:
        """Keep the first `size` bytes; the next write appends to them.

        Raises:
            DamagedPartial: the file is shorter.
        """
        facts = os.fstat(self.fd)
        if facts.st_size < size:
            raise self._damaged(f"is shorter than {size} bytes")
        if facts.st_size > size:
            with self._changing:
                os.ftruncate(self.fd, size)
        elif self._block is not None:  # to truncate it would give reserved space back
            self._block.change_ended(facts.st_ctime_ns)
        self.size = size

    def trim(self) -> int:
        """Give back the space that is reserved beyond the file's end; the file's size in bytes."""
        there = os.fstat(self.fd).st_size
        with self._changing:
            os.ftruncate(self.fd, there)
        return there

    def move(self) -> None:
        """Rename the file to the final name, replacing an older file; then `unlink` does nothing.

        If it is durable, first the bytes and then the name are on the disk at the end. Nothing
        fails after the rename: from then on the blob is complete, and readers must be told so.

        Raises:
            DamagedPartial: the file has another size, or another path, than this writer gave it.
            OSError: the disk failed.
        """
        facts = os.fstat(self.fd)
        if facts.st_size != self.size or not self._lock.is_at(self.path, facts):
            raise self._damaged("was truncated, replaced or removed")
        with self._changing:
            os.utime(self.fd)  # now it is the most recently used blob of its store
        if not self._durable:
            os.rename(self.path, self._final)
            return
        os.fdatasync(self.fd)
        try:
            folder = open_folder(os.path.dirname(self.path))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            os.rename(self.path, self._final)
            _libc.syncfs(self.fd)  # the whole file system, by a descriptor that is open already
            return
        try:
            os.rename(self.path, self._final)
            with suppress(OSError):  # the blob is complete, and only a crash could lose its name
                os.fsync(folder)
        finally:
            os.close(folder)

    @property
    def is_at_its_path(self) -> bool:
        """Whether its path still leads to it."""
        return self._lock.is_at(self.path)

    def unlink(self) -> None:
        """Remove the file, if it is still at its path."""
        if self.is_at_its_path:
            os.unlink(self.path)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    def close(self) -> None:
        """Close and unlock the file. Idempotent."""
        if self._writeback is not None:
            self._writeback.close()
        self._lock.close()

    def _damaged(self, how: str) -> DamagedPartial:
        return DamagedPartial(self._name, self.size, self.path, f"{how} by somebody else")


def open_folder(path: str) -> int:
    """A descriptor of a folder, for `os.fsync`; the caller closes it."""
    return os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_folder(path: str) -> None:
    """Write the names in a folder to the disk; returns when they are there."""
    fd = open_folder(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# Claiming and removing the file.


def partial_path(path: str) -> str:
    """The path of the partial file of the blob that will be at `path`."""
    return path + ".shmstream-partial"


def claim_partial(path: str, name: str, *, adopt: bool = False) -> KernelLock:
    """Make a new partial file at `path` and lock it; the lock's descriptor is open for writing.

    A file that a dead writer left there is removed first; with `adopt` it is kept and locked.

    Raises:
        StreamExists: a live writer holds it; or a process has been removing it for a second.
        OSError: the folder cannot be written to, or the path is not a regular file.
    """
    patience = Patience(name, path)
    while True:
        try:
            lock = KernelLock(path, os.O_CREAT | (0 if adopt else os.O_EXCL))
        except FileExistsError:
            if not remove_partial(path):
                if is_written(path):
                    raise StreamExists(name, path, "another writer") from None
                patience.wait()
            continue
        is_locked = lock.try_acquire(WHOLE_FILE)
        if is_locked and lock.is_at(path):
            return lock
        lock.close()
        if adopt and is_written(path):
            raise StreamExists(name, path, "another writer")
        if not is_locked:
            patience.wait()


def reserve(fd: int, size: int) -> None:
    """Reserve disk space for `size` bytes in a file; the file's length does not change.

    So a full disk is found before the first byte, and writing costs about a tenth less, because no
    block has to be found for each write. On file systems that cannot reserve, this does nothing.

    Raises:
        OSError: the disk has less free space.
    """
    while _fallocate(fd, _KEEP_SIZE, 0, size) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _free(fd: int) -> int:
    """Bytes that this user can write to the disk of a file; 0 if the file system does not tell."""
    try:
        disk = os.fstatvfs(fd)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


def remove_partial(path: str, only: tuple[int, int, int] | None = None) -> bool:
    """Unlink a partial file that has no live writer; False if it has one.

    With `only`, an identity (see `file_identity`), any other file is left alone.
    """
    try:
        lock = KernelLock(path)
    except (FileNotFoundError, NotADirectoryError):
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
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return lock.is_held_elsewhere(LIFE)
    finally:
        lock.close()
