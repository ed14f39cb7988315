"""The connections of a large blob if nobody has said how many: the server bears few, or none.

In each case one connection would do. So the readers get the blob, and the server is not asked much
more often than one connection asks it. How fast it is decides nothing here.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmstream import ContentChanged, Event, EventKind, SourceError, SourceFailed
from shmstream.flight import lanes, shares, supply
from shmstream.sources import base, retries
from shmstream.sources.http import HTTPSource
from shmstream.sources.retries import Attempts, Retries
from shmstream.storage.layout import AHEAD
from tests.support.flights import make_store
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 12 * MIB + 12_345
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
RATE = 4 * MIB


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few MiB are large; pieces are short; other connections are worthwhile."""
    monkeypatch.setattr(base, "_LARGE", MIB)
    monkeypatch.setattr(lanes, "_USUAL_LEAST", 8)
    monkeypatch.setattr(lanes, "_SOON", 0.0)
    monkeypatch.setattr(lanes, "_WORTHWHILE", 0.0)
    monkeypatch.setattr(supply, "_MOST", MIB)


def read(folder: str, url: str, key: str = KEY, **options: Any) -> None:
    with make_store(folder, options).open(key, url) as blob:
        assert blob.read() == DATA
        blob.wait()
    assert not list(Path(folder).rglob("*" + AHEAD))


def test_a_large_blob(folder: str, origin: Origin) -> None:
    size = 64 * MIB
    url = origin.serve("/large", seed=1, size=size, rate=16 * MIB)
    told: list[Event] = []
    path = make_store(folder, {"on_event": told.append}).fetch("large", url)
    assert Path(path).read_bytes() == content(1, size)
    asked = origin.requests("/large")
    assert asked[0].range is None, "it begins as with one connection"
    assert len({each.connection for each in asked}) > 2
    assert sum(each.count for each in told if each.kind == EventKind.RECEIVED) == size
    assert not shares._flights.value, "no flight has a share any more"


def test_a_smaller_blob_and_one_that_is_asked_for_so(folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, rate=4 * RATE)
    read(folder, url)
    assert len(origin.requests("/blob")) == 1


@pytest.mark.usefixtures("small")
def test_one_connection_is_asked_for(folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, rate=4 * RATE)
    read(folder, url, connections=1)
    assert len(origin.requests("/blob")) == 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("key", [KEY, "a name"])
@pytest.mark.parametrize("beyond", [None, 429, 503])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_server_that_answers_few_at_once(
    at_once: int, beyond: int | None, key: str, folder: str, origin: Origin
) -> None:
    """The others are refused, or wait without a word, as behind the queue of a small server."""
    behaviour = {"at_once": at_once, "beyond": beyond, "rate": RATE}
    read(folder, origin.serve("/blob", seed=1, size=SIZE, **behaviour), key)
    asked = origin.requests("/blob")
    unanswered = [each for each in asked if each.status not in (200, 206)]
    assert len(unanswered) <= 16, [each.range for each in unanswered]
    assert at_once > 1 or asked[0].sent == SIZE


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "behaviour",
    [
        {"ranges": False},
        {"if_range": False},
        {"for_ranges": {"status": 412}},
        {"range_resets": True},
        {"all_is_rest": True},
    ],
    ids=str,
)
def test_a_server_without_good_parts(
    behaviour: dict[str, Any], folder: str, origin: Origin
) -> None:
    """The connection that the flight begins with brings all of it."""
    url = origin.serve("/blob", seed=1, size=SIZE, rate=RATE, **behaviour)
    read(folder, url, "a name")
    if behaviour != {"if_range": False}:
        assert origin.requests("/blob")[0].sent == SIZE
        assert len(origin.requests("/blob")) < 20


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("in_time", [(2, 2.0), (4, 3.0)], ids=str)
def test_a_server_that_counts_requests(
    in_time: tuple[int, float], folder: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses further parts, and the leader, too, which one connection would not have met.

    It also says to come back later than the leader waits for a source that others crowd.
    """
    monkeypatch.setattr(retries, "_LONGEST_RETRY_AFTER", 0.5)
    read(folder, origin.serve("/blob", seed=1, size=SIZE, rate=RATE, in_time=in_time))
    refused = [each for each in origin.requests("/blob") if each.status == 429]
    assert 1 <= len(refused) <= 16


def test_the_leader_waits_if_its_own_connections_were_too_many() -> None:
    """Longer than for a source that is crowded by others, which counts as failed."""
    source = HTTPSource("http://a/b")
    too_many = SourceError(source.name, MIB, "it answered 429", retry_after=60.0, status=429)
    with pytest.raises(SourceFailed):
        Attempts("a", [source], Retries()).failed(too_many, MIB)
    attempts = Attempts("a", [source], Retries())
    assert [attempts.failed(too_many, MIB, is_crowded=True) for _ in range(20)] == [60.0] * 20
    too_many.retry_after = 301.0
    with pytest.raises(SourceFailed):
        attempts.failed(too_many, MIB, is_crowded=True)
    untold = SourceError(source.name, MIB, "it answered 429", status=429)
    attempts = Attempts("a", [source], Retries())
    pauses = [attempts.failed(untold, MIB, is_crowded=True) or 0.0 for _ in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30.0
    other = HTTPSource("http://c/d")
    attempts = Attempts("a", [source, other], Retries())
    assert attempts.failed(too_many, MIB, is_crowded=True) is None, "another source has it"


@pytest.mark.usefixtures("small")
def test_a_content_that_changes(folder: str, origin: Origin) -> None:
    """Whatever came before, no reader has all bytes of a mixture."""
    url = origin.serve("/blob", seed=1, size=SIZE, rate=RATE)
    origin.change("/blob", first=3, count=None, seed=2)
    try:
        read(folder, url, "a name")
    except ContentChanged:
        path = make_store(folder, {}).fetch("a name", url)
        assert Path(path).read_bytes() == content(2, SIZE)


@pytest.mark.usefixtures("small")
def test_several_flights_have_no_more_than_one(folder: str, origin: Origin) -> None:
    store = make_store(folder, {})
    paths = [f"/{number}" for number in range(6)]
    urls = [origin.serve(each, seed=1, size=SIZE, rate=RATE) for each in paths]
    for each in paths:
        origin.change(each, first=0, count=1, stall_after=2 * MIB)
    blobs = [store.open(each, each) for each in urls]
    wait_until(lambda: len(shares._flights.value) == 1)  # all of them have one server
    first = len(shares._flights.value)
    wait_until(lambda: all((each.published or 0) >= 2 * MIB for each in store.flights()))
    assert first == 1, "one server"
    assert [len(origin.requests(each)) for each in paths] == [1] * 6, "6 flights: each has one"
    origin.release()
    for blob in blobs:
        with blob:
            assert blob.read() == DATA


@pytest.mark.usefixtures("small")
def test_the_room_that_is_taken_unasked(
    folder: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sixteenth of what the disk has, and of what the store keeps; else one connection."""
    url = origin.serve("/blob", seed=1, size=SIZE, rate=RATE)
    read(folder, url, max_bytes=31 * MIB)
    assert len(origin.requests("/blob")) == 1, "8 blocks have 2 MiB"
    facts = SimpleNamespace(f_bavail=SIZE + 31 * MIB, f_frsize=1)
    narrow = SimpleNamespace(**{**vars(os), "statvfs": lambda _: facts})
    monkeypatch.setattr(lanes, "os", narrow)
    read(folder, url, "a name")
    assert len(origin.requests("/blob")) == 2
    facts.f_bavail += 64 * MIB
    read(folder, url, "another name")
    assert len(origin.requests("/blob")) > 3
