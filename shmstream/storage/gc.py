"""`gc`: removes what dead processes left, in the store's folder and in shared memory.

Any process may run `gc` at any time. A live process holds locks on what it uses, and a file that it
is just making is younger than `_GRACE`.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable

from shmstream.storage.flights import streams
from shmstream.storage.journal import Journal
from shmstream.storage.layout import JOURNAL, KINDS, Entry, Layout, algorithm_at
from shmstream.stream import doorbell
from shmstream.stream.claims import sweep
from shmstream.stream.listing import listing
from shmstream.stream.partial import is_written, partial_path, remove_partial
from shmstream.stream.subscribers import forsaken, reclaim
from shmstream.system.files import UNREADABLE

WEEK = 7 * 24 * 3600.0
"""Seconds for which a partial file is kept that a download can go on with."""
_DAY = 24 * 3600.0  # s; how long notes on sources are kept
_GRACE = 60.0  # s; a younger file may still be without the files that belong to it

_log = logging.getLogger("shmstream")


def gc(layout: Layout, *, partial_age: float) -> list[str]:
    """Remove what dead processes left; the names and paths of what was removed.

    A partial file that a download can go on with is removed once it is older than `partial_age`
    seconds.
    """
    removed = gc_of_shared_memory()
    for entry in sorted(layout.entries(KINDS - {"blob"}), key=lambda each: each.kind != "partial"):
        try:
            if entry.kind != "foreign" and is_abandoned(entry, partial_age):
                remove = remove_partial if entry.kind == "partial" else layout.remove
                if remove(entry.path):
                    removed.append(entry.path)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            # `check` reports it.
            _log.warning("%s stays: %s", entry.path, error.strerror)
    return removed


def gc_of_shared_memory() -> list[str]:
    """Remove what dead processes of this user left in shared memory; the names."""
    removed = sweep()
    there = listing()
    bells = doorbells_of(there)
    for stream in streams(there):
        of_it = bells.get(stream.block.token, ())
        for index, left in forsaken(stream.block, stream.lock, of_it).items():
            removed += reclaim(stream.block, stream.lock, index, left)
    return removed


def doorbells_of(among: Iterable[str]) -> dict[int, list[str]]:
    """The names of the doorbells in a listing, by the token of their stream."""
    found: dict[int, list[str]] = {}
    for token, bell in doorbell.names(among=among):
        found.setdefault(token, []).append(bell)
    return found


def is_abandoned(entry: Entry, partial_age: float = math.inf) -> bool:
    """Whether no process uses this file now, and no download will use it later.

    `partial_age` is the age in seconds at which a partial file counts as abandoned in any case.
    Complete blobs and foreign files are never abandoned.
    """
    if entry.kind in ("blob", "foreign"):
        return False
    base = entry.path.rpartition(".shmstream-")[0]
    if entry.kind == "record" and os.path.lexists(base):  # as nearly every record is
        return False
    partial = partial_path(base)
    try:
        age = time.time() - os.stat(entry.path, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return False
    if entry.kind == "partial":
        is_useless = age > partial_age or (age > _GRACE and not _is_resumable(base))
        return is_useless and not is_written(partial)
    if age <= _GRACE:
        return False
    if entry.kind == "journal":
        return not os.path.lexists(partial) and (age > _DAY or not _has_notes(entry.path))
    if entry.kind == "ahead":
        return not os.path.lexists(partial)
    if entry.kind == "record":  # in this order: a commit moves the partial file to the blob's name
        return not os.path.lexists(partial) and not os.path.lexists(base)
    return entry.kind == "temporary"


def _has_notes(path: str) -> bool:
    """Whether the journal tells of sources that gave a wrong blob."""
    return bool(Journal(path, algorithm_at(path)).wrong)


def _is_resumable(base: str) -> bool:
    """Whether the journal vouches for any byte of the partial file, which is not read."""
    return Journal(base + JOURNAL, algorithm_at(base)).vouches


def is_due(layout: Layout, interval: float) -> bool:
    """Whether `gc` is to run again: True for one process in `interval` seconds.

    The time of the last True is the modification time of the store's mark.

    Raises:
        OSError: the mark cannot be read or written.
    """
    now = time.time()
    if now - os.stat(layout.mark).st_mtime < interval:
        return False
    os.utime(layout.mark)
    return True
