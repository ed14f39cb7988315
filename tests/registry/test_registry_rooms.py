"""What the rooms of the registry decide, each by itself: nothing here speaks HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import stat
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream import Store
from shmstream.errors import (
    BlobAborted,
    BlobNotFound,
    DamagedBlob,
    DigestMismatch,
    FailureKind,
    ShmstreamError,
    SourceError,
    SourceFailed,
    TooManyFlights,
    WriterStalled,
)
from shmstream.registry.api.distribution import Registry
from shmstream.registry.api.errors import Code, Refusal, because
from shmstream.registry.api.routes import Kind, Route, locate, route
from shmstream.registry.api.tags import acceptable
from shmstream.registry.notes import Notes
from shmstream.registry.settings import BadSetting, Settings, Upstream
from shmstream.registry.singleflight import Together
from shmstream.registry.upstream import manifests
from shmstream.registry.upstream.credentials import Credential, CredentialsError, Means, check, find
from shmstream.registry.upstream.tokens import Challenge, Tokens, challenges
from shmstream.stream.digest import is_digest
from tests.support import images

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
LONG_DIGEST = f"sha512:{HEX}{HEX}"

# Routes.


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
    for query in (
        "ns=evil.example",
        "ns=",
        "ns=docker.io%00",
        "ns=http://docker.io",
        "ns=DOCKER.IO",
    ):
        with pytest.raises(Refusal) as caught:
            found("/v2/a/tags/list", query)
        assert (caught.value.status, caught.value.code) == (404, Code.NAME_UNKNOWN)
    with pytest.raises(Refusal):
        locate({"docker.io": "hub"}, route("GET", b"/v2/a/tags/list", b""))


# Refusals.


ERRORS: list[tuple[ShmstreamError, int, Code]] = [
    (SourceError("s", 0, "r", status=404), 404, Code.BLOB_UNKNOWN),
    (SourceFailed("n", 0, "r", status=404), 404, Code.BLOB_UNKNOWN),
    (SourceFailed("n", 0, "r", status=410), 404, Code.BLOB_UNKNOWN),
    (SourceFailed("n", 0, "r", status=401), 401, Code.UNAUTHORIZED),
    (SourceFailed("n", 0, "r", status=403), 403, Code.DENIED),
    (SourceError("s", 0, "r", status=429, retry_after=17.2), 429, Code.TOOMANYREQUESTS),
    (SourceFailed("n", 0, "r", status=429), 429, Code.TOOMANYREQUESTS),
    (SourceFailed("n", 0, "r", status=503), 502, Code.UNAVAILABLE),
    (SourceFailed("n", 0, "r", status=400), 502, Code.UNAVAILABLE),
    (SourceFailed("n", 0, "r"), 502, Code.UNAVAILABLE),
    (SourceError("s", 0, "r", kind=FailureKind.TIMEOUT), 504, Code.UNAVAILABLE),
    (SourceError("s", 0, "r", kind=FailureKind.CONNECT_TIMEOUT), 504, Code.UNAVAILABLE),
    (SourceError("s", 0, "r", kind=FailureKind.UNREACHABLE), 502, Code.UNAVAILABLE),
    (SourceFailed("n", 0, "r", kind=FailureKind.TIMEOUT), 504, Code.UNAVAILABLE),
    (WriterStalled("n", 0, 60), 504, Code.UNAVAILABLE),
    (DigestMismatch("n", 0, "r", "a", "b"), 502, Code.UNAVAILABLE),
    (TooManyFlights("n", 3), 503, Code.UNAVAILABLE),
    (BlobNotFound("k", "f"), 404, Code.BLOB_UNKNOWN),
    (DamagedBlob("k", "p", "r"), 500, Code.UNKNOWN),
]


def test_what_errors_become() -> None:
    """Also when another process tells: pickled, or as the text in the control block."""
    for error, status, code in ERRORS:
        copied = because(pickle.loads(pickle.dumps(error)), Code.BLOB_UNKNOWN)
        assert (copied.status, copied.code) == (status, code)
        if isinstance(error, BlobAborted):
            told = because(BlobAborted.from_text(error.to_text(1000)), Code.BLOB_UNKNOWN)
            assert (told.status, told.code) == (status, code)
        refusal = because(error, Code.BLOB_UNKNOWN, {"digest": DIGEST})
        assert (refusal.status, refusal.code) == (status, code), error
        (told,) = json.loads(refusal.body())["errors"]
        assert (told["code"], told["detail"]) == (code, {"digest": DIGEST})
        assert told["message"]
        assert ("retry-after" in refusal.headers) == (status in (429, 503))
        assert ("www-authenticate" in refusal.headers) == (status == 401)
        if isinstance(error, SourceError) and error.retry_after:
            assert refusal.headers["retry-after"] == "18"


def test_a_refusal_stays_what_it_is() -> None:
    refusal = Refusal(400, Code.NAME_INVALID, "no")
    assert because(refusal, Code.BLOB_UNKNOWN) is refusal


# Manifests.


def test_media_types() -> None:
    for image in (images.image(1, [10]), images.image(2, [10], images.DOCKER_MANIFEST)):
        assert manifests.declared(manifests.parsed(image.manifest)) == image.media_type
    silent = images.image(3, [10], mentions_media_type=False)
    assert manifests.declared(manifests.parsed(silent.manifest)) == manifests.IMAGE
    assert manifests.declared({"manifests": []}) == manifests.INDEX
    assert manifests.declared({"whatever": 1}) is None


def test_what_is_no_media_type_of_a_manifest() -> None:
    long, latin = "application/" + "x" * 200, "application/\u00e9"
    mixed = (
        "text/html",
        "application/json\r\nX: y",
        "application/x y",
        "",
        "application/",
        5,
        None,
    )
    for text in (*mixed, long, latin, "APPLICATION/json"):
        assert manifests.media_type(text) is None
        assert manifests.declared({"mediaType": text, "manifests": []}) == manifests.INDEX


def test_a_media_type_has_no_parameters() -> None:
    assert manifests.media_type("application/json; charset=utf-8") == "application/json"


def test_layers() -> None:
    image = images.image(4, [10, 20, 10])
    assert manifests.layers(manifests.parsed(image.manifest)) == image.layers
    odd = {"layers": [{"digest": "sha256:x"}, {"digest": DIGEST, "urls": ["http://a"]}, 5, {}]}
    assert manifests.layers(odd) == []
    assert manifests.layers({"layers": "no"}) == []
    assert manifests.layers({"manifests": [{"digest": DIGEST}]}) == []


@given(some.binary(max_size=200))
@example(b"[" * 100_000)
@example(b"null")
@example(b'{"manifests": {"a": 1}, "layers": [[]]}')
def test_whatever_a_manifest_is(data: bytes) -> None:
    found = manifests.parsed(data)
    manifests.declared(found)
    assert manifests.layers(found) == []
    assert json.loads(manifests.referrers(found, None))["schemaVersion"] == 2


def test_referrers_of_one_artifact_type() -> None:
    entries = [{"digest": DIGEST, "artifactType": "a/b"}, {"digest": DIGEST}, 7]
    assert (
        json.loads(manifests.referrers({"manifests": entries}, "a/b"))["manifests"] == entries[:1]
    )
    assert json.loads(manifests.referrers({"manifests": entries}, None))["manifests"] == entries[:2]


def test_acceptable() -> None:
    assert acceptable("b/c;q=0.5, A/B,,b/c") == "a/b, b/c"
    assert acceptable("") == ", ".join(sorted(manifests.KNOWN, key=manifests.KNOWN.index))
    assert len(acceptable(",".join(f"a/{number}" for number in range(1000)))) < 400


# Challenges.


CHALLENGES = [
        ('Bearer realm="https://a/token",service="s",scope="repository:x:pull,push"',
         [Challenge("bearer", {"realm": "https://a/token", "service": "s",
                               "scope": "repository:x:pull,push"})]),
        ('BASIC Realm="a \\"b\\"", Bearer realm=x , service="y"',
         [Challenge("basic", {"realm": 'a "b"'}),
          Challenge("bearer", {"realm": "x", "service": "y"})]),
        ("Negotiate, Basic", [Challenge("negotiate", {}), Challenge("basic", {})]),
        ("", []),
        ('"', []),
        ('Bearer realm="unfinished', [Challenge("bearer", {})]),
]  # fmt: skip


def test_challenges() -> None:
    for header, expected in CHALLENGES:
        assert challenges(header)[: len(expected)] == expected


@given(some.text(alphabet='Bearer="\\, x\t', max_size=200))
@example("a=" * 10_000)
@example('B a="' + "\\" * 20_000)
def test_whatever_a_challenge_is(header: str) -> None:
    challenges(header)


# Credentials.


def config(folder: Path, **facts: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(facts))
    return str(path)


def basic(pair: str) -> dict[str, str]:
    return {"auth": base64.b64encode(pair.encode()).decode()}


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("ghcr.io", "ghcr.io"),
        ("host:5000", "http://host:5000/v2/"),
        ("host:5000", "https://HOST:5000"),
        ("registry-1.docker.io", "https://index.docker.io/v1/"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
def test_auths(tmp_path: Path, host: str, address: str) -> None:
    path = config(tmp_path, auths={"other": basic("x:y"), address: basic("me:pass:word")})
    assert find(host, None, path, {}) == Credential("me", "pass:word")
    assert find("host", None, path, {}) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "me", "password": "secret"}, Credential("me", "secret")),
        ({**basic("me:x"), "identitytoken": "i"}, Credential("me", "i", Means.IDENTITY)),
        ({"registrytoken": "t"}, Credential("", "t", Means.TOKEN)),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_entries(tmp_path: Path, entry: dict[str, str], expected: Credential | None) -> None:
    assert find("h", None, config(tmp_path, auths={"h": entry}), {}) == expected


def test_credentials_in_the_environment(tmp_path: Path) -> None:
    path = config(tmp_path, auths={"h": basic("file:1")})
    text = json.dumps({"auths": {"h": basic("text:2")}})
    environment = {"SHMSTREAM_AUTH": "default:3", "SHMSTREAM_AUTH_DOCKER_IO": "hub:4"}
    assert find("h", None, path, environment) == Credential("default", "3")
    assert find("h", "docker.io", path, environment) == Credential("hub", "4")
    assert find("h", "ghcr.io", path, environment) == Credential("file", "1")
    assert find("h", "ghcr.io", None, {"DOCKER_AUTH_CONFIG": text}) == Credential("text", "2")
    assert find("h", "ghcr.io", None, environment) is None


HELPER = """#!/bin/sh
read -r host
[ "$1" = get ] || exit 9
case "$host" in
    known) printf '{"ServerURL": "known", "Username": "me", "Secret": "s3cret"}' ;;
    token) printf '{"Username": "<token>", "Secret": "s3cret"}' ;;
    https://index.docker.io/v1/) printf '{"Username": "hub", "Secret": "s3cret"}' ;;
    broken) echo 's3cret is not JSON' ;;
    failing) echo 's3cret' >&2; exit 1 ;;
    *) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path) -> dict[str, str]:
    """The environment in which there is a docker-credential-test."""
    program = tmp_path / "docker-credential-test"
    program.write_text(HELPER)
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_helpers(tmp_path: Path, helper: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", helper["PATH"])
    path = config(tmp_path, credHelpers={"known": "test", "token": "test", "unknown": "test"})
    assert find("known", None, path, helper) == Credential("me", "s3cret")
    assert find("token", None, path, helper) == Credential("<token>", "s3cret", Means.IDENTITY)
    assert find("unknown", None, path, helper) is None
    assert find("elsewhere", None, path, helper) is None
    path = config(tmp_path, credsStore="test", auths={"elsewhere": basic("file:1")})
    assert find("known", None, path, helper) == Credential("me", "s3cret")
    assert find("docker.io", None, path, helper) == Credential("hub", "s3cret")
    assert find("elsewhere", None, path, helper) == Credential("file", "1")


@pytest.mark.parametrize(
    "facts",
    [
        {"credHelpers": {"h": "../../bin/sh"}},
        {"credHelpers": {"h": "there-is-none"}},
        {"credHelpers": {"h": 5}},
        {"credsStore": "test", "host": "broken"},
        {"credsStore": "test", "host": "failing"},
        {"auths": {"h": {"auth": "s3cret!"}}},
        {"auths": {"h": {"auth": 5}}},
        {"auths": {"h": {"username": "a", "password": "s3cret\r\nX: y"}}},
    ],
)
def test_credentials_that_are_not_in_order(
    tmp_path: Path,
    helper: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    facts: dict[str, object],
) -> None:
    monkeypatch.setenv("PATH", helper["PATH"])
    host = str(facts.pop("host", "h"))
    with pytest.raises(CredentialsError) as caught:
        find(host, None, config(tmp_path, **facts), helper)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "s3cret", "[]", "{" * 100_000])
