"""A registry that a client has named is anybody's: its word gives nobody what others brought."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import IncompleteRead

import pytest

from tests.support.images import image
from tests.support.interpreters import wait_until
from tests.support.quirks import Asked, Quirks, Reply, plain
from tests.support.serving import Answer, Serve, Serving

IMAGE = image(77, [200_000])
LAYER = IMAGE.layers[0]
BLOB = f"/v2/a/b/blobs/{LAYER}"
MANIFEST = f"/v2/a/b/manifests/{IMAGE.digest}"


@pytest.fixture
def foreign(direct: None) -> Iterator[Quirks]:  # noqa: ARG001
    server = Quirks()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def serving(serve: Serve, quirks: Quirks, monkeypatch: pytest.MonkeyPatch) -> Serving:
    monkeypatch.setenv("SHMSTREAM_PRIVATE_REDIRECTS", "1")
    quirks.script = plain(IMAGE)
    options = ["--upstream", "*=http://{namespace}", "--workers", "1"]
    return serve(*options, upstream=quirks.url)


def test_what_is_private_stays_private(serving: Serving, quirks: Quirks, foreign: Quirks) -> None:
    honest = plain(IMAGE)

    def lying(asked: Asked) -> Reply:
        reply = honest(asked)
        return Reply(reply.status, reply.headers, bytes(len(reply.body)))

    def ask(path: str) -> Answer:
        return serving.ask(f"{path}?ns=127.0.0.1:{foreign.port}")

    def got(path: str) -> bytes:
        try:
            return ask(path).body
        except IncompleteRead as error:  # it breaks off: these are other bytes
            return error.partial

    private = {path: serving.ask(path).body for path in (BLOB, MANIFEST)}
    assert all(private.values())
    wait_until(lambda: "shmstream; hit" in serving.ask(BLOB).headers["cache-status"])
    assert quirks.asked
    foreign.script = lying
    for path in (BLOB, MANIFEST) * 3:
        serving.ask(f"{path}?ns=127.0.0.1:{foreign.port}", "HEAD")
        body = got(path)
        assert not body or not private[path].startswith(body), path
    foreign.script = honest
    for path in (BLOB, MANIFEST):
        assert ask(path).body == private[path], path
    wait_until(lambda: ask(BLOB).headers["cache-status"] == "shmstream; hit")
    foreign.asked.clear()
    for path in (BLOB, MANIFEST):
        assert ask(path).body == private[path], path
    assert foreign.asked == [], "it has proved that it has them"


def test_an_honest_one_is_asked_once(serving: Serving, foreign: Quirks) -> None:
    foreign.script = plain(IMAGE)
    path = f"{BLOB}?ns=127.0.0.1:{foreign.port}"
    first = serving.ask(path)
    assert first.status == 200
    wait_until(lambda: serving.ask(path).headers["cache-status"] == "shmstream; hit")
    foreign.asked.clear()
    assert serving.ask(path).body == first.body
    assert foreign.asked == []
