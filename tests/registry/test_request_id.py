"""The id of a request, from the access log to errors and to the upstream; the log as JSON."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.images import image
from tests.support.interpreters import PATIENCE
from tests.support.mirrors import Mirrored, tagged
from tests.support.quirks import Quirks, Reply, plain
from tests.support.serving import Serve, Serving

IMAGE = image(81, [4000])
LAYER = f"/v2/a/b/blobs/{IMAGE.layers[0]}"


@pytest.fixture
def serving(serve: Serve, quirks: Quirks) -> Serving:
    quirks.script = plain(IMAGE)
    return serve("--workers", "1", "--log-format", "json", upstream=quirks.url)


def test_where_the_id_of_a_request_goes(serving: Serving, quirks: Quirks) -> None:
    answer = serving.ask(LAYER, X_Request_Id="abc-1")
    assert answer.headers["x-request-id"] == "abc-1"
    assert {each.headers["x-request-id"] for each in quirks.requests("blobs")} == {"abc-1"}
    serving.ask("/v2/a/b/tags/list", X_Request_Id="abc-2")
    assert quirks.requests("tags")[-1].headers["x-request-id"] == "abc-2"
    for given in ({}, {"X_Request_Id": "no id, but words"}, {"X_Request_Id": "x" * 129}):
        assert "x-request-id" not in serving.ask(LAYER, **given).headers
    quirks.script = lambda _: Reply(418, {"Content-Type": "text/plain"}, b"a\nforged line")
    serving.ask("/v2/a/b/manifests/v9", X_Request_Id="abc-3")
    quirks.script = lambda _: Reply(503, {"Retry-After": "60"})
    serving.ask("/v2/a/b/manifests/v8", X_Request_Id="abc-4")
    ids = [each["request_id"] for each in serving.accesses(lambda lines: len(lines) == 7)]
    assert {"abc-1", "abc-2", "abc-3", "abc-4"} <= set(ids)
    assert len(set(ids)) == len(ids), "one is made where there is none"
    lines = serving.log.splitlines()
    told = [json.loads(each) for each in lines]  # also the first one, for people
    assert told[0]["message"].startswith("Serving ")
    assert any(each["request_id"] == "abc-4" and each["level"] == "WARNING" for each in told), lines
    assert {"time", "level", "message", "process"} <= set(told[-1])
    assert told[-1]["process"].startswith("worker ")


def test_the_server_of_a_mirror_gets_it_too(mirrored: Mirrored, quirks: Quirks) -> None:
    quirks.script = tagged(b"x" * 50_000, '"1"')
    mirrored.ask("/files/id-given", X_Request_Id="of-a-client")
    mirrored.ask("/files/id-made")
    mirrored.ask("/files/id-head", "HEAD", X_Request_Id="of-a-head")
    paths = [f"/files/id-{each}" for each in ("given", "made", "head")]
    lines = mirrored.serving.accesses(lambda lines: {*paths} <= {each["path"] for each in lines})
    logged = {each["path"]: each["request_id"] for each in lines}
    asked = {f"/files{each.path}": each.headers["x-request-id"] for each in quirks.asked}
    assert asked == {path: logged[path] for path in paths}
    assert asked["/files/id-given"] == "of-a-client"
    assert asked["/files/id-head"] == "of-a-head"


def test_normal_use_is_no_warning(serving: Serving) -> None:
    """A TLS probe on the plain port, a request to upgrade, a scanner's nonsense."""
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(190)
    asks = {
        "Host": "a",
        "Connection": "Upgrade, close",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    lines = ["GET /v2/ HTTP/1.1", *(f"{name}: {value}" for name, value in asks.items()), "", ""]
    upgrade = "\r\n".join(lines).encode()
    for request in (hello, upgrade, b"nonsense\r\n\r\n"):
        with socket.create_connection((serving.host, serving.port), PATIENCE) as connection:
            connection.sendall(request)
            while connection.recv(65536):
                pass
    assert serving.ask("/v2/").status == 200
    assert [json.loads(each)["level"] for each in serving.log.splitlines()] == ["INFO"]
