"""`Blob`: a readable file of one key, complete or in flight, however often its leader changes.

It delegates to a file, or to an `InFlightCopier`. If the copier finds its writer dead, the blob
joins the flight anew at the same position (this process may lead the flight then) and goes on,
mostly with the same copier. If the source has other bytes by then, reading raises an error; two
contents are never mixed.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from shmstream.errors import (
    BlobAborted,
    BlobNotFound,
    CannotStart,
    ContentChanged,
    DamagedPartial,
    ShmstreamError,
    StoreUnusable,
    StreamBroken,
    StreamClosed,
    WriterDied,
    WriterStalled,
)
from shmstream.flight.beside import Beside
from shmstream.flight.file_follower import FileFollower
from shmstream.flight.flight import SUCCESSION, Flight, Reader, Role
from shmstream.flight.guarded import Unproved
from shmstream.flight.naming import name_key, naming
from shmstream.flight.progress import REPORT, Bar, Progress
from shmstream.flight.stored_file import StoredFile
from shmstream.sources.base import Description, Source
from shmstream.sources.local import rereadable
from shmstream.stream.growing_file import View, no_descriptor
from shmstream.stream.partial import partial_path
from shmstream.stream.reader import InFlightCopier
from shmstream.system.buffers import lines_of, octets
from shmstream.system.copying import Destination, Mover
from shmstream.system.process import register
from shmstream.system.refusals import ReadOnly

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_BUFFER = 64 * 1024  # bytes; the most that one step of an iteration yields
_COMPARED = 1 << 20  # bytes; what is compared of two files at one time
_APART = 2.0  # s; a leader that is found dead so long after the last one is another one
_PATIENCE = 60.0  # s; how long no process may be able to take over


class Opens(Protocol):
    """Opens the same key once more; a `Store` gives it."""

    def __call__(self, *, source: Sequence[Source] | None) -> Blob:
        """The blob, at its beginning."""


class Blob(ReadOnly, io.RawIOBase):
    """A readable, seekable binary file: the blob of `key`.

    From `Store.open`. Reading waits for bytes that have not arrived, also after a `seek` ahead, and
    ends only where the whole, verified blob ends. `for data in blob` yields bytes as they arrive.
    `read(n)` and `readinto` wait for all bytes that they are asked for, as those of a file do;
    `read1` and `readinto1` take the bytes that have arrived; `copy` moves everything through the
    kernel. Use it as a context manager; leaving it does not end the flight.

    One thread at a time may use it. A forked child may use it too, each from its own position; of
    a blob in flight, it joins the flight at the first use. A pickled blob opens its key again, in
    the process that unpickles it and at the same position; `progress` stays behind, and so does a
    source that cannot be pickled, such as a file object.

    Raises from every way of reading:
        BlobAborted: the flight was given up: `SourceFailed`, `DigestMismatch`, ...
        WriterStalled: no byte came for `stall_timeout`; reading again waits again.
        DamagedPartial: another program changed the file.
        DamagedBlob: the flight of another caller brought a blob with another digest or size than
            this one asked for, and there is no source to get the right one from.
    """

    _instead = "make a new blob with `Store.create`, which can also replace this one"

    def __init__(
        self,
        flight: Flight,
        progress: Callable[[Progress], None] | None = None,
        reader: Reader | None = None,
        opens: Opens | None = None,
        goes_past: bool = True,
    ) -> None:
        """Internal: use `Store.open`. `reader` belongs to `flight`; None: join the flight now.

        `opens` is what opens the blob again where it is unpickled. With `goes_past` False, only the
        caller of `go_past` decides that the leader is stalled.
        """
        self._goes_past = self._counts = goes_past and flight.stall_timeout is not None
        self._flight = flight
        self._opens = opens
        self._tell = progress
        self._told = float("-inf")
        try:
            self._file = flight.join() if reader is None else reader
        except BaseException:
            flight.withdraw()
            if isinstance(progress, Bar):
                progress.close()
            raise
        self._is_forked = False
        self.joins: int = 1
        """How many streams or files this blob has read: one more if it had to leave its stream."""
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
        with naming(self._flight.place):
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

    def next_view(self, seen: int) -> View:
        """Move to `seen`; wait as `wait_past` does; how far the blob is then."""
        return self._go(partial(self._next_view, seen))

    def _next_view(self, seen: int) -> View:
        reader = self._reader()
        reader.position = seen
        reader.wait(seen + 1)
        return reader.view()

    def offer(self) -> None:
        """Tell the leader which sources the readers of this process have by now."""
        self._flight.offer(self._file)

    def duplicate(self) -> int:
        """Another descriptor of the file that this blob reads now, to read published bytes.

        The caller closes it. After the leader has changed, this blob may read another file.
        """
        with naming(self._flight.place):
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
        with octets(buffer) as view:
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
        with naming(self._flight.place):
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
        if not isinstance(self._file, StoredFile):
            raise no_descriptor()
        return self._file.fileno()

    # Going past a leader that makes no progress.

    def go_past(self) -> bool:
        """Read on without the leader, which is another process and makes no progress.

        Returns False, and changes nothing, if this process leads, has no source, or cannot keep the
        blob. The leader notices nothing, and may wake up at any moment.

        Raises:
            ShmstreamError: no source of this process has the blob, or has other bytes by now.
        """
        fresh = self._flight.go_past(self._file)
        if fresh is None:
            return False
        self._replace(fresh)
        self._flight.has_gone_past(fresh)
        return True

    def stop(self) -> None:
        """If this blob went past its leader, make the thread that reads it fail soon."""
        if isinstance(self._file, Beside):
            self._file.stop()

    @property
    def quiet_for(self) -> float:
        """Seconds since the leader made progress; 0 if this blob needs no leader."""
        file = self._file
        return file.quiet_for if isinstance(file, InFlightCopier | FileFollower) else 0.0

    def _count_from_progress(self) -> None:
        """Have the next wait end when the leader has made no progress for `stall_timeout`.

        So a reader that comes later does not wait as long as the first reader did.
        """
        file, patience = self._file, self._flight.stall_timeout
        if isinstance(file, InFlightCopier | FileFollower) and patience is not None:
            file.stall_timeout = max(patience - file.quiet_for, 0.0)

    def _is_past(self, stall: WriterStalled) -> bool:
        """Whether to try again after a stall, perhaps without the leader."""
        file, patience = self._file, self._flight.stall_timeout
        if not self._goes_past or not isinstance(file, InFlightCopier | FileFollower):
            return False
        assert patience is not None
        waited, stall.seconds = stall.seconds, patience
        if file.quiet_for < patience or self.go_past():
            return True
        if self._counts:  # from now on each read waits for the leader
            self._counts = False
            file.stall_timeout = patience - waited
            return waited < patience
        file.stall_timeout = patience
        return False

    # Going on when the leader dies.

    def _go(self, act: Callable[[], T]) -> T:
        deaths = _Deaths(self.key, self._flight.stall_timeout)
        while True:
            try:
                if deaths.error is not None:
                    self._rejoin(deaths.error)
                    deaths.error = None
                if self._counts:
                    self._count_from_progress()
                result = act()
            except ShmstreamError as error:
                name_key(error, self._flight.place)
                self._bear(error, deaths)
            else:
                self._report()
                return result

    def _bear(self, error: ShmstreamError, deaths: _Deaths) -> None:
        """Return if it makes sense to try again; else raise the error."""
        if isinstance(error, WriterDied):  # perhaps of the next leader, before it published a byte
            deaths.add(error)
        elif isinstance(error, Unproved | BlobAborted) and self._flight.may_join_after(
            error, self._file
        ):
            deaths.error = error
        elif (
            isinstance(error, BlobNotFound | StoreUnusable | CannotStart)
            and deaths.error is not None
            and not isinstance(deaths.error, Unproved)
        ):
            deaths.wait_for_another(deaths.error if isinstance(error, BlobNotFound) else error)
        elif not (isinstance(error, WriterStalled) and self._is_past(error)):
            raise error

    def _rejoin(self, death: StreamBroken | None = None) -> None:
        """Join the flight again, after this `death`, and read on at the same position."""
        old = self._file
        self._flight.before = old if isinstance(death, WriterDied) else None
        fresh = self._flight.join()
        if fresh is not old:  # else its stream goes on, or was aborted: then it raises why
            self._replace(fresh)

    def _replace(self, fresh: Reader) -> None:
        """Read on in another stream or file, at the same position."""
        old = self._file
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
            self._rejoin()
            self._is_forked = False
        return self._file

    def _require_same(self, old: Reader, fresh: Reader) -> None:
        """Require that another stream, or another file, has the bytes that were read of the old.

        Of a name with a validator, the same validator shows it. Else the bytes before the position
        are compared: with a digest, the new flight proves its own bytes, and not those of the old;
        and of a name without a validator, equal bytes make what was read a part of the new content.

        Raises:
            ContentChanged: it has other bytes.
            DamagedPartial: this blob may have read what another program has written.
            StreamBroken: the bytes to compare do not arrive.
        """
        if isinstance(old, StoredFile) or isinstance(fresh, Beside):
            return  # what reads beside the leader has checked it
        if isinstance(fresh, InFlightCopier):
            if isinstance(old, InFlightCopier) and fresh.is_same_stream(old):
                return
            fresh.wait(1)  # with the first byte the file and the validator are known
            fresh.view()
        if self._flight.found_damage:
            reason = "was written to by somebody else"
            raise DamagedPartial(self.key, old.position, partial_path(self.path), reason)
        if fresh.identity == old.identity:  # its leader has made sure that it may go on with it
            return
        if self._flight.place.is_given:
            self._compare(old, fresh)
            return
        if isinstance(fresh, FileFollower):
            fresh.wait(1)
        before, now = (self._flight.metadata(each).validator for each in (old, fresh))
        if before is None or now is None:
            self._compare(old, fresh)
        elif before != now:
            reason = f"the validator was {before!r} and is {now!r}"
            raise ContentChanged(self.key, old.position, reason)

    def _compare(self, old: Reader, fresh: Reader) -> None:
        end, offset = min(old.position, old.published), 0
        while offset < end:
            count = min(_COMPARED, end - offset)
            fresh.wait(offset + count)
            try:
                data = old.pread(count, offset)
            except StreamClosed:  # of the process that this one was forked from
                data = b""
            if len(data) < count or data != fresh.pread(count, offset):
                reason = "another flight has other bytes than those that were read"
                raise ContentChanged(self.key, offset, reason)
            offset += count

    def _report(self, *, last: bool = False) -> None:
        if self._tell is None:
            return
        now = time.monotonic()
        if last or now - self._told >= REPORT:
            self._told = now
            self._tell(Progress(self.key, self.published, self.size, self.role))

    def _close_bar(self) -> None:
        """Show how far it came, and close the bar, if there is one."""
        if isinstance(self._tell, Bar):
            try:
                self._report(last=True)
            except (ShmstreamError, ValueError, OSError):  # it has failed, and has told so
                pass
            self._tell.close()

    # In another process.

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the key again in the process that unpickles this, and go to the same position.

        Raises:
            TypeError: the store cannot be pickled; the message tells what to do.
            ValueError: the blob was closed.
        """
        if self.closed:
            raise ValueError(f"the blob {self.key[:80]!r} was closed, and cannot be pickled")
        if (trouble := _trouble_with_pickling(self._opens)) is not None:
            raise TypeError(
                f"the blob {self.key[:80]!r} cannot be pickled, because its store cannot "
                f"({trouble}): give `Store` an `on_event` that is a function of a module, or hand "
                "on the key, and open it in the other process"
            )
        sources = rereadable(self._flight.sources())
        sources = [each for each in sources if _trouble_with_pickling(each) is None]
        return _open_again, (self._opens, sources, self.position)

    # The end.

    def close(self) -> None:
        """Leave the blob. Its flight goes on. Idempotent."""
        if (file := getattr(self, "_file", None)) is not None:  # None: opening it failed
            if not self.closed:
                self._close_bar()
            self._flight.withdraw()
            file.close()
            if not isinstance(file, StoredFile):
                self._flight.leave()  # this may be the last reader of a flight without a leader
        super().close()

    def abandon(self) -> None:
        """In a forked child: join the flight at the first use. Of a stored blob nothing changes."""
        self._is_forked = not isinstance(self._file, StoredFile)

    def __repr__(self) -> str:
        if self.closed:
            return f"<Blob {self.key[:80]!r} closed>"
        size = "?" if self.size is None else self.size
        return f"<Blob {self.key[:80]!r} {self.role} at {self.position}, {self.published}/{size}>"


