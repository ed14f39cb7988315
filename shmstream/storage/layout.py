"""Where each file of a store lies, and which blob a file belongs to.

    .shmstream                          the mark: this is a store; permits and turns are locks
    blobs/sha256/<hex>                  complete, verified blobs, as in an OCI image layout
    blobs/sha512/<hex>
    blobs/<algorithm>/<hex>             the same of a rarer algorithm; made when it is needed
    named/<sha256 of the key>           complete blobs whose key is no digest
    <blob>.shmstream-partial            a partial file; the commit renames it to <blob>
    <blob>.shmstream-journal            which bytes of the partial file can be trusted (journal.py)
    <blob>.shmstream-ahead              bytes that came before their turn (ahead.py)
    <blob>.shmstream-record             of a named blob: its key, and what its source said
    <blob>.shmstream-pin                the blob is not to be evicted

Whatever way a key spells a digest (stream/spelling.py), the blob lies at one place. Any other key
is hashed. So a key never becomes a path as it is, and never leads out of the folder. Folders are
0700, files are 0600, and no symbolic link is followed (folder.py tells why).
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from shmstream.errors import DamagedBlob, StoreUnusable
from shmstream.sources.base import UNKNOWN, Description
from shmstream.storage.folder import Folder, mark_at
from shmstream.storage.record import Heading, Record
from shmstream.stream.digest import digest_of, require_digest
from shmstream.stream.partial import partial_path
from shmstream.stream.segment import NAME_LIMIT
from shmstream.stream.spelling import ALGORITHMS, digest_in_url, read_digest
from shmstream.system.files import open_file

_ALWAYS = ("blobs", "blobs/sha256", "blobs/sha512", "named")  # the folders that each store has
_SHELVES = {f"blobs/{name}": count for name, count in ALGORITHMS.items()} | {"named": 64}
"""The folders that blobs lie in, and the number of hex digits of a blob's name there."""
_ALGORITHM = "sha256"  # of the digest that a named blob gets if none was given

_BESIDE = ("cluster", "registry")  # what servers and clusters note in folders of their own
_OF_SYSTEM = ("lost+found", ".snapshot", ".zfs")  # what file systems have in the root of a volume

_PATIENCE = 1.0  # s; so long a process waits for another one that records a digest
_PAUSE = 0.005  # s; from one look whether it has done so to the next one

_BLOCK = 1 << 16  # bytes; a file system may give a file as many more than it needs

TURNS, PERMITS = 1 << 60, 1 << 61
"""From which bytes of the mark on turns and permits are locks. `trouble_with_locks` tries bytes
below both."""

JOURNAL = ".shmstream-journal"
AHEAD = ".shmstream-ahead"
RECORD = ".shmstream-record"
PIN = ".shmstream-pin"

KINDS: frozenset[str] = frozenset(
    ("blob", "partial", "journal", "ahead", "record", "pin", "temporary", "foreign")
)
"""The kinds of files that lie in the folders of blobs; `Entry` tells them apart."""