def test_what_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    for where, environment in ((str(path), {}), (None, {"DOCKER_AUTH_CONFIG": text or "x"})):
        with pytest.raises(CredentialsError) as caught:
            find("h", None, where, environment)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(CredentialsError):
        find("h", None, str(tmp_path / "absent"), {})
    with pytest.raises(CredentialsError):
        find("h", None, None, {"SHMSTREAM_AUTH": "s3cret"})


def test_what_is_no_configuration_is_seen_at_the_start(tmp_path: Path) -> None:
    check([None, "a"], config(tmp_path, credsStore="is-not-asked"), {"SHMSTREAM_AUTH": "a:b"})
    for path, environment in (
        (str(tmp_path / "absent"), {}),
        (None, {"DOCKER_AUTH_CONFIG": "x"}),
        (None, {"SHMSTREAM_AUTH_A": "s3cret"}),
    ):
        with pytest.raises(CredentialsError):
            check([None, "a"], path, environment)
        upstreams = (Upstream(None, "http://127.0.0.1:1"), Upstream("a", "http://127.0.0.1:1"))
        settings = Settings(upstreams, str(tmp_path / "store"), docker_config=path)
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(BadSetting, match="docker_config"),
        ):
            for name, value in environment.items():
                patch.setenv(name, value)
            Registry(settings, Store(settings.store))


