"""A store keeps to its limit, and no flight waits for that."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path

import pytest

from shmstream import Feed, InFlightCopier, OutOfRoom, SourceError, SourceFailed, Store
from shmstream.storage import eviction
from shmstream.storage.eviction import Upkeep
from shmstream.storage.layout import KINDS, Entry, Layout
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.root import unmount
from tests.support.stores import digest, has_published

Start = Callable[..., Interpreter]
MIB = 1 << 20


class Slow:
    """Looking at a store's files takes until it is told; how often somebody has begun to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.looks = 0
        entries = Layout.entries

        def slowly(layout: Layout, kinds: Container[str] = KINDS) -> Iterator[Entry]:
            self.looks += 1
            assert self.go_on.wait(PATIENCE)
            return entries(layout, kinds)

        patch.setattr(Layout, "entries", slowly)
        patch.setattr(eviction, "_REST", 0.0)  # no rest after a look that the test made slow


def total(store: Store) -> int:
    return sum(entry.size for _, entry in store.blobs())


def test_no_flight_waits_for_an_eviction(
    folder: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        slow = Slow(patch)
        store = make_store(folder, {"max_bytes": MIB})
        for number in range(3):
            url = origin.serve(f"/{number}", seed=number, size=MIB)
            path = store.fetch(digest(number, MIB), url)
            assert sha256(Path(path).read_bytes()) == sha256(content(number, MIB))
            wait_until(lambda: slow.looks > 0)
            assert slow.looks == 1, "one look at a time"
        slow.go_on.set()
        wait_until(lambda: total(store) == MIB)
    assert [key for key, _ in store.blobs()] == [digest(2, MIB)]


def test_what_is_coming_counts(folder: str, origin: Origin) -> None:
    store = make_store(folder, {"max_bytes": 3 * MIB})
    urls = [origin.serve(f"/{number}", seed=number, size=MIB) for number in range(5)]
    for number in range(3):
        store.fetch(digest(number, MIB), urls[number])
    origin.change("/3", stall_after=1000)
    origin.change("/4", stall_after=1000)
    with store.open(digest(3, MIB), urls[3]) as one, store.open(digest(4, MIB), urls[4]) as other:
        one.read(1000)
        other.read(1000)
        wait_until(lambda: [key for key, _ in store.blobs()] == [digest(2, MIB)])
        origin.release()
        one.wait()
        other.wait()
    wait_until(lambda: store.flights() == [])
    assert total(store) == 3 * MIB


@pytest.fixture
def two_mib(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mounted], check=True)
    yield mounted
    unmount(mounted)


