"""`Beside`: reads a blob past a leader that makes no progress, by a download of its own.

A leader may be stopped, or hang in a system call. It still holds its locks, so no process can take
its flight over, and it may wake up at any moment and go on. A follower that has a source of its own
then brings the rest of the blob itself, into a file that has no name (where the file system has no
such files, it has the name of a temporary file of the store):

    begin     copy the published bytes, which never change (I2), to a new file of the store
    read      append what comes from the source (`pass_through.OwnBytes`): it begins where the
              published bytes end; of a blob with a digest the last chunk is withheld (I5)
    end       all bytes are verified: give the file the blob's final name, if that is still free

The leader's bytes may be wrong. With a digest that shows in three ways: a source of this process
tells another size than the leader; it gives other bytes before the published end; or the digest of
all bytes does not match. Then all bytes come from the sources of this process, from the first on.
Those that this reader has read already are compared with the new ones. If they are others, this
reader gets an error; but first it brings the rest, and the blob is there for other readers.

The leader notices nothing. When it wakes up it goes on in its own file. If it commits, its file
replaces ours at the final name, with the same bytes. One process has one such download for each
blob that it reads, and for all its tasks together. It is not in shared memory, so other processes
bring the bytes for themselves, until the final name is there.
"""

from __future__ import annotations

import copy
import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NoReturn

from shmstream.errors import (
    BlobAborted,
    ContentChanged,
    DamagedPartial,
    DigestMismatch,
    ShmstreamError,
    SourceFailed,
)
from shmstream.flight.described_file import DescribedFile
from shmstream.flight.pass_through import OwnBytes
from shmstream.sources.base import Description, Source
from shmstream.storage.origin import note_source
from shmstream.storage.record import Record
from shmstream.stream.partial import sync_folder
from shmstream.stream.seal import seal
from shmstream.system.copying import Mover
from shmstream.system.files import open_file, open_unnamed
from shmstream.system.locks import file_identity

if TYPE_CHECKING:
    from shmstream.flight.file_follower import FileFollower
    from shmstream.storage.layout import Place
    from shmstream.stream.reader import InFlightCopier

_SPAN = 4 << 20  # bytes; what is copied at one time

_log = logging.getLogger("shmstream")


