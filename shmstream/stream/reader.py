"""`InFlightCopier`: a reader's end of a stream. Attach, wait, read, seek, copy.

`waiter` decides how many bytes may be read, and waits for more. The copier then copies the bytes
from the file (`growing_file`).
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from shmstream.arguments import optional, seconds, text
from shmstream.errors import DamagedPartial, StreamClosed, WriterDied, naming_shortages
from shmstream.stream.control_block import TERMINAL, UNKNOWN, State
from shmstream.stream.growing_file import GrowingFile, View
from shmstream.stream.partial import is_untouched, partial_path
from shmstream.stream.stream import Stream
from shmstream.stream.subscribers import Subscriber, present
from shmstream.stream.waiter import Tail
from shmstream.system.process import register


@dataclass(frozen=True)
class CopierStatistics:
    """A stream as this reader sees it; sizes in bytes. `waits`: how often it waited for a ring."""

    name: str
    path: str
    state: State
    size: int | None
    published: int
    chunk_count: int
    position: int
    lag: int
    waits: int


class InFlightCopier(GrowingFile):
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
    forked child must attach for itself: there an inherited copier raises `StreamClosed`. A pickled
    copier attaches again, in the process that unpickles it and at the same position.
    """

    def __init__(
        self,
        stream: Stream,
        opened: tuple[int, tuple[int, int, int]],
        tail: Tail,
        owner: ExitStack,
    ) -> None:
        """Internal: use `attach`. From here on this object closes all that `owner` would close."""
        self._stream = stream
        self._block = stream.block
        self._fd, self._identity = opened
        self._tail = tail
        self._ahead = tail.ahead
        self.position: int = 0
        """Bytes from the beginning of the blob to what is read next; the same as `tell()`."""
        self._is_settled = False
        self.name: str = stream.name
        self.path: str = stream.path
        # Next to each other: an exception that a signal raises here may not have all closed twice.
        owner.pop_all()
        self._closed: str | None = None
        register(self, reads=True)

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        timeout: float | None = None,
        stall_timeout: float | None = None,
        subscribes_late: bool = False,
        sources: int = 0,
        ahead: bool = False,
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
            sources: a number for the sources that this reader has, if it can succeed the writer.
            ahead: this reader hands the bytes to another host, which verifies them again. So it is
                woken more often, and gets the last chunk when the writer has verified all bytes,
                before they are on the disk.

        Raises:
            StreamNotFound: no such stream appeared in time.
            BlobAborted: it was aborted already; the error has the reason.
            WriterDied: its writer died, and its file is gone.
            NoFreeSlot: `max_subscribers` live readers are attached.
            ForeignSegment, DamagedSegment, DamagedPartial: the segment or the file is not what a
                writer of this user made.
            OutOfResources: descriptors or shared memory have run out.
            TypeError, ValueError: an argument is of a wrong type, or out of bounds.
        """
        text("name", name, "the name of a stream, as a text")
        optional(seconds, "timeout", timeout, "a number of seconds, or None for 5")
        optional(seconds, "stall_timeout", stall_timeout, "a number of seconds, or None")
        with ExitStack() as undo:
            stream = Stream.attach(name, timeout)
            undo.callback(stream.close)
            with naming_shortages(name, "shared memory (/dev/shm)"):
                opened = _open_blob(stream)
            undo.callback(os.close, opened[0])
            tail = Tail(
                stream, stall_timeout, subscribes_late=subscribes_late, sources=sources, ahead=ahead
            )
            undo.callback(tail.close)
            return cls(stream, opened, tail, undo)

    # How far the stream is.

    @property
    def size(self) -> int | None:
        """Bytes of the blob; None until the writer knows the size."""
        size = self._block.size
        return None if size == UNKNOWN else size

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        self._block.require_whole()
        published = self._block.load_published()
        return max(published, self._block.verified) if self._ahead else published

    @property
    def quiet_for(self) -> float:
        """Seconds since the writer published, or created the stream, or took it over."""
        progress = self._block.progress  # 0: its writer is of an older version
        return max((time.monotonic_ns() - progress) / 1e9, 0.0) if progress else 0.0

    @property
    def stall_timeout(self) -> float | None:
        """As given to `attach`; it can be changed between two calls."""
        return self._tail.stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, seconds: float | None) -> None:
        self._tail.stall_timeout = seconds

    @property
    def chunk_count(self) -> int:
        """Chunks that can be read without waiting."""
        return self._block.chunk_count

    @property
    def state(self) -> State:
        """The state of the stream, as stored now."""
        return self._block.known_state()

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

    @property
    def has_successor(self) -> bool:
        """Whether a live writer holds the stream, or the stream has ended or was replaced."""
        return not self.is_orphaned or self._stream.is_replaced()

    @property
    def is_resumable(self) -> bool:
        """Whether another process can go on with the stream if its writer dies."""
        return bool(self._block.resumable)

    @property
    def was_written_to(self) -> bool:
        """Whether another program has changed the file of a stream whose writer has died.

        False if this copier was closed, or is of the process that this one was forked from.
        """
        if self._closed is not None or not self._block.is_sound:
            return False
        if os.fstat(self._fd).st_nlink == 0:  # it was replaced, and nobody finds it
            return False
        # Another stream of that name may have gone on with the file since.
        return not (is_untouched(self._fd, self._block) or self._stream.is_replaced())

    @property
    def last_words(self) -> bytes:
        """What the writer left in the place of an error; empty if it left nothing."""
        return self._block.error

    def subscribers(self) -> list[Subscriber]:
        """The live readers of the stream, this one included."""
        self._check_open()
        return present(self._block, self._stream.lock)

    def await_successor(self, seconds: float) -> None:
        """If the writer has died, let another reader succeed first, for at most `seconds`.

        Of the readers that have sources and have read everything, the first one in the order of the
        slots goes first, and this returns at once if that is this reader. Such a reader most likely
        waits for bytes, and so has noticed the death. If it does something else, or is stopped,
        the time passes.

        Raises:
            StreamClosed: this copier was closed.
            DamagedSegment: another program has cut the shared memory off.
        """
        self._check_open()
        try:
            self._tail.await_successor(seconds)
        except (ValueError, OSError):  # another thread closed this copier: its memory is gone
            self._check_open()
            raise

    def offer(self, sources: int) -> None:
        """Tell a writer that gives up which sources this reader has; see `attach`."""
        self._check_open()
        self._tail.offer(sources)

    def is_same_stream(self, other: InFlightCopier) -> bool:
        """Whether both read the same stream, and not two streams of the same name."""
        return self._block.token == other._block.token

    def view(self) -> View:
        """How far the blob is now, without waiting."""
        self._check_open()
        state, published, size = self._tail.look()
        is_complete = state == State.COMMITTED
        if published and not self._is_settled:
            self._settle()
        return View(
            published,
            published if is_complete else size,
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
        published, before = self.published, -1
        while before < published < want:  # if no more came, the blob is complete
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
        try:
            readable = self._tail.readable(self.position, want)
        except (ValueError, OSError):  # as in `_ask`, without its frame
            self._check_open()
            raise
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
        if not self._is_settled and self.published > 0:
            if self._identity != self._block.file:
                fd, self._identity = _open_blob(self._stream)
                os.dup2(fd, self._fd, inheritable=False)
                os.close(fd)
            self._is_settled = True

    def _note(self, position: int) -> None:
        self._tail.note(position)

    def _too_short(self) -> DamagedPartial:
        committed = self._block.state == State.COMMITTED
        path = self.path if committed else partial_path(self.path)
        reason = f"is shorter than the {self.published} published"
        return DamagedPartial(self.name, self.position, path, reason)

    # In another process.

    def __reduce__(self) -> tuple[Any, ...]:
        """Attach in the process that unpickles this, and go to the same position."""
        self._check_open()
        return _attach_again, (self.name, self.stall_timeout, self.position)

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

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_closed", "never opened") is None and not is_finalizing():
            try:
                warnings.warn(
                    f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2
                )
            finally:  # warnings may be errors here
                self.close()

    def __repr__(self) -> str:
        now = self._block.snapshot()
        size = "?" if now.size == UNKNOWN else now.size
        return (
            f"<InFlightCopier {self.name!r} {now.known_state().name} at {self.position}, "
            f"{now.published}/{size} bytes published>"
        )


def _attach_again(name: str, stall_timeout: float | None, position: int) -> InFlightCopier:
    """The copier that was pickled."""
    copier = InFlightCopier.attach(name, stall_timeout=stall_timeout)
    copier.seek(position)
    return copier


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
