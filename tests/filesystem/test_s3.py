"""`shmstream::s3://`, by s3fs, against a local S3 server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
import pytest

from shmstream import SourceError, Store
from shmstream.flight import lanes
from shmstream.sources.fsspec import FsspecSource
from tests.support.filesystems import read_url
from tests.support.interpreters import Interpreter
from tests.support.roles import content, sha256

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto.server", reason="moto is not installed")

from tests.support.s3 import S3, serving  # noqa: E402

Start = Callable[..., Interpreter]
SIZE = 3_000_000


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3]:
    with serving() as s3:
        yield s3


@pytest.fixture
def s3(s3_process: S3, as_found: None) -> Iterator[S3]:  # noqa: ARG001
    yield s3_process
    for system in list(s3fs.S3FileSystem._cache.values()):
        if system._s3creator is not None:
            fsspec.asyn.sync(system.loop, system._s3creator.__aexit__, None, None, None)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def both(options: dict[str, Any], s3: S3) -> dict[str, Any]:
    """Options of both protocols of the chain."""
    return {**options, "s3": s3.options}


def test_processes_read_an_object_once(s3: S3, both: dict[str, Any], start: Start) -> None:
    target = fsspec.filesystem("s3", **s3.options)
    target.mkdir("once")
    target.pipe_file("once/blob", content(1, SIZE))
    readers = [start(read_url, "shmstream::s3://once/blob", both) for _ in range(3)]
    for each in readers:
        each.say("go")
    roles = [each.hear()[1] for each in readers]
    assert [each.hear() for each in readers] == [["read", sha256(content(1, SIZE))]] * 3
    for each in readers:
        each.finish()
    assert roles.count("leads") == 1
    ranges = s3.requests("GET", "/once/blob")
    assert len(ranges) == len(set(ranges))  # no byte comes twice
    assert ranges[0] == "bytes=0-262143"


def test_an_object_that_changes(s3: S3, both: dict[str, Any]) -> None:
    target = fsspec.filesystem("s3", **s3.options)
    target.mkdir("changes")
    target.pipe_file("changes/a", b"old")
    target.pipe_file("changes/b", b"b")
    system, _ = fsspec.url_to_fs("shmstream::s3://changes", **both)
    assert system.glob("shmstream::s3://changes/*") == ["changes/a", "changes/b"]
    assert system.cat("changes/*") == {"changes/a": b"old", "changes/b": b"b"}
    other = fsspec.filesystem("s3", skip_instance_cache=True, **s3.options)
    other.pipe_file("changes/a", b"new")
    assert system.cat_file("changes/a") == b"new"
    assert system.cat_ranges(["changes/a", "changes/b"], [1, 0], [None, None]) == [b"ew", b"b"]
    with system.open("changes/c", "wb") as file:
        file.write(b"written")
    assert system.cat_file("s3://changes/c") == b"written"
    fsspec.asyn.sync(other.loop, other._s3creator.__aexit__, None, None, None)


def test_parts_of_an_object(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is given by ranged requests to its end, and not if the object has changed."""
    target = fsspec.filesystem("s3", **s3.options)
    target.mkdir("parts")
    data = content(1, SIZE)
    target.pipe_file("parts/blob", data)
    source = FsspecSource("s3://parts/blob", **s3.options)
    assert source.connections is None, "what the caller says, or else several if it is large"
    validator = source.describe().validator
    with source.open_part(1000, 2_500_000, validator) as feed:
        assert (feed.offset, feed.end, feed.size) == (1000, 2_500_000, SIZE)
        assert b"".join(feed) == data[1000:2_500_000]
    assert s3.requests("GET", "/parts/blob") == ["bytes=1000-2499999"]
    with source.open_part(2_000_000, SIZE, validator) as feed:
        assert feed.end is None, "it is the rest"
        assert b"".join(feed) == data[2_000_000:]
    # Other connections begin at once, as if the first one were slow.
    monkeypatch.setattr(lanes, "_SLICE", 0.001)
    for name in ("_SOON", "_WORTHWHILE"):
        monkeypatch.setattr(lanes, name, 0.0)
    monkeypatch.setattr(lanes, "_FAST", 1e12)
    key = f"sha256:{sha256(data)}"
    store = Store(tmp_path / "store", connections=3)
    for each in (key, "a name"):
        assert Path(store.fetch(each, source)).read_bytes() == data
    with source.open_part(1000, 2_500_000, validator) as feed:
        target.pipe_file("parts/blob", content(2, SIZE))
        with pytest.raises(SourceError, match=r"changed|no longer exists"):
            b"".join(feed)
    with source.open_part(1000, 2_500_000, validator) as feed:
        assert feed.offset == 0, "it begins anew"
