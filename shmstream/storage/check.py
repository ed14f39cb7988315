"""`check`: finds everything in a store, and in shared memory, that is not as it should be.

    files               one by one: damaged, foreign or exposed ones, and those of no use
    streams             those of this store, by their invariants (stream/invariants.py)
    what the dead left  streams, slots and doorbells of all streams of this user, as `gc` removes
                        them whatever store they belong to

Any process may run `check` at any time. It mends nothing. It notes only two things: a seal on each
blob that it has hashed and found right, and the digest of a named blob that was never hashed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from shmstream.errors import (
    CannotStart,
    DamagedSegment,
    ForeignSegment,
    OutOfResources,
    StreamNotFound,
    WriterDied,
)
from shmstream.storage.flights import streams
from shmstream.storage.folder import MARK
from shmstream.storage.gc import doorbells_of, is_abandoned
from shmstream.storage.journal import Journal
from shmstream.storage.layout import RECORD, Entry, Layout, algorithm_at, digest_at
from shmstream.storage.record import Heading
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import Block
from shmstream.stream.digest import digest_of
from shmstream.stream.invariants import MOMENT, Glance, breaches
from shmstream.stream.listing import listing
from shmstream.stream.seal import is_sealed, seal
from shmstream.stream.stream import Stream
from shmstream.stream.subscribers import deaf, forsaken
from shmstream.system.files import GONE, UNREADABLE, is_hollow, open_file, read_file, says_none

_LARGEST_MARK = 4096  # bytes; ours has 26
_HALF_MADE = 0.3  # s; a writer that lives makes its stream in less


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. `kind` is one of:

    `damaged`: a blob whose bytes do not have its digest, or a file that cannot be read, or does not
    say what it should; `foreign`: something that no store makes, anywhere in the folder;
    `abandoned`: a partial file or what belongs to it, a stream or a doorbell that no live process
    uses, and that `gc` removes; `unrecorded`: a named blob without its record; `unverified`: a blob
    whose digest this Python cannot compute; `exposed`: a file that other users may write to;
    `inconsistent`: shared memory that does not agree with itself or with the files.
    """

    kind: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.detail}"


class Findings(list[Finding]):
    """What `check` has found: a list that is empty if all is well."""

    blobs: int = 0
    """How many complete blobs were looked at."""


def check(layout: Layout, *, verify: bool | None) -> Findings:
    """Everything that is not as it should be; `verify` as in `Store.check`."""
    before = {stream.block.token: Glance.at(stream) for stream in streams()}
    began = time.monotonic()
    found = Findings(_check_mark(layout))
    found += [Finding("foreign", each, "no file of a store") for each in layout.strangers()]
    for entry, heading in _files(layout):
        found.blobs += entry.kind == "blob"
        try:
            found += _check_entry(layout, entry, heading, verify)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            reason = f"it cannot be read: {error.strerror}"
            found.append(Finding("damaged", entry.path, reason))
    if before:
        time.sleep(max(began + MOMENT - time.monotonic(), 0.0))
    found += _check_streams(layout, before)
    return found


# The folder.


def _check_mark(layout: Layout) -> list[Finding]:
    """What is wrong with the file that says that this is a store."""
    path = layout.mark
    try:
        facts = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        if layout.is_read_only or not os.path.lexists(layout.folder):
            return []
        return [Finding("damaged", path, "it is missing, and says that this folder is a store")]
    if not stat.S_ISREG(facts.st_mode):
        return [
            Finding("foreign", path, "no file of a store: the file that marks one has its name")
        ]
    found = []
    if layout.is_exposed(facts):
        found.append(Finding("exposed", path, "others own it, or may write to it"))
    try:
        text = read_file(path, _LARGEST_MARK).decode("utf-8", "replace")
        if text != MARK:
            found.append(Finding("damaged", path, f"it says {text!r:.80}, not {MARK!r}"))
    except OSError as error:
        if error.errno not in (*GONE, *UNREADABLE):
            raise
        found.append(Finding("damaged", path, f"it cannot be read: {error.strerror}"))
    return found


