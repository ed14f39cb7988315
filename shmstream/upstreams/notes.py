"""Notes: small files in the store's folder that all workers share, and that may be lost.

    <store>/registry/<shelf>/<sha256 of the key>       one note; its time of change tells its age
    <store>/registry/secret                            a key for what may not be written as it is

A note is written to a temporary file, which is then renamed: a reader gets the whole note or none.
No part of a key becomes part of a path. A note that is lost, or cannot be read, costs one question
to the upstream and nothing else. So notes are not synced to the disk, and old ones are removed. If
the folder is gone, because the store was emptied, the next note makes it again.

The notes of a store that a group shares are the group's, too. Those of a store that can only be
read are read, and no further ones are written: that is no failure.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from shmstream.storage.folder import mark_at
from shmstream.system.files import is_for_group, open_file, write_file

T = TypeVar("T")

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LARGEST = 4096  # bytes; a larger note is not read, if nothing else is said
_TIDY_AFTER = 1000  # notes written or made by this process; the first one tidies as well
_FORGOTTEN = 30 * 24 * 3600.0  # s; a note that was not written for so long is removed
_LONGER = {"rates": 32 * 24 * 3600.0}  # s; the same for shelves with what counts for longer
_MOST = 100_000  # notes on a shelf; beyond, the oldest are removed
_GRACE = 60.0  # s; a younger temporary file may be about to be renamed
_SECRET = 32  # bytes
_READ_ONLY = (errno.EROFS, errno.EACCES)  # as a store in the image of a container is to its user
_OWN_KEY = (
    "cannot use %s: %s. Each worker has a key of its own: max_pulls, and the Retry-After of a 429,"
    " count for each client in each worker, and each asks the upstream for itself"
)

_log = logging.getLogger("shmstream")


@dataclass(frozen=True)
class Note:
    """A note and its age in seconds. The age is negative if the clock was set back."""

    text: str
    age: float


class Notes:
    """One shelf of notes. Any thread and any process may use it.

    A note of more than `largest` bytes is not read; there are `most` notes at most.

    Raises:
        OSError: its folder cannot be made, though the store can be written to.
        PermissionError: a user who may not write to the store owns its folder, or may write to it.
    """

    def __init__(
        self, store: str, shelf: str, largest: int = _LARGEST, most: int | None = None
    ) -> None:
        self._store = store
        self._largest = largest
        self._most = most
        self._forgotten = _LONGER.get(shelf, _FORGOTTEN)
        self._folder = os.path.join(store, "registry", shelf)
        self._written = 0
        try:
            self._make()
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise

    def beside(self, shelf: str) -> Notes:
        """Another shelf of the same store.

        Raises:
            OSError, PermissionError: as for this one.
        """
        return Notes(self._store, shelf)

    def _make(self) -> None:
        above = os.stat(self._store)
        for folder in (os.path.dirname(self._folder), self._folder):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                pass
            facts = os.stat(folder, follow_symlinks=False)
            if is_for_group(above) and _is_of(os.geteuid(), facts) and not is_for_group(facts):
                os.chmod(folder, 0o2770)
                facts = os.stat(folder, follow_symlinks=False)
            is_groups = is_for_group(above) and is_for_group(facts)
            if not (is_groups and facts.st_gid == above.st_gid) and not _is_of(above.st_uid, facts):
                raise PermissionError(
                    f"{folder} is no folder that only users of the store write to"
                )

    def _path(self, key: tuple[str, ...]) -> str:
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return os.path.join(self._folder, name)

    def read(self, key: tuple[str, ...]) -> Note | None:
        """The note; None if there is none that can be read."""
        return self._read(self._path(key))

    def all(self) -> Iterator[Note]:
        """All notes that can be read, in no order."""
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if "." not in entry.name and (note := self._read(entry.path)) is not None:
                    yield note

    def _read(self, path: str) -> Note | None:
        try:
            fd = os.open(path, os.O_RDONLY | _FLAGS)
        except OSError:
            return None
        try:
            data = os.read(fd, self._largest + 1)
            changed = os.fstat(fd).st_mtime
        except OSError:
            return None
        finally:
            os.close(fd)
        if len(data) > self._largest:
            return None
        return Note(data.decode("utf-8", "replace"), time.time() - changed)

    def write(self, key: tuple[str, ...], text: str) -> None:
        """Write a note; the previous one is replaced. A failure is logged, not raised."""
        try:
            self._in_folder(lambda: write_file(self._path(key), text.encode()))
            self._count()
        except OSError as error:
            self._tell("write", error)

    def _count(self) -> None:
        """Count a note, and tidy now and then. Raises `OSError`."""
        self._written += 1
        if self._written % _TIDY_AFTER == 1:
            self.tidy()

    def _in_folder(self, use: Callable[[], T]) -> T:
        """What `use` returns; the folder is made again if it is gone, and the store is there."""
        try:
            return use()
        except FileNotFoundError:
            if not os.path.exists(mark_at(self._store)):
                raise  # the store is not mounted
            self._make()
            return use()

    def open(self, key: tuple[str, ...]) -> int:
        """A descriptor of a note, to read and to write it in place; the caller closes it.

        Raises:
            OSError: it cannot be opened or made.
        """
        path = self._path(key)
        with suppress(FileNotFoundError):
            return open_file(path, os.O_RDWR)
        fd = self._in_folder(lambda: open_file(path, os.O_RDWR | os.O_CREAT))
        try:
            self._count()
        except OSError as error:
            self._tell("tidy up after", error)
        return fd

    def remove(self, key: tuple[str, ...]) -> None:
        """Remove a note. Idempotent. A failure is logged, not raised."""
        try:
            _remove(self._path(key))
        except OSError as error:
            self._tell("remove", error)

    def _tell(self, what: str, error: OSError) -> None:
        level = logging.DEBUG if error.errno in _READ_ONLY else logging.WARNING
        _log.log(level, "cannot %s a note in %s: %s", what, self._folder, error)

    def secret(self) -> bytes:
        """32 random bytes, the same for all processes of this user that use the store.

        If they cannot be kept in the store, they are of this process alone: notes under keys that
        were made with them are of no use to others then, so what is counted by such a key is
        counted by each process. The log says so, unless no note can be written at all.
        """
        path = os.path.join(os.path.dirname(self._folder), "secret")
        try:
            with suppress(FileExistsError):
                _write_secret(path)
            return _read_secret(path)
        except OSError as error:
            is_usual = error.errno in _READ_ONLY and not os.path.lexists(path)
            level = logging.DEBUG if is_usual else logging.WARNING
            _log.log(level, _OWN_KEY, path, error)
            return secrets.token_bytes(_SECRET)

    def tidy(self) -> None:
        """Remove old notes, and the oldest ones beyond the limit. Cheap, never blocks."""
        now = time.time()
        kept = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    age = now - entry.stat(follow_symlinks=False).st_mtime
                except FileNotFoundError:
                    continue
                if age > (_GRACE if "." in entry.name else self._forgotten):
                    _remove(entry.path)
                else:
                    kept.append((age, entry.path))
        for _, path in sorted(kept, reverse=True)[: max(len(kept) - (self._most or _MOST), 0)]:
            _remove(path)


def _is_of(user: int, facts: os.stat_result) -> bool:
    """Whether this is a folder of that user, to which no other user may write."""
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == user and not facts.st_mode & 0o022


def _write_secret(path: str) -> None:
    """Raises `FileExistsError`: there is one. Of two processes, one makes it, as a whole."""
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "there is a secret", path)
    temporary = f"{path}.{secrets.token_hex(4)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(_SECRET))
        os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _read_secret(path: str) -> bytes:
    """Raises `OSError`: there is none that only this user can read."""
    fd = open_file(path)
    try:
        facts, data = os.fstat(fd), os.read(fd, _SECRET + 1)
    finally:
        os.close(fd)
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077 or len(data) != _SECRET:
        raise PermissionError(errno.EPERM, "it is no secret of this user alone: remove it", path)
    return data


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
