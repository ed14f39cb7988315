"""`FileFollower`: follows a flight by its partial file, where its shared memory cannot be seen.

Containers may share a store's folder, and each have a `/dev/shm` of its own. One process leads for
all of them, because the kernel locks on the partial file reach every container. The processes of
the leader's container follow by its control block. The processes of another container follow the
file itself:

    published     the file's length, because a partial file only grows: a leader that begins anew
                  makes another file, and a successor keeps every byte. The journal has to be of
                  this boot; an older one vouches only for what the leader has checked, and the
                  leader writes it anew when it has done so
    size, ...     what the source says of the blob, from the journal
    last chunk    of a blob with a digest: withheld, until the final name leads to this very file
    all chunks    withheld if the caller asked for more than the key says (`Place.expects`), because
                  nothing tells here what the leader verifies. At the end `Unproved` is raised
    end           the final name leads to this very file: it was verified before it got that name
    alive         the leader holds the kernel lock on the file

If it finds the leader dead, it seals the file (`storage/journal`): it has looked after it, and the
leader's stream, which else tells that nobody has changed the file, cannot be seen from here.

Nothing rings, so it looks at the file every 20 ms while it waits. A leader commits, aborts and
begins anew while it holds the lock:

    leader                                  follower
    1 renames the file to the final name    1 looks at the lock: is the leader alive?
    2 frees the lock                        2 looks at the partial name, then at the final name
                                            3 if neither leads to its file, or the leader is not
                                              alive and has not committed: `WriterDied`

The blob then joins the flight anew. Perhaps this process leads by then: it claims the stream's name
in its own `/dev/shm`, and goes on with the same file. The readers in the former leader's container
find that another process writes the file of their stream, and follow the file in the same way.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time

from shmstream.errors import DamagedPartial, WriterDied, WriterStalled, naming_shortages_beside
from shmstream.flight.described_file import DescribedFile
from shmstream.flight.guarded import Unproved
from shmstream.sources.base import Description
from shmstream.storage.journal import Journal, seal_for_the_dead
from shmstream.storage.layout import Place
from shmstream.stream.partial import LIFE
from shmstream.system.files import LACKING
from shmstream.system.locks import file_identity, is_held

_LOOK = 0.02  # s; the pause between two looks at the file
_WATCHED = 1.0  # s; a file that was looked at so recently is vouched for when its leader dies
_CHUNK = 1 << 16  # bytes; the last one is withheld
_LEADER = "a process with another /dev/shm"

_log = logging.getLogger("shmstream")


class FileFollower(DescribedFile):
    """A reader of the partial file of `place`. Make one with `follow`, and close it."""

    def __init__(self, place: Place, stall_timeout: float | None) -> None:
        """Raises:
        OSError: there is no partial file, or it cannot be opened.
        """
        super().__init__(place)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = fd = os.open(place.partial, flags)
        self.stall_timeout: float | None = stall_timeout
        facts = os.fstat(fd)
        self._there = facts.st_size  # bytes of the file, as last seen, and when it grew:
        self._moved = time.monotonic() - max(time.time() - facts.st_mtime, 0.0)
        self._alive = time.monotonic()  # when the leader was last seen alive
        self._has_vouched = False
        self._journal: tuple[int, ...] = ()  # which journal `description` is from
        self._is_unproved = False  # it was committed, and may be another blob than was asked for
        self.identity: tuple[int, int, int] = file_identity(fd)
        """Which file is read: see `file_identity`."""

    @classmethod
    def follow(cls, place: Place, stall_timeout: float | None) -> FileFollower | None:
        """A reader of the partial file, if a live process writes it; else None. Never waits."""
        try:
            follower = cls(place, stall_timeout)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return None
            raise
        if stat.S_ISREG(os.fstat(follower._fd).st_mode) and is_held(follower._fd, LIFE):
            return follower
        follower.close()
        return None

    @classmethod
    def finds(cls, place: Place) -> bool:
        """Whether a live process writes the partial file."""
        follower = cls.follow(place, None)
        if follower is not None:
            follower.close()
        return follower is not None

    # How far the blob is.

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        self._look()
        return self._published

    @property
    def quiet_for(self) -> float:
        """Seconds since the file last grew."""
        self._note_growth(os.fstat(self._fd).st_size)
        return time.monotonic() - self._moved

    def wait(self, want: int) -> int:
        """Wait until `want` bytes are published, or the blob is complete; how many are published.

        Raises:
            StreamBroken: as `readinto`.
        """
        published, before = self.published, -1
        while before < published < want:
            before, published = published, self._wait(published, published + 1)
        return published

    def _readable(self, want: int) -> int:
        self._check_open()
        return self._published if self._published >= want else self._wait(self.position, want)

    def _wait(self, position: int, want: int) -> int:
        began = time.monotonic()
        while True:
            now = time.monotonic()  # before the look, so that a pause of this process is no stall
            is_over = not self._look()
            if self._published >= want or self.is_complete:
                return self._published
            if self._is_unproved:
                raise Unproved(self._place.key, position)
            if is_over:
                if self._published > position:
                    return self._published
                offset = min(position, self._published)
                raise WriterDied(self._place.key, offset, _LEADER)
            if self._moved > began:
                now = began = time.monotonic()
            pause = _LOOK
            if self.stall_timeout is not None:
                pause = min(pause, began + self.stall_timeout - now)
                if pause <= 0:
                    raise WriterStalled(self._place.key, position, self.stall_timeout)
            time.sleep(pause)

    def _look(self) -> bool:
        """Note how many bytes are published, and whether the blob is complete.

        Returns whether more may come: False if the leader has gone without a commit.
        """
        self._check_open()
        if self.is_complete:
            return False
        is_alive = is_held(self._fd, LIFE)
        is_partial = self._is_at(self._place.partial)
        if not is_partial and self._is_at(self._place.path):
            if self._place.expects:
                self._is_unproved = True
                return False
            self.is_complete = True
            self._published = os.fstat(self._fd).st_size
            return False
        with naming_shortages_beside(self._place.key, self._place.path):
            return self._look_at_leader(is_alive=is_alive, is_partial=is_partial)

    def _look_at_leader(self, *, is_alive: bool, is_partial: bool) -> bool:
        self._note_published()
        now = time.monotonic()
        if is_alive:
            self._alive = now
        elif is_partial and not self._has_vouched:
            # A digest guards the bytes in any case.
            if self._place.is_given or now - self._alive < _WATCHED:
                self._seal()
            self._has_vouched = True
        return is_alive and is_partial

    def _seal(self) -> None:
        """Raises:
        OSError: this process lacks something, so a later look does it. Any other error lasts.
        """
        try:
            seal_for_the_dead(self._place.path, self.identity)
        except OSError as error:
            if error.errno in LACKING:
                raise
            _log.warning("%s: nobody vouches for it: %s", self._place.partial, error.strerror)

    def _is_at(self, path: str) -> bool:
        """Whether `path` leads to the file; its inode is not used again while it is open."""
        try:
            return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _note_published(self) -> None:
        there = os.fstat(self._fd).st_size
        self._note_growth(there)
        if there < self._published:
            raise self._too_short()
        if there and not self._place.expects and self._is_vouched_for():
            if self._place.is_given:  # I5
                size = self.description.size
                end = there if size is None else size
                there = min(there, max(end - 1, 0) // _CHUNK * _CHUNK)
            self._published = max(there, self._published)

    def _note_growth(self, there: int) -> None:
        if there != self._there:
            self._there, self._moved = there, time.monotonic()

    def _is_vouched_for(self) -> bool:
        """Whether the journal says that the leader goes on with the bytes of the file."""
        try:
            facts = os.stat(self._place.journal, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if self._journal != (now := (facts.st_ino, facts.st_size, facts.st_mtime_ns)):
            # The leader of a name may have been given a digest of another algorithm.
            algorithm = None if self._place.is_named else self._place.algorithm
            journal = Journal(self._place.journal, algorithm)
            if not journal.is_of_this_boot:
                return False
            self.description: Description = journal.metadata
            self._journal = now
        return True

    def _too_short(self) -> DamagedPartial:
        path = self._place.path if self.is_complete else self._place.partial
        reason = f"is shorter than the {self._published} published"
        return DamagedPartial(self._place.key, self.position, path, reason)
