"""A source that tells a wrong size, and then crawls or fails: another reader's source is asked.

The flight keeps the size that its readers were told. So a new flight begins with the other source,
or the reader goes on beside a leader that hangs; and what was read is compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from shmstream import (
    ContentChanged,
    InFlightCopier,
    Retries,
    SizeMismatch,
    SourceFailed,
    Store,
)
from shmstream.asgi import InFlightResponse
from shmstream.flight import flight
from shmstream.sources import IterableSource
from tests.support import flights
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, has_published

Start = Callable[..., Interpreter]
SIZE = 1 << 20
HALF = SIZE // 2
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
NAME = "a name"


def lies(
    origin: Origin, path: str = "/lies", *, told: int = 3 * SIZE, after: int = HALF, seed: int = 1
) -> str:
    """A URL that tells the size `told`, and stalls after so many bytes; then it is refused."""
    url = origin.serve(path, seed=seed, size=SIZE, content_length=str(told))
    origin.change(path, first=0, count=1, stall_after=after)
    origin.change(path, first=1, status=403)
    return url


def good(origin: Origin, **behaviour: Any) -> str:
    return origin.serve("/good", seed=1, size=SIZE, **behaviour)


@pytest.fixture(params=[3 * SIZE, SIZE - 1], ids=["too large", "too small"])
def told(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


# In other processes.


@pytest.mark.parametrize("role", [flights.take_patiently, flights.take_async_patiently])
def test_a_follower_with_a_good_source_goes_on_and_so_do_the_others(
    role: Callable[..., None], told: int, start: Start, folder: str, store: Store, origin: Origin
) -> None:
    bad, other = lies(origin, told=told), good(origin)
    takers = [start(role, folder, {}) for _ in range(3)]
    for taker, source, part in zip(
        takers, (bad, bad, other), ("leads", "follows", "follows"), strict=True
    ):
        taker.hear()
        taker.say([KEY, source, 0])
        assert taker.hear() == {"role": part}
        wait_until(partial(has_published, store, HALF - 65536))
    wait_until(lambda: len(store.flights()[0].followers) >= 2)
    origin.cut()
    for taker in takers:
        outcome = taker.hear()
        assert (outcome["error"], outcome["sha256"]) == (None, sha256(DATA))
        taker.finish()


def test_the_process_that_has_the_good_source_is_killed(
    start: Start, folder: str, store: Store, origin: Origin
) -> None:
    """The others get the error, and the next call the blob."""
    leader = start(flights.take, folder, {})
    leader.hear()
    leader.say([KEY, lies(origin), 0])
    assert leader.hear() == {"role": "leads"}
    wait_until(partial(has_published, store, HALF - 65536))
    doomed = start(flights.take, folder, {}, "before the new flight")
    doomed.hear()
    doomed.say([KEY, good(origin), 0])
    assert doomed.hear() == {"role": "follows"}
    wait_until(lambda: len(store.flights()[0].followers) >= 1)
    origin.cut()
    doomed.wait_killed()
    outcome = leader.hear()
    assert outcome["error"] == "SourceFailed"
    assert f"it has {SIZE} bytes by now, not {3 * SIZE}" in outcome["text"]
    leader.finish()
    with store.open(KEY, origin.url("/good")) as blob:
        assert blob.read() == DATA
    store.gc()


@pytest.fixture
def stopped(
    start: Start, folder: str, store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Lead a flight of a wrong size in a process that is stopped then, as if long ago."""
    leaders = []

    def stop(url: str) -> None:
        leaders.append(leader := start(flights.read_in_steps, folder, KEY, url, None))
        assert leader.hear()["role"] == "leads"
        wait_until(partial(has_published, store, HALF - 65536))
        leader.stop()
        monkeypatch.setattr(InFlightCopier, "quiet_for", 1000.0)

    yield stop
    for leader in leaders:
        origin.cut()
        leader.signal(signal.SIGCONT)
        leader.say(-1)
        assert leader.hear()["error"] == "SourceFailed"
        leader.say(None)
        leader.finish()


def test_past_a_stopped_leader(stopped: Any, told: int, store: Store, origin: Origin) -> None:
    stopped(lies(origin, told=told))
    with store.open(KEY, good(origin), stall_timeout=PATIENCE) as blob:
        assert (blob.role, blob.size) == ("follows", told)
        assert blob.read(1000) == DATA[:1000]
        assert blob.read() == DATA[1000:]
        assert blob.size == SIZE

    async def read() -> bytes:
        async with store.aopen(KEY, origin.url("/good"), stall_timeout=PATIENCE) as blob:
            return await blob.read()

    store.remove(KEY)
    assert asyncio.run(read()) == DATA


def test_past_a_stopped_leader_whose_bytes_are_wrong(
    stopped: Any, store: Store, origin: Origin
) -> None:
    stopped(lies(origin, seed=2))
    url = good(origin)
    with store.open(KEY, url, stall_timeout=PATIENCE) as before:
        assert before.read(1000) == content(2, SIZE)[:1000]
        with pytest.raises(ContentChanged, match="other bytes than those that were read"):
            before.read()


# In this process.


@pytest.mark.parametrize("is_one_list", [True, False])
def test_a_source_that_crawls_with_a_wrong_size(
    is_one_list: bool, folder: str, store: Store, origin: Origin
) -> None:
    assert store.folder == folder
    hasty = Store(folder, retries=Retries(least_rate=2e6, slow_for=0.15))
    bad = origin.serve(
        "/bad", seed=1, size=SIZE, content_length=str(3 * SIZE), rate=1 << 20, stall_after=HALF
    )
    url = good(origin)
    with hasty.open(KEY, [bad, url] if is_one_list else bad) as first:
        assert first.read(1000) == DATA[:1000]
        with hasty.open(KEY, url) as second:
            assert second.read() == DATA
        assert first.read() == DATA[1000:]
        assert (first.size, first.is_complete) == (SIZE, True)


