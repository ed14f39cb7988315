"""What a store tells of its flights, and how many it allows."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from shmstream import Description, Event, EventKind, SourceError, SourceFailed, TooManyFlights
from shmstream.sources.base import describe
from shmstream.sources.http import HTTPSource
from shmstream.sources.local import IterableSource, PathSource
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest, has_published

Start = Callable[..., Interpreter]
MIB = 1 << 20


def test_permits_are_shared_by_all_processes_and_given_back(
    start: Start, folder: str, origin: Origin
) -> None:
    store = make_store(folder, {"max_flights": 1})
    origin.serve("/blob", seed=1, size=MIB)
    origin.serve("/other", seed=2, size=MIB)
    origin.change("/blob", stall_after=MIB // 2)
    elsewhere = start(flights.take, folder, {"max_flights": 1})
    elsewhere.hear()
    elsewhere.say([digest(1, MIB), origin.url("/blob"), 0])
    wait_until(lambda: bool(store.flights()) and has_published(store, 65536))
    with pytest.raises(TooManyFlights, match="allows") as caught:
        store.open(digest(2, MIB), origin.url("/other"))
    assert pickle.loads(pickle.dumps(caught.value)).max_flights == 1
    assert origin.requests("/other") == []
    with store.open(digest(1, MIB), origin.url("/blob")) as blob:  # that flight is under way
        assert blob.role == "follows"
        elsewhere.kill()
        wait_until(lambda: not store.flights()[0].leader)
        origin.release()
        assert blob.read() == content(1, MIB)  # it took over
    wait_until(lambda: store.flights() == [])
    assert store.fetch(digest(2, MIB), origin.url("/other"))


def test_a_limit_is_a_number(folder: str) -> None:
    with pytest.raises(ValueError, match="max_flights"):
        make_store(folder, {"max_flights": 0})
    make_store(folder, {})


def test_events(folder: str, origin: Origin) -> None:
    told: list[Event] = []
    store = make_store(folder, {"on_event": told.append, "max_bytes": MIB})
    url = origin.serve("/blob", seed=1, size=MIB)
    missing = origin.url("/missing")
    store.fetch(digest(1, MIB), [missing, url])
    wait_until(lambda: store.flights() == [])
    key = digest(1, MIB)
    assert told == [
        Event(EventKind.LED, key),
        Event(EventKind.FAILED_OVER, key),
        Event(EventKind.RECEIVED, key, MIB),
        Event(EventKind.COMMITTED, key, MIB),
    ]
    told.clear()
    with pytest.raises(SourceFailed) as caught:
        store.fetch("other", missing)
    assert caught.value.status == 404
    wait_until(lambda: store.flights() == [])
    assert told == [Event(EventKind.LED, "other"), Event(EventKind.ABORTED, "other")]
    told.clear()
    origin.serve("/second", seed=2, size=MIB)
    store.fetch(digest(2, MIB), origin.url("/second"))
    wait_until(lambda: Event(EventKind.EVICTED, key, MIB) in told)
    wait_until(lambda: store.flights() == [])


def test_a_listener_that_fails_ends_no_flight(folder: str, origin: Origin) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError(event)

    store = make_store(folder, {"on_event": fail})
    url = origin.serve("/blob", seed=1, size=1000)
    assert Path(store.fetch(digest(1, 1000), url)).stat().st_size == 1000


def test_a_source_is_described_without_its_bytes(origin: Origin, tmp_path: Path) -> None:
    url = origin.serve("/blob", seed=1, size=1000, media_type="application/x-test")
    assert HTTPSource(url).describe() == Description(1000, '"1-1000"', "application/x-test")
    [request] = origin.requests("/blob")
    assert (request.method, request.sent) == ("HEAD", 0)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert PathSource(path).describe().size == 10
    assert describe([IterableSource([b"x"])]) is None
    missing = HTTPSource(origin.url("/missing"))
    with pytest.raises(SourceError) as caught:
        describe([missing])
    assert caught.value.status == 404
    found = describe([missing, IterableSource([b"x"]), HTTPSource(url)])
    assert found is not None
    assert found.size == 1000
    with pytest.raises(SourceError, match="regular"):
        PathSource(tmp_path).describe()


def test_pacing_is_the_stores(folder: str, origin: Origin) -> None:
    with pytest.raises(ValueError, match="publish_interval"):
        make_store(folder, {"publish_interval": -1})
    size = 4 * MIB
    url = origin.serve("/blob", seed=1, size=size, rate=16 * MIB)
    waits = []
    for interval in (0.2, 0.001):
        store = make_store(folder, {"publish_bytes": size, "publish_interval": interval})
        with store.open(f"every {interval}", url) as blob:
            steps = 0
            while not blob.is_complete:
                blob.wait_past(blob.published)
                steps += 1
        waits.append(steps)
    assert waits[0] < waits[1]
