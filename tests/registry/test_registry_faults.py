"""The registry in front of an upstream with faults, and with clients that attack it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shmstream import SourceError, Store
from shmstream.registry.api.pull import Pull, Shared
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from tests.registry.api.test_routes import HOSTILE
from tests.support import registries
from tests.support.images import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, digest_of, image
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.registries import Answer, Registry
from tests.support.roles import content
from tests.support.stores import digest, has_published

SIZE = 200_000
NONE = f"sha256:{'0' * 64}"


def serve_manifest(origin: Origin, repository: str, tag: str, text: str, kind: str) -> str:
    """Serve a manifest under its tag and its digest; the digest is returned."""
    name = digest_of(text.encode())
    told = {"Docker-Content-Digest": name}
    for reference in (tag, name):
        path = f"/v2/{repository}/manifests/{reference}"
        origin.serve(path, text=text, media_type=kind, headers=told, etag=f'"{name}"')
    return name


class Asking:
    """A request in a thread of its own."""

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(call()))
        self._thread.start()

    @property
    def is_pending(self) -> bool:
        return self._thread.is_alive()

    def answer(self) -> Answer:
        self._thread.join()
        return self._answers[0]


# Authorization.


def bearer(origin: Origin) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="{origin.url("/token")}",service="s"'}


def test_a_token_that_expires_in_the_middle(ours: Registry, origin: Origin) -> None:
    """The rest is asked for with a new token."""
    key = digest(100, SIZE)
    path = f"/v2/expiring/app/blobs/{key}"
    realm = "/token?scope=repository%3Aexpiring%2Fapp%3Apull&service=s"
    origin.serve(realm, text='{"token": "first"}')
    origin.change(realm, first=1, text='{"access_token": "second", "expires_in": 300}')
    origin.serve(path, seed=100, size=SIZE)
    origin.change(path, first=0, count=1, status=401, headers=bearer(origin))
    origin.change(path, first=1, count=1, reset_after=50_000)
    origin.change(path, first=2, count=1, status=401, headers=bearer(origin))
    assert ours.get(f"/v2/fault.test/expiring/app/blobs/{key}").body == content(100, SIZE)
    asked = origin.requests(path)
    assert [each.status for each in asked] == [401, 200, 401, 206]
    assert asked[3].range == asked[2].range == "bytes=50000-"
    shown = [each.headers.get("authorization") for each in asked]
    assert shown == [None, "Bearer first", "Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("realm", "status", "code"),
    [
        ("file:///etc/passwd", 502, "UNAVAILABLE"),
        ("", 502, "UNAVAILABLE"),
        ("/denied", 403, "DENIED"),
        ("/busy", 429, "TOOMANYREQUESTS"),
        ("/nonsense", 502, "UNAVAILABLE"),
        ("/nothing", 502, "UNAVAILABLE"),
    ],
)
def test_realms_that_give_no_token(
    ours: Registry, origin: Origin, realm: str, status: int, code: str
) -> None:
    origin.serve("/denied", status=403)
    origin.serve("/busy", status=429)
    origin.serve("/nonsense", text='{"token": "a\\nb"}')
    where = origin.url(realm) if realm.startswith("/") else realm
    path = f"/v2/realm/app/blobs/{NONE}"
    told = {"WWW-Authenticate": f'Bearer realm="{where}"'}
    origin.serve(path, status=401, headers=told)
    answer = ours.get(f"/v2/fault.test{path.removeprefix('/v2')}")
    assert (answer.status, answer.code) == (status, code)


def test_a_page_to_log_in_is_no_answer(ours: Registry, origin: Origin) -> None:
    """An upstream that answers with a login page: that grants nothing."""
    key = digest(101, SIZE)
    origin.serve(f"/v2/page/a/blobs/{key}", seed=101, size=SIZE)
    origin.serve(f"/v2/page/b/blobs/{key}", status=302, headers={"Location": "/login"})
    origin.serve("/login", text="<html>", media_type="text/html; charset=utf-8")
    assert ours.get(f"/v2/fault.test/page/b/blobs/{key}").code == "BLOB_UNKNOWN"
    assert ours.get(f"/v2/fault.test/page/a/blobs/{key}").status == 200
    assert ours.get(f"/v2/fault.test/page/b/blobs/{key}").code == "BLOB_UNKNOWN"


def test_something_else_of_that_name_is_no_answer(ours: Registry, origin: Origin) -> None:
    key = digest(102, SIZE)
    origin.serve(f"/v2/other/a/blobs/{key}", seed=102, size=SIZE)
    origin.serve(f"/v2/other/b/blobs/{key}", seed=102, size=SIZE - 1)
    assert ours.get(f"/v2/fault.test/other/a/blobs/{key}").status == 200
    assert ours.get(f"/v2/fault.test/other/b/blobs/{key}").code == "BLOB_UNKNOWN"


# What is refused.


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "BLOB_UNKNOWN"),
        (401, "UNAUTHORIZED"),
        (403, "DENIED"),
        (429, "TOOMANYREQUESTS"),
        (400, "UNSUPPORTED"),
        (451, "UNSUPPORTED"),
    ],
)
def test_what_the_upstream_refuses(ours: Registry, origin: Origin, status: int, code: str) -> None:
    path = f"/v2/refusing/app/blobs/{NONE}"
    origin.serve(path, status=status)
    began = len(ours.store.blobs())
    here = f"/v2/fault.test{path.removeprefix('/v2')}"
    asking = [Asking(lambda: ours.get(here)) for _ in range(4)]
    for each in asking:
        answer = each.answer()
        assert (answer.status, answer.code) == (status, code)
    assert len(ours.store.blobs()) == began
    origin.serve("/v2/refusing/app/manifests/v1", status=status)
    answer = ours.get("/v2/fault.test/refusing/app/manifests/v1")
    assert answer.status == status


def test_an_upstream_that_is_not_there(ours: Registry, origin: Origin) -> None:
    origin.refuse()
    for path in ("manifests/v1", "tags/list", f"referrers/{NONE}"):
        answer = ours.get(f"/v2/fault.test/absent/app/{path}")
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert ours.head(f"/v2/fault.test/absent/app/blobs/{NONE}").status == 502


def test_an_upstream_that_swallows_everything(run_registry: registries.Run, origin: Origin) -> None:
    """Requests to it do not queue, and requests to another upstream are not delayed."""
    origin.serve("/v2/app/tags/list", text='{"tags": []}')
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # its backlog is full: it accepts no more
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        gone = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ours = run_registry({None: origin.url(""), "gone.test": gone}, workers=1)
        paths = [f"/v2/gone.test/app/manifests/v{number}" for number in range(120)]
        asking = [Asking(partial(ours.get, path)) for path in paths]
        wait_until(lambda: ours.connections() >= len(asking))
        assert ours.get("/v2/app/tags/list").status == 200
        assert all(each.is_pending for each in asking)
        assert {(each.answer().status, each.answer().code) for each in asking} == {
            (504, "UNAVAILABLE")
        }


# Flights of others.


def test_a_flight_of_another_repository(ours: Registry, origin: Origin) -> None:
    """A client joins it only if the client's repository has the blob as well."""
    key = digest(103, SIZE)
    origin.serve(f"/v2/flying/a/blobs/{key}", seed=103, size=SIZE, stall_after=100_000)
    origin.serve(f"/v2/flying/b/blobs/{key}", seed=103, size=SIZE)
    leading, led = ours.open(f"/v2/fault.test/flying/a/blobs/{key}")
    assert led.status == 200
    assert ours.get(f"/v2/fault.test/flying/c/blobs/{key}").code == "BLOB_UNKNOWN"
    following, followed = ours.open(f"/v2/fault.test/flying/b/blobs/{key}")
    assert followed.read(50_000) == content(103, SIZE)[:50_000]
    assert followed.headers["cache-status"] == "shmstream; fwd=miss; collapsed"
    origin.release()
    assert led.read() == content(103, SIZE)
    assert followed.read() == content(103, SIZE)[50_000:]
    leading.close()
    following.close()
    methods = [each.method for each in origin.requests(f"/v2/flying/b/blobs/{key}")]
    assert methods == ["HEAD"]
    asked = origin.requests(f"/v2/flying/c/blobs/{key}")
    assert [(each.method, each.range) for each in asked] == [("HEAD", None), ("GET", "bytes=0-0")]


