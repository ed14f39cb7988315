"""`GrowingFile`: the reading methods of a file to which another process still appends.

A subclass tells how many bytes may be read (`_readable`) and waits for more; this class reads them
from the descriptor, keeps the position, seeks, and copies. It never maps the file: if another
program truncates it, a read is short, which is an error; a mapped file would kill the process with
SIGBUS.
"""

from __future__ import annotations

import io
import operator
import os
from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Self

from shmstream.errors import DamagedPartial
from shmstream.system.buffers import lines_of, octets
from shmstream.system.copying import Destination, Mover
from shmstream.system.refusals import ReadOnly

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER = 64 * 1024  # bytes; the most that one step of an iteration yields
_NOTED = 64 * 1024  # bytes from one call of `_note` to the next one
_SPAN = 4 << 20  # bytes; the most that `copy` moves before it notes its position


class View(NamedTuple):
    """How many bytes of a blob are published, and in which file; loaded in the right order.

    `published` is the number of bytes that can be read from the descriptor `fd`. `size` is None
    while the writer does not know it. If `is_complete`, nothing of the view changes any more. `fd`
    is -1 while nothing is published, because until then the writer may take another file. The
    descriptor belongs to the reader, which may close it when the view is asked for again.
    """

    published: int = 0
    size: int | None = None
    is_complete: bool = False
    fd: int = -1