class Beside(DescribedFile):
    """A reader that brings the bytes itself, in the thread that reads."""

    def __init__(
        self, place: Place, bytes_: OwnBytes, ended: Callable[[str], None], *, durable: bool
    ) -> None:
        """Internal: use `begin`. Owns `bytes_`.

        Raises:
            OSError: no file can be made.
        """
        super().__init__(place)
        self._bytes = bytes_
        self._is_stopped = False
        self._again: Callable[[Sequence[Source]], OwnBytes] | None = None
        self._sources: Sequence[Source] = ()
        self._is_copied = False  # the first bytes are the leader's
        self._was_misled: ContentChanged | None = None
        self._compared = 0  # bytes that come once more, and have to be those of the file
        self._ended = ended
        self._durable = durable
        self._pieces: Iterator[bytes] = iter(())
        self._failure: Exception | None = None
        self._fd, self._name = _make_file(place)
        self.identity: tuple[int, int, int] = file_identity(self._fd)
        """Which file is read: see `file_identity`."""

    @classmethod
    def begin(
        cls,
        place: Place,
        make: Callable[[Sequence[Source]], OwnBytes],
        sources: Sequence[Source],
        known: Description,
        old: InFlightCopier | FileFollower,
        ended: Callable[[str], None],
        *,
        durable: bool,
    ) -> Beside:
        """A reader that goes on where `old` is; `known` is what the source said of its bytes.

        `make` makes a download of such sources, in this order. `ended` is called with the blob's
        path when the blob is in the store.

        Raises:
            ShmstreamError: no source has the blob, or has other bytes by now.
            OSError: as the constructor.
        """
        with ExitStack() as undo:
            bytes_ = make(sources)
            undo.callback(bytes_.close)
            beside = cls(place, bytes_, ended, durable=durable)
            undo.callback(beside.close)
            beside._copy(old)
            start = beside._published
            if not start and known == Description():
                known = bytes_.ask()
            beside.description = known
            mine = old.duplicate() if start else -1
            because = "its leader makes no progress"
            beside._pieces = bytes_.give(start, None, known, mine, because)
            beside._again, beside._sources = (make if place.is_given else None), sources
            beside._is_copied = start > 0
            undo.pop_all()
        return beside

    def _copy(self, old: InFlightCopier | FileFollower) -> None:
        """Copy the published bytes of another file to this one."""
        end = old.published
        if not end:
            return
        theirs, mover = old.duplicate(), Mover(self._fd)
        try:
            while self._published < end:
                moved = mover.move(theirs, self._published, min(_SPAN, end - self._published))
                if not moved:
                    raise self._too_short()
                self._published += moved
        finally:
            os.close(theirs)

    # How far the blob is.

    def wait(self, want: int) -> int:
        """Bring bytes until there are `want`, or the blob is complete; how many there are.

        Raises:
            StreamBroken: as `readinto`.
        """
        self._check_open()
        while self._published < want and not self.is_complete:
            self._bring()
        return self._published

    def _readable(self, want: int) -> int:
        try:
            return self.wait(want)
        except ShmstreamError:
            if self._published <= self.position:
                raise
            return self._published

    def _bring(self) -> None:
        """Append the next bytes that come, or end. Blocks as long as the source does."""
        if self._failure is not None:
            raise copy.copy(self._failure)
        try:
            piece = self._next()
            if piece is None:
                self._finish()
                self.is_complete = True
            else:
                self._append(piece)
            if self._was_misled is not None:
                self._bring_for_others(self._was_misled)
        except ShmstreamError as error:
            self._failure = error
            raise
        except OSError as error:
            self._failure = BlobAborted.because(error, self._place.key, self._published)
            raise self._failure from error

    def _next(self) -> bytes | None:
        """The next bytes that come; None after the last ones."""
        try:
            return next(self._pieces, None)
        except (SourceFailed, DigestMismatch) as error:
            again, self._again = self._again, None
            others = self._others(error)
            if again is None or not others:
                raise
            self._begin_anew(again(others), error)
            return b""

    def _others(self, error: SourceFailed | DigestMismatch) -> Sequence[Source]:
        """The sources of all bytes, if the bytes of the leader may be why there is this error."""
        if isinstance(error, SourceFailed):
            return self._bytes.disagreed
        return self._sources if self._is_copied and error.got else []

    def _begin_anew(self, bytes_: OwnBytes, error: SourceFailed | DigestMismatch) -> None:
        """Have all bytes come once more, none of them from the leader."""
        _log.warning("%s: begins anew beside its leader: %s", self._place.key, error.reason)
        old, self._bytes = self._bytes, bytes_
        old.close()
        if self._is_stopped:  # before or after this line: `stop` knows one of the two
            bytes_.stop()
        self.description: Description = bytes_.ask()
        self._pieces = bytes_.give(0, None, self.description, -1, "its leader may be wrong")
        self._compared, self._published = min(self.position, self._published), 0

    def _append(self, piece: bytes) -> None:
        """Append bytes; before `_compared` they should be those that are there."""
        with memoryview(piece) as view:
            again = min(max(self._compared - self._published, 0), len(view))
            if again and os.pread(self._fd, again, self._published) != view[:again]:
                reason = "its source has other bytes than those that were read"
                self._was_misled = ContentChanged(self._place.key, self._published, reason)
                self._compared = again = 0
            self._published += again
            while again < len(view):
                written = os.pwrite(self._fd, view[again:], self._published)
                self._published += written
                again += written

    def _bring_for_others(self, error: ContentChanged) -> NoReturn:
        """Bring the rest, for those that open the blob later, and raise the error."""
        with suppress(ShmstreamError, OSError):
            while (piece := self._next()) is not None:
                self._append(piece)
            self._finish()
        self._published = 0  # for this reader nothing is there
        raise error

    def _finish(self) -> None:
        """All bytes are here and verified: put the blob into the store, unless it is there."""
        place = self._place
        if os.fstat(self._fd).st_size > self._published:  # the leader's bytes, of a larger size
            os.ftruncate(self._fd, self._published)
        if self._durable:
            os.fdatasync(self._fd)
            if place.is_given:
                seal(self._fd, place.digest)
        if place.is_named and Record.read(place.record) is None:
            Record(place.key, None, self.description).write(place.record, durable=self._durable)
        with suppress(FileExistsError):  # the leader, or another process, was faster
            # With a descriptor of a folder, `link` follows the name in /proc.
            os.link(self._name or f"/proc/self/fd/{self._fd}", place.path, src_dir_fd=self._fd)
            if self._durable:
                with suppress(OSError):  # the blob is complete: only a crash could lose its name
                    sync_folder(os.path.dirname(place.path))
        note_source(self._fd, self._bytes.source)
        self._remove_name()
        self._ended(place.path)
        _log.info("%s: complete beside its leader, %d bytes", place.key, self._published)

    def _remove_name(self) -> None:
        if self._name:
            with suppress(OSError):  # `gc` may have removed it, or removes it later
                os.unlink(self._name)

    def _too_short(self) -> DamagedPartial:
        reason = f"is shorter than the {self._published} published"
        return DamagedPartial(self._place.key, self.position, self._place.partial, reason)

    def stop(self) -> None:
        """Make the thread that waits for the source fail soon. From any thread."""
        self._is_stopped = True
        self._bytes.stop()

    # The end.

    def close(self) -> None:
        """Close the file, and what the source holds. Idempotent."""
        is_open = self._fd >= 0
        if is_open:
            self._bytes.stop()
            self._bytes.close()
        super().close()
        if is_open:
            self._remove_name()


def _make_file(place: Place) -> tuple[int, str]:
    """A new file in the store, and its name; an empty text if it has none."""
    try:
        return open_unnamed(os.path.dirname(place.path)), ""
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    name = f"{place.partial}.{os.urandom(4).hex()}"
    return open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL), name