def test_a_flight_of_another_repository_that_is_refused(ours: Registry, origin: Origin) -> None:
    """A client without access to the blob does not keep other clients from it."""
    key = digest(104, SIZE)
    origin.serve(f"/v2/refused/a/blobs/{key}", status=404, stall_after=-1)
    origin.serve(f"/v2/refused/b/blobs/{key}", seed=104, size=SIZE)
    first = Asking(lambda: ours.get(f"/v2/fault.test/refused/a/blobs/{key}"))
    origin.wait(f"/v2/refused/a/blobs/{key}", lambda asked: len(asked) == 1)
    second = Asking(lambda: ours.get(f"/v2/fault.test/refused/b/blobs/{key}"))
    origin.wait(f"/v2/refused/b/blobs/{key}", lambda asked: len(asked) == 1)
    origin.release()
    assert first.answer().code == "BLOB_UNKNOWN"
    assert second.answer().body == content(104, SIZE)
    methods = [each.method for each in origin.requests(f"/v2/refused/b/blobs/{key}")]
    assert methods[0] == "HEAD"
    assert methods.count("GET") == 1


@pytest.mark.parametrize("complete", [True, False])
def test_a_flight_of_another_repository_that_begins_in_between(
    complete: bool, store: Store, origin: Origin
) -> None:
    """It begins between the first look and the first byte: no byte goes out before the grant."""
    key = digest(114, SIZE)
    stall = None if complete else 100_000
    origin.serve(f"/v2/race/a/blobs/{key}", seed=114, size=SIZE, stall_after=stall)
    origin.serve(f"/v2/race/b/blobs/{key}", seed=114, size=SIZE)
    upstream = Upstream(origin.url(""))
    shared = Shared(store)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def main() -> None:
        theirs, ours, strangers = (
            Pull(shared, Repository(upstream, f"race/{name}"), "blobs", key) for name in "abc"
        )
        scope = {"type": "http", "method": "GET", "headers": [], "extensions": {}}
        for each in (ours, strangers):
            await each.admit()
            assert each.cache == "miss"
        leading = asyncio.ensure_future(theirs.read())
        if complete:
            await leading
        else:
            while not (store.flights() and has_published(store, 90_000)):
                await asyncio.sleep(0)
        with pytest.raises(SourceError) as caught:
            await strangers.send(scope, receive, send, {}, None)
        assert caught.value.status == 404
        assert sent == []
        sending = asyncio.ensure_future(ours.send(scope, receive, send, {}, None))
        while not sent:
            await asyncio.sleep(0)
        origin.release()
        await sending
        await leading

    asyncio.run(main())
    shared.close()
    body = b"".join(message.get("body", b"") for message in sent)
    assert (sent[0]["status"], body) == (200, content(114, SIZE))
    assert [each.method for each in origin.requests(f"/v2/race/b/blobs/{key}")] == ["HEAD"]


