"""The folder of a store: made, checked, and looked after for as long as the store is used.

All files of a store belong to one user. Another user who could write to the folder could give wrong
bytes a right name, so a folder of another user, or one that others may write to, is refused. So is
a file system without working locks: there two processes would lead one flight. There are two
exceptions, which the operator of the machine has to want:

    shared by a group  `shared_group=True`: folders 2770 and files 0660, and all who may write there
                       are trusted. The blobs, partial files and their locks are shared; shared
                       memory is each user's own
    read-only          a read-only mount, or a store that root has made and that this user may read:
                       complete blobs are opened, and nothing is written, not even a lock or a time

A store lives longer than its folder may. `Folder.look` finds that another folder is at the path, or
none, and makes and checks it again as at the beginning. It does not where the file system that the
folder was on is not mounted any more: that would fill the disk below.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shmstream.errors import OutOfResources, ShmstreamError, StoreUnusable, naming_shortages
from shmstream.stream.partial import sync_folder
from shmstream.system.files import is_for_group, says_none
from shmstream.system.locks import trouble_with_locks
from shmstream.system.threads import no_thread

MARK: str = "shmstream store, layout 1\n"
"""What the mark of a store says."""
_FOR_GROUP = 0o2770

_log = logging.getLogger("shmstream")


def default_folder() -> str:
    """The folder of the store if none is given: `SHMSTREAM_STORE`, or one in the user's cache."""
    if given := os.environ.get("SHMSTREAM_STORE"):
        return os.path.expanduser(given)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # empty, or relative, which the XDG specification says to ignore
        cache = os.path.expanduser("~/.cache")
    return os.path.join(cache, "shmstream")


def is_set(name: str) -> bool:
    """Whether an environment variable says yes: 1, true, yes or on."""
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on", "y", "t")


def mark_at(folder: str) -> str:
    """The path of the mark: the file that says that `folder` is a store."""
    return os.path.join(folder, ".shmstream")


class Folder:
    """The folder of one store, as this process found it last.

    Args:
        path: absolute, without symbolic links.
        mark: the path of the file that says that this is a store, and that locks are taken on.
        inner: paths in the folder, each after the one that it lies in.
        shared_group: whether other users of the folder's group may use the store, too.

    Raises:
        StoreUnusable: this user may not, or others may write there, or locks do not work.
    """

    def __init__(self, path: str, mark: str, inner: Sequence[str], *, shared_group: bool) -> None:
        self.path = path
        self._mark = mark
        self._inner = inner
        self._for_group = shared_group
        self._mount = max((each for each in _mount_points() if _is_in(path, each)), key=len)
        self.prepare()

    def is_exposed(self, facts: os.stat_result) -> bool:
        """Whether users may write to a file of the folder who are not trusted with the store."""
        if self.is_read_only:
            return False
        if facts.st_mode & (0o002 if self._for_group else 0o022) and stat.S_ISREG(facts.st_mode):
            return True
        if self._for_group:
            return facts.st_gid != os.stat(self.path).st_gid
        return facts.st_uid != os.geteuid()

    def look(self) -> None:
        """Make the folder anew if it is not the one that it was. Costs a microsecond if it is.

        Raises:
            StoreUnusable: as the constructor, or its file system is not mounted any more.
        """
        try:
            facts = os.stat(self.path)
        except OSError:
            self.prepare()
            _log.warning("%s: the store was gone, and is made anew", self.path)
            return
        if _looks(facts) != self._looks:
            self.prepare()
            _log.warning("%s: another folder is there now", self.path)

    def prepare(self) -> None:
        """Make what is missing, and check all.

        Raises:
            StoreUnusable: as `look`.
        """
        try:
            self.require_mount()
            self.is_read_only: bool = self._can_only_be_read()
            if not self.is_read_only:
                self._begin()
                for each in self._inner:
                    self._make(each)
            facts = os.stat(self.path)
            self.tells_space: bool = not self.is_read_only and os.stat(self._mark).st_blocks > 0
        except OSError as error:
            raise _unusable(error, self.path) from error
        self.identity: tuple[int, int] = (facts.st_dev, facts.st_ino)
        self._looks = _looks(facts)

    def make(self, inner: str) -> None:
        """Make one more folder in it, or check the one that is there.

        Raises:
            StoreUnusable: it cannot be made, or others may write there.
        """
        try:
            self._make(inner)
        except OSError as error:
            raise _unusable(error, self.path) from error

    def require_mount(self) -> None:
        """Require that the file system of the folder is mounted, or another one in its place.

        Raises:
            StoreUnusable: it is not.
        """
        if self._mount not in _mount_points():
            reason = f"its file system is not mounted any more at {self._mount}"
            raise StoreUnusable(self.path, reason)

    def _can_only_be_read(self) -> bool:
        """Whether there is a store that this process can read, and cannot write to."""
        parts = [each for each in (self.path, *self._inner) if os.path.lexists(each)]
        if not os.path.lexists(self._mark) and not set(parts) & set(self._inner):
            return False  # no store is there
        facts = [os.stat(each, follow_symlinks=False) for each in parts]
        if not all(stat.S_ISDIR(each.st_mode) for each in facts):
            return False  # and it is refused
        if os.statvfs(self.path).f_flag & os.ST_RDONLY:
            return True
        is_safe = all(each.st_uid == 0 and not each.st_mode & 0o022 for each in facts)
        return is_safe and os.geteuid() != 0 and all(os.access(each, os.R_OK) for each in parts)

    def _begin(self) -> None:
        """Make the folder and its mark. If locks do not work, remove what was made here.

        No other process can have a store where locks do not work, so it misses nothing.
        """
        above = [str(each) for each in Path(self.path).parents]
        made = [each for each in above if not os.path.lexists(each)]  # the innermost first
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        if self._make(self.path):
            made.insert(0, self.path)
        is_new = not _has_bytes(self._mark)
        if is_new:
            Path(self._mark).touch(0o600)
            if self._for_group:
                os.chmod(self._mark, 0o660)
        if (trouble := trouble_with_locks(self._mark)) is not None:
            if is_new:
                Path(self._mark).unlink(missing_ok=True)
            with suppress(OSError):
                for each in made:
                    os.rmdir(each)
            raise StoreUnusable(self.path, f"its file system {trouble}")
        if is_new:
            Path(self._mark).write_text(MARK)

    def _make(self, path: str) -> bool:
        """Make a folder of the store, or check the one that is there; True if made."""
        made = False
        try:
            os.mkdir(path, 0o700)
            made = True
            if self._for_group:
                os.chmod(path, _FOR_GROUP)
            sync_folder(os.path.dirname(path))
        except FileExistsError:
            pass
        facts = os.stat(path, follow_symlinks=False)
        if not stat.S_ISDIR(facts.st_mode):
            raise StoreUnusable(self.path, f"{path} is no folder, or a symbolic link to one")
        reason = self._objection(path, facts)
        if reason is not None:
            raise StoreUnusable(self.path, reason)
        return made

    def _objection(self, path: str, facts: os.stat_result) -> str | None:
        """What speaks against a folder of the store; None if nothing does."""
        if self._for_group:
            if not is_for_group(facts):
                return (
                    f"{path} is not shared by a group alone: `chmod 2770` it, and give it the "
                    "group of the users who share the store"
                )
            if facts.st_gid not in (*os.getgroups(), os.getegid()) and os.geteuid() != 0:
                return f"{path} is of group {_name_of(facts.st_gid)}, which this user is not in"
            return None
        if facts.st_uid != os.geteuid():
            return (
                f"user {facts.st_uid} owns {path}, and this is user {os.geteuid()}; each user has "
                "a store of its own: use a subfolder that this user makes, or have all users of "
                "one group share the store (shared_group)"
            )
        if facts.st_mode & 0o022:
            return f"others may write to {path}: `chmod go-w` it"
        return None


