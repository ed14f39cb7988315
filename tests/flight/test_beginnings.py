"""How many calls take a flight's beginning, from `Store.open` to the first byte, and a small one.

When many processes begin at the same moment, each call of a function in Python is some
microseconds for which all of them wait. Each look at the size of the control block's memory is a
system call, at which another thread may take the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shmstream import Store
from tests.support.calls import count_a_beginning, count_a_flight
from tests.support.interpreters import Interpreter
from tests.support.origin import Origin
from tests.support.stores import digest

Start = Callable[..., Interpreter]
SIZE = 1 << 20
KEY = digest(1, SIZE)

MOST_TO_LEAD = 2_200
"""Of these, some 500 are of urllib3."""
MOST_TO_FOLLOW = 470
MOST_TO_LOSE = 620  # the race to lead: looks, claims in vain, and follows
MOST_TO_BRING = 1_830
"""Of these, some 640 are of urllib3."""
MOST_LOOKS = 23
SMALL, WARM, COUNTED = 4096, 3, 10


def begins(start: Start, folder: str, origin: Origin, *, loses: bool = False) -> Any:
    """What a process says of its beginning."""
    warm = origin.serve("/warm", seed=2, size=1 << 16)
    process = start(count_a_beginning, folder, warm, loses)
    assert process.hear() == "ready"
    process.say([KEY, origin.url("/blob")])
    heard = process.hear()
    process.finish()
    assert heard["first"] == 1
    return heard


def require_few(heard: Any, most: int) -> None:
    lines = "\n".join(f"{count:5} {name}" for name, count in heard["of"])
    assert heard["calls"] <= most, f"{heard['calls']} calls, not {most}:\n{lines}"


def test_a_leader_begins_with_few_calls(start: Start, folder: str, origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE, stall_after=SIZE // 2)
    heard = begins(start, folder, origin)
    assert heard["role"] == "leads"
    require_few(heard, MOST_TO_LEAD)


@pytest.mark.parametrize(
    ("loses", "most"), [(False, MOST_TO_FOLLOW), (True, MOST_TO_LOSE)], ids=["follows", "loses"]
)
def test_a_follower_begins_with_few_calls_and_makes_no_source(
    start: Start, folder: str, store: Store, origin: Origin, loses: bool, most: int
) -> None:
    """So does a process that saw no flight, and lost the race to lead."""
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=SIZE // 2)
    with store.open(KEY, url) as leading:
        assert len(leading.read1(1)) == 1
        heard = begins(start, folder, origin, loses=loses)
        assert heard["role"] == "follows"
        assert not heard["made"]
        require_few(heard, most)


def test_a_small_cold_blob_takes_few_calls(start: Start, folder: str, origin: Origin) -> None:
    flights = []
    for seed in range(WARM + COUNTED):
        url = origin.serve(f"/{seed}", seed=seed, size=SMALL)
        flights.append([digest(seed, SMALL), url])
    process = start(count_a_flight, folder)
    process.say([WARM, flights])
    heard = process.hear()
    process.finish()
    require_few(heard, MOST_TO_BRING)
    assert heard["looks"] <= MOST_LOOKS