def age_grants(registry: Registry, seconds: float) -> None:
    """Make all grants older."""
    then = time.time() - seconds
    for path in (Path(registry.store.folder) / "registry" / "grants").iterdir():
        os.utime(path, (then, then))


def test_a_grant_grows_old(ours: Registry, origin: Origin) -> None:
    key = digest(105, SIZE)
    path, asked = f"/v2/fault.test/old/app/blobs/{key}", f"/v2/old/app/blobs/{key}"
    origin.serve(asked, seed=105, size=SIZE)
    assert ours.get(path).status == 200
    age_grants(ours, 11 * 3600)
    assert ours.get(path).status == 200
    assert len(origin.requests(asked)) == 1
    age_grants(ours, 13 * 3600)
    origin.change(asked, status=503)
    assert ours.get(path).status == 200, "it does not say no"
    origin.refuse()
    assert ours.get(path).status == 200
    origin.accept()
    assert [each.method for each in origin.requests(asked)[1:]] == ["HEAD", "GET", "GET", "GET"]
    origin.change(asked, status=403)
    assert ours.get(path).code == "DENIED"
    origin.refuse()
    assert ours.get(path).code == "UNAVAILABLE", "the grant was withdrawn"
    origin.accept()
    origin.change(asked, status=None)
    assert ours.get(path).body == content(105, SIZE)
    later = [each.range for each in origin.requests(asked)[1:] if each.method == "GET"]
    assert set(later) == {"bytes=0-0", None}
    assert later.count(None) == 1, "a 403 may refuse the range alone"


