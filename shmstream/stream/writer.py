"""`BlobStreamer`: the writer's end of a stream. Append, publish, commit, abort, transfer.

What each step does:

    create     claim the name and the partial file, fill the block, the magic last
    append     write all bytes to the partial file, count them, publish them when it is time
    write      `append`, for programs that write files
    publish    store `published`, store `chunk_count`, ring                             (I1, I2)
    commit     check size and digest; store `verified`, ring if a reader reads for another host;
               rename the file to the final name, store the size, publish the last bytes, store
               COMMITTED, ring; if the caller gave only an algorithm, compute the digest after
               that                                                                     (I3, I5)
    abort      store the error, store ABORTED, ring, remove the partial file            (I3)
    close      abort unless the stream has ended; remove the doorbells and the name
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from shmstream import arguments
from shmstream.arguments import flag, optional, text, whole
from shmstream.errors import (
    BlobAborted,
    DamagedPartial,
    DamagedSegment,
    DigestMismatch,
    OutOfResources,
    SizeMismatch,
    StreamBroken,
    StreamClosed,
    naming_shortages_beside,
)
from shmstream.stream.claims import sweep_again
from shmstream.stream.control_block import MAX_SLOTS, TERMINAL, UNKNOWN, Block, State, chunks_in
from shmstream.stream.digest import RunningDigest, digest_or_algorithm
from shmstream.stream.pacer import Pacer, check_pacing
from shmstream.stream.partial import PartialFile
from shmstream.stream.stream import Stream
from shmstream.stream.subscribers import Subscriber, Subscribers, present, remove_doorbells
from shmstream.system.buffers import buffers
from shmstream.system.locks import KernelLock
from shmstream.system.process import register
from shmstream.system.refusals import refuse_text
from shmstream.system.steps import all_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STEP = 1 << 20  # bytes; a long buffer is cut into steps, so that readers get the first ones early


@dataclass(frozen=True)
class StreamerStatistics:
    """A stream as its writer sees it; sizes in bytes, `elapsed` in seconds since `create`."""

    name: str
    path: str
    state: State
    size: int | None
    appended: int
    published: int
    chunk_count: int
    elapsed: float
    subscribers: tuple[Subscriber, ...]


def check_layout(chunk_size: int, max_subscribers: int) -> tuple[int, int]:
    """What decides what is withheld, and how large a control block is, as numbers.

    Raises:
        TypeError, ValueError: one is no number, or out of bounds.
    """
    return (
        whole("chunk_size", chunk_size, "a positive number of bytes", 1, UNKNOWN - 1),
        whole("max_subscribers", max_subscribers, f"between 1 and {MAX_SLOTS}", 1, MAX_SLOTS),
    )


class BlobStreamer:
    """Streams one blob to every process on the host that attaches by `name`.

    Make one with `create`. Use it as a context manager: leaving it without `commit` aborts. Leaving
    it also removes the name, so keep it open for as long as new readers may come. Attached readers
    go on undisturbed, and the committed file stays.

    It is a writable binary file without `seek`, so `shutil.copyfileobj`, `tarfile`, `zipfile`,
    `pandas`, `pyarrow` and the like write to it. A program that closes it before the commit aborts.

    Any thread of the process may call any method. A forked child cannot use it: there every method
    raises `StreamClosed`.
    """

    mode: str = "wb"
    """As of a file; some programs ask for it."""
    _resumable = False

    def __init__(
        self, stream: Stream, lock: KernelLock, pacing: tuple[int, float], *, durable: bool
    ) -> None:
        """Internal: use `create`."""
        block = stream.block
        self._stream = stream
        self._block = block
        self._lock = threading.RLock()
        self._pacer = Pacer(self._lock, self._publish, *pacing)
        self._subscribers = Subscribers(block, stream.lock)
        self.name: str = stream.name
        self.path: str = stream.path
        now = block.at_once()
        there = os.fstat(lock.fd).st_size if now.state == State.STREAMING else 0
        self.durable = durable
        self._file = self._file_of(lock, there)
        self._given = now.digest.decode()
        self._digest: RunningDigest | None = None
        if self._given:
            self._digest = RunningDigest(self._given, lock.fd, there)
        self._withholds = self._digest is not None and self._digest.is_given
        # Only this process writes these fields, so `append` need not load them from the block.
        state, self._chunk_size, self._limit, self._token, self._published = now.load(
            "state", "chunk_size", "size", "token", "published"
        )
        self._streaming = state == State.STREAMING
        self._is_committed = False
        self._began = time.monotonic()
        self._closed: str | None = None
        self.digest: str | None = None
        """`algorithm:hex` of the blob once it is committed and hashed; else None."""
        register(self)

    def _file_of(self, lock: KernelLock, size: int) -> PartialFile:
        noted = self._block if self._resumable else None
        return PartialFile(lock, self.name, self.path, size, noted, durable=self.durable)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        size: int | None = None,
        chunk_size: int = 65536,
        digest: str | None = None,
        publish_bytes: int = 1 << 20,
        publish_interval: float = 0.02,
        max_subscribers: int = 1024,
        durable: bool = False,
    ) -> Self:
        """Begin to stream the blob that will be at `path`.

        Bytes gather in `path` + ".shmstream-partial". The commit moves that file to `path`,
        replacing an older file. First this removes what a dead writer left under this name or
        path, and everything else that dead processes left on this host (`sweep`).

        Args:
            path: where the complete blob will be; its folder must exist.
            name: the handle that readers attach by, at most 24 letters, digits and `._-`; a random
                one when None.
            size: of the blob in bytes, if the caller knows it. More or fewer bytes are an error.
            chunk_size: bytes of a chunk; with a digest, the last chunk is withheld.
            digest: of the whole blob, as `sha256:<hex>` (`stream/spelling` has all spellings): the
                last chunk is published only when all bytes are verified. Or only the algorithm:
                then the digest is computed and nothing is verified.
            publish_bytes: publish when that many bytes have gathered, though at most 250 times a
                second ...
            publish_interval: ... or when that many seconds have passed since the last publish.
                Bytes never wait longer, even if the source goes quiet; only a disk that blocks the
                next write delays them. With 0 every append is published at once.
            max_subscribers: readers at one time; each slot costs 72 bytes of shared memory.
            durable: the commit returns only when the bytes, then the name, are on the disk.

        Raises:
            StreamExists: a live writer has that name or writes to that path.
            ForeignSegment, DamagedSegment: something that is no stream has that name.
            OutOfResources: disk, shared memory or descriptors have run out.
            TypeError, ValueError: an argument is of a wrong type, or out of bounds.
            OSError: the folder does not exist or cannot be written to.
        """
        size = optional(whole, "size", size, "the number of bytes of the blob", 0, UNKNOWN - 1)
        chunk_size, max_subscribers = check_layout(chunk_size, max_subscribers)
        pacing = check_pacing(publish_bytes, publish_interval)
        optional(text, "name", name, "a text, or None for a random name")
        durable = flag("durable", durable)
        if digest is not None:
            digest = digest_or_algorithm(digest)
        path = os.path.abspath(arguments.path("path", path))
        if len(os.fsencode(path)) > Block.path.capacity:
            raise ValueError(f"a path has at most {Block.path.capacity} bytes")
        name = os.urandom(8).hex() if name is None else name
        with naming_shortages_beside(name, path):
            sweep_again(but=name)  # the claim below decides about the stream of this name
            stream, lock = Stream.create(
                name,
                path,
                size=UNKNOWN if size is None else size,
                chunk_size=chunk_size,
                digest=digest or "",
                slots=max_subscribers,
                resumable=cls._resumable,
            )
        return cls(stream, lock, pacing, durable=durable)

    @property
    def size(self) -> int | None:
        """Bytes of the blob; None until the size is known."""
        return None if self._limit == UNKNOWN else self._limit

    @property
    def appended(self) -> int:
        """Bytes in the partial file."""
        return self._file.size

    @property
    def published(self) -> int:
        """Bytes that readers can read now."""
        return self._block.published

    @property
    def publish_bytes(self) -> int:
        """How many bytes gather before they are published, if they come fast."""
        return self._pacer.bytes

    @property
    def chunk_count(self) -> int:
        """Chunks that readers can read now."""
        return self._block.chunk_count

    @property
    def state(self) -> State:
        """The state of the stream."""
        return self._block.known_state()

    def append(self, data: Buffer) -> None:
        """Write all of `data`, any contiguous buffer of any length, and publish it in time.

        A long buffer is written, and may be published, in steps of a MiB, so an error may leave a
        part of it published. Blocks for the write to disk only, never for a reader (I6).

        Raises:
            SizeMismatch: there are now more bytes than `size`. The stream is aborted.
            OutOfResources: the disk is full. The stream is aborted.
            DamagedPartial: another program changed the file. The stream is aborted.
            StreamClosed, IllegalTransition: the stream is closed, committed or aborted.
            DamagedSegment: another program has cut the shared memory off; nobody reads on.
        """
        with self._lock:
            if not self._streaming:
                self._begin()
            if type(data) is bytes or type(data) is bytearray:
                count = len(data)  # cheaper than a view, which costs as much as the lock
            else:
                count = memoryview(data).nbytes
            if count <= _STEP:
                self._append_step(data, count)
                return
            with memoryview(data) as whole, whole.cast("B") as view:
                for start in range(0, count, _STEP):
                    step = view[start : start + _STEP]
                    self._append_step(step, len(step))

    def _begin(self) -> None:
        self._check_open()
        self._block.require(State.STREAMING, self.name)
        if self._resumable:
            self._file.truncate(self._file.size)  # cut off old bytes that are not resumed
        self._block.advance(State.STREAMING, self.name)
        self._streaming = True

    def _append_step(self, data: Buffer, count: int) -> None:
        file = self._file
        if file.size + count > self._limit:
            raise self._fail_size(file.size + count)
        try:
            file.append(data, count)
        except (DamagedPartial, OutOfResources, OSError) as error:
            self.abort(error)
            raise
        self._appended(count, self._pacer.is_due)

    def _appended(self, count: int, is_due: Callable[[int], bool]) -> None:
        """Count `count` written bytes, and publish if it is time."""
        end = self._publishable() if self._withholds else self._file.size
        waiting = end - self._published
        if waiting > 0 and is_due(waiting):
            self._publish()
        if self._digest is not None:
            self._digest.update(count)  # after the readers were woken: it may start a thread

    def _publishable(self) -> int:
        """Bytes that may be published before commit: with a digest, all but the last chunk (I5)."""
        size = self._file.size
        if not self._withholds:
            return size
        end = size if self._limit == UNKNOWN else self._limit
        before_last = max(end - 1, 0) // self._chunk_size * self._chunk_size
        return max(
            min(size, before_last), self._published
        )  # a predecessor may have known more (I1)

    def _publish(self) -> None:
        """Publish all bytes that may be published, and wake the readers.

        Little comes after the rings, because a woken reader may take this processor at once, or
        only once this process waits. If another program has damaged the block, the next append
        raises that.
        """
        with self._lock:
            self._pacer.published()
            now = self._block.if_sound() if self._streaming else None
            self._streaming = now is not None
            if now is not None:
                self._store_published(now, self._publishable())
                if self._subscribers.ring():
                    self._pacer.hurry(hurries=self._subscribers.have_ahead)
                self._subscribers.look_after_one()

    def _store_published(self, block: Block, published: int) -> None:
        """Store that so many bytes can be read, in a block whose size was just compared."""
        block.published = self._published = published  # I1, I2: all these bytes are in the file
        block.chunk_count = chunks_in(published, self._chunk_size, self._limit)
        block.progress = time.monotonic_ns()

    def transfer(self, source: BinaryIO | Iterable[Buffer] | Buffer) -> int:
        """Append all bytes of `source`, then commit; the blob's size in bytes.

        `source` is a binary file object, which is read as bytes arrive, or an iterable of buffers.
        It is not closed. Blocks as long as the source does.

        Raises:
            Exception: what `source`, `append` or `commit` raises; the stream is aborted.
        """
        try:
            for data in buffers(source):
                self.append(data)
            self.commit()
        except BaseException as error:
            if self._closed is None and not self._has_ended():
                self.abort(error)
            raise
        return self._file.size

    # As a file.

    def write(self, data: Buffer, /) -> int:
        """As `append`; the number of bytes of `data`, which are all written."""
        refuse_text(data)
        self.append(data)
        return len(data) if isinstance(data, bytes) else memoryview(data).nbytes

    def flush(self) -> None:
        """Publish now what may be published."""
        with self._lock:
            self._check_open()
            if self._streaming and self._publishable() > self._published:
                self._publish()

    def tell(self) -> int:
        """The bytes that were written."""
        return self.appended

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:  # noqa: ARG002
        """Raises:
        UnsupportedOperation: always.
        """
        raise cannot_seek(self.name)

    def writable(self) -> bool:
        """True."""
        return True

    def readable(self) -> bool:
        """False: a reader attaches by `name`."""
        return False

    def seekable(self) -> bool:
        """False."""
        return False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed is not None

    # The end.

    def commit(self) -> None:
        """Complete the blob: verify it, rename it to its final name, publish the last bytes.

        A process that sees COMMITTED finds the blob at `path` (I5). If `create` was given only an
        algorithm, this returns when `digest` is computed; readers do not wait for that.

        Raises:
            SizeMismatch: there are fewer bytes than `size`. The stream is aborted.
            DigestMismatch: the bytes are not the blob that `digest` names. The stream is aborted.
            DamagedPartial: another program changed the file. The stream is aborted.
            IllegalTransition: it was committed or aborted before.
        """
        with self._lock:
            self._check_open()
            if not self._streaming and self._block.state == State.OPENING:
                self._begin()
            self._block.require(State.COMMITTED, self.name)
            if self.size not in (None, self._file.size):
                raise self._fail_size(self._file.size)
            digest = self._digest
            try:
                if digest is not None and digest.is_given:
                    self._verify(digest)
                    self._tell_verified()
                with self._moving():
                    self._file.move()
            except (StreamBroken, OSError, EOFError) as error:
                self.abort(error)
                raise
            now = self._block.at_once()
            now.size = self._limit = self._file.size  # I3
            self._store_published(now, self._file.size)
            self._streaming = False
            now.advance(State.COMMITTED, self.name)
            self._is_committed = True
            self._subscribers.ring()
            self._pacer.published()
            if digest is not None:
                with suppress(
                    OSError, EOFError
                ):  # the blob is complete; a later change is no error
                    self.digest = digest.finish()

    def _moving(self) -> AbstractContextManager[None]:
        """A context; within it, the complete blob gets its final name."""
        return nullcontext()

    def _verify(self, digest: RunningDigest) -> None:
        """Require that the digest of all bytes is the given digest."""
        got, given = digest.finish(), self._given
        if got != given:
            reason = f"its digest is {got}, not {given}: the bytes are not that blob"
            raise DigestMismatch(self.name, self._file.size, reason, given, got)

    def _tell_verified(self) -> None:
        """Let readers for other hosts have all bytes: to sync them to the disk takes a while.

        The size must be known; else such a reader waits for the commit, as the others do.
        """
        if self._limit == self._file.size:
            self._block.verified = self._file.size
            if self._subscribers.have_ahead:
                self._subscribers.ring()

    def _fail_size(self, got: int) -> SizeMismatch:
        """Abort, because the blob has the wrong size; returns the error to raise."""
        size = self._block.size
        how = "more" if got > size else "less"
        reason = f"the source gave {how} than the {size} bytes it should: {got}"
        error = SizeMismatch(self.name, self._file.size, reason, size, got)
        self.abort(error)
        return error

    def abort(self, reason: str | BaseException) -> None:
        """Give the blob up: tell every reader the reason, and remove the partial file.

        Readers get the published bytes, then `BlobAborted` with `reason`. Aborting twice changes
        nothing.

        Raises:
            IllegalTransition: it is committed.
        """
        with self._lock:
            self._check_open()
            if not self._block.is_sound:  # readers find that by themselves
                self._streaming = False
                self._discard_file(reason)
                return
            if self._block.state == State.ABORTED:
                return
            self._block.require(State.ABORTED, self.name)
            error = BlobAborted.because(reason, self.name, self._file.size)
            self._about_to_abort(error)
            keeps = self._keeps(reason)  # first: after ABORTED no successor looks after the file
            self._block.error = error.to_text(Block.error.capacity)  # I3
            self._streaming = False
            self._block.advance(State.ABORTED, self.name)
            self._subscribers.ring()
            if not keeps:
                self._file.unlink()

    def _about_to_abort(self, error: BlobAborted) -> None:
        """Called before readers can see that the stream is aborted."""

    def _discard_file(self, reason: str | BaseException) -> None:
        if not self._keeps(reason):
            self._file.unlink()

    def _keeps(self, _reason: str | BaseException) -> bool:
        """Whether the partial file of an aborted stream is kept."""
        return False

    def statistics(self) -> StreamerStatistics:
        """How many bytes are appended and published, and the live readers."""
        with self._lock:
            return StreamerStatistics(
                name=self.name,
                path=self.path,
                state=self.state,
                size=self.size,
                appended=self._file.size,
                published=self.published,
                chunk_count=self.chunk_count,
                elapsed=time.monotonic() - self._began,
                subscribers=() if self._closed else tuple(present(self._block, self._stream.lock)),
            )

    def _check_open(self) -> None:
        if self._closed is not None:
            raise StreamClosed(self.name, self._closed)

    def close(self) -> None:
        """Abort the stream unless it is committed, and remove the name. Idempotent.

        Attached readers finish undisturbed; new readers find no stream of that name.
        """
        with self._lock:
            if self._closed is not None:
                return
            self._end(self._abort_unended)
        self._pacer.join()

    def _end(self, *first: Callable[[], None]) -> None:
        all_of(
            *first,
            self._pacer.close,
            self._subscribers.close,
            self._close_file,
            self._unlink_doorbells,
            self._stream.unlink,
            self._release,
        )

    def _abort_unended(self) -> None:
        if not self._has_ended():
            self.abort("its writer closed it without commit")

    def _has_ended(self) -> bool:
        return self._block.is_sound and self._block.state in TERMINAL

    def _close_file(self) -> None:
        if self._digest is not None:
            self._digest.close()  # its thread reads the file
        self._file.close()

    def abandon(self) -> None:
        """In a forked child: release memory and descriptors; the stream belongs to the parent."""
        if self._closed is None:
            self._closed = "it belongs to the process that this one was forked from"
            self._lock = threading.RLock()  # a thread of the parent may have held the old lock
            self._subscribers.abandon()
            self._file.close()
            self._release()

    def _unlink_doorbells(self) -> None:
        try:
            taken = self._block.ever_taken()
        except DamagedSegment:  # another program has cut it off
            taken = self._subscribers.last_taken()
        remove_doorbells(self._token, taken)

    def _release(self) -> None:
        self._closed = self._closed or "it was closed"
        self._streaming = False
        self._block = self._block.snapshot()
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None and self._closed is None and not self._has_ended():
                self.abort(error)
        finally:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Raises:
        TypeError: always, because one process writes a stream.
        """
        raise TypeError(
            f"stream {self.name!r} is written by this process, and a BlobStreamer cannot be "
            "pickled: hand on its `name`, and attach an InFlightCopier in the other process"
        )

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
        return f"<BlobStreamer {self.name!r} {now.known_state().name} {now.published}/{size} bytes>"


def cannot_seek(name: str) -> io.UnsupportedOperation:
    """The error for a program that wants to go back in the stream `name` while it writes."""
    return io.UnsupportedOperation(
        f"cannot seek in {name[:200]!r}: its readers may have read what was written before; write "
        "to a temporary file, and copy that file when it is complete"
    )