def _files(layout: Layout) -> Iterator[tuple[Entry, Heading | None]]:
    """All files in the folders of blobs; a named blob with what its record says.

    A record that was read is an entry of its own only if it is exposed: nothing else is left to
    find out of it.

    Nearly each named blob has a record, and nearly each record a blob. So the first of the two
    names that the listing has stands for both files, and the other name is passed over. This
    looks once at the blob, opens its record once, and asks nothing else of the kernel.
    """
    looked: set[str] = set()
    named = os.path.join(layout.folder, "named", "")
    for path, kind in layout.names():
        if kind not in ("blob", "record") or not path.startswith(named):
            if (entry := layout.at(path, kind)) is not None:
                yield entry, None
            continue
        path = path.removesuffix(RECORD)
        if path in looked:
            looked.remove(path)
            continue
        looked.add(path)
        heading = None
        # In this order: a leader writes the record before the blob is there.
        if (blob := layout.at(path, "blob")) is not None:
            heading = _heading_of(path) if blob.kind == "blob" else None
            yield blob, heading
        if heading is not None:
            if layout.is_exposed(heading.facts):
                yield Entry(path + RECORD, "record", heading.facts), heading
        elif (record := layout.at(path + RECORD, "record")) is not None:
            yield record, None


def _heading_of(path: str) -> Heading | None:
    """What the record of a named blob says; None if it cannot be read."""
    try:
        return Heading.read(path + RECORD)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return None


def _check_entry(
    layout: Layout, entry: Entry, heading: Heading | None, verify: bool | None
) -> list[Finding]:
    found = []
    if layout.is_exposed(entry.facts):
        found.append(Finding("exposed", entry.path, "others own it, or may write to it"))
    if entry.kind == "foreign":
        found.append(Finding("foreign", entry.path, "no file of a store"))
    elif entry.kind == "blob":
        found += _check_blob(layout, entry, heading, verify)
    elif heading is not None:  # a record that was read, and whose blob is there
        pass
    elif is_abandoned(entry):
        found.append(Finding("abandoned", entry.path, f"a {entry.kind} that no download will use"))
    elif entry.kind == "pin" and entry.size:
        found.append(Finding("foreign", entry.path, "a store makes pins without a byte"))
    elif entry.kind == "record" and digest_at(entry.path) is not None:
        found.append(Finding("foreign", entry.path, "a blob whose key is a digest has no record"))
    elif entry.kind == "journal" and (defect := _defect_of(entry.path)) is not None:
        found.append(Finding("damaged", entry.path, defect))
    return found


def _check_blob(
    layout: Layout, entry: Entry, heading: Heading | None, verify: bool | None
) -> list[Finding]:
    digest = None if heading is not None else digest_at(entry.path)
    if digest is None:
        if heading is None:
            if layout.size_of(entry.path) < 0:  # both have been evicted
                return []
            return [Finding("unrecorded", entry.path, "its key is not known any more")]
        if not layout.is_named(heading.key, entry.path):
            told = f"it is of another key, {heading.key!r:.80}"
            return [Finding("damaged", entry.path + RECORD, told)]
        digest = heading.digest
        if digest is None and verify is not False:
            _complete(layout, entry.path, heading.key)
    if verify is False or digest is None:
        return []
    if verify is None and is_sealed(entry.path, entry.facts, digest):
        return []
    try:
        got = _verify(entry.path, digest)
    except ValueError as error:  # its algorithm needs an extra
        return [Finding("unverified", entry.path, str(error))]
    if got is None:
        return [Finding("damaged", entry.path, "it has large holes, and was not hashed")]
    return [] if got == digest else [Finding("damaged", entry.path, f"its digest is {got}")]


def _complete(layout: Layout, path: str, key: str) -> None:
    """Record the digest of a named blob that its flight has not hashed, and seal the blob.

    Its leader was killed before it could do so, or its store leaves the digest out.
    """
    place = layout.place(key)
    with _opened(path) as fd:
        if fd is None or layout.is_read_only or is_hollow(fd):
            return
        digest = digest_of(fd, place.algorithm)
        with suppress(OSError):  # gone, or no room for it: the next check tries again
            if layout.note_digest(place, fd, digest):
                os.fdatasync(fd)
                seal(fd, digest)