def _trouble_with_pickling(thing: object) -> str | None:
    """Why `thing` cannot be pickled; None if it can."""
    import pickle

    try:
        pickle.dumps(thing)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        return str(error)
    return None


def _open_again(opens: Opens, sources: Sequence[Source], position: int) -> Blob:
    """The blob that was pickled."""
    blob = opens(source=sources or None)
    blob.seek(position)
    return blob


class _Deaths:
    """The deaths of leaders, one after the other, while one method of a blob waits."""

    def __init__(self, key: str, stall_timeout: float | None) -> None:
        self._key = key
        self._patience = _PATIENCE if stall_timeout is None else stall_timeout
        self._count = 0
        self._began = self._last = float("-inf")
        self.error: StreamBroken | None = None
        """The last one, or another reason to join the flight again; until that is done."""

    def add(self, error: WriterDied) -> None:
        """A leader has died. If another has just died, wait a moment: a third may be beginning.

        Raises:
            WriterStalled: no process could take over for as long as the blob may stall.
        """
        now = time.monotonic()
        if now - self._last > _APART:
            self._count, self._began = 0, now
        if self._count:
            if (waited := now - self._began) >= self._patience:
                raise WriterStalled(self._key, error.offset, waited) from error
            time.sleep(min(0.01 * 2 ** min(self._count, 5), 0.25))
        self._count, self._last, self.error = self._count + 1, time.monotonic(), error

    def wait_for_another(self, error: ShmstreamError) -> None:
        """This process cannot lead: wait a moment, as a process that can may lead.

        Raises:
            ShmstreamError: `error`, because no process did so in time.
        """
        if time.monotonic() - self._last > SUCCESSION:
            raise error
        time.sleep(0.01)