class GrowingFile(ReadOnly, io.RawIOBase):
    """A readable, seekable binary file that is still arriving. One thread at a time may use it."""

    _instead = "its writer alone appends to it, a `BlobStreamer`"
    _fd = -1
    _noted = 0  # the position that `_note` was last called with
    position: int
    """Bytes from the beginning of the blob to what is read next; the same as `tell()`."""

    def fileno(self) -> int:
        """Raises:
        UnsupportedOperation: always: reading the descriptor may end too early.
        """
        raise no_descriptor()

    # What a subclass tells.

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Bytes of the blob; None until the writer knows the size."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raises:
        ValueError: it was closed.
        """

    @abstractmethod
    def _readable(self, want: int) -> int:
        """Wait until `want` bytes or the end are published; how many are: see `Tail.readable`."""

    def _note(self, position: int) -> None:
        """Called with the new position after a read, when it has changed by some 64 KiB."""

    @abstractmethod
    def _too_short(self) -> DamagedPartial:
        """The error for a file that ends before its published bytes do."""

    # Reading.

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer`, waiting for all its bytes; fewer only at the end. How many were read.

        A file does the same, so programs that read files take fewer bytes for the end. Those that
        want the bytes that are there use `readinto1`; so they get all bytes of a broken stream.
        After an error the position is where it was.

        Raises:
            StreamBroken: it is `BlobAborted`, `WriterDied`, `WriterStalled` or `DamagedPartial`.
        """
        with octets(buffer) as view:
            start = self.position
            end = start + view.nbytes
            try:
                while self.position < end and (ahead := self._readable(end) - self.position) > 0:
                    filled = self.position - start
                    self._readinto(view[filled : filled + ahead])
            except BaseException:
                self.position = start
                raise
            return self.position - start

    def readinto1(self, buffer: Buffer, /) -> int:
        """Read the published bytes into `buffer`, waiting for at least one; 0 at the end.

        Raises:
            StreamBroken: as `readinto`.
        """
        with octets(buffer) as view:
            if not view.nbytes:
                return 0
            count = self._readable(self.position + 1) - self.position
            return self._readinto(view[:count]) if count > 0 else 0

    def _readinto(self, view: memoryview) -> int:
        return self._advance(os.preadv(self._fd, [view], self.position))

    def read(self, size: int | None = -1, /) -> bytes:
        """Exactly `size` bytes, waiting for them all; fewer only at the end. None or -1: the rest.

        Of a broken stream, fewer bytes are the last ones that were published.

        Raises:
            StreamBroken: as `readinto`, if there are no bytes before the break.
        """
        if size is None or size < 0:
            return self.readall()
        if size == 0:
            self._check_open()
            return b""
        start = self.position
        count = min(self._readable(start + size) - start, size)
        data = self._pread(count)
        try:
            while len(data) < count:
                data += self._pread(count - len(data))
        except DamagedPartial:
            if not data:
                raise  # if there is data, the next call raises it
        return data

    def read1(self, size: int | None = -1, /) -> bytes:
        """Published bytes, waiting for one, at most `size` of them (or 64 KiB); b"" at the end.

        Raises:
            StreamBroken: as `readinto`.
        """
        limit = _BUFFER if size is None or size < 0 else size
        if limit == 0:
            return b""
        return self._pread(min(self._readable(self.position + 1) - self.position, limit))

    def readall(self) -> bytes:
        """All bytes from the position to the end, waiting for it.

        Raises:
            StreamBroken: as `readinto`; the position is where it was before the call.
        """
        start = self.position
        try:
            return b"".join(self)
        except BaseException:
            self.position = start
            raise

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """The lines from the position to the end, as a file has them; waits for all of them.

        With a `hint` above 0, it stops after the line with which they have more bytes than that.
        """
        return lines_of(self, hint)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        data = self.read1()
        if not data:
            raise StopIteration
        return data

    def copy(self, destination: Destination, /) -> int:
        """Write all bytes from the position to the end to `destination`; how many those are.

        `destination` is a descriptor, a blocking socket or a binary file object. The kernel moves
        the bytes to files, sockets and pipes (`copy_file_range`, `sendfile`, `splice`) where it
        can. Bytes are written as they arrive. Blocks for the writer and for the destination.

        Raises:
            StreamBroken: as `readinto`; bytes that were copied stay copied, and `position` tells
                how many.
            TimeoutError: a socket with a timeout took no byte in that time.
            OSError: an error of the destination.
        """
        mover = Mover(destination)
        start = self.position
        try:
            while self.move(mover):
                pass
        finally:
            mover.finish()
        return self.position - start

    def move(self, mover: Mover, /) -> int:
        """One step of `copy`: move published bytes, waiting for one; how many, 0 at the end.

        Raises:
            ShmstreamError: as `copy`.
        """
        ahead = self._readable(self.position + 1) - self.position
        if ahead <= 0:
            return 0
        return self._advance(mover.move(self._fd, self.position, min(ahead, _SPAN)))

    def pread(self, count: int, offset: int) -> bytes:
        """Bytes of the file, as they are there now; the position stays. Never waits."""
        self._check_open()
        return os.pread(self._fd, count, offset)

    def _pread(self, count: int) -> bytes:
        if count <= 0:
            return b""
        data = os.pread(self._fd, count, self.position)
        self._advance(len(data))
        return data

    def _advance(self, count: int) -> int:
        """Note that `count` bytes were read; `count` is 0 only if the file was truncated."""
        if count == 0:
            raise self._too_short()
        self.position += count
        if abs(self.position - self._noted) >= _NOTED:
            self._noted = self.position
            self._note(self.position)
        return count

    # Seeking.

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning of the blob to the next byte to read."""
        self._check_open()
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, also ahead of the tail, where reading then waits; the new position.

        With `SEEK_END` this waits until the size is known.

        Raises:
            StreamBroken: as `readinto`, while waiting for the size.
            ValueError: the position would be negative.
        """
        self._check_open()
        offset = operator.index(offset)
        if whence == os.SEEK_SET:
            target = offset
        elif whence == os.SEEK_CUR:
            target = self.position + offset
        elif whence == os.SEEK_END:
            target = self._known_size() + offset
        else:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if target < 0:
            raise ValueError(f"a position is not negative: {target}")
        self.position = target
        return target

    def _known_size(self) -> int:
        here = self.position
        try:
            while (size := self.size) is None:
                self.position = self._readable(self.position + 1)
            return size
        finally:
            self.position = here


def no_descriptor() -> io.UnsupportedOperation:
    """The error for a program that wants to read the descriptor of a blob in flight."""
    return io.UnsupportedOperation("a blob in flight has no descriptor: read it, or `copy`")
