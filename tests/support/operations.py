"""Operations that are killed or interrupted at every place, and what must be true afterwards.

A role of this module (`end_at_places`) runs rounds in forked children of one interpreter, which has
no threads and holds no stream itself. A round has three parts, each in a process of its own:

    prepare    make what the operation finds
    act        the operation, killed at its n-th line, or interrupted by Ctrl-C at its n-th point
    recover    the next process does the same, and tells everything that is wrong afterwards

The rounds go on until the operation comes to its end unharmed.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from shmstream import (
    Blob,
    BlobExists,
    BlobStreamer,
    CannotStart,
    DigestMismatch,
    Feed,
    InFlightCopier,
    SourceError,
    SourceFailed,
    Store,
    WriterDied,
)
from shmstream.sources.base import Source
from shmstream.sources.http import HTTPSource
from shmstream.stream import doorbell
from shmstream.stream.stream import Stream
from shmstream.system.process import close_all
from tests.support.flights import make_store
from tests.support.interpreters import Link
from tests.support.lines import Death, Fate, Interruption
from tests.support.roles import content, sha256

PIECE = 50_000  # bytes
SIZE = 4 * PIECE + 77
HALF = 2 * PIECE
DATA = content(7, SIZE)
DIGEST = f"sha256:{sha256(DATA)}"
NAME = "a name"
PATIENCE = 60  # s; a process that takes longer is killed, and counts as hung
_OLD = 10_000.0  # s
_INTERRUPTED = 7 << 8  # the status of a child that was interrupted, and ended in good order


class Noting:
    """A source with ranges and a validator. It notes each offset that it is asked for.

    At `stop` it fails for good, or calls `at_stop`; from the middle on it calls `at_half`.
    """

    name = "a source"

    def __init__(
        self,
        folder: str,
        data: bytes = DATA,
        stop: int = SIZE,
        at_stop: Callable[[], object] | None = None,
        at_half: Callable[[], object] | None = None,
    ) -> None:
        self._notes = folder + ".offsets"
        self._data = data
        self._stop = stop
        self._at_stop = at_stop
        self._at_half = at_half

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        offset = offset if validator in (None, "v") else 0
        note(self._notes, offset)
        return Feed(self._pieces(offset), offset, len(self._data), "v")

    def _pieces(self, offset: int) -> Iterator[bytes]:
        for start in range(offset, self._stop, PIECE):
            if start >= HALF and self._at_half is not None:
                self._at_half()
            yield self._data[start : min(start + PIECE, self._stop)]
        if self._at_stop is not None:
            self._at_stop()
        elif self._stop < len(self._data):
            raise SourceError(self.name, self._stop, "it broke", retryable=False)


class NotingHTTP(HTTPSource):
    """The same behind a URL: its bytes are moved by the kernel."""

    def __init__(self, folder: str, url: str) -> None:
        super().__init__(url)
        self._notes = folder + ".offsets"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        note(self._notes, offset)
        return super().open(offset, validator)


def note(path: str, offset: int) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(struct.pack("q", offset))


def noted(path: str) -> list[int]:
    """The offsets that were asked for since the last look."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    os.unlink(path)
    return [offset for (offset,) in struct.iter_unpack("q", raw)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Operation:
    """A fetch of one blob from its beginning to its end; the base of all other operations."""

    key = DIGEST
    kept = 0
    """Bytes that are on disk before the operation, and must never be asked for again."""
    keeps_in_order = True
    """Whether they stay if the process ends in good order: small blobs have no journal then."""
    url = ""
    fate: Callable[[int], Fate] = Death
    """What happens to the process at its n-th place."""

    def __init__(self, folder: str, url: str = "") -> None:
        self.folder = folder
        self.url = url
        self.notes = folder + ".offsets"

    def store(self) -> Store:
        return make_store(self.folder, {"publish_interval": 0})

    def source(self) -> Source:
        return Noting(self.folder)

    def prepare(self) -> None:
        """Make what the operation finds."""

    def kill(self, nth: int) -> tuple[int, list[str]]:
        """Do it in a process that dies at its `nth` line; its status, and what was wrong."""
        if type(self).prepare is not Operation.prepare:
            prepared = end_of(fork(self.prepare))
            assert prepared in (0, signal.SIGKILL), "it could not be prepared"
        noted(self.notes)
        return end_of(fork(lambda: self.act(self.fate(nth)))), []

    def recovered(self) -> list[str]:
        """What is wrong afterwards, as another process finds it."""
        told = os.pipe()
        status = end_of(fork(lambda: os.write(told[1], "\n".join(self.recover()).encode())))
        os.close(told[1])
        with os.fdopen(told[0], "rb") as heard:
            wrong = heard.read().decode().splitlines()
        return wrong if status == 0 else [*wrong, f"the next process ended with {status}"]

    def act(self, fate: Fate) -> None:
        """The operation. It arms `death`."""
        store, source = self.store(), self.source()
        fate.arm()
        store.fetch(self.key, source)

    def recover(self) -> list[str]:
        """What is wrong when the next process has done the same."""
        store = self.store()
        place = store._layout.place(self.key)
        was_complete = os.path.exists(place.path)
        kept = self.kept if self.keeps_in_order or self.fate is Death else 0
        floor = max(kept, published(place.stream))
        noted(self.notes)
        wrong = self.fetch(store)
        asked = noted(self.notes)
        if asked and (was_complete or min(asked) < floor):
            state = "complete" if was_complete else f"{floor} bytes of it"
            wrong.append(f"{state} were here, and it asked from {asked}")
        return wrong + self.left(store, [place.path])

    def fetch(self, store: Store) -> list[str]:
        with store.open(self.key, Noting(self.folder)) as blob:
            good = blob.read() == DATA
            blob.wait()
        return [] if good else ["wrong bytes"]

    def left(self, store: Store, blobs: list[str]) -> list[str]:
        """What `gc` leaves of the dead, beside these `blobs`; and what `check` finds."""
        wait_for_end(store)
        make_old(self.folder)
        store.gc(partial_age=60)
        wrong = [str(each) for each in store.check()]
        records = [each + ".shmstream-record" for each in blobs if "/named/" in each]
        expected = {store._layout.mark, *blobs, *records}
        wrong += [f"left: {each}" for each in files(self.folder) - expected]
        wrong += [f"lacks: {each}" for each in expected - files(self.folder)]
        return wrong


def published(stream: str) -> int:
    """How many bytes the dead has published; 0 if there is no stream."""
    try:
        with Stream.attach(stream, timeout=0) as attached:
            return attached.block.published
    except (CannotStart, WriterDied):  # the second: killed while it made the stream
        return 0


def wait_for_end(store: Store) -> None:
    """Wait until no live process leads a flight."""
    deadline = time.monotonic() + PATIENCE
    while any(each.leader is not None for each in store.flights()):
        assert time.monotonic() < deadline, "a flight does not end"
        time.sleep(0.001)


def make_old(folder: str) -> None:
    """`gc` leaves young files alone: their processes may be about to go on."""
    long_ago = time.time() - _OLD
    for path in files(folder):
        if ".shmstream-" in path:
            os.utime(path, (long_ago, long_ago))


def files(folder: str) -> set[str]:
    return {str(each) for each in Path(folder).rglob("*") if not each.is_dir()}


class Named(Operation):
    """A key that is no digest: it has a record, and its digest is computed at the end.

    The blob is opened, so the leader has a reader in its own process, which a `fetch` has not.
    """

    key = NAME

    def act(self, fate: Fate) -> None:
        store, source = self.store(), self.source()
        fate.arm()
        with store.open(self.key, source) as blob:
            blob.wait()


class Durable(Operation):
    """A fetch whose bytes are on the disk when it is complete."""

    def store(self) -> Store:
        return make_store(self.folder, {"publish_interval": 0, "durable": True})


class ByKernel(Operation):
    """A fetch over HTTP, whose bytes the kernel moves."""

    def source(self) -> Source:
        return NotingHTTP(self.folder, self.url)

    def fetch(self, store: Store) -> list[str]:
        with store.open(self.key, self.source()) as blob:
            good = blob.read() == DATA
            blob.wait()
        return [] if good else ["wrong bytes"]


class Resume(Operation):
    """A fetch that goes on with a partial file and its journal."""

    kept = HALF

    def prepare(self) -> None:
        with suppress(SourceFailed):
            self.store().fetch(self.key, Noting(self.folder, stop=HALF))
        wait_for_end(self.store())


class ResumeNamed(Resume):
    """The same, of a key that is no digest: the validator proves that the content is the same."""

    key = NAME


class Takeover(Operation):
    """A fetch that takes over a flight whose leader was killed."""

    kept = PIECE
    keeps_in_order = False

    def prepare(self) -> None:
        self.store().fetch(self.key, Noting(self.folder, stop=HALF, at_stop=die))


class TakeoverNamed(Takeover):
    """The same, of a key that is no digest."""

    key = NAME
    keeps_in_order = True


class Abort(Operation):
    """A fetch whose source breaks for good."""

    def act(self, fate: Fate) -> None:
        store, source = self.store(), Noting(self.folder, stop=HALF)
        fate.arm()
        with suppress(SourceFailed):
            store.fetch(self.key, source)


class WrongBytes(Operation):
    """A fetch of another blob than the digest says."""

    def act(self, fate: Fate) -> None:
        store, source = self.store(), Noting(self.folder, data=bytes(SIZE))
        fate.arm()
        with suppress(DigestMismatch):
            store.fetch(self.key, source)

    def recover(self) -> list[str]:
        # Bytes that nobody has verified yet are gone on with, and found wrong at the end.
        store = self.store()
        with suppress(DigestMismatch):
            self.fetch(store)
        wait_for_end(store)
        wrong = self.fetch(store)
        noted(self.notes)
        return wrong + self.left(store, [store._layout.place(self.key).path])


class Followed(Operation):
    """The second half of a flight, from there to its commit, while another process follows."""

    kept = PIECE

    def __init__(self, folder: str, url: str = "") -> None:
        super().__init__(folder, url)
        self._stalled = threading.Event()
        self._going_on = threading.Event()

    def kill(self, nth: int) -> tuple[int, list[str]]:
        leads, follows, goes = os.pipe(), os.pipe(), os.pipe()
        victim = fork(lambda: self._lead(nth, leads[1], goes[0]))
        os.read(leads[0], 1)
        follower = fork(lambda: self._follow(follows[1]))
        os.read(follows[0], 1)
        os.write(goes[1], b"!")
        status = end_of(victim)
        wrong = [] if end_of(follower) == 0 else ["the follower failed"]
        _, *again = noted(self.notes)
        if again and min(again) < self.kept:
            wrong.append(f"it asked again, from {again}")
        for each in (*leads, *follows, *goes):
            os.close(each)
        return status, wrong

    def _lead(self, nth: int, leads: int, goes: int) -> None:
        fate = self.fate(nth)
        source = Noting(self.folder, at_half=self._stall)
        blob = self.store().open(self.key, source)
        assert self._stalled.wait(PATIENCE)
        os.write(leads, b"!")
        os.read(goes, 1)
        fate.arm()
        self.end(blob)

    def _stall(self) -> None:
        self._stalled.set()
        self._going_on.wait(PATIENCE)

    def end(self, blob: Blob) -> None:
        self._going_on.set()
        blob.wait()
        blob.close()

    def _follow(self, follows: int) -> None:
        with self.store().open(self.key, Noting(self.folder)) as blob:
            assert blob.role == "follows"
            assert blob.read(PIECE) == DATA[:PIECE]
            os.write(follows, b"!")
            blob.seek(0)
            assert blob.read() == DATA
            blob.wait()


class HandOver(Followed):
    """A leader that ends in good order in the middle of its flight: its follower goes on."""

    def end(self, blob: Blob) -> None:
        close_all()
        self._going_on.set()
        blob.close()


class LeaveAlone(Followed):
    """A leader that ends in good order, and no process follows: what it has is kept."""

    def kill(self, nth: int) -> tuple[int, list[str]]:
        return Operation.kill(self, nth)

    def act(self, fate: Fate) -> None:
        blob = self.store().open(self.key, Noting(self.folder, at_half=self._stall))
        assert self._stalled.wait(PATIENCE)
        fate.arm()
        close_all()
        self._going_on.set()
        blob.close()


class Evict(Operation):
    """An eviction of three of four blobs, of which two are named."""

    keys = ("one", "two", DIGEST, "three")

    def prepare(self) -> None:
        store = self.store()
        for used, key in enumerate(self.keys):
            path = store.fetch(key, Noting(self.folder))
            os.utime(path, (time.time() - 1000 + used, os.stat(path).st_mtime))

    def act(self, fate: Fate) -> None:
        store = self.store()
        fate.arm()
        store.evict(SIZE)

    def recover(self) -> list[str]:
        store = self.store()
        store.evict(SIZE)
        kept = store._layout.place(self.keys[-1]).path
        wrong = [] if Path(kept).read_bytes() == DATA else ["wrong bytes"]
        return wrong + self.left(store, [kept])


class Collect(Operation):
    """`gc`, of everything that dead processes can leave."""

    def prepare(self) -> None:
        store = self.store()
        store.fetch(self.key, Noting(self.folder))
        wait_for_end(store)
        for prepare in (self._orphan, self._reader):
            assert end_of(fork(prepare)) == signal.SIGKILL
        for key in ("old", "older"):
            place = store._layout.place(key)
            for path in (place.partial, place.journal, place.record):
                Path(path).write_bytes(b"")
        Path(store._layout.place("torn").journal + ".01234567").touch()
        Path(store._layout.place("torn").record).touch()
        Path(doorbell.path_of(doorbell.name_of(99, 1, 1))).touch()
        make_old(self.folder)

    def _orphan(self) -> None:
        self.store().fetch("orphan", Noting(self.folder, stop=HALF, at_stop=die))

    def _reader(self) -> None:
        streamer = BlobStreamer.create(self.folder + "/blobs/sha256/x", name="with-a-reader")
        self.copier = InFlightCopier.attach(streamer.name)
        die()

    def act(self, fate: Fate) -> None:
        store = self.store()
        fate.arm()
        store.gc(partial_age=60)

    def recover(self) -> list[str]:
        store = self.store()
        return self.left(store, [store._layout.place(self.key).path])


class Create(Operation):
    """A stream by itself, from its creation to its end: what a dead one left is replaced."""

    commits = True

    def _stream(self) -> None:
        with BlobStreamer.create(self._path(), name="stream", publish_interval=0) as streamer:
            for start in range(0, SIZE, PIECE):
                streamer.append(DATA[start : start + PIECE])
            if self.commits:
                streamer.commit()

    def _path(self) -> str:
        os.makedirs(self.folder, exist_ok=True)
        return self.folder + "/blob"

    def act(self, fate: Fate) -> None:
        fate.arm()
        self._stream()

    def recover(self) -> list[str]:
        path = self._path()
        if os.path.exists(path) and Path(path).read_bytes() != DATA:
            return ["wrong bytes"]
        self._stream()
        wrong = [f"left: {each}" for each in files(self.folder) - {path}]
        if self.commits and Path(path).read_bytes() != DATA:
            wrong.append("wrong bytes")
        return wrong


class Leave(Create):
    """The same, without a commit."""

    commits = False


class Read(Operation):
    """A reader, from its attachment to its end, of a stream that has two slots."""

    def kill(self, nth: int) -> tuple[int, list[str]]:
        begun, ends = os.pipe(), os.pipe()
        writer = fork(lambda: self._write(begun[1], ends[0]))
        os.read(begun[0], 1)
        status, wrong = super().kill(nth)
        for _ in range(2):
            if end_of(fork(self._read)) != 0:
                wrong.append("the next reader failed")
        os.write(ends[1], b"!")
        if end_of(writer) != 0:
            wrong.append("the writer failed")
        for each in (*begun, *ends):
            os.close(each)
        return status, wrong

    def _write(self, begun: int, ends: int) -> None:
        os.makedirs(self.folder, exist_ok=True)
        path = self.folder + "/blob"
        with BlobStreamer.create(path, name="read", max_subscribers=1) as streamer:
            streamer.append(DATA)
            os.write(begun, b"!")
            os.read(ends, 1)
            streamer.commit()

    def _read(self) -> None:
        with InFlightCopier.attach("read") as copier:
            assert copier.read(SIZE) == DATA

    def act(self, fate: Fate) -> None:
        fate.arm()
        self._read()

    def recover(self) -> list[str]:
        return []


class Produce(Operation):
    """A blob that a program writes as a file. The next process writes it if it is not here."""

    key = "a name"

    def act(self, fate: Fate) -> None:
        store = self.store()
        fate.arm()
        self._produce(store)

    def _produce(self, store: Store) -> None:
        with store.create(self.key) as blob:
            for start in range(0, SIZE, PIECE):
                blob.write(DATA[start : start + PIECE])

    def recover(self) -> list[str]:
        store = self.store()
        with suppress(BlobExists):
            self._produce(store)
        with store.open(self.key) as blob:
            wrong = [] if blob.read() == DATA else ["wrong bytes"]
        return wrong + self.left(store, [store._layout.place(self.key).path])


class ProduceDigest(Produce):
    """The same, of a key that is the digest."""

    key = DIGEST


OPERATIONS: dict[str, type[Operation]] = {
    each.__name__: each
    for each in (
        Operation, Named, Durable, ByKernel, Resume, ResumeNamed, Takeover, TakeoverNamed, Abort,
        WrongBytes, Followed, HandOver, LeaveAlone, Evict, Collect, Create, Leave, Read, Produce,
        ProduceDigest,
    )
}  # fmt: skip


# The rounds.


def end_at_places(
    link: Link, name: str, folder: str, url: str, first: int, stride: int, interrupts: bool
) -> None:
    """End the operation at its place `first`, and at each place `stride` further.

    Says the number of rounds, and what was wrong in which of them.
    """
    shared = set(os.listdir("/dev/shm"))
    rounds, wrong = 0, []
    nth, status = first, _INTERRUPTED
    while status in (signal.SIGKILL, _INTERRUPTED):
        operation = OPERATIONS[name](folder, url)
        if interrupts:
            operation.fate = Interruption
        status, found = operation.kill(nth)
        found += operation.recovered()
        found += [f"in /dev/shm: {each}" for each in set(os.listdir("/dev/shm")) - shared]
        if status not in (0, signal.SIGKILL, _INTERRUPTED):
            found.append(f"it ended with {status}")
        wrong += [f"place {nth}: {each}" for each in found]
        shutil.rmtree(folder, ignore_errors=True)
        rounds, nth = rounds + 1, nth + stride
        if len(wrong) > 20:
            break
    link.say({"rounds": rounds, "wrong": wrong})


def fork(act: Callable[[], object]) -> int:
    """Do `act` in a forked child, which ends as an interpreter does; its pid."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(PATIENCE)
        faulthandler.register(signal.SIGALRM, chain=True)  # a child that hangs says where
        try:
            act()
        except BaseException:
            if not Interruption.has_come:
                raise  # else it ends in good order, whatever the interruption has led to
        finally:
            sys.settrace(None)
        close_all()
        code = _INTERRUPTED >> 8 if Interruption.has_come else 0
    except BaseException:  # noqa: BLE001  nothing of the parent may go on in the child
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(child: int) -> int:
    """The wait status of a child: 0, the number of the signal that killed it, or more."""
    return os.waitpid(child, 0)[1]
