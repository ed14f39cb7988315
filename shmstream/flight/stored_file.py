"""`StoredFile`: a reader of a complete blob, with the same methods as a reader of one in flight.

Its position is its own, not the kernel's: every read says where it begins. So a process and the
children that it has forked, or several threads, each with a reader of their own over one
descriptor, do not move each other's position.

Libraries in C ask for the descriptor and read at the kernel's position, as `numpy.fromfile` does.
A process and its forked children share that position as long as they share the open file. So a
child that asks for the descriptor first opens the file anew, under the same number.
"""

from __future__ import annotations

import io
import operator
import os
from typing import TYPE_CHECKING

from shmstream.stream.growing_file import View
from shmstream.system.buffers import octets
from shmstream.system.copying import Mover
from shmstream.system.locks import file_identity

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SPAN = 4 << 20  # bytes; what `move` moves at most


class StoredFile(io.RawIOBase):
    """Reads the file `fd`, which it owns. No method blocks for more than the disk."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._opener = os.getpid()  # the process whose alone the kernel's position is
        self.position: int = 0

    is_complete = True

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        self._check_open()
        return os.fstat(self._fd).st_size

    published = size
    """Bytes that can be read: all."""

    @property
    def identity(self) -> tuple[int, int, int]:
        """Which file it is: see `file_identity`."""
        self._check_open()
        return file_identity(self._fd)

    def view(self) -> View:
        """All of it is there."""
        return View(self.size, self.size, is_complete=True, fd=self._fd)

    def wait(self, want: int = 0) -> int:  # noqa: ARG002
        """All bytes are published: how many those are."""
        return self.size

    def duplicate(self) -> int:
        """Another descriptor of the file; the caller closes it."""
        self._check_open()
        return os.dup(self._fd)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def readinto1(self, buffer: Buffer, /) -> int:
        """Read once; how many bytes, 0 at the end."""
        self._check_open()
        with octets(buffer) as view:
            count = os.preadv(self._fd, [view], self.position)
        self.position += count
        return count

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer`; how many bytes, fewer only at the end."""
        with octets(buffer) as view:
            filled = 0  # one call of the kernel reads 2 GiB at most
            while filled < len(view) and (count := self.readinto1(view[filled:])):
                filled += count
            return filled

    def read(self, size: int = -1, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end; -1: the rest."""
        if size < 0:
            size = max(self.size - self.position, 0)
        data = self.read1(size)
        while len(data) < size and (more := self.read1(size - len(data))):
            data += more
        return data

    def read1(self, size: int, /) -> bytes:
        """At most `size` bytes; b"" at the end."""
        self._check_open()
        data = os.pread(self._fd, size, self.position)
        self.position += len(data)
        return data

    def pread(self, count: int, offset: int) -> bytes:
        """Bytes of the file; the position stays."""
        self._check_open()
        return os.pread(self._fd, count, offset)

    def move(self, mover: Mover, /) -> int:
        """Move some of what is left; how many bytes, 0 at the end. Blocks for the destination."""
        self._check_open()
        count = mover.move(self._fd, self.position, _SPAN)
        self.position += count
        return count

    def tell(self) -> int:
        """Bytes from the beginning to what is read next."""
        self._check_open()
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; the new one.

        Raises:
            ValueError: it would be negative, or `whence` is not 0, 1 or 2.
        """
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        target = bases[whence] + operator.index(offset)
        if target < 0:
            raise ValueError(f"a position is not negative: {target}")
        self.position = target
        return target

    def fileno(self) -> int:
        """The descriptor, with the kernel's position where this reader's is."""
        self._check_open()
        if self._opener != os.getpid():
            self._open_anew()
        os.lseek(self._fd, self.position, os.SEEK_SET)
        return self._fd

    def _open_anew(self) -> None:
        """In a forked child: have a position in the kernel that the parent does not share."""
        fresh = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(fresh, self._fd, inheritable=False)
        finally:
            os.close(fresh)
        self._opener = os.getpid()

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ValueError("the blob was closed")

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)
        super().close()