def trouble(error: Exception, name: str, folder: str) -> ShmstreamError | None:
    """The error for what this machine lacks; None if `error` means something else.

    `name` is what could not be done, such as a key; `folder` is the store's.
    """
    if isinstance(error, MemoryError):
        return no_memory(name, error)
    if isinstance(error, RuntimeError):  # what `threading` raises
        return no_thread(name, error) if "new thread" in str(error) else None
    if not isinstance(error, OSError):
        return None
    try:
        with naming_shortages(name, folder):
            raise error
    except OutOfResources as shortage:
        return shortage
    except OSError:
        return _unusable(error, folder)


def no_memory(name: str, error: MemoryError) -> OutOfResources:
    """The error for `name`, for which this process has no memory."""
    return OutOfResources(name, "memory", errno.ENOMEM, str(error) or "MemoryError")


_PLANTED = (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ENXIO)


def _unusable(error: OSError, folder: str) -> StoreUnusable:
    reason = error.strerror or str(error)
    if error.filename:
        reason = f"{reason}: {error.filename}"
        if error.errno in _PLANTED:
            reason += "; no store has put that there: remove it"
    return StoreUnusable(folder, reason)


def _looks(facts: os.stat_result) -> tuple[int, ...]:
    """What tells one folder from another; its inode's number alone may be used again at once."""
    return facts.st_dev, facts.st_ino, facts.st_mode, facts.st_uid, facts.st_gid


def _has_bytes(path: str) -> bool:
    try:
        return os.stat(path, follow_symlinks=False).st_size > 0
    except FileNotFoundError:
        return False


def _name_of(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)


def _mount_points() -> set[str]:
    """The paths where file systems are mounted; only / if the kernel does not tell."""
    found = {"/"}
    try:
        told = Path("/proc/self/mountinfo").read_bytes()
    except OSError as error:
        if not says_none(error):
            raise
        return found
    for line in told.splitlines():
        point = line.split(b" ")[4]  # spaces in it are written as \\040
        point = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), point)
        found.add(os.fsdecode(point))
    return found


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