def _verify(path: str, digest: str) -> str | None:
    """The digest that the bytes of a blob really have. Seals the blob if `digest` is right.

    None if it has large holes: reading them may take for ever.
    """
    with _opened(path) as fd:
        if fd is None:
            return digest
        if is_hollow(fd):
            return None
        got = digest_of(fd, digest.partition(":")[0])
        if got == digest:
            os.fdatasync(fd)
            seal(fd, digest)
        return got


@contextmanager
def _opened(path: str) -> Iterator[int | None]:
    """A descriptor of a blob; None if the blob was evicted."""
    try:
        fd = open_file(path)
    except OSError as error:
        if error.errno not in GONE:
            raise
        yield None  # gone, or something else is there by now
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _defect_of(path: str) -> str | None:
    """What is wrong with a journal. Looks twice, because a leader may be writing a line."""
    if Journal(path, algorithm_at(path)).defect is None:
        return None
    time.sleep(MOMENT)
    return Journal(path, algorithm_at(path)).defect


# Shared memory.


def _check_streams(layout: Layout, before: dict[int, Glance]) -> list[Finding]:
    there = listing()
    names, bells = segment.names(there), doorbells_of(there)
    found = _check_named(layout, names, before, bells)
    if bells:  # those of a stream that began during the listing have one
        found += _check_named(layout, set(segment.names()).difference(names), before, bells)
    found += [
        Finding("abandoned", bell, "a doorbell, and its stream is gone")
        for each in bells.values()
        for bell in each
        if doorbell.is_there(bell)  # not of a stream that has ended since the listing
    ]
    strangers = segment.strangers(there) + doorbell.strangers(there)
    return found + [
        Finding("foreign", path, "it has a name of ours, and is nothing that we make")
        for path in strangers
    ]


def _check_named(
    layout: Layout, names: Iterable[str], before: dict[int, Glance], bells: dict[int, list[str]]
) -> list[Finding]:
    """Check the streams of these names, and take their doorbells from `bells`."""
    found = []
    for name in names:
        try:
            with Stream.attach(name, timeout=0) as stream:
                token = stream.block.token
                glance = before.get(token, Glance())
                found += _check_stream(layout, stream, glance, bells.pop(token, []))
        except StreamNotFound:
            found += _check_half_made(name)
        except (DamagedSegment, ForeignSegment) as error:
            found += _check_damaged(layout, name, error.reason)
            bells.clear()  # some may belong to this stream
    return found


def _check_stream(
    layout: Layout, stream: Stream, before: Glance, bells: list[str]
) -> list[Finding]:
    name, path, block, lock = stream.name, stream.path, stream.block, stream.lock
    if stream.is_orphaned() and not lock.is_held_elsewhere(block.slots_span):
        if not lock.is_at(segment.path_of(name)):
            return []
        return [Finding("abandoned", path, f"stream {name} has neither leader nor reader")]
    found = [
        Finding("abandoned", bell, f"a reader of stream {name} was killed, and left its doorbell")
        for each in forsaken(block, lock, bells).values()
        for bell in sorted(each)
    ]
    found += [
        Finding("inconsistent", bell, f"a reader of stream {name} has lost its doorbell")
        for bell in deaf(block, lock)
    ]
    if layout.has(path):
        found += [
            Finding("inconsistent", path, f"stream {name}: {each}")
            for each in breaches(stream, before)
        ]
    return found


def _check_half_made(name: str) -> list[Finding]:
    """A finding if the writer of an incomplete stream was killed while it made the stream."""
    path = segment.path_of(name)
    try:
        if os.path.lexists(path):
            Stream.attach(name, timeout=_HALF_MADE).close()
    except WriterDied:
        return [Finding("abandoned", path, "a stream whose writer was killed while it made it")]
    except OutOfResources:  # not known
        raise
    except CannotStart:  # gone
        pass
    return []


def _check_damaged(layout: Layout, name: str, reason: str) -> list[Finding]:
    """A finding for shared memory that cannot be attached to.

    It is foreign if it does not name a file of this store: another version may have made it.
    """
    path = segment.path_of(name)
    try:
        fd = open_file(path)
    except OSError as error:
        if says_none(error):
            return []
        raise
    try:
        ours = layout.has(os.fsdecode(Block.read(fd).path))
    finally:
        os.close(fd)
    return [Finding("inconsistent" if ours else "foreign", path, reason)]
