"""Making the folder of a store, or refusing a folder that is not fit for one.

All files of a store belong to one user. Another user who could write to the folder could give wrong
bytes a right name, so a folder of another user, or one that others may write to, is refused. So is
a file system without working locks: there two processes would lead one flight.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shmstream.errors import StoreUnusable
from shmstream.stream.partial import sync_folder
from shmstream.system.locks import trouble_with_locks

_MARK = "shmstream store, layout 1\n"


def prepare(folder: str, mark: str, inner: Iterable[str]) -> None:
    """Make `folder` with its `mark` and its `inner` folders where they are missing.

    Args:
        folder: an absolute path without symbolic links.
        mark: the path of the file that says that this is a store, and that locks are taken on.
        inner: paths in `folder`, each after the one that it lies in.

    Raises:
        StoreUnusable: this user may not, or others may write there, or locks do not work.
    """
    with _naming_reasons(folder):
        _begin(folder, mark)
        for each in inner:
            _make(folder, each)


def make_inner(folder: str, inner: Iterable[str]) -> None:
    """Make the `inner` folders of a store that was prepared before, where they are missing.

    Raises:
        StoreUnusable: as `prepare`.
    """
    with _naming_reasons(folder):
        for each in inner:
            _make(folder, each)


@contextmanager
def _naming_reasons(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise StoreUnusable(folder, reason) from error


def _begin(folder: str, mark: str) -> None:
    """Make the folder and its mark. If locks do not work, remove what was made here.

    No other process can have a store where locks do not work, so it misses nothing.
    """
    above = [str(each) for each in Path(folder).parents]
    made = [each for each in above if not os.path.lexists(each)]  # the innermost first
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    if _make(folder, folder):
        made.insert(0, folder)
    is_new = not _has_bytes(mark)
    if is_new:
        Path(mark).touch(0o600)
    if (trouble := trouble_with_locks(mark)) is not None:
        if is_new:
            Path(mark).unlink(missing_ok=True)
        with suppress(OSError):
            for each in made:
                os.rmdir(each)
        raise StoreUnusable(folder, f"its file system {trouble}")
    if is_new:
        Path(mark).write_text(_MARK)


def _make(folder: str, path: str) -> bool:
    """Make a folder of the store at `folder`, or check the one that is there; True if made."""
    made = False
    try:
        os.mkdir(path, 0o700)
        made = True
        sync_folder(os.path.dirname(path))
    except FileExistsError:
        pass
    facts = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(facts.st_mode):
        raise StoreUnusable(folder, f"{path} is no folder, or a symbolic link to one")
    if facts.st_uid != os.geteuid():
        reason = (
            f"user {facts.st_uid} owns {path}, and this is user {os.geteuid()}; "
            "each user has a store of its own"
        )
        raise StoreUnusable(folder, reason)
    if facts.st_mode & 0o022:
        raise StoreUnusable(folder, f"others may write to {path}: `chmod go-w` it")
    return made


def _has_bytes(path: str) -> bool:
    try:
        return os.stat(path, follow_symlinks=False).st_size > 0
    except FileNotFoundError:
        return False
