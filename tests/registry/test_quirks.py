"""What real registries answer: a plain client gets it, so the clients of ours get it, too."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.images import digest_of, image
from tests.support.interpreters import PATIENCE
from tests.support.quirks import Asked, Quirks, Reply, copied, plain
from tests.support.registries import Registry
from tests.support.roles import content


def test_an_upstream_without_quirks(through: Registry, quirks: Quirks, tmp_path: Path) -> None:
    quirks.script = plain(image(300, [10_000]))
    for host, folder in ((f"127.0.0.1:{quirks.port}", "straight"), (through.host, "through")):
        assert copied("none/app:v1", host, tmp_path / folder) is None
    assert {each.name for each in (tmp_path / "straight").iterdir()} == {
        each.name for each in (tmp_path / "through").iterdir()
    }


# A HEAD is never final.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 429, 500, 501, 503])
def test_a_refused_head(through: Registry, quirks: Quirks, status: int) -> None:
    """A tag, a digest, and a second repository that needs a confirmation."""
    what = image(310 + status, [1000])
    there = plain(what)
    quirks.script = lambda asked: Reply(status) if asked.method == "HEAD" else there(asked)
    for name in (f"head/a{status}", f"head/b{status}"):  # the second finds all in the store
        for reference in ("v1", what.digest):
            path = f"/v2/{name}/manifests/{reference}"
            answer = through.get(path)
            assert (answer.status, answer.body) == (200, what.manifest), (name, reference)
            told = through.head(path).headers
            assert told["docker-content-digest"] == what.digest
            assert told["content-length"] == str(len(what.manifest))
        for data in what.blobs:
            path = f"/v2/{name}/blobs/{digest_of(data)}"
            assert through.head(path).headers["content-length"] == str(len(data))
            assert through.get(path).body == data


@pytest.mark.parametrize("length", [None, "0", "5", str(2**64), "12, 13"])
def test_a_head_with_another_length(through: Registry, quirks: Quirks, length: str | None) -> None:
    what = image(320, [1000 + len(length or "")])
    there = plain(what)

    def script(asked: Asked) -> Reply:
        reply = there(asked)
        return reply.but(Content_Length=length) if asked.method == "HEAD" else reply

    quirks.script = script
    for name in (f"length/a{length}".lower(), f"length/b{length}".lower()):
        name = name.replace(", ", "-")
        for reference in ("v1", what.digest):
            path = f"/v2/{name}/manifests/{reference}"
            assert through.head(path).status == 200
            assert through.get(path).body == what.manifest
        for data in what.blobs:
            path = f"/v2/{name}/blobs/{digest_of(data)}"
            assert through.head(path).status == 200
            assert through.get(path).body == data, name


def test_a_head_that_is_refused_during_a_flight(through: Registry, quirks: Quirks) -> None:
    """The second repository follows the flight of the first one; its size is asked by GET."""
    data = content(330, 200_000)
    key, stalls = digest_of(data), threading.Event()
    there = plain(blobs=[data])

    def script(asked: Asked) -> Reply:
        reply = there(asked)
        if asked.method == "HEAD":
            return replace(reply, body=b"", headers={**reply.headers, "Content-Length": "7"})
        if "/flying/a/" in asked.path:
            head = reply.head()
            return Reply(pieces=(piece for piece in _with_a_pause(head + reply.body, stalls)))
        return reply

    quirks.script = script
    leading, led = through.open(f"/v2/flying/a/blobs/{key}")
    following, followed = through.open(f"/v2/flying/b/blobs/{key}")
    assert followed.headers["cache-status"] == "shmstream; fwd=miss; collapsed"
    stalls.set()
    assert led.read() == followed.read() == data
    leading.close()
    following.close()
    ranges = [each.headers.get("range") for each in quirks.requests("/flying/b/", "GET")]
    assert ranges == ["bytes=0-0"]


def _with_a_pause(data: bytes, until: threading.Event) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    until.wait(PATIENCE)
    yield data[len(data) // 2 :]


def test_an_empty_blob(through: Registry, quirks: Quirks) -> None:
    """Its range of one byte does not exist."""
    there = plain(blobs=[b""])
    quirks.script = lambda asked: Reply(404) if asked.method == "HEAD" else there(asked)
    for name in ("empty/a", "empty/b"):
        assert through.head(f"/v2/{name}/blobs/{digest_of(b'')}").status == 200
        assert through.get(f"/v2/{name}/blobs/{digest_of(b'')}").status == 200


@pytest.mark.parametrize("status", [400, 403, 406, 416, 500, 501])
def test_a_head_and_a_range_that_are_refused(
    through: Registry, quirks: Quirks, status: int
) -> None:
    data = content(331, 1000)
    there, name = plain(blobs=[data]), f"whole/app{status}"

    def script(asked: Asked) -> Reply:
        is_plain = asked.method == "GET" and "range" not in asked.headers
        return there(asked) if is_plain else Reply(status)

    quirks.script = script
    for each in (f"{name}/a", f"{name}/b"):
        answer = through.get(f"/v2/{each}/blobs/{digest_of(data)}")
        assert (answer.status, answer.body) == (200, data)


def test_a_head_that_is_redirected_without_end(through: Registry, quirks: Quirks) -> None:
    what = image(332, [1000])
    there = plain(what)
    quirks.script = lambda asked: (
        Reply(302, {"Location": "/login"}) if asked.method == "HEAD" else there(asked)
    )
    for name in ("circling/a", "circling/b"):
        assert through.get(f"/v2/{name}/manifests/v1").body == what.manifest
        assert through.head(f"/v2/{name}/blobs/{what.layers[0]}").status == 200
        assert through.get(f"/v2/{name}/blobs/{what.layers[0]}").status == 200


def test_what_there_is_not_stays_so(through: Registry, quirks: Quirks) -> None:
    quirks.script = plain()
    for path in ("manifests/v1", f"manifests/sha256:{'0' * 64}", f"blobs/sha256:{'0' * 64}"):
        assert through.get(f"/v2/none/app/{path}").status == 404
        assert through.head(f"/v2/none/app/{path}").status == 404


# What has a digest needs no type.


TYPES = [
    None,
    "text/html",
    "text/html; charset=utf-8",
    "application/xhtml+xml",
    "text/plain",
    "nonsense",
    "",
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("tells_digest", [True, False])
def test_blobs_of_any_type(
    through: Registry, quirks: Quirks, kind: str | None, tells_digest: bool
) -> None:
    name = f"types/app{TYPES.index(kind)}{tells_digest}".lower()
    blobs = [
        b"<html>" + name.encode(),
        b" \n<svg/>" + name.encode(),
        content(340, 1000) + name.encode(),
    ]
    there = plain(blobs=[*blobs, b"<" * 5_000_000 + name.encode()])
    blobs.append(b"<" * 5_000_000 + name.encode())

    def script(asked: Asked) -> Reply:
        reply = there(asked).but(Content_Type=kind)
        return reply if tells_digest else reply.but(Docker_Content_Digest=None)

    quirks.script = script
    for data in blobs:
        for each in (f"{name}/a", f"{name}/b"):
            path = f"/v2/{each}/blobs/{digest_of(data)}"
            answer = through.get(path)
            assert (answer.status, answer.body) == (200, data)
            assert answer.headers["content-type"] == "application/octet-stream"
            assert through.head(path).headers["content-length"] == str(len(data))


@pytest.mark.parametrize("kind", TYPES)
def test_manifests_of_any_type(through: Registry, quirks: Quirks, kind: str | None) -> None:
    what = image(341, [1000])
    there = plain(what)
    quirks.script = lambda asked: there(asked).but(Content_Type=kind)
    for reference in ("v1", what.digest):
        answer = through.get(f"/v2/untyped/app{TYPES.index(kind)}/manifests/{reference}")
        assert (answer.body, answer.headers["content-type"]) == (what.manifest, what.media_type)


def test_a_page_is_no_blob_of_another_repository(through: Registry, quirks: Quirks) -> None:
    """A login page answers every request with 200. It grants nothing, whatever its length is."""
    data = b"<html>a blob</html>"
    key, there = digest_of(data), plain(blobs=[data])
    page = b"<html>log in</html>"
    for number, sent in enumerate([page, page + b" please", gzip.compress(page)]):

        def script(asked: Asked, sent: bytes = sent) -> Reply:
            if "/page/a" in asked.path:
                return there(asked)
            told = {"Content-Type": "text/html"}
            if sent.startswith(b"\x1f"):
                told["Content-Encoding"] = "gzip"
            return Reply(200, told, sent)

        quirks.script = script
        assert through.get(f"/v2/page/b{number}/blobs/{key}").status == 404
        assert through.get(f"/v2/page/a/blobs/{key}").body == data
        assert through.get(f"/v2/page/b{number}/blobs/{key}").status == 404


def test_a_page_in_the_middle_of_a_blob(through: Registry, quirks: Quirks) -> None:
    """The upstream has given a part of it, so its login page is there for a while."""
    data = content(342, 200_000)
    there, tries = plain(blobs=[data]), iter(range(12))
    page = Reply(200, {"Content-Type": "text/html"}, b"<html>be patient</html>")

    def script(asked: Asked) -> Reply:
        number = next(tries, None)
        if number == 0:
            return replace(there(asked), cut=100_000)
        return there(asked) if number is None else page

    quirks.script = script
    assert through.get(f"/v2/paged/middle/blobs/{digest_of(data)}").body == data


def test_too_many_requests_in_the_middle_of_a_blob(through: Registry, quirks: Quirks) -> None:
    """As an outage, also where the blob is asked for as a whole at last."""
    data = content(343, 200_000)
    there, tries = plain(blobs=[data]), iter(range(12))

    def script(asked: Asked) -> Reply:
        number = next(tries, None)
        if number == 0:
            return replace(there(asked), cut=100_000)
        return there(asked) if number is None else Reply(429)

    quirks.script = script
    assert through.get(f"/v2/busy/middle/blobs/{digest_of(data)}").body == data


# Heads, lengths and locations.


@pytest.mark.parametrize("length", [str(2**63), str(2**64), "9" * 5000, "1, 2"])
def test_lengths_that_nothing_has(through: Registry, quirks: Quirks, length: str) -> None:
    """An answer, and no traceback: the fixture reads the log."""
    what = image(350, [1000])
    there = plain(what)
    quirks.script = lambda asked: replace(there(asked).but(Content_Length=length), closes=True)
    name = f"endless/app{len(length)}"
    for path in ("manifests/v1", f"manifests/{what.digest}", f"blobs/{what.layers[0]}"):
        assert through.get(f"/v2/{name}/{path}").status == 502, path
        assert through.head(f"/v2/{name}/{path}").status in (200, 502), path


def test_skopeo_gets_what_it_gets_straight(
    through: Registry, quirks: Quirks, tmp_path: Path
) -> None:
    """All at once: early hints, a proxy's 203, many headers, a signed location, no usual HEAD."""
    what = image(351, [1000, 50_000])
    there = plain(what)
    signed = "/data/../x?sig=a%2bB%3d%3d&key="

    def script(asked: Asked) -> Reply:
        if asked.path.startswith(signed):
            reply = there(replace(asked, path="/v2/x/blobs/" + asked.path.rpartition("=")[2]))
        elif "/blobs/" in asked.path:
            return Reply(307, {"Location": signed + asked.path.rpartition("/")[2]})
        elif asked.method == "HEAD":
            return Reply(404)
        else:
            reply = there(asked)
        many: list[str | None] = [f"{each}" for each in range(200)]
        status = 203 if reply.status == 200 else reply.status
        return replace(
            reply.but(X_Many=[each for each in many if each], Content_Encoding="x-gzip"),
            status=status,
            before=b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n",
        )

    quirks.script = script
    assert copied("odd/app:v1", through.host, tmp_path / "through") is None