# Manifests.


def test_what_an_upstream_says_of_a_manifest(ours: Registry, origin: Origin) -> None:
    plain = json.dumps({"made": "up"})
    bare = json.dumps({"schemaVersion": 2, "manifests": []})
    for number, (text, kind, expected) in enumerate(
        [
            (plain, "application/vnd.example+json; charset=utf-8", "application/vnd.example+json"),
            (bare, "text/x\tX-Evil: 1", OCI_INDEX),
            (image(106, [10]).manifest.decode(), "text/plain", OCI_MANIFEST),
            (image(106, [11], DOCKER_MANIFEST).manifest.decode(), OCI_MANIFEST, OCI_MANIFEST),
        ]
    ):
        name = serve_manifest(origin, "odd/app", f"v{number}", text, kind)
        for reference in (f"v{number}", name, f"v{number}"):
            answer = ours.get(f"/v2/fault.test/odd/app/manifests/{reference}")
            assert (answer.status, answer.body) == (200, text.encode()), reference
            assert answer.headers["content-type"] == expected
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "x-evil" not in answer.headers


def test_an_upstream_that_does_not_tell_the_digest(ours: Registry, origin: Origin) -> None:
    text = image(107, [10]).manifest.decode()
    name = serve_manifest(origin, "silent/app", "v1", text, OCI_MANIFEST)
    for told in ({}, {"Docker-Content-Digest": "sha256:../../../etc/passwd"}):
        origin.change("/v2/silent/app/manifests/v1", headers=told)
        for accept in ("*/*", OCI_MANIFEST):  # each has a note of its own
            kind = f"{accept};q=0.{len(told) + 1}, application/x-{len(told)}"
            answer = ours.get("/v2/fault.test/silent/app/manifests/v1", Accept=kind)
            assert answer.body == text.encode()
            assert answer.headers["docker-content-digest"] == name


def test_a_manifest_with_a_sha512_digest(ours: Registry, origin: Origin) -> None:
    text = image(108, [10]).manifest.decode()
    name = digest_of(text.encode(), "sha512")
    origin.serve(f"/v2/long/app/manifests/{name}", text=text, media_type=OCI_MANIFEST)
    for _ in range(2):
        answer = ours.get(f"/v2/fault.test/long/app/manifests/{name}")
        assert (answer.body, answer.headers["docker-content-digest"]) == (text.encode(), name)
    assert len(origin.requests()) == 1
    assert name in ours.store


def test_manifests_that_are_too_large(ours: Registry, origin: Origin) -> None:
    for framing in ("length", "chunked"):
        size = 5_000_000 + len(framing)
        key = digest(109, size)
        origin.serve(f"/v2/huge/app/manifests/{key}", seed=109, size=size, framing=framing)
        origin.serve(f"/v2/huge/app/blobs/{key}", seed=109, size=size)
        assert ours.get(f"/v2/fault.test/huge/app/manifests/{key}").status == 502
        assert key not in ours.store
        assert ours.get(f"/v2/fault.test/huge/app/blobs/{key}").status == 200
        answer = ours.get(f"/v2/fault.test/huge/app/manifests/{key}")
        assert (answer.status, answer.code) == (502, "MANIFEST_INVALID")


