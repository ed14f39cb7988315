"""`Beside`: reads a blob past a leader that makes no progress, by a download of its own.

A leader may be stopped, or hang in a system call. It still holds its locks, so no process can take
its flight over, and it may wake up at any moment and go on. A follower that has a source of its own
then brings the rest of the blob itself, into a file that has no name (where the file system has no
such files, it has the name of a temporary file of the store):

    begin     copy the published bytes, which never change (I2), to a new file of the store
    read      append what comes from the source (`pass_through.OwnBytes`): it begins where the
              published bytes end; of a blob with a digest the last chunk is withheld (I5)
    end       all bytes are verified: give the file the blob's final name, if that is still free

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from shmstream.errors import BlobAborted, DamagedPartial, ShmstreamError, StreamClosed
from shmstream.flight.described_file import DescribedFile
from shmstream.flight.pass_through import OwnBytes
from shmstream.sources.base import Description
from shmstream.storage.origin import note_source
from shmstream.storage.record import Record
from shmstream.stream.partial import sync_folder
from shmstream.stream.seal import seal
from shmstream.system.copying import Mover
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
        super().__init__()
        self._place = place
        self._bytes = bytes_
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
        bytes_: OwnBytes,
        known: Description,
        old: InFlightCopier | FileFollower,
        ended: Callable[[str], None],
        *,
        durable: bool,
    ) -> Beside:
        """A reader that goes on where `old` is; `known` is what the source said of its bytes.

        `ended` is called with the blob's path when the blob is in the store.

        Raises:
            ShmstreamError: no source has the blob, or has other bytes by now.
            OSError: as the constructor.
        """
        with ExitStack() as undo:
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
            piece = next(self._pieces, None)
            if piece is None:
                self._finish()
            else:
                with memoryview(piece) as view:
                    while view:
                        written = os.pwrite(self._fd, view, self._published)
                        self._published += written
                        view = view[written:]
        except ShmstreamError as error:
            self._failure = error
            raise
        except OSError as error:
            self._failure = BlobAborted.because(error, self._place.key, self._published)
            raise self._failure from error

    def _finish(self) -> None:
        """All bytes are here and verified: put the blob into the store, unless it is there."""
        place = self._place
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
        self.is_complete = True
        self._ended(place.path)
        _log.info("%s: complete beside its leader, %d bytes", place.key, self._published)

    def _remove_name(self) -> None:
        if self._name:
            with suppress(FileNotFoundError):  # `gc` may have removed it: nothing came for long
                os.unlink(self._name)

    def _too_short(self) -> DamagedPartial:
        reason = f"is shorter than the {self._published} published"
        return DamagedPartial(self._place.key, self.position, self._place.partial, reason)

    def stop(self) -> None:
        """Make the thread that waits for the source fail soon. From any thread."""
        self._bytes.stop()

    # The end.

    def _check_open(self) -> None:
        if self._fd < 0:
            raise StreamClosed(self._place.key, "it was closed")

    def close(self) -> None:
        """Close the file, and what the source holds. Idempotent."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            self._bytes.stop()
            self._bytes.close()
            os.close(fd)
            self._remove_name()
        super().close()


def _make_file(place: Place) -> tuple[int, str]:
    """A new file in the store, and its name; an empty text if it has none."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(os.path.dirname(place.path), flags | os.O_TMPFILE, 0o600), ""
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    name = f"{place.partial}.{os.urandom(4).hex()}"
    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600), name
