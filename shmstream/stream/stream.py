"""One stream as any process of the host sees it: its segment, its block and its locks.

`claims` tells how the name of a stream is claimed, and how a dead stream is removed.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from shmstream.errors import (
    BlobAborted,
    CannotStart,
    DamagedPartial,
    DamagedSegment,
    Explained,
    ForeignSegment,
    OutOfResources,
    StreamExists,
    StreamNotFound,
    WriterDied,
    name_shortage,
)
from shmstream.stream import segment
from shmstream.stream.claims import can_go_on, claim_segment, is_abandoned
from shmstream.stream.control_block import (
    MAGIC,
    MAX_SLOTS,
    TERMINAL,
    UNKNOWN,
    VERSION,
    Block,
    State,
)
from shmstream.stream.partial import (
    Changing,
    claim_partial,
    is_untouched,
    partial_path,
    reserve,
)
from shmstream.stream.segment import Segment
from shmstream.stream.subscribers import remove_doorbells
from shmstream.system.files import GONE
from shmstream.system.locks import WHOLE_FILE, KernelLock, file_identity
from shmstream.system.process import Identity

ATTACH_TIMEOUT = 5.0
"""Seconds that `attach` waits for a writer to appear if the caller gives no timeout."""

_HALF_MADE_GRACE = 0.2  # s; how long a segment may have neither magic nor a locked header


class Stream:
    """The shared half of one stream, held by its writer or by one of its readers."""

    def __init__(self, mapped: Segment, block: Block, lock: KernelLock, path: str) -> None:
        self.name: str = mapped.name
        self.path: str = path
        """Where the complete blob will be."""
        self.segment = mapped
        self.block = block
        self.lock = lock

    @classmethod
    def create(
        cls,
        name: str,
        path: str,
        *,
        size: int,
        chunk_size: int,
        digest: str,
        slots: int,
        resumable: bool,
    ) -> tuple[Stream, KernelLock]:
        """A new stream in state OPENING, with the writer's two locks: on the header, on the file.

        A resumable stream keeps a partial file that exists already, and does not replace a dead
        stream that can be succeeded.

        The path is stored in the block before the partial file is made, so that a reaper finds the
        file if this writer dies. The magic is stored last; until then nobody reads other fields.

        Raises:
            ValueError: no stream can have that name.
            StreamExists: a live writer has that name or that path; or this stream is resumable, and
                a dead stream of that name can be succeeded. Then `writer` may be empty, because
                most callers follow, and need no text: see `writer_of`.
            ForeignSegment, DamagedSegment: what has that name is no stream of ours.
            OutOfResources: shared memory or descriptors have run out.
            OSError: the partial file cannot be made, or the disk has no space for it.
        """
        _check_name(name)
        Identity.mine()  # its first call takes a while: not when the name is claimed
        with _naming_causes(name):
            spare = can_go_on if resumable else None
            claim = claim_segment(name, Block.size_for(slots), spare)
        if claim is None:
            raise StreamExists(name, "the name", "" if resumable else writer_of(name))
        mapped, lock = claim
        block = Block(mapped.memory, name, mapped.fd)
        with ExitStack() as undo:
            stream = cls(mapped, block, lock, path)
            undo.callback(stream.close)
            undo.callback(stream.unlink)
            now = block.at_once()
            now.resumable = resumable
            now.path = os.fsencode(path)
            partial = claim_partial(partial_path(path), name, adopt=resumable)
            undo.callback(partial.close)
            if not resumable:
                undo.callback(os.unlink, partial_path(path))
            if size not in (0, UNKNOWN):
                reserve(partial.fd, size)
            device, inode, generation = file_identity(partial.fd)
            token, signature = int.from_bytes(os.urandom(6)), _signature()
            now = block.at_once()
            now.digest = digest.encode()
            now.store(
                slots=slots,
                token=token,
                chunk_size=chunk_size,
                device=device,
                inode=inode,
                file_generation=generation,
                size=size,
                **signature,
            )
            now.state = State.OPENING
            now.version = VERSION
            now.magic = MAGIC
            undo.pop_all()
        return stream, partial

    @classmethod
    def succeed(cls, name: str) -> tuple[Stream, KernelLock]:
        """The stream of that name, whose writer is dead, with both locks of the dead writer.

        The stream has a descriptor of its own for its locks, so that a reader in the same process
        sees this writer like any other writer.

            successor                                  another successor, or a reaper
            1 lock the header; if the lock is taken,
              another successor was faster: stop
            2 if the state is terminal, or the name    (a reaper locks byte 0, then unlinks the
              leads elsewhere, the stream is over:      name; step 2 sees that)
              stop
            3 lock the partial file; it must be the
              file that the block names, and no
              other program may have written to it
            4 store this process as the writer

        The file keeps all its bytes, also those that the dead writer had not published yet: readers
        in another container, which see the file and not the block, may have read them.

        Raises:
            StreamExists: a live writer or a reaper holds the stream.
            StreamNotFound: there is no such stream, or it has ended, or its partial file is gone or
                was changed; in the last case this call has removed the name.
            ForeignSegment, DamagedSegment: what has that name is no stream of ours.
        """
        with ExitStack() as undo:
            try:
                stream = cls.attach(name, timeout=0)
            except WriterDied as error:  # it died before the stream was complete: nothing to take
                raise StreamNotFound(name, 0) from error
            undo.callback(stream.close)
            block = stream.block
            if not stream.lock.try_acquire(block.header_span):
                raise StreamExists(name, "the name", str(stream.writer))
            if block.state in TERMINAL or not stream.lock.is_at(segment.path_of(name)):
                raise StreamNotFound(name, 0)
            try:
                partial = _reclaim_partial(stream)
                undo.callback(partial.close)
                if block.state == State.OPENING and block.published:  # killed just before this
                    block.advance(State.STREAMING, name)
                if os.fstat(partial.fd).st_size > block.size:  # another program appended to it
                    with Changing(partial, block):
                        os.ftruncate(partial.fd, block.published)
            except DamagedPartial as error:  # its readers see no writer, and join the next stream
                remove_doorbells(block.token, block.ever_taken())
                stream.unlink()
                raise StreamNotFound(name, 0) from error
            block.store(**_signature())
            block.epoch = block.epoch + 1 & UNKNOWN
            undo.pop_all()
        return stream, partial

    @classmethod
    def attach(cls, name: str, timeout: float | None = None, *, begun: bool = False) -> Stream:
        """The stream of that name; waits up to `timeout` seconds (None: 5) until it appears.

        `begun`: wait only as long as another process has claimed the name.

        Raises:
            ValueError: no stream can have that name.
            StreamNotFound: it did not appear in time, or no process has begun it.
            WriterDied: its writer was killed before the stream was complete.
            ForeignSegment, DamagedSegment: what has that name is no stream of ours.
            OutOfResources: descriptors or memory have run out.
        """
        _check_name(name)
        Identity.mine()
        timeout = ATTACH_TIMEOUT if timeout is None else timeout
        began = time.monotonic()
        abandoned_since = None
        pause = 0.001
        while True:
            with _naming_causes(name):
                stream = cls._try_attach(name)
                is_there = stream is None and os.path.lexists(segment.path_of(name))
                abandoned = is_there and is_abandoned(name)
            if stream is not None:
                return stream
            now = time.monotonic()
            if not abandoned:
                abandoned_since = None
            elif abandoned_since is None:
                abandoned_since = now
            elif now - abandoned_since > _HALF_MADE_GRACE:
                raise WriterDied(name, 0, "killed while it made the stream")
            if now - began >= timeout or (begun and not is_there):
                raise StreamNotFound(name, timeout)
            time.sleep(min(pause, max(began + timeout - now, 0.0)))
            pause = min(pause * 1.5, 0.02)

    @classmethod
    def find(cls, name: str) -> Stream | None:
        """The stream of that name; None if there is none: it is gone, half made, or not ours.

        Raises:
            OutOfResources: descriptors or memory have run out: it is not known.
        """
        try:
            return cls.attach(name, timeout=0)
        except OutOfResources:
            raise
        except (CannotStart, WriterDied):
            return None

    @classmethod
    def _try_attach(cls, name: str) -> Stream | None:
        """The stream; None if there is none, or if its writer is still making it."""
        try:
            mapped = Segment.attach(name, Block.size_for(MAX_SLOTS))
        except FileNotFoundError:
            return None
        block = Block(mapped.memory, name, mapped.fd)
        try:
            if block.validate(name):
                path = block.file_path  # it never changes
                return cls(mapped, block, KernelLock.reopen(mapped.fd), path)
        except BaseException:
            _unmap(mapped, block)
            raise
        _unmap(mapped, block)
        return None

    @property
    def size(self) -> int | None:
        """The blob's size in bytes, None while it is not known."""
        size = self.block.size
        return None if size == UNKNOWN else size

    @property
    def state(self) -> State:
        """The stream's state as stored now."""
        return self.block.known_state()

    @property
    def writer(self) -> Identity:
        """The process that writes the stream, or wrote it last."""
        return Identity(*self.block.load("writer_pid", "writer_started", "writer_namespace"))

    def is_orphaned(self) -> bool:
        """Whether no writer is alive. Load the state after this: the writer may have finished."""
        return not self.lock.is_held_elsewhere(self.block.life_span)

    def is_replaced(self) -> bool:
        """Whether the name leads to another stream by now."""
        path = segment.path_of(self.name)
        return os.path.lexists(path) and not self.lock.is_at(path)

    def open_file(self) -> tuple[int, str, tuple[int, int, int]] | None:
        """The file that the writer writes: descriptor, path and identity; None if it is gone.

        This tries the partial name first, because a commit moves the file from the partial name to
        the final name, and never back.
        """
        for path in (partial_path(self.path), self.path):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in GONE:
                    continue
                raise
            if (identity := file_identity(fd)) == self.block.file:
                return fd, path, identity
            os.close(fd)
        return None

    def abort_error(self) -> BlobAborted | DamagedSegment:
        """Why the writer of an aborted stream gave up."""
        try:
            return BlobAborted.from_text(self.block.error)
        except ValueError as error:
            return DamagedSegment(self.name, f"its error cannot be read: {error}")

    def unlink(self) -> None:
        """Remove the name; does nothing if the name leads to another stream by now.

        Only the writer calls this.
        """
        if self.lock.is_at(segment.path_of(self.name)):
            self.segment.unlink()

    def close(self) -> None:
        """Release locks and memory; the stream itself lives on. Idempotent."""
        self.lock.close()
        _unmap(self.segment, self.block)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _signature() -> dict[str, int]:
    """The words that tell of this process as the writer."""
    me = Identity.mine()
    return {
        "writer_pid": me.pid,
        "writer_started": me.started,
        "writer_namespace": me.namespace,
        "progress": time.monotonic_ns(),
    }