def test_wrong_bytes_of_a_manifest(ours: Registry, origin: Origin) -> None:
    text = image(110, [10]).manifest.decode()
    name = serve_manifest(origin, "bent/app", "v1", text, OCI_MANIFEST)
    path = f"/v2/bent/app/manifests/{name}"
    origin.change(path, first=0, count=1, text=text.replace("2", "3"))
    assert ours.get("/v2/fault.test/bent/app/manifests/v1").code == "UNAVAILABLE"
    assert name not in ours.store
    assert ours.get("/v2/fault.test/bent/app/manifests/v1").body == text.encode()


def test_what_many_want_to_know_is_asked_once(ours: Registry, origin: Origin) -> None:
    text = image(111, [10]).manifest.decode()
    serve_manifest(origin, "many/app", "v1", text, OCI_MANIFEST)
    origin.change("/v2/many/app/manifests/v1", stall_after=-1)
    asking = [Asking(lambda: ours.head("/v2/fault.test/many/app/manifests/v1")) for _ in range(16)]
    asked = origin.wait("/v2/many/app/manifests/v1", lambda asked: len(asked) >= 1)
    wait_until(lambda: ours.connections() >= 16)
    origin.change("/v2/many/app/manifests/v1", stall_after=None)  # a worker may ask only now
    origin.release()
    assert {each.answer().status for each in asking} == {200}
    asked = origin.requests("/v2/many/app/manifests/v1")
    assert len(asked) <= len(ours.workers())


# Lists.


def test_pages(ours: Registry, origin: Origin) -> None:
    there = "/v2/pages/app/tags/list"
    link = f'<{origin.url(there)}?last=b%2F%3E&n=2&next_page=x>; rel="next"'
    body = json.dumps({"name": "pages/app", "tags": ["a", "b"]})
    origin.serve(f"{there}?n=2", text=body, headers={"Link": link})
    here = "/v2/fault.test/pages/app/tags/list"
    answer = ours.get(f"{here}?n=2")
    assert json.loads(answer.body) == {"name": "fault.test/pages/app", "tags": ["a", "b"]}
    assert answer.headers["link"] == f'<{here}?last=b%2F%3E&n=2&next_page=x>; rel="next"'
    answer = ours.get("/v2/pages/app/tags/list?n=2&ns=fault.test")
    assert answer.headers["link"].endswith('&next_page=x&ns=fault.test>; rel="next"')
    following = f"{there}?last=b%2F%3E&n=2&next_page=x"
    origin.serve(following, text='{"name": "x", "tags": null}')
    assert json.loads(ours.get(answer.headers["link"].split(">")[0][1:]).body)["tags"] is None
    origin.serve(f"{there}?n=3", text="no list")
    assert ours.get(f"{here}?n=3").code == "UNAVAILABLE"


def test_referrers_of_an_upstream_that_has_them(ours: Registry, origin: Origin) -> None:
    entries = [{"digest": NONE, "artifactType": "a/b"}, {"digest": NONE, "artifactType": "c/d"}]
    there = f"/v2/refer/app/referrers/{NONE}"
    origin.serve(there, text=json.dumps({"manifests": entries}), media_type=OCI_INDEX)
    here = f"/v2/fault.test/refer/app/referrers/{NONE}"
    assert json.loads(ours.get(here).body)["manifests"] == entries
    answer = ours.get(f"{here}?artifactType=a%2Fb")
    assert json.loads(answer.body)["manifests"] == entries[:1]
    assert answer.headers["oci-filters-applied"] == "artifactType"
    assert origin.requests()[-1].path == f"{there}?artifactType=a%2Fb"
    origin.serve(there, status=403)
    assert ours.get(here).code == "DENIED"


# Namespaces.