def test_what_was_read_is_not_mixed_with_other_bytes(store: Store, origin: Origin) -> None:
    bad = lies(origin, seed=2)
    with store.open(KEY, [bad, good(origin)]) as read, store.open(KEY) as unread:
        assert read.read(1000) == content(2, SIZE)[:1000]
        origin.cut()
        for each in (read, unread):
            with pytest.raises(ContentChanged):
                each.read()
    with store.open(KEY) as blob:
        assert blob.read() == DATA


def test_all_bytes_were_here_and_only_the_size_was_wrong(store: Store, origin: Origin) -> None:
    """They are asked for only once; a source that can be read once is enough."""
    bad = lies(origin, after=SIZE)
    sources: list[Any] = [bad, IterableSource(iter([DATA[:HALF], DATA[HALF:]]))]
    with store.open(KEY, sources) as blob:
        assert blob.read(1000) == DATA[:1000]
        wait_until(partial(has_published, store, SIZE - 65536))
        origin.cut()
        assert blob.read() == DATA[1000:]
        assert blob.size == SIZE
    assert len(origin.requests("/lies")) == 2 + 1, "from 0, the rest, and the whole"


def test_the_other_source_fails_too(store: Store, origin: Origin) -> None:
    """Then there is an end, and neither is asked for ever."""
    bad, url = lies(origin), good(origin)
    origin.change("/good", first=1, status=404)
    with store.open(KEY, [bad, url]) as blob, store.open(KEY, url) as other:
        blob.read(1000)
        origin.cut()
        for each in (blob, other):
            with pytest.raises(SourceFailed, match="404"):
                each.read()
    assert len(origin.requests()) < 20
    wait_until(lambda: not store.flights())
    origin.change("/good", first=0, status=None)
    assert store.fetch(KEY, [bad, url])


def test_a_source_that_tells_another_size_by_now(store: Store, origin: Origin) -> None:
    """It is the only one, so nothing tells which size is right; and what came stays for later."""
    url = origin.serve("/changes", seed=1, size=SIZE)
    origin.change("/changes", first=0, count=1, stall_after=HALF)
    origin.change("/changes", first=1, size=SIZE + 1)
    fails_at_half(store, origin, [url], "bytes by now, not")
    origin.change("/changes", first=1, size=SIZE)
    assert store.fetch(KEY, url)
    assert origin.requests("/changes")[-1].range == f"bytes={HALF}-"


def fails_at_half(store: Store, origin: Origin, sources: list[str], reason: str) -> None:
    """The first answer is cut when half of the blob is here, and then the flight fails."""
    with store.open(KEY, sources) as blob:
        blob.read(1000)
        wait_until(partial(has_published, store, HALF - 65536))
        origin.cut()
        with pytest.raises(SourceFailed, match=reason):
            blob.read()
    wait_until(lambda: not store.flights())


def test_a_page_costs_nothing_that_came(store: Store, origin: Origin) -> None:
    """A small blob of another size is verified before it replaces what is here."""
    url = origin.serve("/once", seed=1, size=SIZE)
    origin.change("/once", first=0, count=1, stall_after=HALF)
    origin.change("/once", first=1, status=403)
    page = origin.serve("/page", text="<h1>Please log in</h1>")
    fails_at_half(store, origin, [url, page], "its digest is")
    origin.change("/once", first=1, status=None)
    assert store.fetch(KEY, url)
    assert origin.requests("/once")[-1].range == f"bytes={HALF}-"


def test_a_name_whose_flight_is_of_something_else(store: Store, origin: Origin) -> None:
    """It fails, and a reader that asked for more than its leader begins one of its own."""
    key = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    url = good(origin)
    for number, asked in enumerate(({"digest": key}, {"size": SIZE})):
        name = f"{NAME} {number}"
        bad = lies(origin, f"/lies{number}")
        with store.open(name, bad) as free, store.open(name, url, **asked) as strict:  # type: ignore[arg-type]
            assert free.read(1000) == DATA[:1000]
            assert (strict.role, strict.published) == ("follows", 0)
            origin.cut()
            with pytest.raises(SourceFailed):
                free.read()
            assert strict.read() == DATA
        wait_until(lambda: not store.flights())


# Over HTTP.


def test_a_client_that_was_told_the_wrong_size_never_takes_its_part_for_the_whole(
    told: int, store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "SUCCESSION", PATIENCE)
    response = InFlightResponse(store, KEY, [lies(origin, told=told), good(origin)])
    sent: list[dict[str, Any]] = []
    is_cut = False

    async def send(message: Any) -> None:
        nonlocal is_cut
        sent.append(dict(message))
        if not is_cut and sum(len(each.get("body", b"")) for each in sent) > HALF // 2:
            is_cut = True
            origin.cut()

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "headers": [], "extensions": {}}
    with pytest.raises(SizeMismatch, match="its first source told"):
        asyncio.run(response(scope, receive, send))
    assert dict(sent[0]["headers"])[b"content-length"] == str(told).encode()
    body = b"".join(each.get("body", b"") for each in sent[1:])
    assert body == DATA[: len(body)]
    assert HALF // 2 < len(body) < told
    assert not any(each.get("more_body") is False for each in sent[1:])
    wait_until(lambda: KEY in store)
