"""Where credentials are found, in which order, and that no error shows them."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from shmstream import Store
from shmstream.registry.api.distribution import Registry
from shmstream.registry.settings import BadSetting, Settings, Upstream
from shmstream.registry.upstream.credentials import (
    Credential,
    CredentialsError,
    Means,
    check,
    find,
    rights,
)


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
        ("registry-1.docker.io", "registry.hub.docker.com"),
        ("ghcr.io", "https://ghcr.io:443"),
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


KEYS = {
    "host": "all",
    "https://host/v2/": "never",
    "host/team": "team",
    "https://host/team/app/": "app",
    "host/te": "te",
    "HOST/other/app": "other",
    "docker.io": "hub",
    "docker.io/library": "library",
    "host:443/port": "port",
}


@pytest.mark.parametrize(
    ("host", "repository", "user"),
    [
        ("host", "", "all"),
        ("host", "team", "team"),
        ("host", "team/app", "app"),
        ("host", "team/app/more", "app"),
        ("host", "team/apple", "team"),
        ("host", "teams/app", "all"),
        ("host", "te/am", "te"),
        ("host", "other/app", "other"),
        ("host", "other", "all"),
        ("host", "port/app", "port"),
        ("registry-1.docker.io", "library/debian", "library"),
        ("registry-1.docker.io", "team/app", "hub"),
        ("elsewhere", "team/app", None),
        ("host:5000", "team/app", None),
    ],
)
def test_the_longest_key_counts(
    tmp_path: Path, host: str, repository: str, user: str | None
) -> None:
    """Whatever their order is: no team's password goes out with another team's request."""
    for keys in (list(KEYS), list(KEYS)[::-1]):
        path = config(tmp_path, auths={key: basic(f"{KEYS[key]}:x") for key in keys})
        found = find(host, None, path, {}, repository)
        assert (found and found.user) == user


def test_empty_entries_hide_nothing(tmp_path: Path, helper: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", helper["PATH"])
        good, empty = basic("me:x"), {"auth": "", "username": "", "email": "me@example.com"}
        for auths in (
            {"https://host/v1/": empty, "host": good},
            {"host": empty, "https://host": {}, "https://host/v2/": good},
            {"host/team/app": {}, "host/team": good, "host": basic("other:x")},
        ):
            found = find("host", None, config(tmp_path, auths=auths), {}, "team/app")
            assert found == Credential("me", "x")
        path = config(tmp_path, credHelpers={"host": "test"}, auths={"host": good})
        assert find("host", None, path, helper) == Credential("me", "x"), "the helper has none"
        text = json.dumps({"auths": {"host": good}})
        path = config(tmp_path, auths={"host": {}})
        for pair in ("", ":"):
            environment = {"DOCKER_AUTH_CONFIG": text, "SHMSTREAM_AUTH": pair}
            assert find("host", None, path, environment) == Credential("me", "x")


def test_base64_as_tools_write_it(tmp_path: Path) -> None:
    user, secret = "a-user", "\u00ff?>p\u00e4ss~" * 12
    pair = f"{user}:{secret}"
    plain = base64.b64encode(pair.encode()).decode()
    wrapped = "\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)) + "\r\n"
    url_safe = base64.urlsafe_b64encode(pair.encode()).decode()
    for text in (
        plain,
        plain.rstrip("="),
        wrapped,
        wrapped.replace("=", ""),
        url_safe,
        f" {plain} ",
    ):
        path = config(tmp_path, auths={"h": {"auth": text}})
        assert find("h", None, path, {}) == Credential(user, secret)


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
    """An environment with the program docker-credential-test."""
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
    for store, host in (("test", "failing"), ("desktop", "elsewhere")):
        path = config(tmp_path, credsStore=store, auths={host: basic("file:1")})
        assert find(host, None, path, helper) == Credential("file", "1")


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


def test_who_has_the_same_rights() -> None:
    """Namespaces of one registry, by what the environment has for them."""
    one, other = "me:s3cret", "me:other"
    environment = {"SHMSTREAM_AUTH": one, "SHMSTREAM_AUTH_A_IO": one, "SHMSTREAM_AUTH_B_IO": other}
    told = {each: rights(each, environment) for each in (None, "a.io", "b.io", "c.io", "d.io")}
    assert told[None] == told["a.io"]
    assert told["c.io"] == told["d.io"]
    assert len({told["a.io"], told["b.io"], told["c.io"]}) == 3
    assert not any("s3cret" in each for each in told.values())
