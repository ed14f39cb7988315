"""How registries ask for credentials, and how they refuse those that were good."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from shmstream.errors import SourceError
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from shmstream.sources.http_tls import TLS
from tests.support.images import digest_of, image
from tests.support.quirks import Asked, Quirks, Reply, Script, nothing, plain
from tests.support.registries import Registry
from tests.support.roles import content


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def challenge(text: str | list[str]) -> Reply:
    return Reply(401, {"WWW-Authenticate": text}, b"who are you?")


class Realm:
    """A registry that wants tokens, and gives them; `good` is the one that is good now."""

    def __init__(self, there: Script, quirks: Quirks, code: int, challenged: bool = False) -> None:
        self.there = there
        self.url = f"{quirks.url}/token"
        self.code = code  # for a token that is good no longer
        self.challenged = challenged
        self.good = ""
        self.count = 0

    def __call__(self, asked: Asked) -> Reply:
        if asked.path.startswith("/token"):
            self.count += 1
            self.good = f"Bearer T{self.count}"
            body = json.dumps({"token": f"T{self.count}", "expires_in": 3600}).encode()
            return Reply(200, {}, body)
        if asked.authorization is None or (self.challenged and asked.authorization != self.good):
            return challenge(f'Bearer realm="{self.url}",service="s"')
        return self.there(asked) if asked.authorization == self.good else Reply(self.code)


@pytest.mark.parametrize("code", [400, 401, 403, 404])
def test_a_token_that_is_revoked(through: Registry, quirks: Quirks, code: int) -> None:
    """It is refused in one way or another, and without a challenge."""
    what = image(400 + code, [1000])
    quirks.script = realm = Realm(plain(what), quirks, code)
    path = f"/v2/revoked/app{code}"
    assert through.get(f"{path}/manifests/v1").status == 200
    realm.good = "another"
    assert through.get(f"{path}/manifests/v1").status == 200
    if code == 404:  # which is doubted now and then only
        assert through.get(f"{path}/manifests/none").status == 404
        assert realm.count == 2
        return
    realm.good = "another"
    assert through.get(f"{path}/blobs/{what.layers[0]}").status == 200
    assert realm.count == 3


def test_a_registry_that_wants_a_password_by_now(
    quirks: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wanted tokens before, and refuses them without a challenge."""
    there = plain(image(405, [1000]))
    monkeypatch.setenv("SHMSTREAM_AUTH", "u:p")
    quirks.script = realm = Realm(there, quirks, 403)
    upstream = Upstream(quirks.url)
    pull(upstream, "changed/app")

    def script(asked: Asked) -> Reply:
        if asked.path.startswith("/token"):
            return realm(asked)
        if asked.authorization == basic("u", "p"):
            return there(asked)
        told = challenge('Basic realm="x"')
        return told if asked.authorization is None else Reply(403)

    quirks.script = script
    for name in ("changed/app", "changed/other"):
        pull(upstream, name)


def test_what_is_refused_with_any_token(through: Registry, quirks: Quirks) -> None:
    """Each question costs one new token, not more, and the refusal is passed on."""
    what = image(404, [1000])
    there = plain(what)

    def script(asked: Asked) -> Reply:
        return Reply(403) if asked.path.startswith("/v2/closed/") else there(asked)

    quirks.script = realm = Realm(script, quirks, 403)
    assert through.get("/v2/closed/app/manifests/v1").code == "DENIED"
    assert realm.count <= 3, "the first one, one for the HEAD, one for the GET"
    assert through.get("/v2/open/app/manifests/v1").status == 200


def pull(upstream: Upstream, name: str, key: str = "") -> bytes:
    """What this upstream gives of a repository: the manifest of the tag v1, or a blob."""
    repository = Repository(upstream, name)
    if not key:
        repository.resolve("v1", "*/*")
        return b""
    repository.about("blobs", key)
    with repository.source("blobs", key, lambda *_: None).open() as feed:
        return b"".join(bytes(each) for each in feed)


