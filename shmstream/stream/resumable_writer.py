"""`ResumableStreamer`: a streamer whose stream another process can take over, for flights.

Its partial file outlives its writer, and its readers stay attached:

    create     keep a partial file that exists already
    cut        keep only the first bytes of that file
    resume     publish the kept bytes, and append to them
    succeed    take over where a dead writer stopped: lock the header, lock the partial file, add
               one to the epoch, publish the bytes that the dead writer had not published yet
    give_way   leave last words, then close: a reader that can do better succeeds
    close      before the end of the blob: publish all bytes, release the locks, ring; a reader then
               succeeds
    abort      keep the partial file, unless the reason says that its bytes are wrong
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from shmstream.errors import (
    BlobAborted,
    ContentChanged,
    DamagedPartial,
    DigestMismatch,
    OutOfResources,
    SizeMismatch,
    naming_shortages,
    naming_shortages_beside,
)
from shmstream.stream.claims import reap_unread
from shmstream.stream.control_block import TERMINAL, State
from shmstream.stream.described_writer import DescribedStreamer
from shmstream.stream.digest import RunningDigest
from shmstream.stream.pacer import check_pacing
from shmstream.stream.stream import Stream
from shmstream.stream.subscribers import Subscriber, present
from shmstream.system.locks import WHOLE_FILE, KernelLock, file_identity

AT_ONCE = 1 << 20
"""Bytes that one `receive` takes at most."""
_SPOILING = (DigestMismatch, SizeMismatch, ContentChanged, DamagedPartial)
"""After these errors the partial file is removed, because its bytes are wrong."""


class ResumableStreamer(DescribedStreamer):
    """A `BlobStreamer` that another process can succeed, while its readers wait."""

    _resumable = True
    keeps = True
    """Whether the partial file is kept if the stream ends before the blob is complete. False if
    nothing could prove later what the file contains."""

    _vouch: Callable[[], None] | None = None
    _warn: Callable[[BlobAborted], None] | None = None

    @classmethod
    def succeed(
        cls,
        name: str,
        *,
        publish_bytes: int = 1 << 20,
        publish_interval: float = 0.02,
        durable: bool = False,
    ) -> Self:
        """Take over a stream whose writer died or handed it over, behind its last byte.

        Its readers see a pause and nothing else.

        Raises:
            StreamExists: it has a live writer: perhaps another successor was faster.
            StreamNotFound: there is no such stream, or it has ended, or its partial file is gone;
                in the last case its name is removed, and its readers find that it has no writer.
            ForeignSegment, DamagedSegment, OutOfResources: as `create`.
        """
        check_pacing(publish_bytes, publish_interval)
        with naming_shortages(name, "shared memory (/dev/shm)"):
            stream, lock = Stream.succeed(name)
        streamer = cls(stream, lock, (publish_bytes, publish_interval), durable=durable)
        streamer._publish()
        streamer._pacer.forget()
        return streamer

    def cut(self, keep: int) -> None:
        """Before the first append: keep the first `keep` bytes of the partial file.

        If `keep` is 0, a new file replaces the old one, because a reader of an earlier stream may
        still read the old file (I2). When the readers of this stream see the first published bytes,
        they open the file that the block names then.

        Raises:
            DamagedPartial: the file has fewer bytes.
            IllegalTransition: appending has begun.
        """
        with self._lock:
            self._check_open()
            self._block.require(State.STREAMING, self.name)
            if keep > 0:
                self._file.truncate(keep)
            elif os.fstat(self._file.fd).st_size > 0:
                self._replace_file()

    def _replace_file(self) -> None:
        fresh = f"{self._file.path}.{os.urandom(4).hex()}"
        lock = KernelLock(fresh, os.O_CREAT | os.O_EXCL)
        try:
            lock.try_acquire(WHOLE_FILE)  # no other process knows the file yet
            os.rename(fresh, self._file.path)
        except BaseException:
            lock.close()
            os.unlink(fresh)
            raise
        block = self._block
        block.device, block.inode, block.file_generation = file_identity(lock.fd)
        self._close_file()
        self._file = self._file_of(lock, 0)
        if self._digest is not None:
            self._digest = RunningDigest(self._given, lock.fd)

    def resume(self) -> None:
        """Begin with the bytes that `cut` has kept: publish them at once; a thread hashes them.

        They are published before the state is STREAMING, so that no reader finds a stream that is
        STREAMING and lacks bytes that were kept:

            this writer                       its successor
            1 stores `published`
              is killed                       sees `published` above 0: takes it for STREAMING
            2 stores STREAMING
              is killed                       goes on after all bytes of the file

        Raises:
            IllegalTransition: appending has begun.
        """
        with self._lock:
            self._check_open()
            if self._file.size > 0:
                self._block.require(State.STREAMING, self.name)
                if self._digest is not None:
                    self._digest.update(self._file.size)
            if (publishable := self._publishable()) > 0:
                self._store_published(self._block.at_once(), publishable)
            self._begin()
            if publishable > 0:
                self._publish()
                self._pacer.forget()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever readers are woken, in the thread that wakes them.

        So the writer's own process follows the stream without a reader. `listener` must not block.
        """
        with self._lock:
            self._check_open()
            self._subscribers.here = listener

    def look(self) -> tuple[int, bool]:
        """How many bytes readers can read now, and whether the blob is complete.

        This process alone stores both, so it knows them without the block.
        """
        return self._published, self._is_committed

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk; with a digest, the last chunk is withheld until it is verified."""
        return self._chunk_size

    def vouch_by(self, vouch: Callable[[], None]) -> None:
        """Call `vouch` before the partial file is kept, while its lock is held.

        It notes what proves the file's bytes later, or clears `keeps`.
        """
        self._vouch = vouch

    def warn_by(self, warn: Callable[[BlobAborted], None]) -> None:
        """Call `warn` with the error before readers can see that the stream is aborted."""
        self._warn = warn

    def while_held(self, note: Callable[[], object]) -> None:
        """Call `note`, which notes something of the partial file, while its lock is held.

        If it is held no more, nothing is called: by now it may be another process that notes.
        """
        with self._lock:
            if self._closed is None and not self._file.is_closed:
                note()

    def due_in(self) -> float:
        """Call `receive` again after so many seconds; 0: as soon as new bytes have arrived."""
        return self._pacer.due_in()

    def receive(self, move: Callable[[int, int], int]) -> int:
        """`append` for what the kernel moves: `move(descriptor, limit)` writes it; how many bytes.

        This publishes only if it is time. So call it again after `due_in` seconds, or call `pause`.
        `move` must write at most `limit` bytes at the file's position, and wait for nothing but the
        disk. Its exceptions are raised here; after an OSError the stream is aborted.

        Raises:
            SizeMismatch, OutOfResources, DamagedPartial, StreamClosed: as `append`.
        """
        with self._lock:
            if not self._streaming:
                self._begin()
            room = min(self._limit - self._file.size, AT_ONCE)
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
        """Tell that no `receive` follows soon: a thread publishes the remaining bytes in time."""
        with self._lock:
            if self._streaming:
                self._appended(0, self._pacer.is_due)

    @property
    def descriptor(self) -> int:
        """The descriptor of the partial file, for `while_held`; -1 once it is closed."""
        return self._file.fd

    @property
    def identity(self) -> tuple[int, int, int]:
        """Which file the partial file is: see `file_identity`.

        Raises:
            StreamClosed: it is closed.
        """
        with self._lock:
            self._check_open()
            return file_identity(self._file.fd)

    def pread(self, count: int, offset: int) -> bytes:
        """At most `count` bytes of the partial file, from `offset` on.

        Raises:
            StreamClosed: it is closed.
        """
        with self._lock:
            self._check_open()
            return os.pread(self._file.fd, count, offset)

    @contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor of the partial file, as `reopen` gives it; closed at the end of the block.

        For what takes long: another thread may close this streamer meanwhile.
        """
        fd = self.reopen()
        try:
            yield fd
        finally:
            os.close(fd)

    def reopen(self) -> int:
        """A new descriptor of the partial file, to read published bytes; the caller closes it.

        The file is opened anew, because a duplicate would keep the writer's lock alive.

        Raises:
            OutOfResources: descriptors have run out.
            StreamClosed: it is closed.
        """
        with self._lock, naming_shortages_beside(self.name, self.path):
            self._check_open()
            return os.open(f"/proc/self/fd/{self._file.fd}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def last_words(self) -> bytes:
        """What an earlier writer left in `give_way`; empty if it left nothing."""
        return self._block.error

    def forget_last_words(self) -> None:
        """Remove the last words of an earlier writer, because this one goes on."""
        with self._lock:
            self._check_open()
            self._block.error = b""

    def give_way(self, last_words: bytes) -> None:
        """Store `last_words` for the reader that succeeds this writer, then `close`.

        Raises:
            ValueError: they do not fit into the place of an error.
            StreamClosed: it is closed.
        """
        with self._lock:
            self._check_open()
            self._block.error = last_words  # before the lock on the header is free
        self.close()

    @property
    def hashed(self) -> int:
        """Bytes that are hashed by now; never more than were appended."""
        return 0 if self._digest is None else self._digest.covered

    def digest_so_far(self) -> tuple[int, str] | None:
        """How many bytes are hashed by now, and their hex digest; None without a digest."""
        with self._lock:
            return None if self._digest is None else self._digest.so_far()

    def readers(self) -> list[Subscriber]:
        """The live readers; none of a stream that is closed."""
        with self._lock:
            return [] if self._closed is not None else present(self._block, self._stream.lock)

    def has_readers(self) -> bool:
        """Whether a live reader has a slot; True if another program has cut the block off."""
        with self._lock:
            self._check_open()
            if not self._block.is_sound:
                return True
            return self._stream.lock.is_held_elsewhere(self._block.slots_span)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is appended any more: it is over, closed, or was cut off."""
        with self._lock:
            return self._closed is not None or not self._block.is_sound or self._has_ended()

    @property
    def _is_untold(self) -> bool:
        """Whether it has succeeded, and nobody has told yet how to vouch for the file's bytes.

        Then `reap_unread` notes what the block says of them.
        """
        return self._vouch is None and self._block.state == State.STREAMING

    def _about_to_abort(self, error: BlobAborted) -> None:
        if self._warn is not None:
            self._warn(error)

    def _keeps(self, reason: str | BaseException) -> bool:
        return not isinstance(reason, _SPOILING) and self._is_worth_keeping()

    def _is_worth_keeping(self) -> bool:
        """Whether the partial file is kept; then its reserved space is given back first.

        Before STREAMING the file is what an earlier stream left, and stays as it is.
        """
        if self._block.is_sound and self._block.state == State.OPENING:
            return self.keeps and os.fstat(self._file.fd).st_size > 0
        if self._file.trim() == 0 or not self.keeps:
            return False
        if self._vouch is not None:
            self._vouch()
        return self.keeps

    def close(self) -> None:
        """Hand the stream over: a reader can succeed, unless the stream has ended.

        All appended bytes are published. If there are no readers, the name is removed, and the
        partial file stays for the next download. Idempotent; if a signal handler interrupts it,
        another call does the rest.
        """
        with self._lock:
            if self._closed is not None:
                return
            now = self._block.if_sound()
            # If it is not sound, nobody can succeed, but another flight can go on.
            if now is None or now.state in TERMINAL:
                self._end()
            elif not (self._is_untold or self.has_readers()):
                if not (self._file.is_closed or self._is_worth_keeping()):
                    self._file.unlink()
                self._end()
            else:
                self._publish()
                self._subscribers.here = None  # the last ring is for readers that may succeed
                with ExitStack() as ending:  # from the last to the first
                    ending.callback(reap_unread, self.name)  # its last reader may have left by now
                    ending.callback(self._release)
                    ending.callback(self._subscribers.close)
                    ending.callback(self._subscribers.ring)  # readers then find no writer's lock
                    ending.callback(self._stream.lock.release, self._block.header_span)
                    ending.callback(self._close_file)
                    ending.callback(self._pacer.close)
        self._pacer.join()