def test_where_the_disk_has_no_space_eviction_comes_first(two_mib: Path, origin: Origin) -> None:
    store = make_store(str(two_mib / "store"), {"max_bytes": 3 * MIB // 2})
    for number in range(4):
        url = origin.serve(f"/{number}", seed=number, size=MIB)
        path = store.fetch(digest(number, MIB), url)
        assert Path(path).stat().st_size == MIB
    wait_until(lambda: store.flights() == [])
    wait_until(lambda: [key for key, _ in store.blobs()] == [digest(3, MIB)])


def test_a_full_disk_takes_the_next_blob_before_the_last_flight_has_told_its_end(
    two_mib: Path, origin: Origin
) -> None:
    """Readers have a blob from its commit on; its flight tells its end a moment later."""
    store = make_store(str(two_mib / "store"), {"max_bytes": 3 * MIB // 2})
    path = store.fetch(digest(1, MIB), origin.serve("/1", seed=1, size=MIB))
    store._upkeep.expect(MIB, path, 0)  # as if its end were not told
    store.fetch(digest(2, MIB), origin.serve("/2", seed=2, size=MIB))
    assert [key for key, _ in store.blobs()] == [digest(2, MIB)]


def test_a_flight_waits_for_the_space_that_another_thread_is_about_to_free(
    two_mib: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was removed is out of sight at once; its space is free a moment later."""
    store = make_store(str(two_mib / "store"), {"max_bytes": 3 * MIB // 2})
    remove, is_hidden, may_free = Layout.remove, threading.Event(), threading.Event()

    def remove_slowly(layout: Layout, path: str) -> bool:
        if threading.current_thread() is not evicting or is_hidden.is_set():
            return remove(layout, path)
        with open(path, "rb"):  # the space is taken as long as this is open
            removed = remove(layout, path)
            is_hidden.set()
            assert may_free.wait(PATIENCE)
        return removed

    def expect() -> None:  # as a flight does
        store._upkeep.expect(MIB, store.path(digest(2, MIB)), MIB + MIB // 2)

    def make_room() -> None:
        assert is_hidden.wait(PATIENCE)
        expect()
        has_room.append(os.statvfs(two_mib).f_bavail * 4096 >= MIB + MIB // 2)

    store.fetch(digest(1, MIB), origin.serve("/1", seed=1, size=MIB))
    monkeypatch.setattr(Layout, "remove", remove_slowly)
    monkeypatch.setattr(store._upkeep, "_want", lambda: None)  # its thread would evict first
    evicting = threading.Thread(target=expect)
    has_room: list[bool] = []
    waiting = threading.Thread(target=make_room)
    evicting.start()
    waiting.start()
    try:
        assert is_hidden.wait(PATIENCE)
        waiting.join(0.2)
    finally:
        may_free.set()
        evicting.join()
        waiting.join()
    assert has_room == [True]


def test_what_has_come_is_spared_before_its_flight_says_that_it_has_ended(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Upkeep.ended

    def look_first(upkeep: Upkeep, path: str) -> None:
        upkeep._look()  # as a thread may at any time
        ended(upkeep, path)

    store = make_store(folder, {"max_bytes": 1000})
    with monkeypatch.context() as patch:
        patch.setattr(Upkeep, "ended", look_first)
        for number in range(2):
            store.fetch(str(number), [bytes(1000)])
    wait_until(lambda: [key for key, _ in store.blobs()] == ["1"])


def test_a_clock_that_was_set_back_spares_nothing(folder: str) -> None:
    store = make_store(folder, {"max_bytes": 3000})
    ahead = time.time() + 3600
    for number in range(10):
        path = store.fetch(str(number), [bytes(300)])
        os.utime(path, (number, ahead))
    store.fetch("new", [bytes(2800)])
    wait_until(lambda: [key for key, _ in store.blobs()] == ["new"])


def test_a_look_before_a_flight_tells_its_end_when_the_clock_was_set_back(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest blob that was told of has a time in the future; the new one is spared."""
    store = make_store(folder, {"max_bytes": 3000})
    os.utime(store.fetch("old", [bytes(300)]), (1, time.time() + 3600))
    ended = Upkeep.ended

    def look_first(self: Upkeep, path: str) -> None:
        self._look()
        ended(self, path)

    monkeypatch.setattr(Upkeep, "ended", look_first)
    store.fetch("new", [bytes(2800)])
    assert "new" in store


def test_a_process_that_ends_has_kept_to_the_limit(folder: str) -> None:
    program = (
        "import sys; from shmstream import Store\n"
        "store = Store(sys.argv[1], max_bytes=5000, durable=False)\n"
        "for number in range(10): store.fetch(str(number), [bytes(1000)])"
    )
    subprocess.run([sys.executable, "-c", program, folder], check=True)
    assert [key for key, _ in Store(folder).blobs()] == ["5", "6", "7", "8", "9"]


def test_a_child_forked_in_the_middle_of_a_look(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        slow = Slow(patch)
        store = make_store(folder, {"max_bytes": 1000})
        store.fetch("one", [bytes(1000)])
        wait_until(lambda: slow.looks == 1)
        child = os.fork()
        slow.go_on.set()
        if child == 0:
            try:
                store.fetch("two", [bytes(1000)])
                wait_until(lambda: [key for key, _ in store.blobs()] == ["two"])
            finally:
                os._exit(0 if total(store) == 1000 else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_store_can_be_sent_to_another_process(folder: str) -> None:
    store = make_store(folder, {"max_bytes": 1000})
    copy = pickle.loads(pickle.dumps(store))
    for number in range(3):
        copy.fetch(str(number), [bytes(1000)])
    wait_until(lambda: [key for key, _ in store.blobs()] == ["2"])


# What does not fit, and what is in the way.


class Announcing:
    """A source that tells a size, gives some bytes, and then breaks or waits to be let go."""

    name = "a source"

    def __init__(self, size: int | None, data: bytes, gate: threading.Event | None = None) -> None:
        self._size = size
        self._data = data
        self._gate = gate
        self.given = 0

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        return Feed(self._give(offset), offset, self._size, '"v"')

    def _give(self, offset: int) -> Iterator[bytes]:
        for start in range(offset, len(self._data), 65536):
            self.given = start + 65536
            yield self._data[start : start + 65536]
        if self._gate is not None:
            assert self._gate.wait(PATIENCE)
        if self._size is None or len(self._data) < self._size:
            raise SourceError(self.name, len(self._data), "it broke", retryable=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, with a folder for a store."""
    if os.geteuid() != 0 and not os.environ.get("SHMSTREAM_REQUIRE_REAL"):
        pytest.skip("mounts need root")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mounted], check=True)
    yield mounted / "store"
    store = Store(mounted / "store")
    wait_until(lambda: store.flights() == [])
    store.gc(partial_age=0)
    assert store.check() == []
    unmount(mounted)


@pytest.mark.parametrize(
    ("max_bytes", "size", "reason"),
    [
        (6 * MIB, 7 * MIB, "this store keeps 6291456 at most"),
        (6 * MIB, 1 << 50, "this store keeps 6291456 at most"),
        (1 << 60, 20 << 30, "its disk has space for"),
        (None, 1 << 50, "its disk has space for"),
    ],
)
def test_what_can_never_fit_evicts_nothing_and_fails_at_once(
    max_bytes: int | None, size: int, reason: str, disk: Path
) -> None:
    store = make_store(str(disk), {"max_bytes": max_bytes})
    for number in range(3):
        store.fetch(str(number), [bytes(MIB)])
    source = Announcing(size, bytes(MIB))
    for key in ("a name", digest(1, 100)):
        with pytest.raises(OutOfRoom, match=reason):
            store.fetch(key, source)
    assert source.given == 0
    assert [key for key, _ in store.blobs()] == ["0", "1", "2"]


def test_a_size_that_is_announced_evicts_only_for_what_comes(disk: Path) -> None:
    store = make_store(str(disk), {"max_bytes": 6 * MIB})
    for number in range(6):
        store.fetch(str(number), [bytes(MIB)])
    gate = threading.Event()
    with store.open("announced", Announcing(6 * MIB, bytes(100_000), gate)) as blob:
        blob.read(1000)
        wait_until(lambda: len(store.blobs()) < 6)
        assert [key for key, _ in store.blobs()] == ["1", "2", "3", "4", "5"]
        gate.set()
        with pytest.raises(SourceFailed):
            blob.read()
    assert [key for key, _ in store.blobs()] == ["1", "2", "3", "4", "5"]


def test_a_blob_of_unknown_size_is_given_up_above_the_limit(disk: Path) -> None:
    store = make_store(str(disk), {"max_bytes": 3 * MIB})
    source = Announcing(None, bytes(5 * MIB))
    with pytest.raises(OutOfRoom, match="this store keeps 3145728 at most"):
        store.fetch("a name", source)
    assert source.given <= 3 * MIB + 65536


def test_a_drip_keeps_no_space_from_others(disk: Path) -> None:
    gate = threading.Event()
    store = make_store(str(disk), {"max_bytes": 7 * MIB})
    drip = Announcing(6 * MIB, bytes(100_000), gate)
    with store.open("a drip", drip) as blob:
        blob.read(1000)
        path = store.fetch("another", Announcing(6 * MIB, bytes(6 * MIB)))
        assert Path(path).stat().st_size == 6 * MIB
        gate.set()
        with pytest.raises(SourceFailed):
            blob.read()


@pytest.mark.parametrize("max_bytes", [None, 1 << 40, 7 * MIB])
def test_an_abandoned_partial_file_makes_way(max_bytes: int | None, disk: Path) -> None:
    """It is the first to go; also where there is no limit, and no blob would go."""
    store = make_store(str(disk), {"max_bytes": max_bytes})
    stored = store.fetch("stored", [bytes(MIB)])
    with pytest.raises((SourceFailed, OutOfRoom)):  # it fills the disk
        store.fetch("too large", Announcing(None, bytes(9 * MIB)))
    [left] = disk.rglob("*.shmstream-partial")
    assert left.stat().st_size > 5 * MIB
    for number in range(2):
        path = store.fetch(str(number), Announcing(2 * MIB, bytes(2 * MIB)))
        assert Path(path).stat().st_size == 2 * MIB
    assert not left.exists()
    assert max_bytes or Path(stored).exists()


def test_other_partial_files_make_way_for_one_that_is_gone_on_with(disk: Path) -> None:
    """All of them are counted as space that can be had."""
    store = make_store(str(disk), {})
    for key in ("other", "a name"):
        with pytest.raises(SourceFailed):
            store.fetch(key, Announcing(7 * MIB, bytes(2 * MIB)))
    path = store.fetch("a name", Announcing(7 * MIB, bytes(7 * MIB)))
    assert Path(path).stat().st_size == 7 * MIB
    assert [each.name for each in disk.rglob("*.shmstream-partial")] == []


def test_abandoned_partial_files_count(folder: str) -> None:
    store = make_store(folder, {"max_bytes": 3_000_000})
    for number in range(10):
        with pytest.raises(SourceFailed):
            store.fetch(f"p{number}", Announcing(2_900_000, bytes(1_000_000)))
    store.fetch("last", [bytes(1000)])
    store.evict()
    left = [each.stat().st_size for each in Path(folder).rglob("*.shmstream-partial")]
    assert sum(left) + 1000 <= 3_000_000
    assert left
    gone = store.evict(500)
    assert len(gone) == len(left) + 1, "first the partial files, then the blob"
    assert gone[-1] == store._layout.place("last").path


def test_a_partial_file_that_somebody_writes_or_waits_for_does_not_go(
    folder: str, start: Start, origin: Origin
) -> None:
    store = make_store(folder, {"max_bytes": 3 * MIB})
    origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", stall_after=MIB)
    taker = start(flights.take, folder, {})
    taker.hear()
    taker.say(["a name", origin.url("/blob"), 0])
    taker.hear()
    wait_until(lambda: has_published(store, MIB))
    assert store.evict(0) == []
    with InFlightCopier.attach(store._layout.place("a name").stream) as reader:
        reader.read(MIB)
        wait_until(lambda: store.flights()[0].followers != ())
        taker.kill()
        assert store.evict(0) == []
    origin.release()
    with store.open("a name", origin.url("/blob")) as blob:
        assert blob.read() == content(1, 2 * MIB)
    assert [each.range for each in origin.requests("/blob")][1:] == [f"bytes={MIB}-"]


def test_bytes_ahead_of_their_turn_count_as_their_partial_file(folder: str, origin: Origin) -> None:
    store = make_store(folder, {})
    for number in range(2):
        url = origin.serve(f"/{number}", seed=number, size=MIB)
        store.fetch(digest(number, MIB), url)
    kept = Path(folder, "blobs/sha256", "0" * 64)
    Path(f"{kept}.shmstream-partial").write_bytes(b"x" * 4096)
    ring = Path(f"{kept}.shmstream-ahead")
    ring.write_bytes(b"x" * MIB)
    upkeep = Upkeep(Layout(folder), None, lambda _: None)
    assert upkeep.evict(3 * MIB + 4096) == []
    assert upkeep.evict(2 * MIB + 1) == [f"{kept}.shmstream-partial"]
    assert not ring.exists()
    assert total(store) == 2 * MIB
