"""`Blob`: a readable file of one key, complete or in flight, however often its leader changes.

It delegates to a file, or to an `InFlightCopier`. If the copier finds its writer dead, the blob
joins the flight anew at the same position (this process may lead the flight then) and goes on. If
the source has other bytes by then, reading raises an error; two contents are never mixed.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from shmstream.errors import (
    BlobAborted,
    BlobNotFound,
    ContentChanged,
    StreamBroken,
    WriterDied,
    WriterStalled,
)
from shmstream.flight.flight import Flight, Reader, Role
from shmstream.flight.guarded import Unproved
from shmstream.sources.base import Description
from shmstream.stream.reader import InFlightCopier, View
from shmstream.system.copying import Destination, Mover
from shmstream.system.process import register

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_BUFFER = 64 * 1024  # bytes; the most that one step of an iteration yields
_SPAN = 4 << 20  # bytes; the most that `copy` moves of a complete file at one time
_REPORT = 0.1  # s; progress is reported at most that often


@dataclass(frozen=True)
class Progress:
    """How far a blob is: `published` bytes can be read, of `size` (None while unknown).

    `role` is the part of this process in its flight.
    """

    key: str
    published: int
    size: int | None
    role: Role


class Blob(io.RawIOBase):
    """A readable, seekable binary file: the blob of `key`.

    From `Store.open`. Reading waits for bytes that have not arrived, also after a `seek` ahead, and
    ends only where the whole, verified blob ends. `for data in blob` yields bytes as they arrive.
    `read(n)` and `readinto` wait for all bytes that they are asked for, as those of a file do;
    `read1` and `readinto1` take the bytes that have arrived; `copy` moves everything through the
    kernel. Use it as a context manager; leaving it does not end the flight.

    One thread at a time may use it. A forked child may use it too, each from its own position; of
    a blob in flight, it joins the flight at the first use.

    Raises from every way of reading:
        BlobAborted: the flight was given up: `SourceFailed`, `DigestMismatch`, ...
        WriterStalled: no byte came for `stall_timeout`; reading again waits again.
        DamagedPartial: another program changed the file.
        DamagedBlob: the flight of another caller brought a blob with another digest or size than
            this one asked for, and there is no source to get the right one from.
    """

    def __init__(
        self,
        flight: Flight,
        progress: Callable[[Progress], None] | None = None,
        reader: Reader | None = None,
    ) -> None:
        """Internal: use `Store.open`. `reader` belongs to `flight`; None: join the flight now."""
        self._flight = flight
        self._tell = progress
        self._told = float("-inf")
        self._file = flight.join() if reader is None else reader
        self._is_forked = False
        self.joins: int = 1
        """How many streams or files this blob has read: one more for each leader that died."""
        self.key: str = flight.place.key
        self.path: str = flight.place.path
        """Where the complete blob is, or will be."""
        self._report()
        register(self, reads=True)

    @property
    def role(self) -> Role:
        """Whether it was stored when it was opened, or this process leads its flight or follows."""
        return self._flight.role

    def view(self) -> View:
        """How far the blob is now, and in which file; it does not wait.

        The descriptor belongs to this blob.
        """
        return self._reader().view()

    @property
    def size(self) -> int | None:
        """Bytes of the blob; None until the size is known."""
        return self._file.size

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        return self._file.published

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here, verified and in the store."""
        return self._file.is_complete

    @property
    def metadata(self) -> Description:
        """What the source says about the blob; empty until it has answered."""
        return self._flight.metadata(self._reader())

    @property
    def validator(self) -> str | None:
        """The source's name for these very bytes, such as an ETag; None until it has answered."""
        return self.metadata.validator

    @property
    def media_type(self) -> str | None:
        """The media type that the source declares; None until it has answered."""
        return self.metadata.media_type

    @property
    def position(self) -> int:
        """Bytes from the beginning of the blob to the next byte to read; the same as `tell()`."""
        return self._file.position

    def wait(self) -> int:
        """Wait until the blob is complete and in the store; its size in bytes."""
        while not self.is_complete:
            self.wait_past(self.published)
        self._flight.finish()
        self._report(last=True)
        return self.published

    def wait_past(self, seen: int) -> int:
        """Wait until more than `seen` bytes can be read, or the blob is complete; how many can."""
        self._go(partial(self._wait_past, seen))
        return self.published

    def _wait_past(self, seen: int) -> None:
        self._reader().wait(seen + 1)

    def duplicate(self) -> int:
        """Another descriptor of the file that this blob reads now, to read published bytes.

        The caller closes it. After the leader has changed, this blob may read another file.
        """
        return self._reader().duplicate()

    # Reading.

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer`, waiting for all its bytes, as a file does; fewer only at the end.

        After an error the position is where it was.
        """
        with memoryview(buffer) as whole, whole.cast("B") as view:
            filled = 0
            try:
                while filled < len(view):
                    count = self._go(partial(self._readinto, view[filled:]))
                    if not count:
                        break
                    filled += count
            except BaseException:
                self._file.position -= filled
                raise
            return filled

    def _readinto(self, view: memoryview) -> int:
        return self._reader().readinto(view)

    def readinto1(self, buffer: Buffer, /) -> int:
        """Read into `buffer` bytes that have arrived, waiting for one; 0 at the end."""
        return self._go(lambda: self._reader().readinto1(buffer))

    def read(self, size: int | None = -1, /) -> bytes:
        """Exactly `size` bytes, waiting for them all; fewer only at the end. None or -1: the rest.

        After an error the position is where it was.
        """
        if size is None or size < 0:
            return self.readall()
        data = self._go(lambda: self._reader().read(size))
        try:
            while 0 < len(data) < size and (more := self.read1(size - len(data))):
                data += more
        except BaseException:
            self._file.position -= len(data)
            raise
        return data

    def read1(self, size: int | None = -1, /) -> bytes:
        """Bytes that have arrived, waiting for one, at most `size` (or 64 KiB); b"" at the end."""
        limit = _BUFFER if size is None or size < 0 else size
        return self._go(lambda: self._reader().read1(limit))

    def readall(self) -> bytes:
        """All bytes from the position to the end, waiting for it."""
        start = self.position
        try:
            return b"".join(self)
        except BaseException:
            self._file.position = start
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

        `destination` is a descriptor, a blocking socket or a binary file object. Bytes are written
        as they arrive. Blocks for the source and for the destination.
        """
        mover = Mover(destination)
        start = self.position
        try:
            while self._go(partial(self._move, mover)):
                pass
        finally:
            mover.finish()
        return self.position - start

    def _move(self, mover: Mover) -> int:
        return self._reader().move(mover)

    def tell(self) -> int:
        """Bytes from the beginning of the blob to the next byte to read."""
        return self._reader().tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, also ahead of the last byte that has arrived; the new position.

        With `SEEK_END` this waits until the size is known.
        """
        return self._go(lambda: self._reader().seek(offset, whence))

    def fileno(self) -> int:
        """The descriptor of a blob that was complete when it was opened.

        Raises:
            io.UnsupportedOperation: it was in flight: reading its descriptor may end too early.
        """
        if isinstance(self._file, InFlightCopier):
            raise io.UnsupportedOperation("a blob in flight has no descriptor: read it, or `copy`")
        return self._file.fileno()

    # Going on when the leader dies.

    def _go(self, act: Callable[[], T]) -> T:
        deaths = 0
        began = time.monotonic()
        while True:
            try:
                result = act()
            except WriterDied as error:
                error.name = self.key
                if deaths:  # another process may be succeeding, and has not finished yet
                    self._be_patient(deaths, began, error)
                deaths += 1
                self._rejoin(error)
            except Unproved:
                self._rejoin(None)
            except StreamBroken as error:
                error.name = self.key  # people know the key, and not the stream's name
                if not (isinstance(error, BlobAborted) and self._flight.is_foreign(error)):
                    raise
                self._rejoin(error)
            else:
                self._report()
                return result

    def _be_patient(self, deaths: int, began: float, death: WriterDied) -> None:
        patience, waited = self._flight.stall_timeout, time.monotonic() - began
        if patience is not None and waited >= patience:
            raise WriterStalled(self.key, death.offset, waited) from death
        time.sleep(min(0.01 * 2 ** min(deaths, 5), 0.25))

    def _rejoin(self, death: StreamBroken | None) -> None:
        """Join the flight again, and read on at the same position."""
        old = self._file
        try:
            fresh = self._flight.join()
        except BlobNotFound as error:
            raise (error if death is None else death) from error
        try:
            if old.position and old.published:  # else no byte was given
                self._require_same(old, fresh)
            fresh.seek(old.position)
        except BaseException:
            fresh.close()
            raise
        self._file = fresh
        self.joins += 1
        old.close()
        self._flight.leave()

    def _reader(self) -> Reader:
        """What reads the bytes. In a forked child it has yet to join the flight."""
        if self._is_forked:
            self._flight.begin_anew()
            self._rejoin(None)
            self._is_forked = False
        return self._file

    def _require_same(self, old: Reader, fresh: Reader) -> None:
        """Without a digest, require that the bytes of another stream have the same validator.

        Raises:
            ContentChanged: they have another validator, or none.
        """
        if self._flight.place.is_given or not isinstance(old, InFlightCopier):
            return
        if isinstance(fresh, InFlightCopier):
            if fresh.is_same_stream(old):
                return
        elif fresh.identity == old.identity:
            return  # the leader had moved the file before it died
        if isinstance(fresh, InFlightCopier):
            fresh.wait(1)  # with the first byte the validator is known
        before, now = (self._flight.metadata(each).validator for each in (old, fresh))
        if before is None or before != now:
            reason = f"the validator was {before!r} and is {now!r}"
            raise ContentChanged(self.key, old.position, reason)

    def _report(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._tell is not None and (last or now - self._told >= _REPORT):
            self._told = now
            self._tell(Progress(self.key, self.published, self.size, self.role))

    # The end.

    def close(self) -> None:
        """Leave the blob. Its flight goes on. Idempotent."""
        if (file := getattr(self, "_file", None)) is not None:  # None: opening it failed
            file.close()
            if isinstance(file, InFlightCopier):
                self._flight.leave()  # this may be the last reader of a flight without a leader
        super().close()

    def abandon(self) -> None:
        """In a forked child: join the flight at the first use. Of a stored blob nothing changes."""
        self._is_forked = isinstance(self._file, InFlightCopier)

    def __repr__(self) -> str:
        if self.closed:
            return f"<Blob {self.key[:80]!r} closed>"
        size = "?" if self.size is None else self.size
        return f"<Blob {self.key[:80]!r} {self.role} at {self.position}, {self.published}/{size}>"