@pytest.mark.parametrize("code", [400, 401, 403])
def test_passwords_that_expire(
    quirks: Quirks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Amazon ECR says 403 to a password of more than twelve hours; the helper has a new one."""
    what, password = image(410, [1000]), tmp_path / "password"
    there, good = plain(what), ["one"]

    def script(asked: Asked) -> Reply:
        if asked.authorization is None:
            return challenge('Basic realm="https://ecr/",service="ecr.amazonaws.com"')
        if asked.authorization == basic("AWS", good[0]):
            return there(asked)
        return challenge('Basic realm="https://ecr/"') if code == 401 else Reply(code)

    quirks.script = script
    helper = tmp_path / "docker-credential-fake"
    said = '{"Username":"AWS","Secret":"%s"}'
    helper.write_text(f"#!/bin/sh\nread -r _\nprintf '{said}' $(cat {password})\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"credHelpers": {f"127.0.0.1:{quirks.port}": "fake"}}))
    upstream = Upstream(quirks.url, config=str(config))
    for number, key in enumerate(["", "", what.layers[0], what.layers[0]]):
        password.write_text(f"{number}\n")
        good[0] = str(number)
        pull(upstream, "a/b", key)


def test_the_passwords_of_two_teams(
    quirks: Quirks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request has that of its own team, whichever of them was first."""
    there = plain(image(411, [10]))
    here = f"127.0.0.1:{quirks.port}"
    teams = {here: "all", f"{here}/one": "one", f"{here}/two": "two"}
    entries = {key: {"username": user, "password": "x"} for key, user in teams.items()}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": entries}))
    monkeypatch.delenv("DOCKER_AUTH_CONFIG", raising=False)

    def script(asked: Asked) -> Reply:
        return there(asked) if asked.authorization else challenge('Basic realm="x"')

    quirks.script = script
    upstream = Upstream(quirks.url, config=str(config))
    for name in ("one/app", "two/app", "three/app", "one/app", "one/other"):
        pull(upstream, name)
    sent = {(each.path.split("/")[2], each.authorization) for each in quirks.asked}
    users = {"one": "one", "two": "two", "three": "all"}
    assert sent == {(team, basic(user, "x")) for team, user in users.items()} | {("one", None)}


# Challenges.


def fields_of(asked: Asked) -> dict[str, list[str]]:
    text = asked.body if asked.method == "POST" else urlsplit(asked.path).query
    return parse_qs(text)


def wants(quirks: Quirks, there: Script, told: str, token: Script) -> Script:
    """A registry with that challenge, and its service, which gives the token `good`."""

    def script(asked: Asked) -> Reply:
        if not asked.path.startswith("/v2/"):
            return token(asked) if asked.path.partition("?")[0] == "/t" else nothing(asked)
        if asked.authorization == "Bearer good":
            return there(asked)
        return challenge(told.replace("HERE", quirks.url))

    return script


def gives(_: Asked) -> Reply:
    return Reply(200, {}, b'{"token": "good"}')


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("repository:proxy/elsewhere/app:pull", ["repository:proxy/elsewhere/app:pull"]),
        ("repository:x:pull,push", ["repository:x:pull,push"]),
        ("repository:x:pull repository:y:pull", ["repository:x:pull", "repository:y:pull"]),
        ("*", ["*"]),
        ("", None),
    ],
)
def test_the_scope_of_a_challenge(
    through: Registry, quirks: Quirks, scope: str, expected: list[str] | None
) -> None:
    name = f"scope/app{len(scope)}"
    there = plain(image(420, [10]))
    told = 'Bearer realm="HERE/t",service="s"' + (f',scope="{scope}"' if scope else "")
    good = {"scope": expected or [f"repository:{name}:pull"], "service": ["s"]}

    def token(asked: Asked) -> Reply:
        return gives(asked) if fields_of(asked) == good else Reply(200, {}, b'{"token": "bad"}')

    quirks.script = wants(quirks, there, told, token)
    assert through.get(f"/v2/{name}/manifests/v1").status == 200


