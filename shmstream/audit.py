"""What a store should look like, and what to do about what does not.

`check` looks at everything and changes nothing. `gc` removes what nobody will miss: streams and
doorbells of the dead, partial files that no download can go on with, journals and records without
their file. Both may run at any time: whatever a live process holds is locked, and what a process is
just making is younger than `_GRACE`.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from shmstream import segment
from shmstream.claims import is_written, remove_partial, sweep
from shmstream.control import State
from shmstream.digest import digest_of
from shmstream.errors import CannotStart
from shmstream.journal import Journal
from shmstream.layout import JOURNAL, Entry, Layout
from shmstream.liveness import Identity
from shmstream.stream import Stream
from shmstream.subscribers import Subscriber, present

_GRACE = 60.0  # s; what is younger may be about to get what it lacks


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. `kind` is one of:

    `damaged`: a blob whose bytes are not what its name says; `foreign`: nothing that a store has;
    `abandoned`: a partial file, journal, record or stream that nobody uses, which `gc` removes;
    `unrecorded`: a named blob without its record; `exposed`: a file that others may write to;
    `inconsistent`: shared memory that says what is not so.
    """

    kind: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.detail}"


@dataclass(frozen=True)
class FlightInfo:
    """One flight on this host; sizes in bytes. `leader` is None while there is none."""

    key: str | None
    stream: str
    path: str
    state: State
    size: int | None
    published: int
    epoch: int
    leader: Identity | None
    followers: tuple[Subscriber, ...]


def flights(layout: Layout) -> list[FlightInfo]:
    """The streams that bring blobs into this store."""
    found = []
    for name in segment.names():
        try:
            stream = Stream.attach(name, timeout=0)
        except (CannotStart, FileNotFoundError):  # gone, half made, or none of ours
            continue
        with stream:
            block = stream.block
            if not stream.path.startswith(layout.folder + os.sep):
                continue
            found.append(
                FlightInfo(
                    key=layout.key_of(stream.path),
                    stream=name,
                    path=stream.path,
                    state=stream.state,
                    size=stream.size,
                    published=block.published,
                    epoch=block.epoch,
                    leader=None if stream.is_orphaned() else stream.writer,
                    followers=tuple(present(block, stream.lock)),
                )
            )
    return found


def check(layout: Layout, *, verify: bool) -> list[Finding]:
    """Everything that is not as it should be; with `verify` every blob is hashed."""
    found = []
    for entry in layout.entries():
        found += _check_entry(layout, entry, verify=verify)
    for flight in flights(layout):
        if flight.state == State.COMMITTED and not os.path.exists(flight.path):
            detail = f"stream {flight.stream} is committed"
            found.append(Finding("inconsistent", flight.path, f"it is missing, though {detail}"))
        elif flight.leader is None and not flight.followers:
            found.append(Finding("abandoned", flight.path, f"stream {flight.stream} has no leader"))
    return found


def _check_entry(layout: Layout, entry: Entry, *, verify: bool) -> list[Finding]:
    found = []
    try:
        facts = os.stat(entry.path, follow_symlinks=False)
    except FileNotFoundError:
        return []
    exposed = stat.S_ISREG(facts.st_mode) and facts.st_mode & 0o022
    if facts.st_uid != os.geteuid() or exposed:
        found.append(Finding("exposed", entry.path, "others own it, or may write to it"))
    if entry.kind == "foreign":
        found.append(Finding("foreign", entry.path, "no file of a store"))
    elif entry.kind == "blob":
        found += _check_blob(layout, entry, verify=verify)
    elif _is_abandoned(entry):
        found.append(Finding("abandoned", entry.path, f"a {entry.kind} that nobody goes on with"))
    return found


def _check_blob(layout: Layout, entry: Entry, *, verify: bool) -> list[Finding]:
    shelf = os.path.basename(os.path.dirname(entry.path))
    digest: str | None = f"{shelf}:{os.path.basename(entry.path)}"
    if shelf == "named":
        record = layout.read_record(entry.path)
        if record is None:
            return [Finding("unrecorded", entry.path, "its key is not known any more")]
        digest = record.digest
    if not verify or digest is None:
        return []
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # evicted
        return []
    try:
        got = digest_of(fd, digest.partition(":")[0])
    finally:
        os.close(fd)
    return [] if got == digest else [Finding("damaged", entry.path, f"its digest is {got}")]


def _is_abandoned(entry: Entry, partial_age: float = float("inf")) -> bool:
    """Whether a partial file, journal or record is of no use to anybody, alive or to come."""
    base = entry.path.rpartition(".shmstream-")[0]
    try:
        age = time.time() - os.stat(entry.path, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return False
    partial = base + ".shmstream-partial"
    if entry.kind == "temporary":
        return age > _GRACE
    if entry.kind == "partial":
        useless = age > _GRACE and not _is_resumable(base)
        return not is_written(partial) and (age > partial_age or useless)
    if entry.kind == "journal":
        return age > _GRACE and not os.path.lexists(partial)
    return age > _GRACE and not os.path.lexists(partial) and not os.path.lexists(base)


def _is_resumable(base: str) -> bool:
    """Whether a journal vouches for anything of the partial file; cheaply, without reading it."""
    return any(Journal(base + JOURNAL, each).vouches for each in ("sha256", "sha512"))


def gc(layout: Layout, *, partial_age: float) -> list[str]:
    """Remove what dead processes left; names and paths of what went."""
    removed = sweep()
    for entry in sorted(layout.entries(), key=lambda each: each.kind != "partial"):
        if entry.kind not in ("blob", "foreign") and _is_abandoned(entry, partial_age):
            remove = remove_partial if entry.kind == "partial" else layout.remove
            if remove(entry.path):
                removed.append(entry.path)
    return removed
