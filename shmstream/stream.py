"""One stream as any process of the host sees it: its segment, its block and its locks.

Making and removing a stream are two sides of one protocol, so they stand together here. A name in
`/dev/shm` and a partial file are both claimed in the same way:

    creator                                   reaper (of a stream that looks dead)
    1 create the file, which must not exist   1 open the file
    2 lock it                                 2 lock it: cannot? then it is alive, leave it
    3 does the name still lead to it?         3 does the name still lead to it?
      no: a reaper came in between, go to 1     no: somebody else was faster, done
    4 fill it                                 4 unlink what it names, the segment last

Between 1 and 2 a creator is not yet protected, and a reaper may win the lock; then the creator
finds in 3 that its file has lost its name, and begins again. After 3 only the holder of the lock
may unlink, so the name stays. A SIGKILL at any line frees the lock, and the next reaper finishes:
because the segment goes last, what it names is still found.

An inode is never used twice: a partial file that a dead writer left is unlinked, not truncated, so
readers which still have it open keep their bytes (I2).
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from shmstream import doorbell, segment
from shmstream.control import HEADER_SIZE, UNKNOWN, Block, State
from shmstream.errors import (
    BlobAborted,
    DamagedSegment,
    ForeignSegment,
    StreamExists,
    StreamNotFound,
    WriterDied,
    naming_shortages,
)
from shmstream.liveness import WHOLE_FILE, Identity, KernelLock
from shmstream.segment import Segment

ATTACH_TIMEOUT = 5.0
"""Seconds that `attach` waits for a writer to appear when it is not told otherwise."""

_HALF_MADE_GRACE = 0.2  # s; how long a segment may be without magic and without lock
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{segment.NAME_LIMIT - 1}}}")


class Stream:
    """The shared half of one stream, held by its writer or by one of its readers."""

    def __init__(self, mapped: Segment, block: Block, lock: KernelLock) -> None:
        self.name = mapped.name
        self.segment = mapped
        self.block = block
        self.lock = lock

    @classmethod
    def create(cls, name: str, slots: int) -> Stream:
        """Claim `name` and hold the writer's lock on a block of zeros, still without magic.

        Raises:
            ValueError: no stream can have that name.
            StreamExists: a live writer has it.
            ForeignSegment, DamagedSegment: something else is in its place.
            OutOfResources: shared memory or descriptors have run out.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"a stream's name has 1 to {segment.NAME_LIMIT} letters, digits, dots, dashes and "
                f"underscores, and begins with a letter or digit: {name!r} has not"
            )
        with _naming_causes(name):
            while True:
                try:
                    mapped = Segment.create(name, Block.size_for(slots))
                except FileExistsError:
                    if not reap(name):
                        raise StreamExists(name, "the name", _writer_of(name)) from None
                    continue
                try:
                    lock = KernelLock.reopen(mapped.fd)
                except OSError:
                    mapped.unlink()
                    mapped.close()
                    raise
                span = (0, HEADER_SIZE)
                if lock.try_acquire(span) and lock.is_at(segment.path_of(name)):
                    return cls(mapped, Block(mapped.memory), lock)
                lock.close()
                mapped.close()

    @classmethod
    def attach(cls, name: str, timeout: float | None = None) -> Stream:
        """The stream of that name, waiting up to `timeout` seconds (None: 5) for it to appear.

        Raises:
            StreamNotFound: it did not appear.
            WriterDied: its writer was killed while making it.
            ForeignSegment, DamagedSegment: what has that name is no stream of ours.
            OutOfResources: descriptors or memory have run out.
        """
        timeout = ATTACH_TIMEOUT if timeout is None else timeout
        began = time.monotonic()
        abandoned_since = None
        pause = 0.001
        while True:
            with _naming_causes(name):
                stream = cls._try_attach(name)
                abandoned = stream is None and _is_abandoned(name)
            if stream is not None:
                return stream
            now = time.monotonic()
            if not abandoned:
                abandoned_since = None
            elif abandoned_since is None:
                abandoned_since = now
            elif now - abandoned_since > _HALF_MADE_GRACE:
                raise WriterDied(name, 0, "killed while it made the stream")
            if now - began >= timeout:
                raise StreamNotFound(name, timeout)
            time.sleep(min(pause, max(began + timeout - now, 0.0)))
            pause = min(pause * 1.5, 0.02)

    @classmethod
    def _try_attach(cls, name: str) -> Stream | None:
        """The stream, or None if there is none or its writer has not finished making it."""
        try:
            mapped = Segment.attach(name)
        except FileNotFoundError:
            return None
        block = Block(mapped.memory)
        try:
            if block.validate(name):
                return cls(mapped, block, KernelLock.reopen(mapped.fd))
        except BaseException:
            _unmap(mapped, block)
            raise
        _unmap(mapped, block)
        return None

    @property
    def path(self) -> str:
        """Where the complete blob will be."""
        return os.fsdecode(self.block.path)

    @property
    def size(self) -> int | None:
        """The blob's size in bytes, None while it is not known."""
        size = self.block.size
        return None if size == UNKNOWN else size

    @property
    def state(self) -> State:
        """The stream's state as stored now."""
        return State(self.block.state)

    @property
    def writer(self) -> Identity:
        """Who writes, or wrote, the stream."""
        return Identity(
            self.block.writer_pid, self.block.writer_started, self.block.writer_namespace
        )

    def is_orphaned(self) -> bool:
        """Whether no writer is alive. Load the state again before concluding that it died."""
        return not self.lock.is_held_elsewhere(self.block.header_span)

    def abort_error(self) -> BlobAborted | DamagedSegment:
        """Why the writer of an aborted stream gave up."""
        try:
            return BlobAborted.from_text(self.block.error)
        except ValueError as error:
            return DamagedSegment(self.name, f"its error cannot be read: {error}")

    def unlink(self) -> None:
        """Remove the name, for the writer; not if it leads to somebody else's stream by now."""
        if self.lock.is_at(segment.path_of(self.name)):
            self.segment.unlink()

    def close(self) -> None:
        """Let go of locks and memory; the stream itself lives on. Idempotent."""
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


