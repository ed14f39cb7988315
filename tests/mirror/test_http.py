"""A mirror of HTTP: what is kept, what is asked for again, and what clients get meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from shmstream.storage.record import Record
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.mirrors import Mirrored, tagged
from tests.support.origin import Origin
from tests.support.quirks import Asked, Quirks, Reply
from tests.support.roles import content
from tests.support.serving import Answer

BODY = content(7, 300_000)


def how(answer: Answer) -> str:
    return answer.headers["cache-status"].removeprefix("shmstream; ")


def test_what_is_fresh_is_not_asked_for_again(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = tagged(BODY, '"1"', Cache_Control="max-age=3600", Content_Type="text/x-of-it")
    first, second = mirrored.ask("/files/fresh?a=b"), mirrored.ask("/files/fresh?a=b")
    assert (first.status, first.body) == (second.status, second.body) == (200, BODY)
    assert [each.path for each in quirks.asked] == ["/fresh?a=b"]
    assert how(first) == "fwd=miss; stored"
    assert how(second).startswith("hit; ttl=3")
    assert second.headers["content-type"] == "text/x-of-it"
    assert second.headers["etag"] == '"1"'
    assert int(second.headers["age"]) >= 0
    part = mirrored.ask("/files/fresh?a=b", Range="bytes=5-9")
    assert (part.status, part.body) == (206, BODY[5:10])
    assert mirrored.ask("/files/fresh?a=b", If_None_Match='"1"').status == 304
    head = mirrored.ask("/files/fresh?a=b", "HEAD")
    assert (head.headers["content-length"], head.body) == ("300000", b"")
    assert len(quirks.asked) == 1


@pytest.mark.parametrize("validator", ["etag", "last-modified"])
def test_what_is_stale_costs_a_304(mirrored: Mirrored, quirks: Quirks, validator: str) -> None:
    path = f"/stale-{validator}"
    told = {"etag": '"1"', "last-modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
    condition = {"etag": "if-none-match", "last-modified": "if-modified-since"}[validator]

    def script(asked: Asked) -> Reply:
        if asked.headers.get(condition) == told[validator]:
            return Reply(304, {validator: told[validator], "X-Changed": "yes"})
        return Reply(200, {validator: told[validator], "X-Changed": "no"}, BODY)

    quirks.script = script
    assert mirrored.ask(f"/files{path}").body == BODY
    second = mirrored.ask(f"/files{path}")
    assert (second.body, second.headers["x-changed"]) == (BODY, "yes")
    assert "revalidated" in how(second)
    assert len(quirks.requests(path)) == 2
    told[validator] = {"etag": '"2"', "last-modified": "Sun, 02 Jan 2022 00:00:00 GMT"}[validator]
    keys = {key for key, _ in mirrored.store.blobs() if path in (key or "")}
    assert how(mirrored.ask(f"/files{path}")) == "fwd=miss; stored"
    wait_until(lambda: not mirrored.store.flights())
    now = {key for key, _ in mirrored.store.blobs() if path in (key or "")}
    assert len(now) == len(keys) == 1
    assert now != keys  # the old content is gone


def test_immutable_by_pattern_or_by_word(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = tagged(b"once", '"x"', Cache_Control="no-cache")
    for path in ("/files/for-ever/a", "/files/simple/b.whl"):
        assert [mirrored.ask(path).body for _ in range(3)] == [b"once"] * 3
    assert len(quirks.asked) == 2
    quirks.script = tagged(b"word", '"x"', Cache_Control="public, immutable")
    assert [mirrored.ask("/files/word").body for _ in range(3)] == [b"word"] * 3
    assert len(quirks.requests("/word")) == 1


def test_a_ttl_believes_what_says_nothing(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = tagged(b"some", '"x"')
    assert [mirrored.ask("/believed/a").body for _ in range(2)] == [b"some"] * 2
    assert [each.path for each in quirks.asked] == ["/below/a"]


@pytest.mark.parametrize(
    "refusal", ["no-store", "private", "private, max-age=60", "max-age=60, no-store"]
)
def test_what_may_not_be_kept_is_passed_on(
    mirrored: Mirrored, quirks: Quirks, refusal: str
) -> None:
    path, numbers = "/" + refusal.replace(", ", "-").replace("=", "-"), count(1)

    def script(_: Asked) -> Reply:
        cookies = ["a=1", "b=2"]
        told: dict[str, str | list[str] | None] = {"Cache-Control": refusal, "Set-Cookie": cookies}
        return Reply(200, told, b"for you %d" % next(numbers))

    quirks.script = script
    with ThreadPoolExecutor(4) as pool:
        bodies = [each.body for each in pool.map(mirrored.ask, [f"/files{path}"] * 4)]
    assert sorted(bodies) == [b"for you %d" % number for number in (1, 2, 3, 4)]
    assert not any(path in (key or "") for key, _ in mirrored.store.blobs())


def test_answers_to_credentials_are_for_their_client(mirrored: Mirrored, quirks: Quirks) -> None:
    def script(asked: Asked) -> Reply:
        who = asked.authorization or "nobody"
        told = {"Cache-Control": "max-age=60" if asked.path == "/own" else "public, max-age=60"}
        return Reply(200, told, who.encode())

    quirks.script = script
    assert mirrored.ask("/files/own", Authorization="Bearer a").body == b"Bearer a"
    assert mirrored.ask("/files/own", Authorization="Bearer b").body == b"Bearer b"
    assert mirrored.ask("/files/own").body == b"nobody"
    assert mirrored.ask("/files/shared", Authorization="Bearer a").body == b"Bearer a"
    assert mirrored.ask("/files/shared").body == b"Bearer a"  # the origin says that it is public
    for folder in (mirrored.serving.store, mirrored.serving.temporary):
        for file in folder.rglob("*"):
            text = file.read_bytes() if file.is_file() else b""
            assert b"Bearer b" not in text, file


def test_vary_keeps_an_answer_for_each_kind_of_client(mirrored: Mirrored, quirks: Quirks) -> None:
    def script(asked: Asked) -> Reply:
        told = {"Cache-Control": "max-age=60", "Vary": "Accept, Accept-Encoding"}
        return Reply(200, told, asked.headers.get("accept", "any").encode())

    quirks.script = script
    for _ in range(2):
        assert mirrored.ask("/files/vary", Accept="text/a").body == b"text/a"
        assert mirrored.ask("/files/vary", Accept="text/b").body == b"text/b"
    assert mirrored.ask("/files/vary", Accept="text/a", Accept_Encoding="gzip").body == b"text/a"
    assert len(quirks.asked) == 2


def test_stale_serves_while_the_origin_is_away(mirrored: Mirrored, quirks: Quirks) -> None:
    strict = {"/strict": "must-revalidate"}

    def script(asked: Asked) -> Reply:
        return Reply(
            200, {"ETag": '"1"', "Cache-Control": strict.get(asked.path, "max-age=0")}, b"x"
        )

    quirks.script = script
    paths = ("/away", "/strict")
    for path in paths:
        assert mirrored.ask(f"/files{path}").body == b"x"
    quirks.script = lambda _: Reply(503, {"Retry-After": "1"}, b"busy")
    away, strictly = (mirrored.ask(f"/files{path}") for path in paths)
    assert (away.status, away.body) == (200, b"x")
    assert "origin-answers-503" in how(away)
    assert away.headers["warning"].startswith("110")
    assert (strictly.status, strictly.body) == (503, b"busy")
    quirks.script = lambda _: Reply(resets=True)
    away, strictly = (mirrored.ask(f"/files{path}") for path in paths)
    assert (away.status, away.body) == (200, b"x")
    assert "origin-unreachable" in how(away)
    assert strictly.status == 502
    assert mirrored.ask("/files/never-seen").status == 502


def test_refusals_are_passed_on_as_they_are(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = lambda _: Reply(404, {"X-Why": "no such file", "Content-Type": "text/x"}, b"no")
    for _ in range(2):
        answer = mirrored.ask("/files/none")
        assert (answer.status, answer.body, answer.headers["x-why"]) == (404, b"no", "no such file")
    assert len(quirks.asked) == 2
    quirks.script = lambda _: Reply(410, {"Cache-Control": "max-age=60"}, b"gone")
    for _ in range(2):
        assert mirrored.ask("/files/gone").body == b"gone"
    assert len(quirks.requests("/gone")) == 1  # the origin says that this may be kept


def test_one_download_for_all_and_each_gets_it_while_it_comes(
    mirrored: Mirrored, quirks: Quirks
) -> None:
    """Clients of both workers, of which some come in the middle; nothing says that it is fresh."""
    goes_on = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
        yield BODY[:200_000]
        assert goes_on.wait(PATIENCE)
        yield BODY[200_000:]

    def script(asked: Asked) -> Reply:
        assert "if-none-match" not in asked.headers
        return Reply(pieces=pieces())

    quirks.script = script
    opened = [mirrored.serving.open("/files/together") for _ in range(6)]
    early = [response.read(200_000) for _, response in opened]  # it cannot be complete
    late = mirrored.serving.open("/files/together")
    assert late[1].read(1000) == BODY[:1000]
    goes_on.set()
    assert all(
        each + response.read() == BODY for each, (_, response) in zip(early, opened, strict=True)
    )
    assert late[1].read() == BODY[1000:]
    for connection, _ in [*opened, late]:
        connection.close()
    assert len(quirks.requests("/together")) == 1
    said = sorted(response.headers["cache-status"] for _, response in [*opened, late])
    assert said == ["shmstream; fwd=miss; collapsed"] * 6 + ["shmstream; fwd=miss; stored"]


def test_all_workers_are_killed_after_the_content_has_changed(
    mirrored: Mirrored, quirks: Quirks
) -> None:
    """The client gets the rest of what it was promised. The origin is not asked."""
    old = BODY * 100
    quirks.script = tagged(old, '"1"')
    connection, response = mirrored.serving.open("/files/changed")
    early = response.read(200_000)
    wait_until(lambda: not mirrored.store.flights())
    quirks.script = tagged(BODY, '"2"')
    for pid in mirrored.serving.workers():
        os.kill(pid, signal.SIGKILL)
    assert early + response.read() == old
    connection.close()
    assert len(quirks.requests("/changed")) == 1
    wait_until(lambda: len(mirrored.serving.workers()) == 2)


def test_the_leading_worker_is_killed_and_no_client_notices(
    mirrored: Mirrored, quirks: Quirks
) -> None:
    """Whichever worker a client has, the other one goes on with its connection and its download."""
    ends = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 300000\r\n\r\n'
        yield BODY[:200_000]
        assert ends.wait(PATIENCE)

    def script(asked: Asked) -> Reply:
        if "range" in asked.headers:
            return tagged(BODY, '"1"')(asked)
        return Reply(pieces=pieces(), closes=True)

    quirks.script = script
    opened = [mirrored.serving.open("/files/killed") for _ in range(4)]
    early = [response.read(200_000) for _, response in opened]
    [flight] = mirrored.store.flights()
    assert flight.leader is not None
    assert flight.leader.pid in mirrored.serving.workers()
    os.kill(flight.leader.pid, signal.SIGKILL)
    rests = [response.read() for _, response in opened]
    assert [first + rest for first, rest in zip(early, rests, strict=True)] == [BODY] * 4
    ends.set()
    for connection, _ in opened:
        connection.close()
    asked = quirks.requests("/killed")
    assert [each.headers.get("range") for each in asked] == [None, "bytes=200000-"]
    wait_until(lambda: len(mirrored.serving.workers()) == 2)


def test_a_download_that_breaks_goes_on_where_it_was(mirrored: Mirrored, quirks: Quirks) -> None:
    usual = tagged(BODY, '"1"', Cache_Control="max-age=60")

    def script(asked: Asked) -> Reply:
        if len(quirks.requests("/breaks")) == 1:
            return Reply(200, {"ETag": '"1"', "Cache-Control": "max-age=60"}, BODY, cut=100_000)
        return usual(asked)

    quirks.script = script
    assert mirrored.ask("/files/breaks").body == BODY
    first, second = quirks.requests("/breaks")
    assert "range" not in first.headers
    assert second.headers["range"] == "bytes=100000-"
    assert second.headers["if-range"] == '"1"'


def test_redirects_are_followed_and_asked_for_again(mirrored: Mirrored, quirks: Quirks) -> None:
    """Where a redirect leads today may be fresh for long; but the redirect is not."""
    target = ["/v1"]

    def script(asked: Asked) -> Reply:
        if asked.path == "/latest":
            return Reply(302, {"Location": target[0]})
        return Reply(
            200, {"Cache-Control": "max-age=31536000", "ETag": asked.path}, asked.path.encode()
        )

    quirks.script = script
    assert mirrored.ask("/files/latest").body == b"/v1"
    target[0] = "/v2"
    assert mirrored.ask("/files/latest").body == b"/v2"


def test_what_no_origin_is_asked_for(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = tagged(b"x", '"1"')
    assert mirrored.ask("/files/a", "DELETE").headers["allow"] == "GET, HEAD"
    for path in ("/believed/../secret", "/believed/%2e%2e/secret", "/believed/a/..%2f"):
        answer = mirrored.ask(path)
        assert answer.status in (200, 400), path
    assert not any("secret" in each.path for each in quirks.asked)
    assert mirrored.ask("/files/kept", Cache_Control="only-if-cached").status == 504
    assert mirrored.ask("/elsewhere").status == 404
    assert mirrored.ask("/v2/team/app/manifests/v1").status == 404  # there is no registry


def test_head_of_what_is_not_kept_downloads_nothing(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = tagged(BODY, '"1"')
    answer = mirrored.ask("/files/head", "HEAD")
    assert (answer.headers["content-length"], answer.headers["etag"]) == ("300000", '"1"')
    assert [each.method for each in quirks.asked] == ["HEAD"]


@pytest.mark.parametrize("where", ["of all", "of the mirror", "nowhere"])
def test_a_file_over_several_connections(
    where: str, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first connection falls silent for longer than the test lasts; others bring the rest."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.setenv(f"{scheme}_proxy", "")
    size, rate = (64 << 20, 16 << 20) if where == "nowhere" else (12 << 20, 4 << 20)
    url = origin.serve("/below/large", seed=1, size=size, rate=rate)
    origin.change("/below/large", first=0, count=1, stall_after=rate // 4)
    wanted = {} if where == "nowhere" else {"connections": 3}
    mirror: dict[str, object] = {
        "path": "/files",
        "kind": "http",
        "url": url.removesuffix("/large"),
    }
    if where == "of all":
        mirrored = Mirrored(tmp_path, mirror, silence="10m", **wanted)
    else:
        mirrored = Mirrored(tmp_path, mirror | wanted, silence="10m")
    try:
        assert mirrored.ask("/files/large").body == content(1, size)
        asked = [each.range for each in origin.requests("/below/large")]
    finally:
        origin.release()
        mirrored.close()
    assert asked[0] is None
    assert len(asked) > 2


@pytest.mark.parametrize("hashes", [True, False])
def test_a_file_that_nothing_verifies_is_hashed_or_not(
    hashes: bool, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.setenv(f"{scheme}_proxy", "")
    url = origin.serve("/below/file", seed=1, size=300_000).removesuffix("/file")
    mirror: dict[str, object] = {"path": "/files", "kind": "http", "url": url}
    mirrored = Mirrored(tmp_path, mirror, hash_named=hashes)
    try:
        assert mirrored.ask("/files/file").body == content(1, 300_000)
        wait_until(lambda: not mirrored.store.flights())
        [(_, blob)] = mirrored.store.blobs()
        record = Record.read(f"{blob.path}.shmstream-record")
        assert record is not None
        assert (record.digest is not None) == hashes
    finally:
        mirrored.close()


def test_operators_see_mirrors(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = tagged(b"seen", '"1"', Cache_Control="max-age=60")
    hits = {"route": "http", "cache": "hit"}
    before = mirrored.serving.metric("shmstream_requests_total", **hits)
    for _ in range(2):
        assert mirrored.ask("/files/seen").body == b"seen"
    mirrored.serving.wait_for_metric(before + 1, "shmstream_requests_total", **hits)
    mirrored.serving.accesses(lambda lines: "/files/seen" in {each["path"] for each in lines})
    quirks.script = lambda _: Reply(502)
    assert mirrored.ask("/files/problem").status == 502
    problem = f"/files, {quirks.url}"
    assert problem in mirrored.ask("/readyz").body.decode()
    quirks.script = tagged(b"seen", '"1"')
    wait_until(lambda: problem not in mirrored.ask("/readyz").body.decode())


def test_problems_of_origins_end_when_they_are_well(mirrored: Mirrored, quirks: Quirks) -> None:
    """No client asks meanwhile. The origin answers whatever else it is asked."""

    def problems() -> list[str]:
        found: list[str] = json.loads(mirrored.ask("/readyz").body)["upstreams"]
        return [each for each in found if each.startswith("/files, ")]

    good, states = tagged(b"well", '"1"'), {"fails": True}
    for name, failure, status in (("busy", Reply(503), 503), ("reset", Reply(resets=True), 502)):

        def script(asked: Asked, failure: Reply = failure) -> Reply:
            return failure if states["fails"] and "/only/" in asked.path else good(asked)

        quirks.script, states["fails"] = script, True
        assert mirrored.ask(f"/files/only/{name}?token=secret").status == status
        before = len(quirks.requests("/only/"))

        def is_asked_again(before: int = before) -> bool:
            [problem] = problems()
            assert ", for " in problem
            return len(quirks.requests("/only/")) >= before + 2

        wait_until(is_asked_again)
        assert not any("secret" in each.path for each in quirks.requests("/only/")[before:])
        states["fails"] = False
        wait_until(lambda: not problems())
