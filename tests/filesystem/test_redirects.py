"""Redirects inside fsspec's HTTP file system: none from outside to inside, unless allowed."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import fsspec
import pytest

from shmstream import Store
from shmstream.errors import SourceError
from shmstream.sources.fsspec import FsspecSource
from shmstream.sources.fsspec_guard import Guarded, InsideAddress, _connector, _guarded
from tests.support.feeds import BLOB, SIZE, read
from tests.support.origin import Origin

PUBLIC = "http://8.8.8.8"  # the test's proxy answers for it: nothing is asked outside


def redirects(origin: Origin, location: str, path: str = "/redirects", **options: Any) -> Any:
    """A public source that redirects to `location`; the origin answers for it as its proxy."""
    url = f"{PUBLIC}{path}"
    origin.serve(url, status=302, headers={"Location": location})
    return FsspecSource(url, proxy=origin.url(""), **options)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "localhost", "[::1]", "169.254.169.254"]
)
def test_a_redirect_to_the_inside(
    host: str, origin: Origin, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    location = f"http://{host}:81/latest/meta-data"
    origin.serve(location, seed=1, size=SIZE)
    source = redirects(origin, location)
    for use in (source.open, source.describe, lambda: store.fetch("key", source)):
        with pytest.raises(Exception, match="private address"):
            use()
    with pytest.raises(SourceError) as caught:
        source.open()
    assert not caught.value.retryable
    assert not [each for each in origin.requests() if host in each.path]
    monkeypatch.setenv("SHMSTREAM_PRIVATE_REDIRECTS", "1")
    assert read(source) == BLOB
    monkeypatch.setenv("SHMSTREAM_PRIVATE_REDIRECTS", "0")
    assert read(redirects(origin, location, private_redirects=True)) == BLOB


def test_a_redirect_in_several_steps_and_a_relative_one(origin: Origin) -> None:
    inside = origin.url("/blob")
    origin.serve("/blob", seed=1, size=SIZE)
    origin.serve(f"{PUBLIC}:81/second", status=307, headers={"Location": inside})
    origin.serve(f"{PUBLIC}:81/first", status=302, headers={"Location": "second"})
    with pytest.raises(SourceError, match="private address"):
        redirects(origin, f"{PUBLIC}:81/first").open()
    assert origin.requests("/blob") == []


def test_redirects_that_are_allowed(origin: Origin, elsewhere: Origin) -> None:
    location = {"Location": elsewhere.serve("/blob", seed=1, size=SIZE)}
    from_inside = origin.serve("/redirects", status=302, headers=location)
    assert read(FsspecSource(from_inside)) == BLOB
    origin.serve(f"{PUBLIC}:81/blob", seed=1, size=SIZE)
    assert read(redirects(origin, f"{PUBLIC}:81/blob", "/outside")) == BLOB


@pytest.mark.parametrize("url", ["simplecache::{}", "zip://blob::{}"])
def test_a_chain(url: str, origin: Origin) -> None:
    inside = origin.serve("/blob", seed=1, size=SIZE)
    origin.serve(f"{PUBLIC}/redirects", status=302, headers={"Location": inside})
    options = {"proxy": origin.url("")}
    source = FsspecSource(url.format(f"{PUBLIC}/redirects"), http=options)
    with pytest.raises(SourceError, match="private address"):
        source.open()
    assert origin.requests("/blob") == []


def test_the_file_system_of_shmstream(origin: Origin, store: Store) -> None:
    inside = origin.serve("/blob", seed=1, size=SIZE)
    origin.serve(f"{PUBLIC}/redirects", status=302, headers={"Location": inside})
    options = {"target_options": {"proxy": origin.url("")}, "store": store}
    system = fsspec.filesystem("shmstream", target_protocol="http", **options)
    with pytest.raises(Exception, match=r"private address|redirects"):
        system.cat_file(f"{PUBLIC}/redirects")
    assert origin.requests("/blob") == []


def test_a_name_that_has_another_address_by_the_time_of_the_connection() -> None:
    async def main() -> None:
        connector = _connector()
        try:
            assert await connector._resolver.resolve("localhost")
            _guarded.set("localhost")
            with pytest.raises(InsideAddress, match="localhost, which is 127"):
                await connector._resolver.resolve("localhost")
        finally:
            await connector.close()

    asyncio.run(main())


def test_clients_of_the_users_own(origin: Origin) -> None:
    import aiohttp

    made: list[Any] = []

    async def make(**options: Any) -> Any:
        made.append(aiohttp.ClientSession(**options))
        return made[-1]

    inside = origin.serve("/blob", seed=1, size=SIZE)
    with pytest.raises(SourceError, match="private address"):
        redirects(origin, inside, get_client=make).open()
    assert len(made) == 1
    guarded = Guarded()
    assert repr(pickle.loads(pickle.dumps(guarded))) == repr(guarded)
    assert Guarded.around(guarded) is guarded
