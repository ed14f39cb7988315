"""`ResumableStreamer`: a streamer whose stream can change hands, for flights.

Its partial file survives its writer, and so do its readers:

    create     takes the partial file that is there already as it is
    cut        keep so many bytes of it; resume: begin with those
    succeed    take over where a dead writer stopped: lock the header, lock the partial file and
               cut it to `published`, one epoch more
    close      before the end: publish the rest, let go of the locks, ring; a reader succeeds
    abort      keeps the partial file, unless the reason is that its bytes are wrong
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Self

from shmstream.errors import (
    BlobAborted,
    ContentChanged,
    DamagedPartial,
    DigestMismatch,
    OutOfResources,
    SizeMismatch,
    naming_shortages,
)
from shmstream.stream.control_block import TERMINAL, UNKNOWN, State
from shmstream.stream.digest import RunningDigest
from shmstream.stream.pacer import check_pacing
from shmstream.stream.partial import PartialFile
from shmstream.stream.seal import seal
from shmstream.stream.stream import Stream
from shmstream.stream.writer import BlobStreamer
from shmstream.system.locks import WHOLE_FILE, KernelLock, file_identity

_AT_ONCE = 1 << 20  # bytes
_SPOILING = (DigestMismatch, SizeMismatch, ContentChanged, DamagedPartial)
"""Errors after which a partial file is not worth keeping."""


class ResumableStreamer(BlobStreamer):
    """A `BlobStreamer` that another process can succeed, while its readers wait.

    Its size may be told when the source has told it, and before the first append it can carry what
    the source says of the blob.
    """

    _resumable = True
    keeps = True
    """Whether its partial file is kept if the stream ends before the blob does. False: nothing
    would vouch for what is in it."""

    @classmethod
    def succeed(
        cls,
        name: str,
        *,
        publish_bytes: int = 1 << 20,
        publish_interval: float = 0.02,
        durable: bool = False,
    ) -> Self:
        """Take over a stream whose writer died or handed over, at the offset `published`.

        Its readers see a pause and nothing else. What was written and not published is cut off.

        Raises:
            StreamExists: it has a live writer: perhaps another successor was faster.
            StreamNotFound: there is no such stream, or it has ended, or lost its partial file;
                then its name is removed, and its readers find out that it has no writer.
            ForeignSegment, DamagedSegment, OutOfResources: as `create`.
        """
        check_pacing(publish_bytes, publish_interval)
        with naming_shortages(name, "shared memory (/dev/shm)"):
            stream, lock = Stream.succeed(name)
        streamer = cls(stream, lock, (publish_bytes, publish_interval), durable=durable)
        if streamer.size is not None:
            with suppress(OutOfResources):  # the cut gave the rest of the space back
                streamer._file.reserve(streamer.size)
        return streamer

    def cut(self, keep: int) -> None:
        """Before the first append: keep so many bytes of what the partial file has already.

        A file of which nothing is kept is replaced by another one: somebody may still be reading
        it who knows it by an earlier stream (I2). Readers of this one look again which it is when
        they see the first bytes published.

        Raises:
            DamagedPartial: the file has fewer.
            IllegalTransition: appending has begun.
        """
        with self._lock:
            self._check_open()
            self._block.require(State.STREAMING, self.name)
            if keep == 0 and os.fstat(self._file.fd).st_size > 0:
                self._replace_file()
            self._file.truncate(keep)

    def _replace_file(self) -> None:
        fresh = f"{self._file.path}.{secrets.token_hex(4)}"
        lock = KernelLock(fresh, os.O_CREAT | os.O_EXCL)
        try:
            lock.try_acquire(WHOLE_FILE)  # nobody knows it yet
            os.rename(fresh, self._file.path)
        except BaseException:
            lock.close()
            os.unlink(fresh)
            raise
        block = self._block
        block.device, block.inode, block.file_generation = file_identity(lock.fd)
        self._close_file()
        self._file = PartialFile(lock, self.name, self.path)
        if self._digest is not None:
            self._digest = RunningDigest(block.digest.decode(), lock.fd)

    def resume(self) -> None:
        """Begin with what `cut` has kept: it is published at once, and hashed by a thread.

        Raises:
            IllegalTransition: appending has begun.
        """
        with self._lock:
            self._begin()
            if self._digest is not None:
                self._digest.update(self._file.size)
            if self._publishable() > 0:
                self._publish()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever readers are woken, in the thread that wakes them.

        For this process, which needs no reader to know how far the stream is. It must not block.
        """
        with self._lock:
            self._check_open()
            self._subscribers.here = listener

    def due_in(self) -> float:
        """Seconds after which to `receive` again, whatever has come; 0: as soon as anything has."""
        return self._pacer.due_in()

    def receive(self, move: Callable[[int, int], int]) -> int:
        """`append` for what the kernel moves: `move(descriptor, limit)` writes it; how much.

        Publishes if that is due, and only then: do it again after `due_in` seconds, or `pause`.
        `move` is to write at most `limit` bytes at the file's position, and to wait for nothing
        else. What it raises goes through; if that is an OSError, the stream is aborted.

        Raises:
            SizeMismatch, OutOfResources, DamagedPartial, StreamClosed: as `append`.
        """
        with self._lock:
            if not self._streaming:
                self._begin()
            room = min(self._limit - self._file.size, _AT_ONCE)
            if not room:
                raise self._fail_size(self._limit + 1)
            try:
                count = self._file.receive(move, room)
            except (DamagedPartial, OutOfResources, OSError) as error:
                self.abort(error)
                raise
            self._appended(count, self._pacer.is_time)
            return count

    def pause(self) -> None:
        """There is no more to `receive` for now: what is left over goes out in time by itself."""
        with self._lock:
            if self._streaming:
                self._appended(0, self._pacer.is_due)

    @property
    def descriptor(self) -> int:
        """Of the partial file, for reading; it is closed with the streamer."""
        return self._file.fd

    def reopen(self) -> int:
        """A descriptor of the partial file for reading what is published; the caller's to close.

        It is opened anew: one that shares the writer's description would keep its lock.

        Raises:
            OutOfResources: descriptors have run out.
        """
        with naming_shortages(self.name, os.path.dirname(self.path)):
            return os.open(f"/proc/self/fd/{self._file.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def set_size(self, size: int) -> None:
        """Tell how many bytes the blob has, as soon as that is known. Reserves the space.

        Raises:
            SizeMismatch: it has another size, or more bytes already. The stream is aborted.
            OutOfResources: the disk has no such space. The stream is aborted.
        """
        with self._lock:
            self._check_open()
            if self._limit not in (UNKNOWN, size) or size < self._file.size:
                raise self._fail_size(size)
            if self._limit == UNKNOWN:
                try:
                    self._file.reserve(size)
                except BaseException as error:
                    self.abort(error)
                    raise
                self._block.size = self._limit = size
                self._subscribers.tell_here()

    def set_metadata(self, text: bytes) -> None:
        """Before the first append: have every reader know what the source says of the blob.

        Raises:
            ValueError: it is longer than 1,024 bytes.
            IllegalTransition: appending has begun.
        """
        with self._lock:
            self._check_open()
            self._block.require(State.STREAMING, self.name)
            self._block.metadata = text

    @property
    def metadata(self) -> bytes:
        """What `set_metadata` stored, perhaps in the process before this one."""
        return self._block.metadata

    @property
    def error(self) -> BlobAborted | None:
        """What readers of an aborted stream are told."""
        if self._block.state != State.ABORTED:
            return None
        return BlobAborted.from_text(self._block.error)

    @property
    def hashed(self) -> int:
        """Bytes that are hashed by now; never more than there are."""
        return 0 if self._digest is None else self._digest.covered

    def digest_so_far(self) -> tuple[int, str] | None:
        """How many bytes are hashed by now, and their hex digest; None without a digest."""
        with self._lock:
            return None if self._digest is None else self._digest.so_far()

    def has_readers(self) -> bool:
        """Whether anybody alive has a slot."""
        with self._lock:
            self._check_open()
            return self._stream.lock.is_held_elsewhere(self._block.slots_span)

    def commit(self) -> None:
        """As a `BlobStreamer` does; then seal the blob, if it was verified and is on the disk."""
        with self._lock:
            super().commit()
            if self.durable and self.digest is not None:
                seal(self._file.fd, self.digest)

    def _keeps(self, reason: str | BaseException) -> bool:
        return self._is_worth_keeping() and not isinstance(reason, _SPOILING)

    def _is_worth_keeping(self) -> bool:
        return self._file.trim() > 0 and self.keeps

    def close(self) -> None:
        """Let go of the stream; unless it has ended, without ending it: somebody succeeds us.

        What was appended is published. If nobody reads, the name goes, and the partial file stays
        for the next. Idempotent.
        """
        with self._lock:
            if self._closed is not None:
                return
            if self._block.state in TERMINAL or not self.has_readers():
                if self._block.state not in TERMINAL and not self._is_worth_keeping():
                    self._file.unlink()
                self._end(aborting=False)
            else:
                self._publish()
                self._subscribers.here = None  # the last ring is for those who may succeed us
                with ExitStack() as ending:  # from the last to the first
                    ending.callback(self._release)
                    ending.callback(self._subscribers.close)
                    ending.callback(self._subscribers.ring)  # they look for a writer: none
                    ending.callback(self._stream.lock.release, self._block.header_span)
                    ending.callback(self._close_file)
                    ending.callback(self._pacer.close)
        self._pacer.join()
