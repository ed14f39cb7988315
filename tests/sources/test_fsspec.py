"""Sources on the file systems of fsspec."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from shmstream.errors import SourceError
from shmstream.sources.fsspec import FsspecSource
from tests.support.feeds import BLOB, OTHER, SIZE, everything, fails_to_open, fails_to_read, read
from tests.support.roles import content


@pytest.fixture
def memory() -> Iterator[AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe("/blob", BLOB)
    yield system
    system.rm("/blob")


def test_fsspec_in_memory(memory: AbstractFileSystem) -> None:
    source = FsspecSource("memory://blob")
    feed = source.open()
    assert (feed.offset, feed.size) == (0, SIZE)
    assert feed.validator is not None
    assert everything(feed) == BLOB
    assert read(source, 1000, feed.validator) == BLOB[1000:]
    memory.pipe("/blob", OTHER)
    again = source.open(1000, feed.validator)
    assert again.offset == 0
    next(again.data)
    memory.pipe("/blob", BLOB)
    with pytest.raises(SourceError, match="changed while it was read"):
        everything(again)


def test_fsspec_on_files(path: Path, tmp_path: Path) -> None:
    source = FsspecSource(f"file://{path}")
    feed = source.open()
    assert everything(feed) == BLOB
    assert read(source, 1000, feed.validator) == BLOB[1000:]
    assert read(source, SIZE) == b""
    os.utime(path, (1, 1))
    assert read(source, 1000, feed.validator) == BLOB
    assert "there is no such file: /gone" in fails_to_open(FsspecSource("memory://gone")).reason
    for mistake in (f"file://{tmp_path}/nothing", f"file://{tmp_path}", "nosuch://a"):
        assert not fails_to_open(FsspecSource(mistake)).retryable


def test_fsspec_chains(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("blob", BLOB)
    source = FsspecSource(f"zip://blob::file://{tmp_path}/a.zip", skip_instance_cache=True)
    with source.open() as feed:
        assert feed.size == SIZE
    assert read(source) == BLOB
    assert read(source, 1000, feed.validator) == BLOB[1000:]
    fsspec.filesystem("zip", fo=str(tmp_path / "a.zip"), skip_instance_cache=True).close()


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        self.fs.asked.append((start, end))
        if self.fs.fails_at is not None and start >= self.fs.fails_at:
            raise ConnectionResetError("the store went away")
        return bytes(self.fs.data[start:end])


class RemoteFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """A store that gives ranges, as cloud stores do."""

    protocol = "remote"
    data = content(3, 10_000_000)
    etag = '"a"'
    fails_at: int | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[tuple[int, int]] = []
        self.known: dict[str, dict[str, Any]] = {}

    def invalidate_cache(self, path: str | None = None) -> None:
        self.known.pop(path or "", None)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:  # noqa: ARG002
        facts = {"name": path, "type": "file", "size": len(self.data), "ETag": self.etag}
        return self.known.setdefault(path, facts)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> RemoteFile:
        return RemoteFile(self, path, mode, **kwargs)


@pytest.fixture
def store() -> RemoteFileSystem:
    fsspec.register_implementation("remote", RemoteFileSystem, clobber=True)
    RemoteFileSystem.clear_instance_cache()
    store = fsspec.filesystem("remote")
    assert isinstance(store, RemoteFileSystem)
    return store


def test_fsspec_asks_for_each_byte_once_and_never_for_all(store: RemoteFileSystem) -> None:
    feed = FsspecSource("remote://blob").open(1_000_000, '"a"')
    assert feed.validator == '"a"'
    assert everything(feed) == store.data[1_000_000:]
    starts = [start for start, _ in store.asked]
    assert starts == [1_000_000, 1_000_000 + (4 << 20), 1_000_000 + (8 << 20)]
    assert [end for _, end in store.asked] == [*starts[1:], 10_000_000]


def test_fsspec_that_cannot_seek_though_it_says_so(
    store: RemoteFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seek(*_: object) -> None:
        raise ValueError("no ranges here")

    monkeypatch.setattr(RemoteFile, "seek", seek)
    feed = FsspecSource("remote://blob").open(1000, '"a"')
    assert feed.offset == 0
    assert everything(feed) == store.data


def test_fsspec_that_fails_or_changes(store: RemoteFileSystem) -> None:
    source = FsspecSource("remote://blob")
    with source.open() as feed:
        next(feed.data)
        store.etag = '"b"'
        with pytest.raises(SourceError, match="changed while it was read"):
            everything(feed)
    assert source.open(5, '"a"').offset == 0
    assert source.open(5, '"b"').offset == 5
    store.fails_at = 5_000_000
    got, error = fails_to_read(source.open())
    assert error.retryable
    assert len(got) == 8 << 20
