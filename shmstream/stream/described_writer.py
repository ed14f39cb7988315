"""`DescribedStreamer`: a streamer of a store, which tells its readers what the blob is.

Beside what a `BlobStreamer` does, it can store what is known of the blob before the first append,
set the size later, take disk space in steps, and seal the blob that it commits. Two kinds of it
bring blobs into a store: `ResumableStreamer` for downloads, and the streamer of a producer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from shmstream.errors import BlobAborted, DamagedSegment
from shmstream.stream.control_block import UNKNOWN, State
from shmstream.stream.seal import seal
from shmstream.stream.writer import BlobStreamer


class DescribedStreamer(BlobStreamer):
    """A `BlobStreamer` with a description of its blob, which is sealed when it is committed."""

    _about_to_move: Callable[[], AbstractContextManager[None]] = nullcontext

    def set_size(self, size: int) -> None:
        """Set the blob's size in bytes, as soon as the source tells it.

        Raises:
            SizeMismatch: another size was set, or there are more bytes. The stream is aborted.
        """
        with self._lock:
            self._check_open()
            if self._limit not in (UNKNOWN, size) or size < self._file.size:
                raise self._fail_size(size)
            if self._limit == UNKNOWN:
                self._block.size = self._limit = size
                self._subscribers.tell_here()

    def reserve(self, size: int) -> None:
        """Reserve the disk space for the first `size` bytes of the blob.

        What is not written is given back when the stream ends.

        Raises:
            OutOfResources: the disk has less free space. The stream goes on.
        """
        with self._lock:
            self._check_open()
            self._file.reserve(min(size, self._limit))

    def move_within(self, moving: Callable[[], AbstractContextManager[None]]) -> None:
        """Give the complete blob its final name within the context `moving()`. In this process."""
        self._about_to_move = moving

    def _moving(self) -> AbstractContextManager[None]:
        return self._about_to_move()

    def withhold(self) -> None:
        """Withhold the last chunk until the commit, though no digest was given. In this process."""
        with self._lock:
            self._withholds = True

    def leave_unhashed(self) -> None:
        """Before the first append: compute no digest, unless one was given. In this process."""
        with self._lock:
            if ":" not in self._given:
                self._digest = None

    @property
    def expected(self) -> str:
        """The digest that the blob must have, or only its algorithm; also an earlier writer's."""
        return self._given

    def set_metadata(self, text: bytes) -> None:
        """Before the first append: store for every reader what the source says about the blob.

        Raises:
            ValueError: `text` is longer than 1,024 bytes.
            IllegalTransition: appending has begun.
        """
        with self._lock:
            self._check_open()
            now = self._block.at_once()
            now.require(State.STREAMING, self.name)
            now.metadata = text

    @property
    def metadata(self) -> bytes:
        """What `set_metadata` stored, in this process or in an earlier writer's."""
        return self._block.metadata

    @property
    def error(self) -> BlobAborted | None:
        """The error that readers of an aborted stream get; None if it is not aborted."""
        if self._block.state != State.ABORTED:
            return None
        try:
            return BlobAborted.from_text(self._block.error)
        except ValueError as error:
            reason = f"its error cannot be read: {error}"
            raise DamagedSegment(self.name, reason) from error

    @property
    def is_cut_off(self) -> bool:
        """Whether the partial file was removed or replaced, so that this cannot commit any more."""
        with self._lock:
            if self._closed is not None or self._has_ended() or not self._block.is_sound:
                return False
            return not self._file.is_at_its_path

    def commit(self) -> None:
        """Commit as a `BlobStreamer`; then seal the blob if it was hashed and is on the disk.

        What may be published goes out first: to verify and to sync the rest takes a while, and
        meanwhile readers, and nodes that read here, can have the bytes before the last chunk.
        """
        with self._lock:
            if self._streaming and self._publishable() > self._published:
                self._publish()
            super().commit()
            if self.durable and self.digest is not None:
                seal(self._file.fd, self.digest)