def _check_name(name: str) -> None:
    if not segment.is_name(name):
        raise ValueError(
            f"a stream's name has 1 to {segment.NAME_LIMIT} letters, digits, dots, dashes and "
            f"underscores, and begins with a letter or digit: {name!r} is no such name"
        )


def _reclaim_partial(stream: Stream) -> KernelLock:
    """The lock on the partial file of a stream whose writer died."""
    path = partial_path(stream.path)
    reason = "was replaced or removed by somebody else"
    try:
        partial = KernelLock(path)
    except OSError as error:
        if error.errno not in GONE:
            raise
        raise DamagedPartial(stream.name, stream.block.published, path, reason) from error
    with ExitStack() as undo:
        undo.callback(partial.close)
        if file_identity(partial.fd) != stream.block.file:
            raise DamagedPartial(stream.name, stream.block.published, path, reason)
        if os.fstat(partial.fd).st_size < stream.block.published:
            raise DamagedPartial(stream.name, stream.block.published, path, "was truncated")
        if not is_untouched(partial.fd, stream.block):
            reason = "was written to by somebody else"
            raise DamagedPartial(stream.name, stream.block.published, path, reason)
        if not partial.try_acquire(WHOLE_FILE):
            raise StreamExists(stream.name, path, "another writer")
        undo.pop_all()
    return partial


def writer_of(name: str) -> str:
    """Which process has the name of a stream, as a text for people."""
    try:
        with Stream.attach(name, timeout=0) as stream:
            if not stream.is_orphaned():
                return str(stream.writer)
            return f"a process that removes what {stream.writer} left, or takes it over"
    except (StreamNotFound, WriterDied):
        return "a writer that is just starting"


def _unmap(mapped: Segment, block: Block | None) -> None:
    if block is not None:
        block.release()
    mapped.close()


def _naming_causes(name: str) -> Explained:
    return Explained(partial(_name_cause, name))


def _name_cause(name: str, error: BaseException) -> None:
    name_shortage(name, "shared memory (/dev/shm)", error)
    if isinstance(error, PermissionError):
        reason = error.strerror if error.errno == errno.EPERM else "another user owns it"
        raise ForeignSegment(name, f"its shared memory is not ours: {reason}") from error
    known = (errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO)
    if isinstance(error, OSError) and error.errno in known:
        raise DamagedSegment(name, f"it is no file ({error.strerror})") from error
