"""Short questions to an upstream: asked again if a failure may pass, and bounded as a whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import pytest

from shmstream.errors import SourceError
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from shmstream.sources.http import HTTPSource
from shmstream.upstreams.questions import Bounds
from tests.support.images import digest_of, image
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.quirks import Asked, Quirks, Reply, Script, plain
from tests.support.registries import Registry

IMAGE = image(500, [1000])
HASTY = Bounds(first_byte=0.3, silence=0.3, in_all=0.6)
LATE = 20.0  # s; much longer than `HASTY` allows, however busy the machine is


def first_fails(there: Script, failure: Reply, part: str) -> Script:
    """The first request of each kind fails whose path has `part` in it."""
    seen: set[tuple[str, str]] = set()

    def script(asked: Asked) -> Reply:
        what = asked.method, asked.path
        if part not in asked.path or what in seen:
            return there(asked)
        seen.add(what)
        return failure

    return script


FAILURES = [Reply(resets=True), *(Reply(status) for status in (500, 502, 503, 504, 520))]


@pytest.mark.parametrize("failure", FAILURES, ids=["reset", "500", "502", "503", "504", "520"])
def test_a_failure_that_may_pass(through: Registry, quirks: Quirks, failure: Reply) -> None:
    name = f"passing/app{failure.status}{failure.resets}".lower()
    quirks.script = first_fails(plain(IMAGE), failure, "/v2/passing/")
    for path in ("manifests/v1", "tags/list", f"manifests/{IMAGE.digest}"):
        assert through.get(f"/v2/{name}/{path}").status == 200, path


def test_a_token_service_that_fails_once(quirks: Quirks) -> None:
    there = plain(IMAGE)

    def script(asked: Asked) -> Reply:
        if asked.path.startswith("/t?"):
            return Reply(200, {}, b'{"token": "good"}')
        if asked.authorization != "Bearer good":
            return Reply(401, {"WWW-Authenticate": 'Bearer realm="/t"'})
        return there(asked)

    for failure in FAILURES:
        quirks.script = first_fails(script, failure, "/t?")
        Repository(Upstream(quirks.url), "a/b").resolve("v1", "*/*")


def test_an_upstream_that_drops_kept_connections(through: Registry, quirks: Quirks) -> None:
    """It resets them when the next request comes: no look at a connection can tell that before."""
    there, seen = plain(IMAGE), set()

    def script(asked: Asked) -> Reply:
        is_kept = asked.connection in seen
        seen.add(asked.connection)
        return Reply(resets=True) if is_kept else there(asked)

    quirks.script = script
    for number in range(20):
        assert through.get(f"/v2/dropping/app/manifests/v1?n={number}").status == 200
        assert through.get("/v2/dropping/app/tags/list").status == 200
    for data in IMAGE.blobs:
        assert through.get(f"/v2/dropping/app/blobs/{digest_of(data)}").body == data


def test_many_kept_connections_that_have_ended(quirks: Quirks) -> None:
    """Each of them would fail once: after the first failure none of them is used."""
    gate = threading.Barrier(6)
    old = set()

    def meet(asked: Asked) -> Reply:
        gate.wait(PATIENCE)
        old.add(asked.connection)
        return plain(IMAGE)(asked)

    def drop(asked: Asked) -> Reply:
        return Reply(resets=True) if asked.connection in old else plain(IMAGE)(asked)

    source = HTTPSource(f"{quirks.url}/v2/a/blobs/{IMAGE.layers[0]}")
    quirks.script = meet
    with ThreadPoolExecutor(6) as threads:
        for each in [threads.submit(source.describe) for _ in range(6)]:
            each.result()
    quirks.script = drop
    before = len(quirks.asked)
    source.describe()
    assert len(quirks.asked) == before + 2


def test_a_new_connection_that_fails_is_no_kept_one(quirks: Quirks) -> None:
    """It is up to the caller to try again."""
    quirks.script = lambda _: Reply(resets=True)
    with pytest.raises(SourceError):
        HTTPSource(f"{quirks.url}/blob").describe()
    assert len(quirks.asked) == 1


# The bound of a whole question.


class Dripping:
    """Sends one byte now and then, for ever; each of them is soon enough."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.over = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        for position in range(len(self._data)):
            yield self._data[position : position + 1]
            if self.over.wait(0.05):
                return

    def __enter__(self) -> Dripping:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DRIPPING = {
    "head": (b"", HEAD * 1000),
    "one line": (b"", b"HTTP/1.1 200 " + b"O" * 60_000),
    "body": (HEAD + b"Content-Length: 5000\r\n\r\n", b" " * 5000),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 1000),
    "chunk's line": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"a" * 5000),
    "interim": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("what", DRIPPING)