@dataclass(frozen=True)
class Place:
    """Where the blob of one key lies, and the name of the stream that brings it."""

    key: str
    """A digest in its one spelling, or a name."""
    path: str
    digest: str
    """The digest that the bytes must have; only its algorithm if no digest was given."""
    _of: str
    """Which user and which folder the place belongs to."""
    is_named: bool = False
    """Whether the key is a name, so that the blob has a record."""
    size: int | None = None
    """The number of bytes that was asked for; None for any number."""

    @cached_property
    def stream(self) -> str:
        """The name of the stream; no other key, folder or user has the same."""
        raw = self.key.encode("utf-8", "surrogatepass")
        hashed = hashlib.sha256(self._of.encode() + raw).digest()
        return base64.b32encode(hashed[: NAME_LIMIT * 5 // 8]).decode().lower()

    @cached_property
    def asked(self) -> str:
        """Stream and what was asked for: the same for all readers that want the same bytes."""
        return f"{self.stream} {self.digest} {self.size}" if self.expects else self.stream

    @property
    def is_given(self) -> bool:
        """Whether the digest is known in advance: from the key, or given with a name."""
        return ":" in self.digest

    @property
    def expects(self) -> bool:
        """Whether more was asked for than the key says."""
        return self.size is not None or (self.is_named and self.is_given)

    @property
    def algorithm(self) -> str:
        """The algorithm of the digest."""
        return self.digest.partition(":")[0]

    @property
    def partial(self) -> str:
        """The partial file."""
        return partial_path(self.path)

    @property
    def journal(self) -> str:
        """The journal of the partial file."""
        return self.path + JOURNAL

    @property
    def ahead(self) -> str:
        """The file of the bytes that came before their turn."""
        return self.path + AHEAD

    @property
    def record(self) -> str:
        """The record of a blob whose key is a name."""
        return self.path + RECORD

    @property
    def pin(self) -> str:
        """The file that says that the blob is not to be evicted."""
        return self.path + PIN


class Entry(NamedTuple):
    """A file of the store, as it was when `Layout.entries` found it.

    `kind` is `blob`, `partial`, `journal`, `ahead`, `record`, `pin`, `temporary` (a file that is
    about to be renamed), or `foreign` (a file that no store makes).
    """

    path: str
    kind: str
    facts: os.stat_result

    @property
    def size(self) -> int:
        """Bytes."""
        return self.facts.st_size

    @property
    def used(self) -> float:
        """When it was last used, in seconds since 1970."""
        return self.facts.st_atime

    @property
    def is_pinned(self) -> bool:
        """Whether the blob is not to be evicted, as of now."""
        return os.path.lexists(self.path + PIN)


class Layout:
    """The folder of a store. Makes the folder if it is missing, and keeps no file open."""

    def __init__(self, folder: str | os.PathLike[str], *, shared_group: bool = False) -> None:
        """`shared_group` as in `Store`.

        Raises:
            StoreUnusable: other users may write to the folder, or locks do not work there; or it is
                no folder, but a URL, or in the home of a user who does not exist.
        """
        name = os.fsdecode(folder)
        if not name or "://" in name or name.startswith("~"):
            reason = "a store is a folder on this machine, such as /var/cache/blobs or ~/blobs"
            raise StoreUnusable(repr(name), reason)
        self.folder: str = os.path.realpath(name)
        self.mark: str = mark_at(self.folder)
        """The file that says that this is a store. Locks of the whole store are taken on it."""
        self._blobs = os.path.join(self.folder, "blobs", "")
        self._named = os.path.join(self.folder, "named", "")
        rare = (each for each in _SHELVES if each not in _ALWAYS)
        there = (each for each in rare if os.path.lexists(os.path.join(self.folder, each)))
        inner = [os.path.join(self.folder, each) for each in (*_ALWAYS, *there)]
        self._shelves = {os.path.join(self.folder, each) for each in _ALWAYS}
        self._home = Folder(self.folder, self.mark, inner, shared_group=shared_group)
        self.is_exposed: Callable[[os.stat_result], bool] = self._home.is_exposed
        """Whether users may write to a file who may not write to the store."""

    @property
    def is_read_only(self) -> bool:
        """Whether complete blobs can be opened, and nothing can be written."""
        return self._home.is_read_only

    def look(self) -> None:
        """Make the folder anew if it is gone, or is another one; see `Folder.look`."""
        self._home.look()

    def restore(self) -> None:
        """Make what is missing in the folder, and check all; see `Folder.prepare`."""
        self._home.prepare()

    def place(self, key: str, digest: str | None = None, size: int | None = None) -> Place:
        """Where the blob of `key` lies, or will lie.

        `digest` and `size` are what was asked for beside the key. If the folder is gone, it is made
        anew.

        Raises:
            ValueError: the key is empty, or looks like a digest and cannot be verified; `digest` is
                none, or another one than the key; `size` is no number of bytes.
            StoreUnusable: the folder is gone, and cannot be made anew.
        """
        self._home.look()
        if not isinstance(key, str) or not key:
            raise ValueError(f"a key is a digest, or any text that is not empty, not {key!r:.200}")
        if size is not None and (
            isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 63
        ):
            raise ValueError(f"size is the number of bytes of the blob, not {size!r:.200}")
        given = None if digest is None else require_digest(digest)
        identity = self._identity()
        if (meant := read_digest(key)) is not None:
            if given not in (None, meant):
                raise ValueError(f"the key is the digest {meant}, and digest= is {given}")
            path = self._blobs + meant.replace(":", "/")
            return Place(meant, path, meant, identity, size=size)
        path = self._path_of(key)
        given = given or digest_in_url(key)
        return Place(key, path, given or _ALGORITHM, identity, is_named=True, size=size)

    def _path_of(self, name: str) -> str:
        raw = name.encode("utf-8", "surrogatepass")
        return self._named + hashlib.sha256(raw).hexdigest()

    def is_named(self, name: str, path: str) -> bool:
        """Whether `name` is a key, and no digest, whose blob lies at `path`."""
        try:
            return path == self._path_of(name) and name != "" and read_digest(name) is None
        except ValueError:  # it looks like a digest: somebody has changed the record
            return False

    def _identity(self) -> str:
        device, inode = self._home.identity
        return f"{os.geteuid()}/{device}/{inode}/"

    def stream_at(self, path: str) -> str | None:
        """The name of the stream that brings the blob at `path`; None if its key is not known."""
        key = self.key_of(path)
        return None if key is None else Place(key, path, "", self._identity()).stream

    def make_shelf(self, place: Place) -> None:
        """Make the folder that the blob will lie in, if it is missing.

        Raises:
            StoreUnusable: it cannot be made.
        """
        shelf, _, _ = place.path.rpartition("/")
        if shelf not in self._shelves:
            self._home.make(shelf)

    def open(self, place: Place) -> tuple[int, int] | None:
        """Open the complete blob: its descriptor and its size. None if there is no such blob.

        The blob then counts as the most recently used.

        Raises:
            DamagedBlob: a folder, a link or a device lies there instead of a file.
        """
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(place.path, flags)
        except FileNotFoundError:
            return None
        except OSError as error:
            what = {errno.ELOOP: "a symbolic link", errno.ENXIO: "a socket"}.get(error.errno or 0)
            if what is None:
                raise
            raise DamagedBlob(place.key, place.path, f"it is {what}") from error
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            os.close(fd)
            raise DamagedBlob(place.key, place.path, "it is no file")
        try:
            os.utime(fd, ns=(time.time_ns(), facts.st_mtime_ns))  # `noatime` changes nothing
        except OSError as error:  # read-only, or another user of the group has made it
            if error.errno not in (errno.EROFS, errno.EPERM, errno.EACCES):
                os.close(fd)
                raise
        return fd, facts.st_size

    def metadata(self, place: Place, fd: int) -> Description:
        """What the source said of the complete blob that is open as `fd`.

        Empty for a blob whose key is a digest, because such a blob has no record.
        """
        record = self._record_of(place, fd) if place.is_named else None
        return UNKNOWN if record is None else record.metadata

    def _record_of(self, place: Place, fd: int) -> Record | None:
        """The record of the named blob that is open as `fd`; None if it is of a newer blob."""
        if place.is_named and (record := Record.read(place.record)) is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(place.path), os.fstat(fd)):
                    return record
        return None

    def is_known_right(self, place: Place, fd: int) -> bool:
        """Whether the complete blob is what was asked for, as far as that is known by now."""
        if place.size is not None and place.size != os.fstat(fd).st_size:
            return False
        if not (place.is_named and place.is_given):
            return True
        record = self._record_of(place, fd)
        return record is not None and record.digest == place.digest

    def objection(self, place: Place, fd: int) -> str | None:
        """Why the complete blob that is open as `fd` is not what was asked for; None if it is.

        Hashes a named blob whose digest of this algorithm is not known yet.
        """
        if self.is_known_right(place, fd):
            return None
        size = os.fstat(fd).st_size
        if place.size not in (None, size):
            return f"it has {size} bytes, and {place.size} were asked for"
        record = self._record_of(place, fd)
        got = None if record is None else record.digest
        if got is None or got.partition(":")[0] != place.algorithm:
            got = digest_of(fd, place.algorithm)
            with suppress(OSError):  # then it is hashed the next time, too
                self.note_digest(place, fd, got)
        return None if got == place.digest else f"its digest is {got}, not {place.digest}"

    def note_digest(self, place: Place, fd: int, digest: str) -> bool:
        """Record the digest of the named blob that is open as `fd`; whether that was possible.

        To hash a blob takes a while, in which another process may replace it:

            this process                              the other one (`replacing`)
            1 locks the old blob, or gives up         1 waits for the lock of the old blob
            2 is the old blob still at its path?      2 records that no digest is known
            3 records the digest                      3 renames the new blob to the path
            4 unlocks                                 4 unlocks, and records what the new blob is

        Another process may also remove the blob and its record, and a third one make a new blob. So
        what removes a blob takes the same lock (`remove_blob`).

        Raises:
            OSError: the record cannot be written.
        """
        with ExitStack() as stack:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stack.callback(fcntl.flock, fd, fcntl.LOCK_UN)
            except BlockingIOError:
                return False
            except OSError:  # the file system has no such locks
                pass
            record = self._record_of(place, fd)
            if record is not None:
                replace(record, digest=digest).write(place.record)
            return record is not None

    @contextmanager
    def replacing(self, path: str, *, waits: bool = True) -> Iterator[bool]:
        """Meanwhile no process records a digest of the complete named blob, if there is one.

        False if another process does so, even after a second if this `waits`. It may be stopped,
        and nothing waits for it longer.
        """
        until, is_free, fd = time.monotonic() + _PATIENCE * waits, True, -1
        try:
            with suppress(OSError):  # there is no blob, or the file system has no such locks
                while True:
                    fd = open_file(path)
                    is_free = _lock(fd, until)
                    if not is_free or os.path.samestat(os.stat(path), os.fstat(fd)):
                        break
                    os.close(fd)  # another blob has its place by now
                    fd = -1
            yield is_free
        finally:
            if fd >= 0:
                os.close(fd)

    def remove_blob(self, path: str, *, record: bool, waits: bool = True) -> bool:
        """Remove the complete blob at `path`. False if there was none.

        `record`: its record as well, which goes first. If it went last, it could be the record of a
        new blob:

            this process                              another one
            1 locks the blob, removes its record      1 finds no blob, or waits for its lock
            2 removes the blob, unlocks               2 writes a record, makes a new blob

        `waits`: as for `replacing`. If it does not, a blob stays whose digest is being recorded.
        """
        if digest_at(path) is not None:
            return self.remove(path)
        with self.replacing(path, waits=waits) as is_free:
            if not (is_free or waits):
                return False
            if record and os.path.lexists(path):
                with suppress(OSError):  # then `gc` removes it
                    self.remove(path + RECORD)
            return self.remove(path)

    def size_of(self, path: str) -> int:
        """The length of a file in bytes; -1 if there is no such file."""
        try:
            return os.stat(path, follow_symlinks=False).st_size
        except FileNotFoundError:
            return -1

    def space(self, entry: Entry) -> int:
        """Bytes of the disk that a file takes.

        A partial file takes what is reserved for it, too. A file with holes takes less than its
        size. Where the file system does not tell, it is the size.
        """
        size, taken = entry.facts.st_size, entry.facts.st_blocks * 512
        if not self._home.tells_space:
            return size
        space = max(min(taken, size), size > 0)
        return max(space, taken - _BLOCK) if entry.kind == "partial" else space

    def pin(self, place: Place) -> None:
        """Have the blob of `place` stay, also one that is yet to come. Idempotent.

        Raises:
            StoreUnusable: the store is read-only.
            OSError: it cannot be noted.
        """
        if self.is_read_only:
            raise StoreUnusable(self.folder, "it is read-only: nothing can be pinned")
        self.make_shelf(place)
        os.close(open_file(place.pin, os.O_WRONLY | os.O_CREAT))

    def remove(self, path: str) -> bool:
        """Remove a file. False if there was none."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True

    def key_of(self, path: str) -> str | None:
        """The key of the blob at `path`; None for a named blob whose record is lost."""
        if (digest := digest_at(path)) is not None:
            return digest
        heading = Heading.read(path + RECORD)
        return None if heading is None else heading.key

    def has(self, path: str) -> bool:
        """Whether `path` lies in this folder."""
        return path.startswith(self.folder + os.sep)

    def entries(self, kinds: Container[str] = KINDS) -> Iterator[Entry]:
        """The files of the store whose names are of these kinds. At others it does not look.

        A symbolic link or a folder counts as a foreign file, whatever its name is.

        Raises:
            StoreUnusable: the file system of the store is not mounted any more.
        """
        for path, kind in self.names(kinds):
            if (entry := self.at(path, kind)) is not None:
                yield entry

    def at(self, path: str, kind: str) -> Entry | None:
        """The file at `path`, whose name is of that kind, as it is now. None if there is none."""
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return None
        return Entry(path, kind if stat.S_ISREG(facts.st_mode) else "foreign", facts)

    def names(self, kinds: Container[str] = KINDS) -> Iterator[tuple[str, str]]:
        """The paths in the folders of blobs, each with the kind of its name, if it is in `kinds`.

        Nothing but the names is looked at.

        Raises:
            StoreUnusable: as `entries`.
        """
        is_mounted = False
        for shelf, kind_of in _KINDS.items():
            try:
                scan = os.scandir(os.path.join(self.folder, shelf))
            except FileNotFoundError:  # it is a rare one, or somebody has removed it
                if not is_mounted:
                    self._home.require_mount()
                    is_mounted = True
                continue
            with scan:
                for each in scan:
                    if (kind := kind_of(each.name)) in kinds:
                        yield each.path, kind

    def strangers(self) -> Iterator[str]:
        """The paths of what no store makes, outside of the folders that `entries` looks into.

        In the folders of servers and clusters these are links, devices and the like: what lies
        there may be lost, and only its owner knows each name.
        """
        tops = {path.partition("/")[0] for path in _SHELVES}
        yield from self._strangers("", {*tops, *_BESIDE, *_OF_SYSTEM})
        for top in tops:
            if inner := {path.partition("/")[2] for path in _SHELVES if path.startswith(f"{top}/")}:
                yield from self._strangers(top, inner)
        beside = [os.path.join(self.folder, each) for each in _BESIDE]
        folders = [each for each in beside if not os.path.islink(each)]
        while folders:
            for each in _listed(folders.pop()):
                if each.is_dir(follow_symlinks=False):
                    folders.append(each.path)
                elif not each.is_file(follow_symlinks=False):
                    yield each.path

    def _strangers(self, inner: str, known: Collection[str]) -> Iterator[str]:
        """What is in a folder of folders, beside the `known` ones."""
        with self._scan(inner) as found:
            for each in found:
                is_known = each.name in known and each.is_dir(follow_symlinks=False)
                is_open_elsewhere = each.name.startswith(".nfs")  # a removed file, on NFS
                if not (is_known or is_open_elsewhere or each.path == self.mark):
                    yield each.path

    def _scan(self, shelf: str) -> AbstractContextManager[Iterable[os.DirEntry[str]]]:
        try:
            return os.scandir(os.path.join(self.folder, shelf))
        except FileNotFoundError:  # it is a rare one, or somebody has removed it
            self._home.require_mount()
            return nullcontext(())

    def blobs(self) -> list[Entry]:
        """The complete blobs, the least recently used first."""
        found = [each for each in self.entries(("blob",)) if each.kind == "blob"]
        return sorted(found, key=lambda each: (each.facts.st_atime, each.path))


def _listed(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if there is no such folder."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lock(fd: int, until: float) -> bool:
    """Lock a file; False if another process still has the lock at that time of the clock.

    Raises:
        OSError: the file system has no such locks.
    """
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def digest_at(path: str) -> str | None:
    """The digest that is the key of the blob at `path`; None for a named blob."""
    _, algorithm, name = path.rsplit("/", 2)
    return None if algorithm == "named" else f"{algorithm}:{name}"


def algorithm_at(path: str) -> str | None:
    """The algorithm of the digest that is the key of the blob at `path`; None for a named blob."""
    digest = digest_at(path)
    return None if digest is None else digest.partition(":")[0]


def _naming(digits: int) -> Callable[[str], str]:
    """A function that tells the kind of a file from its name, on a shelf of such `digits`."""
    is_blob = re.compile(rf"[0-9a-f]{{{digits}}}").fullmatch
    suffixes = {"": "blob", partial_path(""): "partial", JOURNAL: "journal", RECORD: "record"}
    suffixes |= {AHEAD: "ahead", PIN: "pin"}

    def kind_of(name: str) -> str:
        if not is_blob(name, 0, digits):
            return "foreign"
        suffix = name[digits:]
        if (kind := suffixes.get(suffix)) is not None:
            return kind
        is_temporary = suffix[:-9] in (partial_path(""), JOURNAL, RECORD)
        return "temporary" if is_temporary else "foreign"

    return kind_of


_KINDS = {shelf: _naming(digits) for shelf, digits in _SHELVES.items()}
