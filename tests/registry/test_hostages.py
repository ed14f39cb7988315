"""A repository whose upstream lies or drips holds up no client of another repository."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any

import pytest

from shmstream import SourceFailed, Store
from shmstream.asgi.messages import BrokenOff
from shmstream.errors import FailureKind
from shmstream.registry.api.pull import Pull, Shared
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from shmstream.sources.retries import Retries
from tests.support.origin import Origin
from tests.support.registries import Registry
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 200_000
STALL = 30_000
WRONG = str(3 * SIZE)


def test_a_flight_of_a_wrong_size(ours: Registry, origin: Origin) -> None:
    """Its clients wait for it; those of another repository get what their own upstream has."""
    key = digest(400, SIZE)
    lies: dict[str, Any] = {"content_length": WRONG, "stall_after": 10, "close_after": SIZE}
    origin.serve(f"/v2/liar/app/blobs/{key}", seed=400, size=SIZE, **lies)
    origin.serve(f"/v2/honest/app/blobs/{key}", seed=400, size=SIZE)
    held, stuck = ours.open(f"/v2/fault.test/liar/app/blobs/{key}")
    assert stuck.headers["content-length"] == WRONG
    path = f"/v2/fault.test/honest/app/blobs/{key}"
    answer = ours.get(path)
    assert (answer.status, answer.body) == (200, content(400, SIZE))
    assert answer.headers["content-length"] == str(SIZE)
    answer = ours.get(path, Range="bytes=100-199")
    assert (answer.status, answer.body) == (206, content(400, SIZE)[100:200])
    assert answer.headers["content-range"] == f"bytes 100-199/{SIZE}"
    assert ours.head(path).headers["content-length"] == str(SIZE)
    held.close()
    origin.change(f"/v2/liar/app/blobs/{key}", status=404)
    origin.release()  # the liar's flight ends short of its size, and is not resumed


def sent_by(pull: Pull) -> tuple[list[Any], Any]:
    """What a response sends, and the sending itself."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "headers": [], "extensions": {}}
    return sent, pull.send(scope, receive, send, {}, None)


def test_a_flight_that_drips_ends_and_others_go_on(
    folder: str, origin: Origin, store: Store
) -> None:
    """A client of another repository has all of it, in the same response."""
    assert store.folder == folder
    hasty = Store(folder, retries=Retries(least_rate=1e9, slow_for=1.0))
    key = digest(401, SIZE)
    origin.serve(f"/v2/drip/a/blobs/{key}", seed=401, size=SIZE, rate=50_000)
    origin.change(f"/v2/drip/a/blobs/{key}", first=0, count=1, stall_after=STALL)
    origin.serve(f"/v2/drip/b/blobs/{key}", seed=401, size=SIZE)
    upstream = Upstream(origin.url(""))
    shared = Shared(hasty)

    async def main() -> None:
        theirs, ours = (
            Pull(shared, Repository(upstream, f"drip/{name}"), "blobs", key) for name in "ab"
        )
        first, leading = sent_by(theirs)
        led = asyncio.ensure_future(leading)
        while [each.published for each in hasty.flights()] != [STALL]:
            await asyncio.sleep(0.001)
        sent, following = sent_by(ours)
        followed = asyncio.ensure_future(following)
        while len(sent) < 2:
            await asyncio.sleep(0.001)
        origin.release()
        await followed
        with suppress(BrokenOff):  # unless its flight goes on with the other source
            await led
        for each in (sent, first):
            assert each[0]["status"] == 200
        body, other = (b"".join(each.get("body", b"") for each in some) for some in (sent, first))
        assert body == content(401, SIZE)
        assert content(401, SIZE).startswith(other)

    asyncio.run(main())
    shared.close()
    methods = [each.method for each in origin.requests(f"/v2/drip/b/blobs/{key}")]
    assert methods == ["HEAD", "GET"]


def test_a_source_that_crawls_with_a_small_blob_is_left(folder: str, origin: Origin) -> None:
    """It is verified before its size is told, because there is another source."""
    hasty = Store(folder, retries=Retries(least_rate=1e9, slow_for=0.1))
    crawling = origin.serve("/crawling", seed=1, size=60_000, rate=20_000)
    good = origin.serve("/good", seed=1, size=60_000)
    with hasty.open(digest(1, 60_000), [crawling, good]) as blob:
        assert blob.read() == content(1, 60_000)
    assert len(origin.requests("/good")) == 1
    assert all(each.sent < 60_000 for each in origin.requests("/crawling")), "on the way"


def test_a_source_that_crawls_is_left(folder: str, origin: Origin, store: Store) -> None:
    """It is asked again once, at the same offset; then the next source goes on."""
    assert store.folder == folder
    hasty = Store(folder, retries=Retries(least_rate=1e9, slow_for=0.1))
    slow = origin.serve("/slow", seed=402, size=SIZE, rate=100_000)
    with pytest.raises(SourceFailed) as caught:
        hasty.fetch(digest(402, SIZE), slow)
    assert caught.value.kind == FailureKind.TIMEOUT
    assert re.search(r"gave only \d+ bytes in \d+ s", str(caught.value))
    assert len(origin.requests("/slow")) in (2, 3), "the last one may be for the whole"
    good = origin.serve("/good", seed=402, size=SIZE)
    hasty.fetch(digest(402, SIZE), [slow, good])
    assert len(origin.requests("/good")) == 1
    with hasty.open("live", iter([b"slow"] * 3)) as blob:  # what is made just now may be slow
        assert blob.read() == b"slow" * 3
    patient = Store(folder, retries=Retries(least_rate=0, slow_for=0.1))
    patient.fetch(digest(403, 30_000), origin.serve("/slow", seed=403, size=30_000, rate=100_000))