def test_credentials_are_not_shown() -> None:
    assert "secret" not in repr(Credential("user", "secret"))
    assert "user" not in repr(Credential("user", "secret"))


# Notes.


def test_notes(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path), "tags")
    key = ("../../etc", "\0", "a" * 10_000)
    assert notes.read(key) is None
    notes.write(key, "one")
    notes.write(("other",), "two")
    found = notes.read(key)
    assert found is not None
    assert (found.text, found.age < 60) == ("one", True)
    notes.write(key, "three")
    again = Notes(str(tmp_path), "tags").read(key)
    assert again is not None
    assert again.text == "three"
    folder = tmp_path / "registry" / "tags"
    assert len(list(folder.iterdir())) == 2
    for path in (folder.parent, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.name) == 64
    notes.remove(key)
    notes.remove(key)
    assert notes.read(key) is None


def test_notes_that_cannot_be_read(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path), "tags")
    notes.write(("a",), "x")
    (path,) = (tmp_path / "registry" / "tags").iterdir()
    path.write_bytes(b"\xff\xfe")
    assert notes.read(("a",)) is not None
    path.write_bytes(b"x" * 5000)
    assert notes.read(("a",)) is None
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert notes.read(("a",)) is None
    notes.write(("a",), "x")
    assert not path.is_symlink()
    path.unlink()
    path.mkdir()
    assert notes.read(("a",)) is None
    notes.write(("a",), "x")  # cannot be, and is not worth an error
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_notes_are_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes(str(tmp_path), "grants")
    folder = tmp_path / "registry" / "grants"
    for number in range(20):
        notes.write((str(number),), "")
    month = time.time() - 31 * 24 * 3600
    (folder / ("f" * 64 + ".12345678")).touch()
    paths = sorted(each for each in folder.iterdir() if "." not in each.name)
    for path in paths[:5]:
        os.utime(path, (month, month))
    notes.tidy()
    assert len(list(folder.iterdir())) == 16, "what is about to be renamed stays"
    os.utime(folder / ("f" * 64 + ".12345678"), (month, month))
    monkeypatch.setattr("shmstream.registry.notes._MOST", 10)
    old = time.time() - 1000
    for path in paths[5:10]:
        os.utime(path, (old, old))
    notes.tidy()
    assert sorted(folder.iterdir()) == paths[10:], "the oldest went"


