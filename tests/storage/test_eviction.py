"""A store keeps to its limit, and no flight waits for that."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstream import Store
from shmstream.storage import eviction
from shmstream.storage.eviction import Upkeep
from shmstream.storage.layout import Entry, Layout
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest

MIB = 1 << 20


class Slow:
    """Looking at a store's files takes until it is told; how often somebody has begun to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.looks = 0
        entries = Layout.entries

        def slowly(layout: Layout, *, blobs: bool = True) -> Iterator[Entry]:
            self.looks += 1
            assert self.go_on.wait(PATIENCE)
            return entries(layout, blobs=blobs)

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


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_where_the_disk_has_no_space_eviction_comes_first(tmp_path: Path, origin: Origin) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mounted], check=True)
    store = make_store(str(mounted / "store"), {"max_bytes": 3 * MIB // 2})
    for number in range(4):
        url = origin.serve(f"/{number}", seed=number, size=MIB)
        path = store.fetch(digest(number, MIB), url)
        assert Path(path).stat().st_size == MIB
    wait_until(lambda: store.flights() == [])
    wait_until(lambda: [key for key, _ in store.blobs()] == [digest(3, MIB)])
    subprocess.run(["umount", mounted], check=True)


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
