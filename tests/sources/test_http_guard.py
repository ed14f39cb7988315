"""Redirects from the outside to the inside: refused before anything is sent, unless allowed."""

from __future__ import annotations

import os

import pytest
import urllib3

from shmstream.errors import SourceError
from shmstream.sources.addresses import is_host_inside, is_inside
from shmstream.sources.http import HTTPSource
from shmstream.sources.http_client import Client, parse
from tests.support.feeds import BLOB, SIZE, read
from tests.support.origin import Origin

INSIDE = [
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.31.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0",
    "100.64.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "fec0::1", "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe", "2002:7f00:1::", "64:ff9b::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1",
    "198.18.0.1", "240.0.0.1", "127.1", "0x7f000001", "2130706433", "017700000001", "10.1",
]  # fmt: skip
OUTSIDE = [
    "8.8.8.8", "8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "name",
]  # fmt: skip
PUBLIC = "http://8.8.8.8"  # the test's proxy answers for it: nothing is asked outside


def test_which_addresses_are_inside() -> None:
    assert [each for each in INSIDE if not is_inside(each)] == []
    assert [each for each in OUTSIDE if is_inside(each)] == []
    assert is_host_inside("127.0.0.1")
    assert is_host_inside("[::1]")
    assert not is_host_inside("no-such-name.invalid")


def redirects(origin: Origin, monkeypatch: pytest.MonkeyPatch, location: str) -> HTTPSource:
    """A public source that redirects to `location`; the origin answers for it as its proxy."""
    monkeypatch.setenv("http_proxy", origin.url(""))
    path = f"{PUBLIC}/redirects"
    origin.serve(path, status=302, headers={"Location": location})
    return HTTPSource(path)


@pytest.mark.parametrize(
    ("host", "proxied"),
    [
        ("127.0.0.1", False),
        ("2130706433", False),
        ("localhost", True),
        ("2130706433", True),
        ("[::ffff:127.0.0.1]", True),
    ],
)
def test_a_redirect_to_the_inside(
    host: str,
    proxied: bool,
    origin: Origin,
    elsewhere: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere.serve("/blob", seed=1, size=SIZE)
    location = elsewhere.url("/blob", host)
    source = redirects(origin, monkeypatch, location)
    if proxied:
        origin.serve(location, seed=1, size=SIZE)
    else:
        monkeypatch.setenv("no_proxy", host)
    with pytest.raises(SourceError, match="private address") as caught:
        source.open()
    assert not caught.value.retryable
    assert elsewhere.requests() == []
    monkeypatch.setenv("SHMSTREAM_PRIVATE_REDIRECTS", "1")
    assert read(source) == BLOB
    monkeypatch.setenv("SHMSTREAM_PRIVATE_REDIRECTS", "0")
    allowed = HTTPSource(f"{PUBLIC}/redirects", private_redirects=True)
    assert read(allowed) == BLOB


def test_a_redirect_from_the_inside(origin: Origin, elsewhere: Origin) -> None:
    elsewhere.serve("/blob", seed=1, size=SIZE)
    location = {"Location": elsewhere.url("/blob")}
    assert read(HTTPSource(origin.serve("/redirects", status=302, headers=location))) == BLOB


def test_a_redirect_to_the_outside(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.serve(f"{PUBLIC}:81/blob", seed=1, size=SIZE)
    assert read(redirects(origin, monkeypatch, f"{PUBLIC}:81/blob")) == BLOB


def test_a_pool_of_the_users_own(
    origin: Origin, elsewhere: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    redirects(origin, monkeypatch, elsewhere.url("/blob"))
    with urllib3.ProxyManager(os.environ["http_proxy"]) as pool:
        with pytest.raises(SourceError, match="private address"):
            HTTPSource(f"{PUBLIC}/redirects", pool=pool).open()


def test_what_a_server_names_is_as_a_redirect(elsewhere: Origin) -> None:
    """Such as the realm where a registry says that tokens are to be had."""
    url = parse(elsewhere.serve("/token", text="{}"))
    for outside in (None, parse("http://127.0.0.1:1/")):
        client = Client("realm", named_by=outside)
        assert client.read(client.ask("GET", url, {}), 10) == b"{}"
    with pytest.raises(SourceError, match="private address"):
        Client("realm", named_by=parse(PUBLIC)).ask("GET", url, {})
