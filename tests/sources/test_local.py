"""Paths, file objects and iterables as sources."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shmstream.errors import SourceError
from shmstream.sources.local import FileSource, IterableSource, PathSource
from tests.support.feeds import BLOB, OTHER, SIZE, everything, fails_to_open, fails_to_read, read
from tests.support.interpreters import Interpreter, Link

if TYPE_CHECKING:
    from typing_extensions import Buffer


Start = Callable[..., Interpreter]


def test_a_path(path: Path) -> None:
    source = PathSource(path)
    feed = source.open()
    assert (feed.offset, feed.size, feed.media_type) == (0, SIZE, None)
    assert everything(feed) == BLOB
    assert read(source, 1000, feed.validator) == BLOB[1000:]
    assert read(source, SIZE) == b""
    assert read(source, SIZE + 1) == BLOB
    with pytest.raises(ValueError):
        source.open(-1)
    path.write_bytes(OTHER)
    os.utime(path, (1, 1))
    again = source.open(1000, feed.validator)
    assert again.offset == 0
    assert again.validator != feed.validator
    assert everything(again) == OTHER


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_a_path_that_changes_while_it_is_read(path: Path, change: str) -> None:
    feed = PathSource(path).open()
    next(feed.data)
    if change == "rewrite":
        os.utime(path, (1, 1))
    else:
        os.truncate(path, SIZE + 1 if change == "grow" else SIZE - 1)
    with feed, pytest.raises(SourceError) as caught:
        for _ in feed:
            pass
    assert caught.value.retryable


def test_a_path_that_is_no_file(tmp_path: Path, path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", ".", "nothing", "source/x", "a" * 300, "a\0b"):
        assert not fails_to_open(PathSource(tmp_path / name)).retryable
    assert not fails_to_open(PathSource("/dev/zero")).retryable
    (tmp_path / "link").symlink_to(path)
    assert read(PathSource(str(tmp_path / "link"))) == BLOB


def test_a_path_without_permission(path: Path, start: Start) -> None:
    path.chmod(0)
    if os.geteuid() == 0:
        path.parent.chmod(0o700)
        client = start(open_as_nobody, str(path))
        assert client.hear() == [False, "Permission denied"]
        client.finish()
    else:
        assert not fails_to_open(PathSource(path)).retryable


def open_as_nobody(link: Link, path: str) -> None:
    os.setuid(65534)
    try:
        PathSource(path).open()
    except SourceError as error:
        link.say([error.retryable, error.reason])


def test_a_file_object_begins_where_it_stands(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(100)
        source = FileSource(file)
        assert source.name == str(path)
        feed = source.open()
        assert feed.size == SIZE - 100
        assert everything(feed) == BLOB[100:]
        assert read(source, 50, feed.validator) == BLOB[150:]
        assert read(source) == BLOB[100:]
        os.utime(path, (1, 1))
        assert read(source, 50, feed.validator) == BLOB[100:]
        assert not file.closed


def test_file_objects_that_can_seek(path: Path) -> None:
    packed = io.BytesIO(gzip.compress(BLOB))
    unbuffered = path.open("rb", buffering=0)
    with (
        unbuffered,
        tempfile.NamedTemporaryFile() as named,
        gzip.GzipFile(fileobj=packed) as zipped,
    ):
        named.write(BLOB)
        named.seek(0)
        for file in (unbuffered, named, zipped, io.BytesIO(BLOB)):
            source = FileSource(file)  # type: ignore[arg-type]
            with source.open() as feed:
                next(feed.data)
            assert feed.size == (None if file is zipped else SIZE)
            assert read(source, 1000, feed.validator) == BLOB[1000:]
            assert read(source) == BLOB


def test_readers_of_one_regular_file_do_not_move_each_other(path: Path) -> None:
    """A file object in two threads, or in two processes after a fork, which share a position."""
    with path.open("rb") as file, open(os.dup(file.fileno()), "rb") as forked:
        feeds = [FileSource(each).open() for each in (file, file, forked)]
        found = [bytes(next(feed.data)) for feed in feeds]
        assert [first + everything(feed) for first, feed in zip(found, feeds, strict=True)] == [
            BLOB, BLOB, BLOB,
        ]  # fmt: skip


def test_a_file_object_that_cannot_seek() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        with os.fdopen(writer, "wb") as out:
            out.write(b"some bytes")
        source = FileSource(file)
        feed = source.open(5)
        assert (feed.offset, feed.size) == (0, None)
        assert everything(feed) == b"some bytes"
        error = fails_to_open(source)
    assert not error.retryable
    assert "only once" in error.reason


def test_a_file_object_that_fails(path: Path) -> None:
    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    _, error = fails_to_read(FileSource(Failing()).open())  # type: ignore[arg-type]
    assert not error.retryable  # it can be read only once
    with path.open("rb") as file:
        source = FileSource(file)
    assert not fails_to_open(source).retryable


def test_an_iterable() -> None:
    pieces: list[Buffer] = [b"some ", bytearray(b"bytes"), memoryview(b"!")]
    source = IterableSource(iter(pieces))
    feed = source.open(3)
    assert (feed.offset, feed.size, feed.validator) == (0, None, None)
    assert everything(feed) == b"some bytes!"
    assert "only once" in fails_to_open(source).reason

    def failing() -> Iterator[bytes]:
        yield b"some"
        raise RuntimeError("no more")

    got, error = fails_to_read(IterableSource(failing()).open())
    assert (got, error.reason, error.retryable) == (b"some", "no more", False)
    with pytest.raises(SourceError, match="gives str, not bytes"):
        everything(IterableSource(["text"]).open())  # type: ignore[list-item]
