"""The flights of a store: what is listed of them, and how their rates are known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from shmstream import Store
from shmstream.storage.flights import FlightInfo, Watch, followers_of, state_of, streams
from shmstream.stream.control_block import State
from shmstream.stream.subscribers import Subscriber
from shmstream.stream.writer import BlobStreamer
from shmstream.system.process import Identity
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.stores import digest

MIB = 1 << 20
LEADER = Identity(1, 10, 100)
OTHER = Identity(2, 20, 100)
FLIGHT = FlightInfo(
    key="key",
    stream="stream",
    path="/path",
    state=State.STREAMING,
    size=1000,
    published=0,
    epoch=0,
    leader=LEADER,
    followers=(Subscriber(0, 0, 0, LEADER), Subscriber(1, 0, 0, OTHER)),
)


def test_streams_of_other_folders_are_no_flights(store: Store, origin: Origin, blob: str) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, stall_after=1000)
    with BlobStreamer.create(blob, name="elsewhere"):
        with store.open(digest(1, MIB), url) as reader:
            reader.read(1000)
            [flight] = store.flights()
            assert flight.key == digest(1, MIB)
            assert {each.name for each in streams()} == {flight.stream, "elsewhere"}
            origin.release()
    wait_until(lambda: store.flights() == [])


def test_a_flight_without_a_leader_is_orphaned_unless_it_has_ended() -> None:
    assert state_of(FLIGHT) == "streaming"
    assert state_of(replace(FLIGHT, leader=None)) == "orphaned"
    assert state_of(replace(FLIGHT, leader=None, state=State.OPENING)) == "orphaned"
    assert state_of(replace(FLIGHT, leader=None, state=State.COMMITTED)) == "committed"
    assert state_of(replace(FLIGHT, leader=None, state=State.ABORTED)) == "aborted"


def test_followers_are_in_other_processes_than_the_leader() -> None:
    assert [each.identity for each in followers_of(FLIGHT)] == [OTHER]


class Clock:
    """A watch on flights, and the time of day that it sees."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.flights: list[FlightInfo] = []
        fake = SimpleNamespace(monotonic=lambda: self.now)
        patch.setattr("shmstream.storage.flights.time", fake)
        self.watch = Watch(lambda: self.flights)

    def look(self, after: float, *flights: FlightInfo) -> list[tuple[float | None, float | None]]:
        """Rate and eta of each flight, `after` seconds later."""
        self.now += after
        self.flights = list(flights)
        return [(each.rate, each.eta) for each in self.watch.look()]


def at(published: int, **changes: object) -> FlightInfo:
    return replace(FLIGHT, published=published, **changes)  # type: ignore[arg-type]


def test_a_rate_needs_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert clock.look(0, at(100)) == [(None, None)]
    assert clock.look(0, at(100)) == [(None, None)], "no time has passed"
    assert clock.look(2, at(300)) == [(100.0, 7.0)]
    assert clock.look(0, at(300, size=None)) == [(100.0, None)]


def test_a_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    for published in (0, 0, 0, 0, 0, 0, 0, 0):
        clock.look(1, at(published))
    for number in range(1, 7):
        [(rate, _)] = clock.look(1, at(100 * number))
    assert rate == 100.0
    for _ in range(7):
        [(rate, eta)] = clock.look(1, at(600))
    assert (rate, eta) == (0.0, None)


def test_another_flight_of_the_same_name_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.look(0, at(500))
    assert clock.look(1, at(600)) == [(100.0, 4.0)]
    assert clock.look(1, at(50)) == [(None, None)]
    assert clock.look(1, at(70)) == [(20.0, 46.5)]


def test_a_flight_that_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.look(0, at(100), at(100, stream="other"))
    assert clock.look(1) == []
    assert clock.look(1, at(200)) == [(None, None)]
