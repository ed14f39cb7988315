"""A leader whose sources fail hands over to a reader with another source, in any process."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from shmstream import SourceFailed, Store
from shmstream.flight import flight
from shmstream.flight.last_words import LastWords
from tests.support import flights
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, has_published

Start = Callable[..., Interpreter]
MIB = 1 << 20
HALF = MIB // 2


def expires(origin: Origin, path: str = "/expires", after: int = HALF) -> str:
    """A URL whose first answer stalls after so many bytes; then it has expired."""
    url = origin.serve(path, seed=1, size=MIB)
    origin.change(path, first=0, count=1, stall_after=after)
    origin.change(path, first=1, status=403)
    return url


@pytest.fixture(params=["blocking", "asyncio"])
def takers(request: pytest.FixtureRequest, start: Start, folder: str) -> list[Interpreter]:
    role = flights.take_async if request.param == "asyncio" else flights.take
    found = [start(role, folder, {}) for _ in range(3)]
    for taker in found:
        taker.hear()
    return found


def take(taker: Interpreter, key: str, source: Any, role: str) -> None:
    taker.say([key, source, 0])
    assert taker.hear() == {"role": role}


def takes(start: Start, folder: str, key: str, source: Any, role: str) -> Interpreter:
    """A process that reads the blob, once it has its part in the flight."""
    taker = start(flights.take, folder, {})
    taker.hear()
    take(taker, key, source, role)
    return taker


def has_readers(store: Store, count: int) -> bool:
    return len(store.flights()[0].followers) >= count


def finish(taker: Interpreter) -> dict[str, Any]:
    outcome: dict[str, Any] = taker.hear()
    taker.finish()
    return outcome


@pytest.mark.parametrize("key", [digest(1, MIB), "a name"])
def test_a_follower_with_a_good_source_goes_on(
    key: str, takers: list[Interpreter], store: Store, origin: Origin
) -> None:
    leader, same, other = takers
    good = origin.serve("/good", seed=1, size=MIB)
    for after in (-1, HALF):
        bad = expires(origin, f"/expires{after}", after)
        take(leader, key, bad, "leads")
        wait_until(lambda: bool(origin.requests()))
        if after > 0:
            wait_until(partial(has_published, store, HALF - 65536))
        take(same, key, bad, "follows")
        take(other, key, good, "follows")
        wait_until(partial(has_readers, store, 2))
        origin.cut()
        for taker in takers:
            outcome = taker.hear()
            assert (outcome["error"], outcome["sha256"]) == (None, sha256(content(1, MIB)))
        wait_until(lambda: store.flights() == [])
        store.evict(0)
    first, second = origin.requests("/good")
    assert (first.range, second.range) == (None, f"bytes={HALF}-")
    for taker in takers:
        taker.finish()


@pytest.mark.parametrize("after", [-1, HALF])
def test_a_fetch_that_leads_takes_no_slot_and_waits_on_after_handing_over(
    after: int, start: Start, store: Store, origin: Origin
) -> None:
    leader = start(flights.fetch, store.folder, {})
    leader.hear()
    key, bad = digest(1, MIB), expires(origin, after=after)
    leader.say([key, bad])
    wait_until(lambda: bool(origin.requests()))
    if after > 0:
        wait_until(partial(has_published, store, HALF - 65536))
    assert not has_readers(store, 1)
    other = start(flights.take_patiently, store.folder, {})
    other.hear()
    take(other, key, origin.serve("/good", seed=1, size=MIB), "follows")
    wait_until(partial(has_readers, store, 1))
    origin.cut()
    for taker in (leader, other):
        outcome = finish(taker)
        assert (outcome["error"], outcome["sha256"]) == (None, sha256(content(1, MIB)))


def test_a_fetch_that_leads_tells_why_it_failed(store: Store, origin: Origin) -> None:
    bad = origin.serve("/bad", seed=1, size=MIB, status=404)
    with pytest.raises(SourceFailed, match="404") as told:
        store.fetch("a name", bad)
    assert told.value.name == "a name"
    with store.open("a name", bad) as blob, pytest.raises(SourceFailed) as again:
        blob.read()
    assert str(told.value) == str(again.value)


WRONG: list[dict[str, Any]] = [
    {"text": "<h1>Please log in</h1>"},
    {"text": ""},
    {"seed": 1, "size": MIB, "content_length": str(1 << 50)},
]


@pytest.mark.parametrize("how", WRONG, ids=["a page", "nothing", "a length that never fits"])
def test_a_leader_whose_source_gives_a_wrong_blob_hands_over(
    how: dict[str, Any], start: Start, store: Store, origin: Origin
) -> None:
    """Nothing was published, so another reader's source can still be asked."""
    takers = [start(flights.take_patiently, store.folder, {}) for _ in range(3)]
    for taker in takers:
        taker.hear()
    key, good = digest(1, MIB), origin.serve("/good", seed=1, size=MIB)
    bad = origin.serve("/bad", stall_after=-1, **how)
    take(takers[0], key, bad, "leads")
    wait_until(lambda: bool(origin.requests()))
    take(takers[1], key, bad, "follows")
    take(takers[2], key, good, "follows")
    wait_until(partial(has_readers, store, 2))
    origin.release()
    for taker in takers:
        outcome = finish(taker)
        assert (outcome["error"], outcome["sha256"]) == (None, sha256(content(1, MIB)))


