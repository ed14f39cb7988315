"""At most so many flights of a store at a time, whichever processes lead them."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from shmstream import TooManyFlights
from shmstream.storage.layout import Layout
from shmstream.storage.permits import take_permit
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest, has_published

Start = Callable[..., Interpreter]
MIB = 1 << 20


def test_there_are_as_many_permits_as_told(folder: str) -> None:
    layout = Layout(folder)
    held = [take_permit(layout, 3) for _ in range(3)]
    assert None not in held
    assert take_permit(layout, 3) is None
    held[1].close()  # type: ignore[union-attr]
    again = take_permit(layout, 3)
    assert again is not None
    assert take_permit(Layout(folder), 3) is None, "also for another object of the same store"
    for permit in (again, held[0], held[2]):
        permit.close()  # type: ignore[union-attr]


def test_permits_are_shared_by_all_processes_and_given_back(
    start: Start, folder: str, origin: Origin
) -> None:
    store = make_store(folder, {"max_flights": 1})
    origin.serve("/blob", seed=1, size=MIB)
    origin.serve("/other", seed=2, size=MIB)
    origin.change("/blob", count=1, stall_after=MIB // 2)
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
        assert blob.read() == content(1, MIB)  # it took over
    wait_until(lambda: store.flights() == [])
    assert store.fetch(digest(2, MIB), origin.url("/other"))


def test_a_limit_is_a_number(folder: str) -> None:
    with pytest.raises(ValueError, match="max_flights"):
        make_store(folder, {"max_flights": 0})
    make_store(folder, {})