def partial_path(path: str) -> str:
    """The partial file of the blob that will be at `path`."""
    return path + ".partial"


def claim_partial(path: str, name: str) -> KernelLock:
    """Make the partial file at `path` anew and lock it; the lock's descriptor writes to it.

    What a dead writer left there is removed.

    Raises:
        StreamExists: a live writer holds it.
        OSError: the folder cannot be written to, or something that is no file is there.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            lock = KernelLock(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if not _remove_partial(path):
                raise StreamExists(name, path, "another writer") from None
            continue
        if lock.try_acquire(WHOLE_FILE) and lock.is_at(path):
            return lock
        lock.close()


def _remove_partial(path: str, only: tuple[int, int] | None = None) -> bool:
    """Unlink a partial file that nobody writes; False if somebody does.

    With `only` (device, inode), a file that is not that one is left alone.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    lock = KernelLock(fd)
    try:
        facts = os.fstat(fd)
        if only not in (None, (facts.st_dev, facts.st_ino)):
            return True
        if not lock.try_acquire(WHOLE_FILE):
            return False
        if lock.is_at(path):
            os.unlink(path)
        return True
    finally:
        lock.close()


# Removing what the dead have left (I8).


def reap(name: str, *, spare_readers: bool = False) -> bool:
    """Remove the stream of that name if its writer is dead; False if it is alive.

    Segment, doorbells and partial file go; a committed blob stays. With `spare_readers` a dead
    stream that somebody still reads is left alone too.

    Raises:
        DamagedSegment: what has the name is nothing that this version made; it is left alone.
        PermissionError: it belongs to another user.
    """
    path = segment.path_of(name)
    try:
        lock = KernelLock(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    except FileNotFoundError:
        return True
    try:
        if not lock.try_acquire((0, HEADER_SIZE)):
            return False
        if not lock.is_at(path):
            return True
        try:
            mapped = Segment.attach(name)
        except FileNotFoundError:  # killed before it had a size
            segment.unlink(name)
            return True
        block = Block(mapped.memory)
        try:
            ready = block.validate(name)
            if ready and spare_readers and lock.is_held_elsewhere(block.slots_span):
                return False
            _remove_remains(block, ready)
            mapped.unlink()
        finally:
            _unmap(mapped, block)
        return True
    finally:
        lock.close()


def _remove_remains(block: Block, ready: bool) -> None:
    """Remove what the block of a dead stream names; in one that is half made, perhaps a path."""
    if block.path and block.state != State.COMMITTED:
        partial = partial_path(os.fsdecode(block.path))
        _remove_partial(partial, only=(block.device, block.inode) if ready else None)
    for _, bell in list(doorbell.names(block.token)) if ready else []:
        doorbell.unlink(bell)


def sweep() -> list[str]:
    """Remove what dead processes of this user have left on this host; the names of what went.

    Dead streams that nobody reads any more go with their doorbells and partial files, and so do
    doorbells whose stream is gone. Nothing that is alive is touched, nor anything that this
    version of shmstream did not make. Cheap, never blocks, safe at any time from any process;
    `BlobStreamer.create` calls it.
    """
    removed = []
    bells = list(doorbell.names())  # before the tokens: no stream is younger than its bells
    tokens = set()
    for name in segment.names():
        try:
            if reap(name, spare_readers=True):
                removed.append(name)
            else:
                tokens.add(_token_of(name))
        except DamagedSegment:  # perhaps another version's stream: then its bells are unknown
            bells.clear()
        except OSError:  # gone meanwhile, or another user's, or no file at all
            continue
    removed += [bell for token, bell in bells if token not in tokens and doorbell.unlink(bell)]
    return removed


def _token_of(name: str) -> int:
    """What the doorbells of a stream are named by, read without mapping it."""
    fd = os.open(segment.path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return Block.read_token(fd, name)
    finally:
        os.close(fd)


def _is_abandoned(name: str) -> bool:
    """Whether a segment is there whose writer's lock nobody holds."""
    try:
        fd = os.open(segment.path_of(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    lock = KernelLock(fd)
    try:
        return not lock.is_held_elsewhere((0, HEADER_SIZE))
    finally:
        lock.close()


def _writer_of(name: str) -> str:
    try:
        with Stream.attach(name, timeout=0) as stream:
            return str(stream.writer)
    except (StreamNotFound, WriterDied):
        return "a writer that is just starting"


def _unmap(mapped: Segment, block: Block | None) -> None:
    if block is not None:
        block.release()
    mapped.close()


@contextmanager
def _naming_causes(name: str) -> Iterator[None]:
    try:
        with naming_shortages(name, "shared memory (/dev/shm)"):
            yield
    except PermissionError as error:
        reason = error.strerror if error.errno == errno.EPERM else "another user owns it"
        raise ForeignSegment(name, f"its shared memory is not ours: {reason}") from error
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.EINVAL):
            raise
        raise DamagedSegment(name, f"it is no file ({error.strerror})") from error
