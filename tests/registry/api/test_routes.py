"""What each request asks for, and which requests are refused."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream.registry.api.errors import Code, Refusal
from shmstream.registry.api.routes import Kind, Route, locate, route
from shmstream.stream.digest import is_digest

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
LONG_DIGEST = f"sha512:{HEX}{HEX}"


ROUTES = [
    ("/v2/", Route(Kind.BASE)),
    ("/v2", Route(Kind.BASE)),
    ("/v2/a/manifests/latest", Route(Kind.MANIFEST, "a", "latest")),
    ("/v2/a/b-c/d__e.f/manifests/V1.0_x-y", Route(Kind.MANIFEST, "a/b-c/d__e.f", "V1.0_x-y")),
    (f"/v2/a/manifests/{DIGEST}", Route(Kind.MANIFEST, "a", DIGEST)),
    (f"/v2/a/manifests/{LONG_DIGEST}", Route(Kind.MANIFEST, "a", LONG_DIGEST)),
    (f"/v2/a/blobs/{DIGEST}", Route(Kind.BLOB, "a", DIGEST)),
    (f"/v2/a/blobs/sha256%3A{HEX}", Route(Kind.BLOB, "a", DIGEST)),
    ("/v2/a/tags/list", Route(Kind.TAGS, "a")),
    (f"/v2/a/referrers/{DIGEST}", Route(Kind.REFERRERS, "a", DIGEST)),
    (f"/v2/manifests/blobs/{DIGEST}", Route(Kind.BLOB, "manifests", DIGEST)),
    ("/v2/a/blobs/b/tags/list", Route(Kind.TAGS, "a/blobs/b")),
    ("/v2/tags/list/manifests/list", Route(Kind.MANIFEST, "tags/list", "list")),
    (f"/v2/{'a' * 255}/manifests/{'t' * 128}", Route(Kind.MANIFEST, "a" * 255, "t" * 128)),
]


def test_what_is_asked_for() -> None:
    for path, expected in ROUTES:
        assert route("GET", path.encode(), b"") == expected
        assert route("HEAD", path.encode(), b"") == expected


def test_the_query() -> None:
    asked = route("GET", b"/v2/a/tags/list", b"n=5&last=x%2Fy&ns=docker.io&ns=other")
    assert (asked.namespace, asked.query) == ("docker.io", (("n", "5"), ("last", "x/y")))


HOSTILE = [
    ("/v2/../manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a/../../etc/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a%2Fb/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a%2f..%2f..%2fetc/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a%5cb/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a%00/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a%252fb/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/%2e%2e/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/A/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2//manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a//b/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a\x00/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a%0d%0aX:y/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/\u00e9/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/%c3%a9/manifests/latest", 400, Code.NAME_INVALID),
    (f"/v2/{'a' * 256}/manifests/latest", 400, Code.NAME_INVALID),
    (f"/v2/{'a/' * 200_000}manifests/latest", 400, Code.NAME_INVALID),
    (f"/v2/{'a-' * 400}/manifests/latest", 400, Code.NAME_INVALID),
    ("/v2/a/manifests/.hidden", 404, Code.MANIFEST_UNKNOWN),
    ("/v2/a/manifests/..", 404, Code.MANIFEST_UNKNOWN),
    ("/v2/a/manifests/", 404, Code.MANIFEST_UNKNOWN),
    ("/v2/a/manifests/x%0d%0aSet-Cookie:%20a=b", 400, Code.DIGEST_INVALID),
    ("/v2/a/manifests/x%0d%0ay", 404, Code.MANIFEST_UNKNOWN),
    (f"/v2/a/manifests/{'t' * 129}", 404, Code.MANIFEST_UNKNOWN),
    ("/v2/a/manifests/sha256:abc", 400, Code.DIGEST_INVALID),
    (f"/v2/a/blobs/{HEX}", 400, Code.DIGEST_INVALID),
    (f"/v2/a/blobs/sha256:{HEX.upper()}", 400, Code.DIGEST_INVALID),
    (f"/v2/a/blobs/sha256:{HEX}0", 400, Code.DIGEST_INVALID),
    (f"/v2/a/blobs/sha256:{HEX}%0a", 400, Code.DIGEST_INVALID),
    (f"/v2/a/blobs/md5:{HEX[:32]}", 400, Code.DIGEST_INVALID),
    (f"/v2/a/blobs/sha512:{HEX}", 400, Code.DIGEST_INVALID),
    ("/v2/a/blobs/sha256:../../../etc/passwd", 404, Code.UNSUPPORTED),
    ("/v2/a/blobs/..", 400, Code.DIGEST_INVALID),
    ("/v2/a/referrers/latest", 400, Code.DIGEST_INVALID),
    ("/v2/_catalog", 404, Code.UNSUPPORTED),
    ("/v2/a/blobs/uploads/", 404, Code.UNSUPPORTED),
    ("/v2/a/tags/list/", 404, Code.UNSUPPORTED),
    ("/v2/a", 404, Code.UNSUPPORTED),
    ("/v2//", 404, Code.UNSUPPORTED),
    ("/v1/a/manifests/b", 404, Code.UNSUPPORTED),
]


def test_what_there_cannot_be() -> None:
    for path, status, code in HOSTILE:
        with pytest.raises(Refusal) as caught:
            route("GET", path.encode("utf-8"), b"")
        assert (caught.value.status, caught.value.code) == (status, code), path[:300]
        assert len(caught.value.body()) < 4096


def test_a_query_that_is_not_understood() -> None:
    long, many = b"a=" + b"x" * 3000, b"&".join([b"a=1"] * 17)
    for query in (b"n=-1", b"n=x", b"n=1e9", b"n=" + b"9" * 10, long, many):
        with pytest.raises(Refusal) as caught:
            route("GET", b"/v2/a/tags/list", query)
        assert caught.value.status == 400


def test_nothing_is_taken() -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "X"):
        with pytest.raises(Refusal) as caught:
            route(method, b"/v2/a/blobs/uploads/", b"")
        assert (caught.value.status, caught.value.code) == (405, Code.UNSUPPORTED)
        assert caught.value.headers == {"allow": "GET, HEAD"}


@given(some.binary(max_size=300), some.binary(max_size=100))
@example(b"/v2/a/manifests/%", b"%")
@example(b"/v2/a/manifests/%f", b"ns=%ff&n=%00")
def test_whatever_is_asked_is_clean_or_refused(path: bytes, query: bytes) -> None:
    for each in (path, b"/v2/" + path, b"/v2/a/manifests/" + path, b"/v2/" + path + b"/tags/list"):
        try:
            asked = route("GET", each, query)
        except Refusal as refused:
            status, body = refused.status, json.loads(refused.body())
            assert 400 <= status < 500
            assert set(body["errors"][0]) <= {"code", "message", "detail"}
        else:
            assert (asked.name + asked.reference).isascii()
            assert not {"..", "", "."} & set(asked.name.split("/")) or asked.kind is Kind.BASE
            assert "/" not in asked.reference
            assert (asked.name + asked.reference).isprintable()


@given(some.from_regex(r"[a-z0-9]+([._-][a-z0-9]+){0,3}(/[a-z0-9]+){0,3}", fullmatch=True))
def test_every_good_name_goes_through(name: str) -> None:
    path = f"/v2/{name}/blobs/{DIGEST}"
    assert route("GET", path.encode(), b"").name == name
    escaped = "/".join("".join(f"%{ord(each):02x}" for each in part) for part in path.split("/"))
    assert route("GET", escaped.encode(), b"").name == name


def test_a_name_that_would_take_for_ever_to_match() -> None:
    for name in ("a" + "-" * 200 + "!", "a-" * 100 + "!", "a/" * 100 + "!", "a__" * 80 + "!"):
        with pytest.raises(Refusal):
            route("GET", f"/v2/{name}/manifests/{'a.' * 64}!".encode(), b"")


def test_which_upstream_is_meant() -> None:
    upstreams: dict[str | None, str] = {None: "default", "docker.io": "hub", "ghcr.io": "github"}

    def found(path: str, query: str = "") -> tuple[str, str]:
        return locate(upstreams, route("GET", path.encode(), query.encode()))

    assert found("/v2/a/b/tags/list") == ("default", "a/b")
    assert found("/v2/a/b/tags/list", "ns=docker.io") == ("hub", "a/b")
    assert found("/v2/ghcr.io/a/b/tags/list") == ("github", "a/b")
    assert found("/v2/ghcr.io/tags/list") == ("default", "ghcr.io")
    assert found("/v2/ghcr.io/a/tags/list", "ns=docker.io") == ("hub", "ghcr.io/a")
    for namespace in ("DOCKER.IO", "Docker.io:443", "registry-1.docker.io", "index.docker.io",
                      "registry.hub.docker.com"):  # fmt: skip
        assert found("/v2/a/tags/list", f"ns={namespace}") == ("hub", "a")
    assert found("/v2/a/tags/list", "ns=GHCR.io:443") == ("github", "a")
    for query in (
        "ns=evil.example",
        "ns=",
        "ns=docker.io%00",
        "ns=http://docker.io",
    ):
        with pytest.raises(Refusal) as caught:
            found("/v2/a/tags/list", query)
        assert (caught.value.status, caught.value.code) == (404, Code.NAME_UNKNOWN)
    for path in ("/v2/quay.io/a/b/tags/list", "/v2/localhost/a/tags/list", "/v2/a.b/c/tags/list"):
        with pytest.raises(Refusal) as caught:
            found(path)
        assert (caught.value.status, caught.value.code) == (404, Code.NAME_UNKNOWN)
        assert path.split("/")[2] in caught.value.message
    with pytest.raises(Refusal):
        locate({"docker.io": "hub"}, route("GET", b"/v2/a/tags/list", b""))


def test_digests() -> None:
    assert is_digest(DIGEST)
    assert is_digest(LONG_DIGEST)
    assert not is_digest(DIGEST + "\n")
    assert not is_digest(quote(DIGEST))