@pytest.mark.parametrize("realm", ["/t", "../t", "//127.0.0.1:PORT/t"])
def test_a_relative_realm(quirks: Quirks, realm: str) -> None:
    realm = realm.replace("PORT", str(quirks.port))
    quirks.script = wants(quirks, plain(image(421, [10])), f'Bearer realm="{realm}"', gives)
    pull(Upstream(quirks.url), "relative/app")


@pytest.mark.parametrize("name", ["localhost", "localhost:80", "localhost:PORT", "127.0.0.1:PORT"])
def test_a_realm_that_knows_nothing_of_tls(
    direct: None,  # noqa: ARG001
    tls_certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Harbor behind a server that speaks TLS for it: its realm is http, on its own host.

    The password goes there by https, and to no other host without it.
    """
    monkeypatch.setenv("SHMSTREAM_AUTH", "u:p")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_certificate)
    server = Quirks(context)
    try:
        realm = f"http://{name}/t".replace("PORT", str(server.port))
        server.script = wants(server, plain(image(426, [10])), f'Bearer realm="{realm}"', gives)
        upstream = Upstream(server.url, tls=TLS(cafile=str(tls_certificate)))
        if name.startswith("localhost"):
            pull(upstream, "behind/app")
            (token,) = server.requests("/t?")
            assert token.authorization == basic("u", "p")
        else:
            with pytest.raises(SourceError, match="without https"):
                pull(upstream, "behind/app")
            assert not server.requests("/t")
    finally:
        server.close()


@pytest.mark.parametrize(
    "told",
    [
        ["Negotiate YII/vwYG+wYBBQUCoIIJszCCCa==", 'Basic realm="x"'],
        "Negotiate YIIJvwYGKwYBBQUCoIIJszCCCa==, Basic realm=x",
        'Basic realm="x", Negotiate YIIJ',
        'Digest realm="a, b", nonce="c", Basic realm="x"',
        'Bearer realm="ftp://nowhere/", Basic realm="x"',
        'Bearer realm="HERE/404", Basic realm="x"',
        'Basic realm="x", Bearer realm="HERE/t",service="s"',
        'Bearer realm="HERE/404",service="s", Bearer realm="HERE/t"',
        'Bearer realm="HERE/t",service="s", Negotiate',
        '@ ;, Basic realm="x"',
    ],
)
def test_several_challenges(
    quirks: Quirks, told: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = plain(image(422, [10]))

    def script(asked: Asked) -> Reply:
        if asked.path.startswith("/t"):
            return gives(asked)
        if asked.authorization in ("Bearer good", basic("u", "p")):
            return there(asked)
        lines = told if isinstance(told, list) else [told]
        return challenge([each.replace("HERE", quirks.url) for each in lines])

    quirks.script = script
    monkeypatch.setenv("SHMSTREAM_AUTH", "u:p")
    pull(Upstream(quirks.url), "several/app")


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_service_that_knows_no_post(quirks: Quirks, tmp_path: Path, status: int) -> None:
    """An identity token goes out by POST; who refuses that gets the password, or the token."""

    def token(asked: Asked) -> Reply:
        if asked.method == "POST":
            return Reply(status)
        good = asked.authorization in (basic("me", "pass"), basic("me", "identity"))
        return gives(asked) if good else Reply(401)

    quirks.script = wants(quirks, plain(image(423, [10])), 'Bearer realm="HERE/t"', token)
    for password in ("pass", ""):
        entry = {"auth": base64.b64encode(f"me:{password}".encode()).decode()}
        entry["identitytoken"] = "identity"
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"auths": {f"127.0.0.1:{quirks.port}": entry}}))
        pull(Upstream(quirks.url, config=str(config)), "identity/app")


def test_a_service_that_wants_the_account(quirks: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    def token(asked: Asked) -> Reply:
        good = asked.authorization == basic("u", "p") and fields_of(asked).get("account") == ["u"]
        return gives(asked) if good else Reply(401)

    monkeypatch.setenv("SHMSTREAM_AUTH", "u:p")
    quirks.script = wants(quirks, plain(image(429, [10])), 'Bearer realm="HERE/t"', token)
    pull(Upstream(quirks.url), "account/app")


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_registry_that_hides_what_it_has(
    quirks: Quirks, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """It names its challenge under /v2/ only, where plain clients begin."""
    there = plain(image(426, [10]))

    def script(asked: Asked) -> Reply:
        if asked.authorization == basic("u", "p"):
            return there(asked)
        return challenge('Basic realm="x"') if asked.path == "/v2/" else Reply(status)

    quirks.script = script
    upstream = Upstream(quirks.url)
    for _ in range(2):  # nobody
        with pytest.raises(SourceError) as caught:
            pull(upstream, "hidden/app")
        assert caught.value.status == status
    assert len([each for each in quirks.asked if each.path == "/v2/"]) == 1
    monkeypatch.setenv("SHMSTREAM_AUTH", "u:p")
    pull(upstream, "hidden/app")
    pull(Upstream(quirks.url), "hidden/app")


def test_a_challenge_with_another_status(quirks: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    there = plain(image(427, [10]))
    told = Reply(403, {"WWW-Authenticate": 'Basic realm="x"'})
    quirks.script = lambda asked: there(asked) if asked.authorization else told
    monkeypatch.setenv("SHMSTREAM_AUTH", "u:p")
    pull(Upstream(quirks.url), "forbidding/app")


@pytest.fixture
def elsewhere_quirks() -> Iterator[Quirks]:
    server = Quirks()
    yield server
    server.close()


def test_a_redirect_to_a_registry_that_wants_a_token(
    quirks: Quirks, elsewhere_quirks: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives one to anybody. It is sent no credentials, and the upstream no token of its."""
    what = image(424, [1000, 2000])
    there, other = plain(what), elsewhere_quirks

    def script(asked: Asked) -> Reply:
        if asked.authorization != basic("u", "p"):
            return challenge('Basic realm="x"')
        where = other.url + asked.path
        return Reply(307, {"Location": where}) if "/blobs/" in asked.path else there(asked)

    quirks.script = script
    other.script = wants(other, there, 'Bearer realm="HERE/t",scope="a:b:pull"', gives)
    monkeypatch.setenv("SHMSTREAM_AUTH", "u:p")
    upstream = Upstream(quirks.url)
    for data in what.blobs:
        assert pull(upstream, "public/app", digest_of(data)) == data
    (token,) = other.requests("/t?")
    assert token.authorization is None
    assert fields_of(token) == {"scope": ["a:b:pull"]}
    assert {each.authorization for each in other.requests("/v2/")} == {None, "Bearer good"}
    assert {each.authorization for each in quirks.requests()} <= {None, basic("u", "p")}


def test_a_redirect_to_a_registry_that_wants_a_password(
    through: Registry, quirks: Quirks, elsewhere_quirks: Quirks
) -> None:
    key = digest_of(content(425, 1000))
    quirks.script = lambda asked: Reply(307, {"Location": elsewhere_quirks.url + asked.path})
    elsewhere_quirks.script = lambda _: challenge('Basic realm="x"')
    assert through.get(f"/v2/private/app/blobs/{key}").code == "UNAUTHORIZED"
    assert {each.authorization for each in elsewhere_quirks.requests()} == {None}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_challenge_that_could_not_be_told(quirks: Quirks, status: int) -> None:
    """A registry hides what it has from strangers, and `/v2/` fails at first: that passes."""
    realm = Realm(plain(image(430, [1000])), quirks, 403)
    states = {"fails": True}

    def script(asked: Asked) -> Reply:
        if asked.path == "/v2/" and states["fails"]:
            return Reply(status)
        is_hidden = asked.authorization is None and asked.path.startswith("/v2/a")
        return Reply(404) if is_hidden else realm(asked)

    quirks.script = script
    upstream = Upstream(quirks.url)
    with pytest.raises(SourceError, match="404"):
        pull(upstream, "a/b")
    states["fails"] = False
    pull(upstream, "a/b")