def test_notes_are_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        Notes(str(tmp_path), "tags")
    folder.rmdir()
    folder.symlink_to("/tmp")
    with pytest.raises(PermissionError):
        Notes(str(tmp_path), "tags")


def test_digests() -> None:
    assert is_digest(DIGEST)
    assert is_digest(LONG_DIGEST)
    assert not is_digest(DIGEST + "\n")
    assert not is_digest(quote(DIGEST))


# Tokens, as far as nobody has to be asked for one.


def test_basic_authentication_is_looked_up_when_it_is_refused() -> None:
    known = [Credential("me", "one")]
    tokens = Tokens("upstream", "https", lambda: known[-1])
    assert tokens.current("a") is None
    first = tokens.renew("a", 'Basic realm="r"', None)
    assert first == "Basic " + base64.b64encode(b"me:one").decode()
    assert tokens.current("a") == tokens.current("b") == first
    assert tokens.renew("a", "Basic", first) is None, "there is no other one"
    known.append(Credential("me", "two"))
    second = tokens.renew("a", "Basic", first)
    assert second == "Basic " + base64.b64encode(b"me:two").decode()
    assert tokens.renew("a", "Basic", first) == second, "somebody was faster"


def test_a_bearer_token_of_the_operator() -> None:
    tokens = Tokens("upstream", "https", lambda: Credential("", "t0ken", Means.TOKEN))
    assert tokens.renew("a", 'Bearer realm="https://127.0.0.1:1/"', None) == "Bearer t0ken"
    assert tokens.renew("a", 'Bearer realm="https://127.0.0.1:1/"', "Bearer t0ken") is None