def test_namespaces(run_registry: registries.Run, origin: Origin) -> None:
    key = digest(112, 1000)
    for name in ("library/debian", "debian", "a/b"):
        origin.serve(f"/v2/{name}/blobs/{key}", seed=112, size=1000)
    origin.serve("/prefix/v2/a/b/tags/list", text='{"tags": []}')
    named = {"docker.io": origin.url(""), "ghcr.io": origin.url("/prefix/")}
    ours = run_registry(named, workers=1)
    for path in (f"/v2/debian/blobs/{key}?ns=docker.io", f"/v2/docker.io/debian/blobs/{key}"):
        assert ours.head(path).status == 200
        assert origin.requests()[-1].path == f"/v2/library/debian/blobs/{key}"
    assert ours.head(f"/v2/a/b/blobs/{key}?ns=docker.io").status == 200
    assert origin.requests()[-1].path == f"/v2/a/b/blobs/{key}"
    assert ours.get("/v2/a/b/tags/list?ns=ghcr.io").status == 200
    asked = len(origin.requests())
    for path in (f"/v2/debian/blobs/{key}", f"/v2/debian/blobs/{key}?ns=quay.io",
                 f"/v2/debian/blobs/{key}?ns=http://127.0.0.1:{origin.port}"):  # fmt: skip
        assert ours.get(path).code == "NAME_UNKNOWN"
    assert len(origin.requests()) == asked


def test_the_default_upstream_is_also_known_by_its_host(
    run_registry: registries.Run, origin: Origin
) -> None:
    origin.serve("/v2/debian/tags/list", text='{"tags": []}')
    ours = run_registry(origin.url(""), workers=1)
    host = origin.url("").removeprefix("http://")
    assert ours.get(f"/v2/debian/tags/list?ns={host}").status == 200
    assert ours.get("/v2/debian/tags/list?ns=docker.io").code == "NAME_UNKNOWN"
    asked = len(origin.requests())
    answer = ours.get("/v2/quay.io/org/app/manifests/v1")
    assert answer.code == "NAME_UNKNOWN", "it is not asked of the default upstream"
    assert b"no upstream for quay.io" in answer.body
    assert len(origin.requests()) == asked


@pytest.mark.parametrize(
    ("url", "host", "is_hub"),
    [
        ("https://registry.hub.docker.com", "registry-1.docker.io", True),
        ("https://registry.hub.docker.com:443/", "registry-1.docker.io", True),
        ("https://DOCKER.io", "registry-1.docker.io", True),
        ("https://ghcr.io:443", "ghcr.io", False),
        ("http://host:80", "host", False),
        ("http://host:443", "host:443", False),
        ("https://host:5000/prefix", "host:5000", False),
    ],
)
def test_names_of_an_upstream(url: str, host: str, is_hub: bool) -> None:
    """Its usual port is the same as none, in the keys of credentials, too."""
    upstream = Upstream(url)
    assert (upstream.host, upstream.is_hub) == (host, is_hub)
    assert upstream.full_name("debian") == ("library/debian" if is_hub else "debian")


# Attacks.


def test_hostile_names(ours: Registry, origin: Origin) -> None:
    for path, status, code in HOSTILE:
        if not path.startswith("/v2") or "\x00" in path or len(path) > 50_000 or not path.isascii():
            continue  # not for /v2/, or uvicorn refuses it as no request
        answer = ours.get(path)
        assert (answer.status, answer.code) == (status, code), path
        assert "set-cookie" not in answer.headers
    for request in (
        b"GET /v2/\xe9/manifests/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /v2/a\x00b/manifests/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /v2/" + b"a/" * 20_000 + b"x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET http://elsewhere/v2/x/manifests/y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1",
    ):
        assert b" 500 " not in ours.raw(request)[:20]
    assert origin.requests() == []
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = ours.get("/v2/a/blobs/uploads/", method)
        assert (answer.status, answer.code) == (405, "UNSUPPORTED")
        assert answer.headers["allow"] == "GET, HEAD"
    answer = ours.get("/v2/")
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


def test_hostile_headers(ours: Registry, origin: Origin) -> None:
    text = image(113, [10]).manifest.decode()
    serve_manifest(origin, "hostile/app", "v1", text, OCI_MANIFEST)
    path = "/v2/fault.test/hostile/app/manifests/v1"
    for headers in (
        {"Accept": ",".join(f"a/{number}" for number in range(5000))},
        {"Accept": "\xe9/\xff, */*"},
        {"Accept": "a\tb"},
        {"Range": "bytes=" + "0-1," * 5000},
        {"If_None_Match": '"' * 5000},
    ):
        assert ours.get(path, **headers).status in (200, 206, 502), headers