def test_without_another_source_nobody_waits_and_nothing_is_asked_twice(
    takers: list[Interpreter], store: Store, origin: Origin
) -> None:
    bad = expires(origin)
    take(takers[0], digest(1, MIB), bad, "leads")
    wait_until(partial(has_published, store, HALF - 65536))
    take(takers[1], digest(1, MIB), bad, "follows")
    take(takers[2], digest(1, MIB), None, "follows")
    wait_until(partial(has_readers, store, 2))
    origin.cut()
    for taker in takers:
        assert finish(taker)["error"] == "SourceFailed"
    assert [each.range for each in origin.requests()] == [None, f"bytes={HALF}-", None]


def test_two_sources_fail_one_after_the_other(start: Start, store: Store, origin: Origin) -> None:
    key, bad = digest(1, MIB), expires(origin)
    worse = origin.serve("/worse", seed=1, size=MIB, status=404)
    leader = takes(start, store.folder, key, bad, "leads")
    wait_until(partial(has_published, store, HALF - 65536))
    second = takes(start, store.folder, key, [bad, worse], "follows")
    wait_until(partial(has_readers, store, 2))
    origin.cut()
    for taker in (leader, second):
        outcome = finish(taker)
        assert outcome["error"] == "SourceFailed"
        assert "/worse" in outcome["text"]
    assert len(origin.requests("/expires")) == 3, "what was tried is not tried again"


def test_two_followers_with_sources_that_were_tried_do_not_wait_for_each_other(
    start: Start, store: Store, origin: Origin
) -> None:
    key, bad = digest(1, MIB), expires(origin)
    worse = origin.serve("/worse", seed=1, size=MIB, status=404)
    takers = [takes(start, store.folder, key, [bad, worse], "leads")]
    wait_until(partial(has_published, store, HALF - 65536))
    takers += [takes(start, store.folder, key, each, "follows") for each in (bad, worse)]
    wait_until(partial(has_readers, store, 2))
    origin.cut()
    assert {finish(taker)["error"] for taker in takers} == {"SourceFailed"}
    assert len(origin.requests("/worse")) == 2, "a part, then the whole"


def test_readers_of_one_process_have_their_own_sources(store: Store, origin: Origin) -> None:
    key, good = digest(1, MIB), origin.serve("/good", seed=1, size=MIB)
    with store.open(key, expires(origin)) as bad:
        assert bad.read(1000) == content(1, MIB)[:1000]
        with store.open(key, good) as blob:
            threading.Timer(0, origin.cut).start()
            assert blob.read() == content(1, MIB)
        assert bad.read() == content(1, MIB)[1000:]

    async def read(url: str) -> bytes:
        async with store.aopen("in tasks", url) as blob:
            first = await blob.read1()
            waiting.append(url)
            if len(waiting) == 2:
                origin.cut()
            return first + await blob.read()

    async def read_both(urls: list[str]) -> list[bytes]:
        return await asyncio.gather(*map(read, urls))

    waiting: list[str] = []
    bad_url = expires(origin, "/expired")
    assert asyncio.run(read_both([bad_url, good])) == [content(1, MIB)] * 2


def test_a_stopped_follower_keeps_nobody_waiting(
    start: Start, store: Store, origin: Origin
) -> None:
    assert flight._HOPE <= 10.0
    key, good = digest(1, MIB), origin.serve("/good", seed=1, size=MIB)
    leader = start(flights.take_with_little_hope, store.folder)
    leader.hear()
    take(leader, key, expires(origin), "leads")
    wait_until(partial(has_published, store, HALF - 65536))
    stopped = takes(start, store.folder, key, good, "follows")
    wait_until(partial(has_readers, store, 2))
    stopped.stop()
    origin.cut()
    assert finish(leader)["error"] == "SourceFailed"
    stopped.signal(signal.SIGCONT)
    assert finish(stopped)["error"] == "SourceFailed"
    assert origin.requests("/good") == []


def test_a_follower_killed_when_it_takes_over_leaves_the_others_a_flight(
    start: Start, store: Store, origin: Origin
) -> None:
    key, good = digest(1, MIB), origin.serve("/good", seed=1, size=MIB)
    leader = takes(start, store.folder, key, expires(origin), "leads")
    wait_until(partial(has_published, store, HALF - 65536))
    doomed = start(flights.take, store.folder, {}, "after the takeover")
    doomed.hear()
    doomed.say([key, good, 0])
    assert doomed.hear() == {"role": "follows"}
    wait_until(partial(has_readers, store, 2))
    origin.cut()
    doomed.wait_killed()
    assert finish(leader)["error"] == "SourceFailed"
    store.gc()


def test_last_words_survive_the_control_block() -> None:
    error = SourceFailed("a stream", 17, "x" * 5000, 403)
    words = LastWords(error, frozenset("abc"), frozenset((1, 2**64 - 1)))
    text = words.to_text(2536)
    assert len(text) <= 2536
    again = LastWords.from_text(text)
    assert again is not None
    assert (again.tried, again.crews) == (words.tried, words.crews)
    assert isinstance(again.error, SourceFailed)
    assert again.error.status == 403
    for torn in (b"", text[:-9], text[:9], error.to_text(2536), b"[]\n{}", b"{}\n", b"\xff\n"):
        assert LastWords.from_text(torn) is None
