"""Reads the feeds of sources in tests, in the way that the test asks for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from shmstream.errors import SourceError, escaped
from shmstream.sources import http_body
from shmstream.sources.base import Feed, KernelFeed, Source
from tests.support.roles import content

if TYPE_CHECKING:
    from typing_extensions import Buffer


SIZE = 300_000
BLOB = content(1, SIZE)
OTHER = content(2, SIZE)


_way = "by hand"


def use(way: str) -> None:
    """From now on read feeds `by hand`, `by kernel` or `by kernel, no pipe`.

    A feed that the kernel cannot move is read by hand in any case.
    """
    global _way
    _way = way


def given(feed: Feed) -> Iterator[Buffer]:
    """The buffers of `feed`, read in the current way."""
    by_kernel = None if _way == "by hand" else feed.by_kernel
    return feed.data if by_kernel is None else _moved(by_kernel)


def _moved(feed: KernelFeed) -> Iterator[Buffer]:
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        if _way != "by kernel":
            patch.setattr(http_body._Pipe, "make", lambda: None)
        fd = file.fileno()
        while feed.wait(0, 1):
            count = feed.move(fd, 65536)
            yield os.pread(fd, count, os.lseek(fd, 0, os.SEEK_CUR) - count)


def everything(feed: Feed) -> bytes:
    with feed:
        return b"".join(bytes(data) for data in given(feed))


def read(source: Source, offset: int = 0, validator: str | None = None) -> bytes:
    return everything(source.open(offset, validator))


def fails_to_open(source: Source, offset: int = 0, validator: str | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        source.open(offset, validator).close()
    assert caught.value.offset == offset
    assert caught.value.source == escaped(source.name)
    return caught.value


def fails_to_read(feed: Feed) -> tuple[bytes, SourceError]:
    """The bytes that came before the feed failed, and the error."""
    got = bytearray()
    with feed, pytest.raises(SourceError) as caught:
        for data in given(feed):
            got += data
    assert caught.value.offset == feed.offset + len(got)
    return bytes(got), caught.value


def fails(source: Source) -> tuple[bytes, SourceError]:
    """As `fails_to_read`, for a source that may fail to open as well."""
    try:
        feed = source.open()
    except SourceError as error:
        return b"", error
    return fails_to_read(feed)
