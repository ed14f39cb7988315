"""Sources that fail in their own ways, and flights that still bring the right blob."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmstream import (
    ContentChanged,
    DigestMismatch,
    OutOfRoom,
    Retries,
    SizeMismatch,
    SourceFailed,
    Store,
)
from shmstream.sources.base import Description
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

Start = Callable[..., Interpreter]

SIZE = 300_000
HALF = 150_000
ONCE = Retries(attempts=1, first_pause=0.0)

BROKEN_RANGES: dict[str, dict[str, Any]] = {
    **{str(status): {"range_status": status} for status in (400, 403, 404, 405, 500, 501)},
    "no Content-Range": {"content_range": ""},
    "an earlier part": {"content_range": f"bytes 0-{SIZE - 1}/{SIZE}"},
    "a part of something": {"content_range": f"bytes {HALF}-{SIZE - 1}/*"},
    "the rest as the whole": {"rest_is_all": True},
    "the rest as the whole, in chunks": {"rest_is_all": True, "framing": "chunked"},
    "reset": {"range_resets": True},
    "the whole as the rest": {"all_is_rest": True},
    "nothing is left": {
        "for_ranges": {"status": 416, "headers": {"Content-Range": f"bytes */{HALF}"}}
    },
    "a page": {"for_ranges": {"text": "<html>log in</html>", "etag": None, "ranges": False}},
    "no bytes": {"for_ranges": {"text": "", "etag": None, "ranges": False}},
    "elsewhere": {
        "for_ranges": {"status": 302, "headers": {"Location": "http://127.0.0.1:1/nobody"}}
    },
}


@pytest.mark.parametrize("how", BROKEN_RANGES)
def test_a_server_with_broken_ranges(how: str, folder: str, origin: Origin) -> None:
    """Its first answer breaks off. A plain request is right, in this try and in later ones."""
    store = make_store(folder, {})
    for seed, key in enumerate(["name 0", "name 1", digest(2, SIZE), digest(3, SIZE)]):
        url = origin.serve(f"/{seed}", seed=seed, size=SIZE)
        origin.change(f"/{seed}", **BROKEN_RANGES[how])
        origin.change(f"/{seed}", first=0, count=1, close_after=HALF)
        if seed % 2:
            with pytest.raises(SourceFailed):
                make_store(folder, {"retries": ONCE}).fetch(key, url)
            wait_until(lambda: store.flights() == [])
        assert Path(store.fetch(key, url)).read_bytes() == content(seed, SIZE)


# A source with a wrong blob, and a good one behind it.


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_small_wrong_blob_costs_one_request(framing: str, store: Store, origin: Origin) -> None:
    """Nothing of it was published: the next source is asked in the same flight."""
    bad = origin.serve("/bad", text="<h1>Please log in</h1>", framing=framing)
    good = origin.serve("/good", seed=1, size=SIZE)
    key = digest(1, SIZE)
    assert Path(store.fetch(key, [bad, good])).read_bytes() == content(1, SIZE)
    assert [each.path for each in origin.requests()] == ["/bad", "/good"]
    store.evict(0)
    small = digest(2, 60_000)
    url = origin.serve("/small", seed=2, size=60_000)
    with store.open(small, [bad, url]) as blob:
        assert blob.read() == content(2, 60_000)
    origin.change("/good", close_after=HALF, first=1, count=1)
    with pytest.raises(SourceFailed):
        make_store(store.folder, {"retries": ONCE}).fetch(key, good)
    wait_until(lambda: store.flights() == [])
    assert Path(store.fetch(key, [bad, good])).read_bytes() == content(1, SIZE)
    assert origin.requests("/good")[-1].range == f"bytes={HALF}-", "what was kept is used"
    origin.change("/small", close_after=10_000, first=1, count=1)
    store.evict(0)
    other = origin.serve("/other", seed=3, size=60_000)
    with store.open(small, [url, other]) as blob:  # it breaks off first, and is right then
        assert blob.read() == content(2, 60_000)


WRONG: dict[str, dict[str, Any]] = {
    "bytes": {"wrong_at": SIZE - 1},
    "size": {"size": SIZE + 1},
    "size, and it breaks off": {"size": 10 * SIZE, "reset_after": HALF},
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_blob_is_asked_last_the_next_time(
    how: str, start: Start, store: Store, origin: Origin
) -> None:
    """In other processes, too, and after the garbage was collected."""
    bad = origin.serve("/bad", **{"seed": 1, "size": SIZE, **WRONG[how]})
    good = origin.serve("/good", seed=1, size=SIZE)
    key = digest(1, SIZE)
    with pytest.raises((DigestMismatch, SourceFailed)):
        store.fetch(key, [bad, good])
    wait_until(lambda: store.flights() == [])
    store.gc()
    assert store.check() == []
    asked = len(origin.requests("/bad"))
    taker = start(flights.take, store.folder, {})
    taker.hear()
    taker.say([key, [bad, good], 0])
    assert taker.hear()["role"] == "leads"
    assert taker.hear()["sha256"] == digest(1, SIZE).partition(":")[2]
    taker.finish()
    assert len(origin.requests("/bad")) == asked
    assert len(list(Path(store.folder).rglob("*.shmstream-journal"))) == 0


@pytest.mark.parametrize("how", [{"text": "<h1>Log in</h1>"}, {"seed": 2, "size": SIZE + 1}])
def test_a_blob_of_another_size_is_asked_last_of_a_name_too(
    how: dict[str, Any], store: Store, origin: Origin
) -> None:
    """The caller says the size, and the source does not: it turns out at the end."""
    bad = origin.serve("/bad", framing="chunked", **how)
    good = origin.serve("/good", seed=1, size=SIZE)
    with pytest.raises((ContentChanged, SizeMismatch)):
        store.fetch("a name", [bad, good], size=SIZE)
    wait_until(lambda: store.flights() == [])
    asked = len(origin.requests("/bad"))
    path = store.fetch("a name", [bad, good], size=SIZE)
    assert Path(path).read_bytes() == content(1, SIZE)
    assert len(origin.requests("/bad")) == asked


def test_a_length_that_never_fits_is_left_for_another_source(store: Store, origin: Origin) -> None:
    """Only if no other source has the blob, there is no room for it."""
    huge = origin.serve("/huge", seed=1, size=SIZE, content_length=str(1 << 50))
    good = origin.serve("/good", seed=1, size=SIZE)
    with pytest.raises(OutOfRoom, match=str(1 << 50)):
        store.fetch(digest(1, SIZE), [huge, "/nowhere"])
    for key in (digest(1, SIZE), "a name"):
        wait_until(lambda: store.flights() == [])
        assert Path(store.fetch(key, [huge, good])).read_bytes() == content(1, SIZE)


def test_wrong_sources_are_never_dropped(store: Store, origin: Origin) -> None:
    """Two mirrors are wrong; then one of them is mended."""
    urls = [origin.serve(f"/{each}", seed=1, size=SIZE, wrong_at=each) for each in (1, 2)]
    for _ in range(3):
        with pytest.raises(DigestMismatch):
            store.fetch(digest(1, SIZE), urls)
        wait_until(lambda: store.flights() == [])
    assert [each.path for each in origin.requests()] == ["/1", "/2", "/1"]
    origin.serve("/1", seed=1, size=SIZE)
    with pytest.raises(DigestMismatch):
        store.fetch(digest(1, SIZE), urls)
    wait_until(lambda: store.flights() == [])
    assert Path(store.fetch(digest(1, SIZE), urls)).read_bytes() == content(1, SIZE)


def test_a_client_without_a_flight_asks_a_wrong_source_last(store: Store, origin: Origin) -> None:
    key = digest(1, SIZE)
    urls = [origin.serve("/bad", seed=1, size=SIZE, wrong_at=9)]
    urls.append(origin.serve("/good", seed=1, size=SIZE))
    with pytest.raises(DigestMismatch):
        store.fetch(key, urls)
    wait_until(lambda: store.flights() == [])

    async def read() -> bytes:
        async with store.pass_through(key, urls, OutOfRoom(key, 0, "full")) as passage:
            return await passage.read(Description(), SIZE)

    assert asyncio.run(read()) == content(1, SIZE)
    assert [each.path for each in origin.requests()] == ["/bad", "/good"]


def test_notes_on_sources_stay_for_a_day(store: Store, origin: Origin) -> None:
    bad = origin.serve("/bad", seed=1, size=SIZE, wrong_at=7)
    with pytest.raises(DigestMismatch):
        store.fetch(digest(1, SIZE), [bad, "/nowhere"])
    wait_until(lambda: store.flights() == [])
    [journal] = Path(store.folder).rglob("*.shmstream-journal")
    now = time.time()
    os.utime(journal, (now - 3600, now - 3600))
    assert store.check() == []
    assert store.gc() == []
    os.utime(journal, (now - 100_000, now - 100_000))
    assert [each.kind for each in store.check()] == ["abandoned"]
    assert store.gc() == [str(journal)]
