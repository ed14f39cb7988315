"""Upstreams that limit their clients, and limits that an operator sets for an upstream."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shmstream.errors import SourceError
from shmstream.registry.settings import BadSetting, Settings
from shmstream.registry.settings import Upstream as Told
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from shmstream.upstreams.health import Reach
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.pace import Quota
from tests.support.images import digest_of, image
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import bound
from tests.support.quirks import Asked, Quirks, Reply, plain
from tests.support.roles import content
from tests.support.serving import Serve

IMAGE = image(81, [3000])


def test_an_upstream_that_wants_to_be_left_alone(quirks: Quirks, serve: Serve) -> None:
    """After a 429 with Retry-After no worker asks it for a manifest, until the time is over."""
    there, wait = plain(IMAGE), ["600"]

    def script(asked: Asked) -> Reply:
        if "/manifests/" in asked.path and wait:
            return Reply(429, {"Retry-After": wait[0]}, b"slow down")
        return there(asked)

    serving = serve("--workers", "2", "--tag-ttl", "0s", upstream=quirks.url)
    quirks.script = there
    assert serving.ask("/v2/a/b/manifests/v1").status == 200
    quirks.script = script
    quirks.asked.clear()
    for _ in range(10):
        stale = serving.ask("/v2/a/b/manifests/v1")
        assert (stale.status, stale.body) == (200, IMAGE.manifest)
        assert stale.headers["warning"] == '110 - "Response is Stale"'
    for path in ("manifests/v2", f"manifests/{digest_of(b'x')}", "tags/list"):
        refused = serving.ask(f"/v2/a/b/{path}")
        assert (refused.status, b"TOOMANYREQUESTS" in refused.body) == (429, True)
        assert 0 < int(refused.headers["retry-after"]) <= 600
    assert len(quirks.requests("/manifests/")) == 1
    assert serving.ask(f"/v2/a/b/blobs/{IMAGE.layers[0]}").status == 200, "blobs are not counted"
    for method in ("HEAD", "GET"):
        answer = serving.ask(f"/v2/c/d/blobs/{IMAGE.layers[0]}", method)
        assert answer.status == 200, "nor those that are here, of another repository"


def test_the_end_of_a_hold(quirks: Quirks, serve: Serve) -> None:
    there = plain(IMAGE)
    quirks.script = lambda _: Reply(429, {"Retry-After": "1"})
    serving = serve("--workers", "2", upstream=quirks.url)
    assert serving.ask("/v2/a/b/manifests/v1").status == 429
    quirks.script = there
    wait_until(lambda: serving.ask("/v2/a/b/manifests/v1").status == 200)


def test_a_rate(quirks: Quirks, serve: Serve) -> None:
    """Clients of two workers are slowed down together, and get every byte."""
    blobs = [content(82 + number, 400_000) for number in range(3)]
    quirks.script = plain(blobs=blobs)
    table = f'{{url = "{quirks.url}", max_rate = "1MiB/s", connections = 4}}'
    serving = serve("--workers", "2", "--upstream", table, upstream="")
    got: list[bytes] = []

    def get(data: bytes) -> None:
        got.append(serving.ask(f"/v2/a/b/blobs/{digest_of(data)}").body)

    began = time.monotonic()
    threads = [threading.Thread(target=get, args=(data,)) for data in blobs]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    took = time.monotonic() - began
    assert sorted(got) == sorted(blobs)
    assert took > 3 * 400_000 / (1 << 20) - 0.5, "less a burst, and the last piece of each"


def test_a_number_of_pulls(quirks: Quirks, serve: Serve) -> None:
    """Beyond it no manifest is got; what is known is given, and tags are asked for by HEAD."""
    images = [image(90 + number, [100]) for number in range(3)]
    quirks.script = plain(*images)
    table = f'{{url = "{quirks.url}", max_pulls = "2/6h"}}'
    serving = serve("--workers", "2", "--tag-ttl", "0s", "--upstream", table, upstream="")
    first, second, third = (f"/v2/a/b/manifests/{each.digest}" for each in images)
    assert [serving.ask(each).status for each in (first, second, third)] == [200, 200, 429]
    refused = serving.ask(third)
    assert 0 < int(refused.headers["retry-after"]) <= 3 * 3600
    for path in (first, second, "/v2/a/b/manifests/v1", f"/v2/a/b/blobs/{images[2].layers[0]}"):
        assert serving.ask(path).status == 200
    got = quirks.requests("/manifests/", "GET")
    assert len(got) == 2
    assert len(quirks.requests("/manifests/v1", "HEAD")) == 1


@pytest.mark.parametrize("reply", [
    Reply(404), Reply(401), Reply(429), Reply(503), Reply(resets=True),
])  # fmt: skip
def test_what_gets_nothing_is_not_counted(quirks: Quirks, tmp_path: Path, reply: Reply) -> None:
    """An upstream that is away for a while uses up no pulls, whatever asks it for a manifest."""
    there, rates = plain(IMAGE), Notes(str(tmp_path), "rates")
    upstream = Upstream(quirks.url, quota=lambda rights: Quota(rates, (rights,), 2, 3600.0))
    repository = Repository(upstream, "a/b")
    source = repository.source("manifests", IMAGE.digest, lambda *_: None)

    def check_failures() -> None:
        for ask in (source.open, source.open, source.open, partial(repository.passed, "v1", "*/*")):
            with pytest.raises(SourceError) as caught:
                ask()
            assert caught.value.status == (None if reply.resets else reply.status)

    quirks.script = lambda _: reply
    check_failures()
    quirks.script = there
    source.open().close()
    quirks.script = lambda _: reply
    check_failures()
    quirks.script = there
    assert repository.passed("v1", "*/*").data == IMAGE.manifest
    with pytest.raises(SourceError, match="max_pulls"):
        source.open()


@pytest.mark.usefixtures("direct")
def test_a_server_that_is_gone_is_not_counted(tmp_path: Path) -> None:
    """Its absence is told, and not that too much was got."""
    rates = Notes(str(tmp_path), "rates")
    with bound() as place:
        url = f"http://127.0.0.1:{place.getsockname()[1]}"
        upstream = Upstream(url, quota=lambda rights: Quota(rates, (rights,), 1, 3600.0))
        for _ in range(3):
            with pytest.raises(SourceError) as caught:
                Repository(upstream, "a/b").passed("v1", "*/*")
            assert caught.value.status is None
    assert list((tmp_path / "registry" / "rates").iterdir()) == []


def test_how_a_number_of_pulls_is_written() -> None:
    for text, pulls in (("100/6h", (100, 21600.0)), ("1 / 90s", (1, 90.0)), ("5/h", (5, 3600.0))):
        made = Settings.from_table({"store": "/s", "upstream": [{"url": "http://a",
                                                                 "max_pulls": text}]})  # fmt: skip
        (upstream,) = made.upstreams
        assert upstream.max_pulls == pulls
        assert Settings.from_json(made.to_json()).upstreams == (upstream,)
        assert Settings.from_table({"store": "/s", "upstream": [upstream.as_table()]}).upstreams \
            == (upstream,)  # fmt: skip
    for wrong in ("100", "0/h", "-1/h", "x/h", "1/", "1/0s", "1/100w", 5, True):
        table = {"store": "/s", "upstream": [{"url": "http://a", "max_pulls": wrong}]}
        with pytest.raises(BadSetting, match="upstream 1, max_pulls"):
            Settings.from_table(table)


def test_how_a_rate_is_written() -> None:
    for text, rate in (("20MiB/s", 20 << 20), ("1MB/s", 10**6), (4096, 4096)):
        table = {"store": "/s", "upstream": [{"url": "http://a", "max_rate": text}]}
        (made,) = Settings.from_table(table).upstreams
        assert made.max_rate == rate
    for wrong in ("20MiB/m", "fast", 12, 0, -1, True):
        table = {"store": "/s", "upstream": [{"url": "http://a", "max_rate": wrong}]}
        with pytest.raises(BadSetting, match="upstream 1, max_rate"):
            Settings.from_table(table)
    assert Told(None, "http://a", max_rate=4096).as_table()["max_rate"] == 4096


def test_how_a_long_time_of_pulls_is_written() -> None:
    """With all of its digits, and without an exponent: what is written can be read."""
    for text, expected in (
        ("1000/30d", "1000/2592000s"), ("7/31d", "7/2678400s"), ("3/1234567s", "3/1234567s"),
    ):  # fmt: skip
        table: dict[str, object] = {"url": "http://a", "max_pulls": text}
        (made,) = Settings.from_table({"store": "/s", "upstream": [table]}).upstreams
        told = made.as_table()
        assert told["max_pulls"] == expected
        assert Settings.from_table({"store": "/s", "upstream": [told]}).upstreams == (made,)


def test_whose_limit_is_a_problem_of_the_upstream(tmp_path: Path) -> None:
    """That of this cache itself; one client's is an answer, which ends an earlier problem."""
    notes = Notes(str(tmp_path), "reach")
    limit = SourceError("it", 0, "slow down", status=429, retry_after=60.0)
    ours = Reach("http://a", "a.io", notes)
    ours.failed(limit, time.monotonic())
    assert "slow down" in (ours.problem or "")
    of_clients = Reach("http://b", "b.io", notes, is_clients=True)

    def is_a_problem(status: int) -> bool:
        of_clients.failed(replace(limit, status=status), time.monotonic())
        return of_clients.problem is not None

    assert [is_a_problem(each) for each in (429, 503, 429)] == [False, True, False]
    assert ours.problem is not None
