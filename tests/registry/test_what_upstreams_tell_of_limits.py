"""Upstreams that tell how many manifests are left, as Docker Hub does (`ratelimit-remaining`)."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from shmstream.errors import SourceError
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from shmstream.upstreams.allowance import Allowance, Left
from shmstream.upstreams.notes import Notes
from tests.support.images import Image, image
from tests.support.quirks import Asked, Quirks, Reply, plain
from tests.support.serving import Serve

IMAGES = [image(60 + number, [100]) for number in range(4)]


class Counting:
    """A registry that counts the manifests that it gives, and has the first image as v1.

    It answers 429 without a `Retry-After` when none is left. HEAD is not counted.
    """

    def __init__(self, *images: Image, limit: int = 20) -> None:
        self.limit, self.left = limit, limit
        self.there = plain(*images)
        self.knows_head = True

    def __call__(self, asked: Asked) -> Reply:
        if "/manifests/" not in asked.path:
            return self.there(asked)
        if asked.method == "GET" and not self.left:
            reply = Reply(429, {}, b'{"errors": [{"code": "TOOMANYREQUESTS"}]}')
        elif asked.method == "HEAD" and not self.knows_head:
            reply = Reply(405)
        else:
            reply = self.there(asked)
            self.left -= asked.method == "GET" and reply.status == 200
        told = {"ratelimit_limit": f"{self.limit};w=21600"}
        return reply.but(**told, RateLimit_Remaining=f"{self.left};w=21600")


def test_how_many_are_left(quirks: Quirks, serve: Serve) -> None:
    """It is a metric; people are warned once; and at the end, what is known counts."""
    quirks.script = hub = Counting(*IMAGES)
    serving = serve("--workers", "2", "--tag-ttl", "0s", upstream=quirks.url)
    name = quirks.url.removeprefix("http://")

    def left() -> tuple[float, float]:
        metrics = ("shmstream_upstream_pulls_left", "shmstream_upstream_pulls_limit")
        left, limit = (serving.metric(each, upstream=name) for each in metrics)
        return left, limit

    assert left() == (0, 0), "nothing is known"
    assert b"shmstream_upstream_pulls_left{" not in serving.ask("/metrics").body
    hub.left = 5
    assert serving.ask(f"/v2/a/b/manifests/{IMAGES[1].digest}").status == 200
    assert left() == (4, 20)
    assert serving.ask("/v2/a/b/manifests/v1").body == IMAGES[0].manifest
    assert left() == (3, 20)
    assert "are left" not in serving.log
    assert serving.ask(f"/v2/a/b/manifests/{IMAGES[2].digest}").status == 200
    for _ in range(5):  # whichever worker it is; they are asked for by HEAD
        assert serving.ask("/v2/a/b/manifests/v1").status == 200
    assert left() == (2, 20)
    assert serving.log.count("of the 20 manifests that it gives in 21600 s, 2 are left") == 1

    hub.left = 0
    fresh = serving.ask("/v2/a/b/manifests/v1")
    assert (fresh.status, "warning" in fresh.headers) == (200, False)
    assert left() == (0, 20)
    hub.there = plain(IMAGES[3])  # the tag means another image now
    for number in range(5):
        stale = serving.ask("/v2/a/b/manifests/v1")
        assert (stale.status, stale.body) == (200, IMAGES[0].manifest)
        assert stale.headers["warning"] == '110 - "Response is Stale"'
        if not number:
            quirks.asked.clear()
    refused = serving.ask(f"/v2/a/b/manifests/{IMAGES[3].digest}")
    assert (refused.status, b"TOOMANYREQUESTS" in refused.body) == (429, True)
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert quirks.asked == [], "it is left alone for a minute"
    assert serving.ask(f"/v2/a/b/blobs/{IMAGES[3].layers[0]}").status == 200


def test_a_known_tag_costs_none_of_the_last_ones(quirks: Quirks, tmp_path: Path) -> None:
    """If only GET tells what a tag means, its older meaning counts; without one, GET is tried."""
    quirks.script = hub = Counting(IMAGES[0])
    hub.knows_head, hub.left = False, 1
    repository = Repository(Upstream(quirks.url, notes=Notes(str(tmp_path), "reach")), "a/b")
    assert repository.resolve("v1", "*/*", has_other=True).digest == IMAGES[0].digest
    with pytest.raises(SourceError, match="left") as caught:
        repository.resolve("v1", "*/*", has_other=True)
    assert caught.value.status == 429
    assert len(quirks.requests("/manifests/", "GET")) == 1
    hub.left = 1
    assert repository.resolve("v1", "*/*").digest == IMAGES[0].digest
    [note] = (tmp_path / "registry" / "reach").iterdir()
    os.utime(note, (time.time() - 61, time.time() - 61))
    hub.left = 1
    assert repository.resolve("v1", "*/*", has_other=True).digest == IMAGES[0].digest


def test_a_429_for_another_reason_holds_nothing_back(quirks: Quirks, tmp_path: Path) -> None:
    """Only when it has told that none is left, a 429 without a time means a minute."""
    there = plain(IMAGES[0])
    repository = Repository(Upstream(quirks.url, notes=Notes(str(tmp_path), "reach")), "a/b")
    for told in ({}, {"ratelimit-remaining": "3;w=21600"}):
        quirks.script = lambda _, told=told: Reply(429, told)  # type: ignore[misc]
        with pytest.raises(SourceError) as caught:
            repository.passed("v1", "*/*")
        assert (caught.value.status, caught.value.retry_after) == (429, None)
    quirks.script = there
    assert repository.passed("v1", "*/*").data == IMAGES[0].manifest


def test_what_is_understood() -> None:
    for limit, remaining, expected in (
        ("100;w=21600", "76;w=21600", Left(76, 100, 21600.0)),
        ("100", "0", Left(0, 100, None)),
        ("100, 100;w=60;burst=1000", " 7 ; w=60", Left(7, 100, 60.0)),
        ("100;w=3600", "7", Left(7, 100, 3600.0)),
        ("many", "7;q=1", Left(7, None, None)),
        ("100;w=21600", "", None),
        ("100;w=21600", "-1", None),
        ("100;w=21600", "1" * 13, None),
        ("100;w=21600", "seven", None),
    ):
        found = Left.of({"ratelimit-limit": limit, "ratelimit-remaining": remaining})
        assert found == expected, (limit, remaining)
    assert Left.of({}) is None


def test_a_warning_comes_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of all workers together, and anew when there were enough again, or nothing was known."""
    notes = Notes(str(tmp_path), "reach")
    one, two = (Allowance("http://a", "", notes) for _ in range(2))
    clients = Allowance("http://a", "of a client", notes, is_ours=False)
    alone = Allowance("http://a", "", None)

    def warnings(allowance: Allowance, *counts: int) -> int:
        caplog.clear()
        for count in counts:
            told = {"ratelimit-limit": "100;w=3600", "ratelimit-remaining": str(count)}
            allowance.note(200, told)
            allowance.note(401, {**told, "ratelimit-remaining": "50"})
            assert allowance.left == Left(count, 100, 3600.0)
        return len(caplog.records)

    def are_used_up() -> list[bool]:
        return [each.is_used_up for each in (one, two, alone)]

    with caplog.at_level(logging.WARNING, "shmstream"):
        assert warnings(one, 100, 11) == 0
        assert warnings(one, 10, 9) == 1
        assert warnings(two, 8, 12, 20, 10, 0) == 0, "another worker has warned"
        assert are_used_up() == [True, True, False]
        assert warnings(two, 21, 10) == 1
        assert warnings(clients, 0) == 0
        assert warnings(alone, 10, 9, 30, 10) == 2
        for note in (tmp_path / "registry" / "reach").iterdir():
            os.utime(note, (time.time() - 3601, time.time() - 3601))
        assert one.left is None
        assert are_used_up() == [False, False, False]
        assert warnings(one, 10) == 1, "nothing was known any more"
    Notes(str(tmp_path), "reach").write(("left", "", "http://a"), "no json")
    assert one.left is None
