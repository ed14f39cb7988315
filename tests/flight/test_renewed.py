"""Addresses that expire, and the user's netrc file."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from shmstream import SourceError, SourceFailed, Store
from shmstream.asgi import InFlightResponse
from shmstream.sources import HTTPSource, as_sources
from shmstream.sources.base import describe
from shmstream.sources.select import fingerprint, fingerprints
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

MIB = 1 << 20
DATA = content(1, MIB)
KEY = digest(1, MIB)


class Signer:
    """Gives a new URL each time, as S3 does; `calls` counts them."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self.calls = 0
        for number in range(4):
            origin.serve(self.path(number), seed=1, size=MIB)

    def path(self, number: int) -> str:
        return f"/blob?X-Amz-Signature={number}"

    def __call__(self) -> str:
        self.calls += 1
        return self._origin.url(self.path(self.calls - 1))


@pytest.fixture
def signer(origin: Origin) -> Signer:
    return Signer(origin)


@pytest.mark.parametrize("key", [KEY, "a name"])
def test_an_address_that_expires_in_the_middle(
    key: str, signer: Signer, origin: Origin, store: Store
) -> None:
    origin.change(signer.path(0), first=0, count=1, close_after=500_000)
    origin.change(signer.path(0), first=1, count=2, status=403)
    with store.open(key, signer) as blob:
        assert blob.read() == DATA
    assert signer.calls == 2
    [last] = origin.requests(signer.path(1))
    assert last.range is not None


@pytest.mark.parametrize("status", [400, 401, 403, 410])
def test_an_address_that_has_expired(status: int, signer: Signer, origin: Origin) -> None:
    [source] = as_sources(signer)
    for _ in range(2):  # it is used as long as it works
        with source.open() as feed:
            assert b"".join(bytes(each) for each in feed) == DATA
    assert signer.calls == 1
    origin.change(signer.path(0), status=status)
    with source.open() as feed:
        assert b"".join(bytes(each) for each in feed) == DATA
    assert signer.calls == 2


def test_an_address_that_is_refused_for_good(signer: Signer, origin: Origin, store: Store) -> None:
    for number in range(4):
        origin.change(signer.path(number), status=403)
    with pytest.raises(SourceFailed) as caught:
        store.fetch(KEY, signer)
    assert caught.value.status == 403
    assert signer.calls == 2
    assert "Signature=1" not in str(caught.value), "a signature is a secret"


def test_other_failures_need_no_new_address(signer: Signer, origin: Origin, store: Store) -> None:
    origin.change(signer.path(0), first=0, count=1, status=503)
    store.fetch(KEY, signer)
    assert signer.calls == 1
    origin.change(signer.path(1), status=404)
    with pytest.raises(SourceFailed):
        store.fetch("another", signer)
    assert signer.calls == 2


def test_its_head(signer: Signer, origin: Origin, store: Store) -> None:
    origin.change(signer.path(0), status=403)
    [source] = as_sources(signer)
    described = describe([source])
    assert described is not None
    assert described.size == MIB
    assert signer.calls == 2
    status = []

    async def send(message: Any) -> None:
        status.append(message.get("status"))

    async def receive() -> Any:
        return await asyncio.Future()

    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": []}
    asyncio.run(InFlightResponse(store, KEY, signer)(scope, receive, send))
    assert status[0] == 200
    assert KEY not in store


def test_functions_that_fail(store: Store) -> None:
    def broken() -> str:
        raise KeyError("no credentials")

    with pytest.raises(SourceFailed, match=r"KeyError.*no credentials"):
        store.fetch(KEY, broken)
    with pytest.raises(SourceFailed, match="a source is a URL"):
        store.fetch(KEY, lambda: 5)  # type: ignore[arg-type]
    [source] = as_sources(broken)
    with pytest.raises(SourceError, match="broken"):
        source.open()

    async def asynchronous() -> str:
        return "a"

    for wrong in (asynchronous, str):
        with pytest.raises(TypeError, match="a function that returns a URL"):
            as_sources(wrong)  # type: ignore[arg-type]


def test_a_path_and_another_source(tmp_path: Path, store: Store) -> None:
    (tmp_path / "a").write_bytes(DATA)
    paths = itertools.cycle([tmp_path / "none", tmp_path / "a"])
    assert Path(store.fetch(KEY, [lambda: next(paths), lambda: tmp_path / "a"])).exists()


def test_two_functions_are_two_sources(signer: Signer, origin: Origin) -> None:
    other = Signer(origin)
    assert fingerprint(signer) != fingerprint(other)
    assert fingerprint(as_sources(signer)[0]) == fingerprint(signer)
    assert fingerprints([signer, other]) == [fingerprint(signer), fingerprint(other)]


# netrc


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(path))
    return path


def test_a_password_of_the_netrc_file(netrc: Path, origin: Origin, store: Store) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    store.fetch(KEY, url)
    [request] = origin.requests("/blob")
    assert request.headers["authorization"] == "Basic bWU6c2VjcmV0"  # me:secret
    for source in (
        HTTPSource(url, netrc=False),
        HTTPSource(url, headers={"Authorization": "Bearer x"}),
        HTTPSource(url, auth="x"),
        HTTPSource(url.replace("http://", "http://u:p@")),
    ):
        source.describe()
    asked = [each.headers.get("authorization") for each in origin.requests("/blob")[1:]]
    assert asked == [None, "Bearer x", "Bearer x", "Basic dTpw"]
    netrc.write_text("machine example.org login me password secret\n")
    HTTPSource(url).describe()
    assert "authorization" not in origin.requests("/blob")[-1].headers


def test_a_netrc_file_with_an_error(
    netrc: Path, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    netrc.write_text("machine 127.0.0.1 nonsense\n")
    url = origin.serve("/blob", seed=1, size=MIB)
    HTTPSource(url).describe()
    assert "is not used" in caplog.text
    assert "authorization" not in origin.requests("/blob")[-1].headers


def test_a_home_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: Origin
) -> None:
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    url = origin.serve("/blob", seed=1, size=MIB)
    HTTPSource(url).describe()
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    HTTPSource(url).describe()
    asked = ["authorization" in each.headers for each in origin.requests("/blob")]
    assert asked == [False, True]