def test_an_answer_that_drips(quirks: Quirks, what: str) -> None:
    at_once, slowly = DRIPPING[what]
    with Dripping(slowly) as dripping:
        quirks.script = lambda _: Reply(pieces=chain((at_once,), dripping))
        began = time.monotonic()
        with pytest.raises(SourceError) as caught:
            Repository(Upstream(quirks.url, bounds=HASTY), "a/b").tags({})
        assert time.monotonic() - began < LATE
    assert caught.value.kind.is_timeout
    wait_until(lambda: len(quirks.asked) > 0)  # a slow server reads late what was asked
    assert len(quirks.asked) == 1, "it was waited for, and is not asked again"


def test_a_head_that_is_never_answered(quirks: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GET is, and has the rest of the time."""
    monkeypatch.setattr("shmstream.registry.upstream.upstream._LONGEST_HEAD", 0.1)
    there = plain(IMAGE)
    with Dripping(HEAD * 1000) as dripping:

        def script(asked: Asked) -> Reply:
            return Reply(pieces=dripping) if asked.method == "HEAD" else there(asked)

        quirks.script = script
        repository = Repository(Upstream(quirks.url), "a/b")
        assert repository.resolve("v1", "*/*").digest == IMAGE.digest
        assert repository.about("manifests", IMAGE.digest).size == len(IMAGE.manifest)
        assert repository.about("blobs", IMAGE.layers[0]).size


def test_a_head_of_a_blob_that_drips(quirks: Quirks) -> None:
    with Dripping(HEAD * 1000) as dripping:
        quirks.script = lambda _: Reply(pieces=dripping)
        with pytest.raises(SourceError) as caught:
            HTTPSource(f"{quirks.url}/blob", timeout=(1.0, 0.3)).open()
    assert caught.value.kind.is_timeout


def test_a_body_that_drips_is_not_bounded(quirks: Quirks) -> None:
    """A download takes as long as it takes: `min_rate` is the bound there."""
    body = bytes(range(50))
    head = Reply(body=body).head()
    with Dripping(body) as dripping:
        quirks.script = lambda _: Reply(pieces=chain((head,), dripping))
        with HTTPSource(f"{quirks.url}/blob", timeout=(60.0, 2.0), first_byte=2.0).open() as feed:
            assert b"".join(bytes(each) for each in feed) == body


def test_all_tries_together_have_the_bound(quirks: Quirks) -> None:
    quirks.script = lambda _: Reply(503, {"Retry-After": "30"})
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        Repository(Upstream(quirks.url, bounds=Bounds(LATE, LATE, LATE)), "a/b").tags({})
    assert time.monotonic() - began < LATE
    assert (caught.value.status, len(quirks.asked)) == (503, 1), "a second one would be too late"


def test_dripping_answers_do_not_keep_others_waiting(through: Registry, quirks: Quirks) -> None:
    """Forty of them, more than an upstream has threads on some machines."""
    there = plain(IMAGE)
    with Dripping(HEAD * 1000) as dripping:

        def script(asked: Asked) -> Reply:
            return replace(Reply(), pieces=dripping) if "/drip" in asked.path else there(asked)

        quirks.script = script
        asking = [threading.Thread(target=through.get, args=(f"/v2/drip{number}/tags/list",))
                  for number in range(40)]  # fmt: skip
        for each in asking:
            each.start()
        while len(quirks.requests("/drip")) < len(asking):
            assert any(each.is_alive() for each in asking)
            time.sleep(0.01)
        began = time.monotonic()
        assert through.get("/v2/quick/app/manifests/v1").status == 200
        assert time.monotonic() - began < LATE
    quirks.reset()
    for each in asking:
        each.join()
