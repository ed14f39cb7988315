"""How long an upstream is waited for: for a first byte, in a silence, while it is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shmstream import Retries, Store
from shmstream.registry.api.distribution import Registry
from shmstream.registry.settings import Settings, Upstream
from shmstream.registry.upstream.questions import Bounds
from shmstream.sources.http import HTTPSource
from tests.support import registries
from tests.support.images import digest_of, image
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.quirks import Asked, Quirks, Reply, plain
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 300_000
OFTEN = Retries(attempts=2, first_pause=0.01, longest_pause=0.02, outage=PATIENCE)


def tries(log: pytest.LogCaptureFixture) -> int:
    return sum("that was try" in each for each in log.messages)


def test_an_upstream_that_is_away_while_clients_read(
    folder: str, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    """They have nobody else, so it is asked more often than a source otherwise is."""
    caplog.set_level("INFO", "shmstream")
    key = digest(800, SIZE)
    source = HTTPSource(origin.serve("/blob", seed=800, size=SIZE, stall_after=100_000))
    with Store(folder, retries=OFTEN).open(key, source) as blob:
        assert blob.read(10) == content(800, SIZE)[:10]
        origin.refuse()
        wait_until(lambda: tries(caplog) > 10 * OFTEN.attempts)
        origin.change("/blob", stall_after=None)
        origin.accept()
        assert blob.read() == content(800, SIZE)[10:]
    assert [each.range for each in origin.requests("/blob")] == [None, "bytes=100000-"]


def test_an_upstream_that_is_away_while_nobody_reads(folder: str, origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=801, size=SIZE, stall_after=100_000))
    store = Store(folder, retries=OFTEN)
    with store.open(digest(801, SIZE), source) as blob:
        blob.read(10)
    origin.refuse()
    wait_until(lambda: not store.flights())
    origin.accept()
    store.gc()


def test_the_settings_reach_the_upstreams(folder: str) -> None:
    settings = Settings(
        (Upstream(None, "http://a"), Upstream("b", "http://b")),
        folder,
        first_byte=11.0,
        silence=12.0,
        question=13.0,
        outage=140.0,
    )
    registry = Registry(settings, Store(folder))
    assert {each.bounds for each in registry._all} == {Bounds(11.0, 12.0, 13.0)}
    assert registry._shared.stall_timeout > 140.0
    registry.close()


def test_the_bounds_of_a_running_registry(run_registry: registries.Run, quirks: Quirks) -> None:
    """A question ends in time; a blob that begins late, or pauses, comes."""
    what, over = image(802, [1000]), threading.Event()
    there = plain(what)

    def slowly(reply: Reply) -> Iterator[bytes]:
        over.wait(0.7)
        yield reply.head() + reply.body[:100]
        over.wait(0.7)
        yield reply.body[100:]

    def script(asked: Asked) -> Reply:
        if "/blobs/" in asked.path and asked.method == "GET":
            return Reply(pieces=slowly(there(asked)))
        if "/tags/" in asked.path:
            over.wait(PATIENCE)
        return there(asked)

    quirks.script = script
    ours = run_registry(
        quirks.url, workers=1, first_byte="30s", silence="30s", question="0.5s", min_rate=0
    )
    answer = ours.get("/v2/slow/app/tags/list")
    assert (answer.status, answer.code) == (504, "UNAVAILABLE")
    for data in what.blobs:
        assert ours.get(f"/v2/slow/app/blobs/{digest_of(data)}").body == data
    over.set()