def test_without_credentials_there_is_no_basic_authentication() -> None:
    tokens = Tokens("upstream", "https", lambda: None)
    assert tokens.renew("a", 'Basic realm="r"', None) is None
    assert tokens.renew("a", 'Negotiate, Digest realm="r"', None) is None
    assert tokens.current("a") is None


def test_credentials_do_not_leave_https() -> None:
    tokens = Tokens("upstream", "https", lambda: Credential("me", "s3cret"))
    for realm in ("http://127.0.0.1:1/token", "ftp://a/", "//a/b", "https://a\r\nb/", "https://"):
        with pytest.raises(SourceError) as caught:
            tokens.renew("a", f'Bearer realm="{realm}"', None)
        assert "s3cret" not in str(caught.value)
        assert not caught.value.retryable


def test_credentials_that_cannot_be_looked_up() -> None:
    def fail() -> Credential | None:
        raise CredentialsError("docker-credential-x does not run")

    with pytest.raises(SourceError, match="docker-credential-x"):
        Tokens("upstream", "https", fail).renew("a", "Basic", None)


def test_the_tokens_of_many_repositories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmstream.registry.upstream.tokens._MOST", 3)
    tokens = Tokens("upstream", "https", lambda: None)
    for number in range(10):
        tokens.current(str(number))
    assert list(tokens._held) == ["7", "8", "9"]


# Asking together.


def test_what_is_asked_together_is_asked_once() -> None:
    together = Together()
    gate = threading.Event()
    calls: list[str] = []

    def ask() -> str:
        calls.append("asked")
        assert gate.wait(10)
        return "answer"

    def fail() -> str:
        raise LookupError("no")

    async def main() -> None:
        tasks = [asyncio.ensure_future(together.ask("key", ask)) for _ in range(50)]
        other = asyncio.ensure_future(together.ask("another", lambda: "other"))
        assert await other == "other"
        tasks[0].cancel()  # who leaves takes nothing from the others
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        gate.set()
        assert set(await asyncio.gather(*tasks[1:])) == {"answer"}
        assert calls == ["asked"]
        assert await together.ask("key", lambda: "anew") == "anew"
        failing = [asyncio.ensure_future(together.ask("key", fail)) for _ in range(5)]
        for task in failing:
            with pytest.raises(LookupError):
                await task

    asyncio.run(main())
    assert together._asked == {}
    together.close()
