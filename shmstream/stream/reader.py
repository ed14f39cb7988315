"""`InFlightCopier`: a reader's end of a stream. Attach, wait, read, seek, copy.

`waiter` decides how many bytes may be read, and waits for more. The copier then copies the bytes
from the file. It never maps the file: if another program truncates it, a read is short, which the
copier reports as an error; a mapped file would kill the process with SIGBUS.
"""

from __future__ import annotations

import io
import operator
import os
import sys
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from shmstream.errors import DamagedPartial, StreamClosed, WriterDied, naming_shortages
from shmstream.stream.control_block import TERMINAL, UNKNOWN, State
from shmstream.stream.partial import partial_path
from shmstream.stream.stream import Stream
from shmstream.stream.waiter import Tail
from shmstream.system.copying import Destination, Mover
from shmstream.system.process import register

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER = 64 * 1024  # bytes; the most that one step of an iteration yields
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


@dataclass(frozen=True)
class CopierStatistics:
    """A stream as this reader sees it; sizes in bytes. `waits` counts how often it slept."""

    name: str
    path: str
    state: State
    size: int | None
    published: int
    chunk_count: int
    position: int
    lag: int
    waits: int


class InFlightCopier(io.RawIOBase):
    """A readable, seekable binary file: the blob, while it is still arriving.

    Make one with `attach`, in any process of the same user, at any time from before the writer
    starts until it closes the stream. Use it as a context manager. Reading waits for bytes that
    have not arrived yet, also after `seek` ahead of the tail, and ends only where a committed blob
    ends (I7).

    - `for data in copier` yields bytes as they arrive (not lines).
    - `read(n)` waits for all n bytes, as a file would give them; so every program that reads files
      (`tarfile`, `pyarrow`, `pickle`, ...) can read a copier. `read1(n)` and `readinto1(b)` take
      the bytes that have arrived.
    - `copy(destination)` moves everything through the kernel.

    All published bytes can be read, even of a stream that was aborted or whose writer died; the
    error comes after them. An error leaves the position where it was, so reading again tries again.

    One thread at a time may use a copier; each further thread attaches a copier of its own. A
    forked child must attach for itself: there an inherited copier raises `StreamClosed`.
    """

    def __init__(
        self,
        stream: Stream,
        opened: tuple[int, tuple[int, int, int]],
        tail: Tail,
    ) -> None:
        """Internal: use `attach`."""
        self._stream = stream
        self._block = stream.block
        self._fd, self._identity = opened
        self._tail = tail
        self.position: int = 0
        """Bytes from the beginning of the blob to what is read next; the same as `tell()`."""
        self._closed: str | None = None
        self._is_settled = False
        self.name: str = stream.name
        self.path: str = stream.path
        register(self, reads=True)

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        timeout: float | None = None,
        stall_timeout: float | None = None,
        subscribes_late: bool = False,
    ) -> Self:
        """Join the stream of that name, at its beginning.

        Args:
            name: the writer's `BlobStreamer.name`.
            timeout: seconds to wait for a writer that is just starting; 5 when None.
            stall_timeout: seconds that a read waits without any progress of the writer before it
                raises `WriterStalled`; when None it waits for as long as the writer lives.
            subscribes_late: take a slot only when this reader has to wait. Until then the writer
                does not know of this reader, and `NoFreeSlot` and `OutOfResources` are raised by
                the method that waits.

        Raises:
            StreamNotFound: no such stream appeared in time.
            BlobAborted: it was aborted already; the error has the reason.
            WriterDied: its writer died, and its file is gone.
            NoFreeSlot: `max_subscribers` live readers are attached.
            ForeignSegment, DamagedSegment, DamagedPartial: the segment or the file is not what a
                writer of this user made.
            OutOfResources: descriptors or shared memory have run out.
        """
        with ExitStack() as undo:
            stream = Stream.attach(name, timeout)
            undo.callback(stream.close)
            with naming_shortages(name, "shared memory (/dev/shm)"):
                opened = _open_blob(stream)
            undo.callback(os.close, opened[0])
            tail = Tail(stream, stall_timeout, subscribes_late=subscribes_late)
            undo.callback(tail.close)
            copier = cls(stream, opened, tail)
            undo.pop_all()
        return copier

    # How far the stream is.

    @property
    def size(self) -> int | None:
        """Bytes of the blob; None until the writer knows the size."""
        return None if self._block.size == UNKNOWN else self._block.size

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        return self._block.published

    @property
    def chunk_count(self) -> int:
        """Chunks that can be read without waiting."""
        return self._block.chunk_count

    @property
    def state(self) -> State:
        """The state of the stream, as stored now."""
        return State(self._block.state)

    @property
    def is_complete(self) -> bool:
        """Whether the blob is committed."""
        return self._block.state == State.COMMITTED

    @property
    def identity(self) -> tuple[int, int, int]:
        """Which file is read: see `file_identity`."""
        return self._identity

    @property
    def metadata(self) -> bytes:
        """What the writer stored about the blob's source; empty if it stored nothing."""
        return self._block.metadata

    @property
    def is_orphaned(self) -> bool:
        """Whether the stream has not ended, and no live writer holds it at this moment."""
        self._check_open()
        return self._stream.is_orphaned() and self._block.state not in TERMINAL

    def is_same_stream(self, other: InFlightCopier) -> bool:
        """Whether both read the same stream, and not two streams of the same name."""
        return self._block.token == other._block.token

    def view(self) -> View:
        """How far the blob is now, without waiting."""
        self._check_open()
        state, published = self._tail.look()
        is_complete = state == State.COMMITTED
        if published and not self._is_settled:
            self._settle()
        return View(
            published,
            published if is_complete else self.size,
            is_complete,
            self._fd if published or is_complete else -1,
        )

    def duplicate(self) -> int:
        """Another descriptor of the file, to read published bytes; the caller closes it."""
        self._check_open()
        self._settle()
        return os.dup(self._fd)

    def stat(self) -> os.stat_result:
        """`os.fstat` of the file that this copier reads."""
        self._check_open()
        return os.fstat(self._fd)

    def wait(self, want: int = UNKNOWN) -> int:
        """Wait until `want` bytes are published, or the blob is complete; how many are published.

        Raises:
            StreamBroken: as `readinto`.
        """
        self._check_open()
        published, before = self._block.load_published(), -1
        while before < published < want:  # if no more came, the blob is complete
            self._tail.note(published)  # a reader that waits for more lags behind nothing
            before, published = published, self._ask(published, published + 1)
        return published

    def statistics(self) -> CopierStatistics:
        """How many bytes are published, and how many of them this reader has read."""
        published = self.published
        return CopierStatistics(
            name=self.name,
            path=self.path,
            state=self.state,
            size=self.size,
            published=published,
            chunk_count=self.chunk_count,
            position=self.position,
            lag=max(published - self.position, 0),
            waits=self._tail.waits,
        )

    def _readable(self, want: int) -> int:
        """Wait until `want` bytes or the end are published; how many are: see `Tail.readable`."""
        if self._closed is not None:
            raise StreamClosed(self.name, self._closed)
        readable = self._ask(self.position, want)
        if not self._is_settled:
            self._settle()
        return readable

    def _ask(self, position: int, want: int) -> int:
        try:
            return self._tail.readable(position, want)
        except (ValueError, OSError):  # another thread closed this copier: its memory is gone
            self._check_open()
            raise

    def _settle(self) -> None:
        """Open the writer's final choice of file: it may take another one until it publishes."""
        if not self._is_settled and self._block.published > 0:
            if self._identity != self._block.file:
                fd, self._identity = _open_blob(self._stream)
                os.dup2(fd, self._fd, inheritable=False)
                os.close(fd)
            self._is_settled = True

    # Reading.

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer`, waiting for all its bytes; fewer only at the end. How many were read.

        A file does the same, so programs that read files take fewer bytes for the end. Those that
        want the bytes that are there use `readinto1`.

        Raises:
            StreamBroken: it is `BlobAborted`, `WriterDied`, `WriterStalled` or `DamagedPartial`.
                The call before has returned the published bytes that were left.
        """
        with memoryview(buffer) as whole, whole.cast("B") as view:
            if not len(view):
                return 0
            start = self.position
            count = min(self._readable(start + len(view)) - start, len(view))
            filled = 0
            try:
                while filled < count:
                    filled += self._readinto(view[filled:count])
            except DamagedPartial:
                if not filled:
                    raise  # if there are bytes, the next call raises it
            return filled

    def readinto1(self, buffer: Buffer, /) -> int:
        """Read the published bytes into `buffer`, waiting for at least one; 0 at the end.

        Raises:
            StreamBroken: as `readinto`.
        """
        with memoryview(buffer) as whole, whole.cast("B") as view:
            if not len(view):
                return 0
            count = self._readable(self.position + 1) - self.position
            return self._readinto(view[:count]) if count > 0 else 0

    def _readinto(self, view: memoryview) -> int:
        return self._advance(os.preadv(self._fd, [view], self.position))

    def read(self, size: int | None = -1, /) -> bytes:
        """Exactly `size` bytes, waiting for them all; fewer only at the end. None or -1: the rest.

        Raises:
            StreamBroken: as `readinto`.
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

    def _pread(self, count: int) -> bytes:
        if count <= 0:
            return b""
        data = os.pread(self._fd, count, self.position)
        self._advance(len(data))
        return data

    def _advance(self, count: int) -> int:
        """Note that `count` bytes were read; `count` is 0 only if the file was truncated."""
        if count == 0:
            committed = self._block.state == State.COMMITTED
            path = self.path if committed else partial_path(self.path)
            raise DamagedPartial(
                self.name, self.position, path, f"is shorter than the {self.published} published"
            )
        self.position += count
        self._tail.note(self.position)
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

    # The end.

    def _check_open(self) -> None:
        if self._closed is not None:
            raise StreamClosed(self.name, self._closed)

    def close(self) -> None:
        """Leave the stream; no other process notices. Idempotent."""
        if getattr(self, "_closed", "never opened") is None:
            self._closed = "it was closed"
            self._tail.close()
            self._release()
        super().close()

    def abandon(self) -> None:
        """In a forked child: release memory and descriptors, and leave the slot to the parent."""
        if self._closed is None:
            self._closed = "it belongs to the process that this one was forked from: attach again"
            self._tail.abandon()
            self._release()

    def _release(self) -> None:
        self._block = self._block.snapshot()
        self._stream.close()
        os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_closed", "never opened") is None and not sys.is_finalizing():
            try:
                warnings.warn(
                    f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2
                )
            finally:  # warnings may be errors here
                self.close()

    def __repr__(self) -> str:
        size = "?" if self.size is None else self.size
        return (
            f"<InFlightCopier {self.name!r} {self.state.name} at {self.position}, "
            f"{self.published}/{size} bytes published>"
        )


def _open_blob(stream: Stream) -> tuple[int, tuple[int, int, int]]:
    """A descriptor of the file that the writer writes, wherever it is by now, and its identity."""
    if (opened := stream.open_file()) is not None:
        fd, _, identity = opened
        return fd, identity
    if stream.block.state == State.ABORTED:
        raise stream.abort_error()
    if stream.block.state != State.COMMITTED and stream.is_orphaned():
        raise WriterDied(stream.name, 0, str(stream.writer))
    reason = "was replaced or removed by somebody else"
    raise DamagedPartial(stream.name, 0, stream.path, reason)
