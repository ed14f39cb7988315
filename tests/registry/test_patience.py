"""How long an upstream is waited for: for a first byte, in a silence, while it is away."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from shmstream import Retries, Store
from shmstream.registry.api.distribution import Registry
from shmstream.registry.settings import Settings, Upstream
from shmstream.sources.http import HTTPSource
from shmstream.upstreams.questions import Bounds
from tests.support import registries
from tests.support.images import digest_of, image
from tests.support.interpreters import PATIENCE, Interpreter, Link, wait_until
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


def test_an_upstream_that_is_away_while_tasks_read(
    folder: str, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks of the process that leads: they have no slot in the stream."""
    caplog.set_level("INFO", "shmstream")
    key = digest(804, SIZE)
    source = HTTPSource(origin.serve("/blob", seed=804, size=SIZE, stall_after=100_000))

    async def read() -> bytes:
        async with Store(folder, retries=OFTEN).aopen(key, source) as blob:
            first = await blob.read(10)
            origin.refuse()
            async with asyncio.timeout(PATIENCE):
                while tries(caplog) <= 10 * OFTEN.attempts:
                    await asyncio.sleep(0.001)
            origin.change("/blob", stall_after=None)
            origin.accept()
            return first + await blob.read()

    assert asyncio.run(read()) == content(804, SIZE)


def test_an_upstream_that_is_away_while_tasks_have_left(folder: str, origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=805, size=SIZE, stall_after=100_000))
    store = Store(folder, retries=OFTEN)

    async def read() -> None:
        async with store.aopen(digest(805, SIZE), source) as blob:
            await blob.read(10)

    asyncio.run(read())
    origin.refuse()
    wait_until(lambda: not store.flights())
    origin.accept()
    store.gc()


def lead_and_leave(link: Link, folder: str, url: str, key: str) -> None:
    """Lead a flight, read no more of it, and say when its source was asked often."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("shmstream")
    log.setLevel("INFO")
    log.addHandler(handler)
    with Store(folder, retries=OFTEN).open(key, url) as blob:
        blob.read(10)
        link.say("leads")
        link.hear()
    link.say("left")
    wait_until(lambda: sum("that was try" in each for each in told) > 10 * OFTEN.attempts)
    link.say("tried")
    link.hear()


def test_an_upstream_that_is_away_while_only_another_process_reads(
    folder: str, origin: Origin, start: Callable[..., Interpreter]
) -> None:
    """Its reader has the same source: there is nobody to hand over to."""
    key = digest(803, SIZE)
    url = origin.serve("/blob", seed=803, size=SIZE, stall_after=100_000)
    leader = start(lead_and_leave, folder, url, key)
    assert leader.hear() == "leads"
    with Store(folder, retries=OFTEN).open(key, url) as blob:
        assert blob.read(10) == content(803, SIZE)[:10]
        leader.say("leave")
        assert leader.hear() == "left"
        origin.refuse()
        assert leader.hear() == "tried"
        origin.change("/blob", stall_after=None)
        origin.accept()
        assert blob.read() == content(803, SIZE)[10:]
    leader.say("end")
    leader.finish()


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
    assert {each.bounds for each in registry._upstreams} == {Bounds(11.0, 12.0, 13.0)}
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
