"""Sources: whatever an origin does, a feed gives the blob's bytes or says what went wrong."""

from __future__ import annotations

import errno
import gzip
import io
import mmap
import os
import pickle
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

import fsspec
import psutil
import pytest
import urllib3
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from shmstream.errors import SourceError
from shmstream.sources import http_body, http_client
from shmstream.sources.base import Feed, KernelFeed, Source, public
from shmstream.sources.fsspec import FsspecSource
from shmstream.sources.http import HTTPSource, close_pools
from shmstream.sources.local import FileSource, IterableSource, PathSource
from shmstream.sources.select import as_sources
from tests.support.interpreters import PATIENCE, Interpreter, Link, wait_until
from tests.support.nginx import Nginx
from tests.support.origin import Origin
from tests.support.roles import content, sha256

if TYPE_CHECKING:
    from typing_extensions import Buffer

SIZE = 300_000
BLOB = content(1, SIZE)
OTHER = content(2, SIZE)
OLD = "Mon, 02 Jan 2023 03:04:05 GMT"
Start = Callable[..., Interpreter]


_way = "by hand"


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How what an origin gives is taken."""
    global _way
    _way = getattr(request, "param", "by hand")
    yield _way
    _way = "by hand"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever has an origin is tried in all ways."""
    if {"origin", "tls_origin", "nginx"} & set(metafunc.fixturenames):
        metafunc.parametrize("way", ["by hand", "by kernel", "by kernel, no pipe"], indirect=True)


def given(feed: Feed) -> Iterator[Buffer]:
    """What it gives, piece by piece, in the way that is tried; by hand where there is no other."""
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
    assert caught.value.source == source.name
    return caught.value


def fails_to_read(feed: Feed) -> tuple[bytes, SourceError]:
    """What came before it failed; every byte counts."""
    got = bytearray()
    with feed, pytest.raises(SourceError) as caught:
        for data in given(feed):
            got += data
    assert caught.value.offset == feed.offset + len(got)
    return bytes(got), caught.value


def fails(source: Source) -> tuple[bytes, SourceError]:
    """Whether to open or to read."""
    try:
        feed = source.open()
    except SourceError as error:
        return b"", error
    return fails_to_read(feed)


# HTTP: the blob.


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_the_whole_blob(origin: Origin, framing: str) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, framing=framing, media_type="image/png")
    feed = HTTPSource(url).open()
    assert feed.offset == 0
    assert feed.size == (SIZE if framing == "length" else None)
    assert feed.validator == '"1-300000"'
    assert feed.media_type == "image/png"
    assert everything(feed) == BLOB
    (request,) = origin.requests()
    assert request.headers["accept-encoding"] == "identity"
    assert request.range is None


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_an_empty_blob(origin: Origin, framing: str) -> None:
    assert read(HTTPSource(origin.serve("/blob", framing=framing))) == b""


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_bytes_are_given_as_they_come(origin: Origin, framing: str) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, framing=framing, stall_after=1000)
    with HTTPSource(url).open() as feed:
        early = bytearray()
        for data in given(feed):
            early += data
            if len(early) == 1000:
                origin.release()
        assert early == BLOB


def test_a_throttled_origin(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, rate=2_000_000)
    with HTTPSource(url).open() as feed:
        assert len([len(memoryview(data)) for data in given(feed)]) > 5


def test_connections_are_used_again(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.serve("/redirect", status=302, headers={"Location": "/blob"})
    for _ in range(2):
        assert read(HTTPSource(url)) == BLOB
    assert read(HTTPSource(origin.url("/redirect"))) == BLOB
    fails_to_open(HTTPSource(origin.url("/nothing")))
    assert len({request.connection for request in origin.requests()}) == 1
    close_pools()
    assert read(HTTPSource(url)) == BLOB
    assert len({request.connection for request in origin.requests()}) == 2


def test_a_pool_of_the_users_own(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    with urllib3.PoolManager(headers={"X-Unused": "1"}) as pool:
        assert read(HTTPSource(url, pool=pool)) == BLOB
        assert len(pool.pools) == 1


@pytest.mark.timeout(20)
def test_a_pool_that_is_bounded_has_every_connection_back(origin: Origin) -> None:
    """Who asks it for one more than it has waits for ever."""
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=1000)
    origin.serve("/refused", seed=1, size=SIZE, headers={"Content-Encoding": "gzip"})
    with urllib3.PoolManager(maxsize=1, block=True) as pool:
        for _ in range(2):
            with HTTPSource(url, pool=pool).open() as feed:
                next(given(feed))
            fails_to_open(HTTPSource(origin.url("/refused"), pool=pool))
        origin.change("/blob", stall_after=None)
        assert read(HTTPSource(url, pool=pool)) == BLOB


# HTTP: resuming.


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_resuming(origin: Origin, framing: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, framing=framing))
    feed = source.open(1000, '"1-300000"')
    assert (feed.offset, feed.size, feed.validator) == (1000, SIZE, '"1-300000"')
    assert everything(feed) == BLOB[1000:]
    (request,) = origin.wait("/blob", lambda requests: requests[0].over)
    assert (request.status, request.sent) == (206, SIZE - 1000)
    assert request.range == "bytes=1000-"
    assert request.headers["if-range"] == '"1-300000"'


def test_resuming_without_a_validator_asks_for_the_range_alone(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, etag=None))
    with source.open() as feed:
        assert feed.validator is None
    assert read(source, 5) == BLOB[5:]
    assert "if-range" not in origin.requests()[-1].headers


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_the_validator_is_a_date_where_there_is_no_strong_tag(
    origin: Origin, etag: str | None
) -> None:
    source = HTTPSource(
        origin.serve("/blob", seed=1, size=SIZE, etag=etag, last_modified=OLD, media_type=None)
    )
    with source.open() as feed:
        assert feed.validator == OLD
        assert feed.media_type is None
    assert read(source, 7, OLD) == BLOB[7:]
    assert origin.requests()[-1].headers["if-range"] == OLD


def test_a_date_of_this_very_second_is_no_validator(origin: Origin) -> None:
    later = "Fri, 01 Jan 2100 00:00:00 GMT"
    source = HTTPSource(origin.serve("/blob", size=10, etag=None, last_modified=later))
    with source.open() as feed:
        assert feed.validator is None


def test_other_content_by_now_begins_at_0(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    origin.change("/blob", first=1, seed=2)
    with source.open() as first:
        before = first.validator
    feed = source.open(1000, before)
    assert feed.offset == 0
    assert feed.validator != before
    assert everything(feed) == OTHER
    assert [request.status for request in origin.requests()] == [200, 200]


@pytest.mark.parametrize("tagged", [True, False])
def test_other_content_by_now_from_an_origin_that_ignores_if_range(
    origin: Origin, tagged: bool
) -> None:
    facts = {} if tagged else {"etag": None, "last_modified": OLD}
    source = HTTPSource(origin.serve("/blob", seed=2, size=SIZE, if_range=False, **facts))
    other = '"1-300000"' if tagged else "Sun, 01 Jan 2023 03:04:05 GMT"
    feed = source.open(1000, other)
    assert feed.offset == 0
    assert everything(feed) == OTHER
    assert [request.status for request in origin.requests()] == [206, 200]


@pytest.mark.parametrize("validator", ["1700000000-300000-12", "a\r\nX: b", '"\r\n', ""])
def test_a_validator_of_another_source_begins_at_0(origin: Origin, validator: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    assert read(source, 1000, validator) == BLOB
    assert origin.requests()[0].range is None


def test_a_part_of_nobody_knows_what_begins_at_0(origin: Origin) -> None:
    """A server that knows ranges, not If-Range, and does not say whose bytes they are."""
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, last_modified=OLD))
    origin.change("/blob", etag=None, if_range=False)
    with source.open(1000, '"1-300000"') as feed:
        assert feed.offset == 0


def test_an_origin_without_ranges_begins_at_0(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, ranges=False))
    feed = source.open(1000, '"1-300000"')
    assert (feed.offset, feed.size) == (0, SIZE)
    assert everything(feed) == BLOB


def test_nothing_left_is_an_empty_feed(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    feed = source.open(SIZE, '"1-300000"')
    assert (feed.offset, feed.size, feed.validator) == (SIZE, SIZE, '"1-300000"')
    assert everything(feed) == b""
    assert origin.requests()[0].status == 416


def test_an_offset_behind_the_end_begins_at_0(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    feed = source.open(SIZE + 1)
    assert feed.offset == 0
    assert everything(feed) == BLOB


@pytest.mark.parametrize(
    "told", ["bytes 0-299999/300000", "bytes 999-299999/300000", "bytes 1000-299999/*", "1000"]
)
def test_a_range_that_was_not_asked_for(origin: Origin, told: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, content_range=told))
    error = fails_to_open(source, 1000)
    assert not error.retryable
    assert told in error.reason


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_part_of_the_range_is_not_the_end_of_the_blob(origin: Origin, framing: str) -> None:
    told = "bytes 1000-1999/300000"
    source = HTTPSource(
        origin.serve("/blob", seed=1, size=2000, framing=framing, content_range=told)
    )
    got, error = fails_to_read(source.open(1000))
    assert got == content(1, 2000)[1000:]
    assert error.retryable


def test_more_than_the_range(origin: Origin) -> None:
    told = "bytes 1000-1999/2000"
    source = HTTPSource(
        origin.serve("/blob", seed=1, size=SIZE, framing="chunked", content_range=told)
    )
    with source.open(1000) as feed, pytest.raises(SourceError, match="more than its 2000"):
        for _ in given(feed):
            pass


# HTTP: what goes wrong.


@pytest.mark.parametrize("fault", ["reset_after", "close_after"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("after", [0, 1, 100_000, SIZE - 1])
def test_an_answer_that_is_cut_off(origin: Origin, fault: str, framing: str, after: int) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, framing=framing)
    origin.change("/blob", count=1, **{fault: after})
    source = HTTPSource(url)
    got, error = fails(source)
    assert error.retryable
    assert BLOB.startswith(got)
    if fault == "close_after":
        assert len(got) == after
    else:
        assert len(got) <= after  # a kernel that hears of a reset throws away what it has
    assert read(source) == BLOB


@pytest.mark.parametrize("fault", ["reset_after", "close_after"])
def test_a_connection_that_ends_before_the_answer(origin: Origin, fault: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    origin.change("/blob", count=1, **{fault: -1})
    assert fails_to_open(source).retryable
    assert read(source) == BLOB


def test_a_reset_of_what_ends_with_its_connection(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, framing="close", reset_after=SIZE)
    _, error = fails_to_read(HTTPSource(url).open())
    assert error.retryable


def test_a_length_that_is_too_long(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, content_length="300001", close_after=SIZE)
    got, error = fails_to_read(HTTPSource(url).open())
    assert got == BLOB
    assert error.retryable


@pytest.mark.parametrize("length", ["many", "-1", "300000, 300000", "1e3"])
def test_a_length_that_is_none(origin: Origin, length: str) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, content_length=length)
    assert not fails_to_open(HTTPSource(url)).retryable


def test_bytes_after_the_end(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, extra=10))
    errors = []
    for _ in range(20):
        try:
            assert read(source) == BLOB
        except SourceError as error:
            errors.append(error)  # they came late, and the next answer began with them
    assert all(error.retryable for error in errors)
    assert len(errors) < 10


@pytest.mark.parametrize("after", [-1, 0, 1000])
def test_an_origin_that_stalls(origin: Origin, after: int) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=after)
    source = HTTPSource(url, timeout=(3600, 0.1 if after < 0 else 1))
    if after < 0:
        error = fails_to_open(source)
    else:
        got, error = fails_to_read(source.open())
        assert got == BLOB[:after]
    assert error.retryable
    assert "no answer in time" in error.reason
    origin.wait("/blob", lambda requests: requests[0].over)  # the connection was dropped


def test_no_connection_in_time(direct: None) -> None:  # noqa: ARG001
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for client in (first, second):  # nobody accepts: the next one gets no answer
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        source = HTTPSource(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout=(0.1, 3600))
        error = fails_to_open(source)
    assert error.retryable
    assert "no answer in time" in error.reason


def test_a_stall_that_passes(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=1000, stall_for=0.1)
    assert read(HTTPSource(url)) == BLOB


@pytest.mark.timeout(20)
@pytest.mark.parametrize("after", [0, 1000, SIZE - 1])
def test_a_byte_out_of_band_is_none_of_the_body(origin: Origin, after: int) -> None:
    """The kernel moves nothing past it, and calls what is behind it readable all the time."""
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=500, urgent_after=after)
    with HTTPSource(url).open() as feed:
        got = bytearray()
        for data in given(feed):
            got += data
            origin.release()
        assert got == BLOB


def test_an_origin_that_is_away_for_a_while(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, stall_after=1000))
    feed = source.open()
    next(given(feed))
    origin.refuse()
    with feed, pytest.raises(SourceError) as caught:
        for _ in given(feed):
            pass
    assert caught.value.retryable
    error = fails_to_open(source, 1000)
    assert error.retryable
    assert "Connection refused" in error.reason
    origin.accept()
    origin.change("/blob", stall_after=None)
    assert read(source, 1000) == BLOB[1000:]


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 407, 410, 418])
def test_an_answer_that_stays_no(origin: Origin, status: int) -> None:
    error = fails_to_open(HTTPSource(origin.serve("/blob", status=status)))
    assert not error.retryable
    assert str(status) in error.reason


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_may_pass(origin: Origin, status: int) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    origin.change("/blob", count=2, status=status, headers={"Retry-After": "7"})
    for _ in range(2):
        error = fails_to_open(source)
        assert error.retryable
        assert error.retry_after == 7
    assert read(source) == BLOB


def test_retry_after_is_a_date_or_unknown(origin: Origin) -> None:
    for told, least, most in (
        ("Fri, 01 Jan 2100 00:00:00 GMT", 1e9, 1e10),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
    ):
        source = HTTPSource(origin.serve("/", status=503, headers={"Retry-After": told}))
        assert least <= (fails_to_open(source).retry_after or 0) <= most
    for told in ("soon", "-1", "", "99 Nov"):
        source = HTTPSource(origin.serve("/", status=503, headers={"Retry-After": told}))
        assert fails_to_open(source).retry_after is None
    assert fails_to_open(HTTPSource(origin.serve("/", status=503))).retry_after is None


@pytest.mark.parametrize(
    "headers", [{"Content-Encoding": "gzip"}, {"Transfer-Encoding": "gzip, chunked"}]
)
def test_an_encoded_body_is_refused(origin: Origin, headers: dict[str, str]) -> None:
    error = fails_to_open(HTTPSource(origin.serve("/blob", size=10, headers=headers)))
    assert not error.retryable
    assert "gzip" in error.reason


def test_wrong_bytes_are_given_as_they_are(origin: Origin) -> None:
    got = read(HTTPSource(origin.serve("/blob", seed=1, size=SIZE, wrong_at=12345)))
    assert [at for at in range(SIZE) if got[at] != BLOB[at]] == [12345]


def test_a_name_that_does_not_resolve(direct: None) -> None:  # noqa: ARG001
    error = fails_to_open(HTTPSource("http://shmstream.invalid/blob"))
    assert error.retryable
    assert "cannot be resolved" in error.reason


def test_an_error_survives_pickling(origin: Origin) -> None:
    error = fails_to_open(HTTPSource(origin.serve("/", status=503, headers={"Retry-After": "1"})))
    assert pickle.loads(pickle.dumps(error)).facts == error.facts


# HTTP: closing.


def test_closing_in_the_middle_drops_the_connection(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, stall_after=1000))
    with source.open() as feed:
        next(given(feed))
    feed.close()
    origin.wait("/blob", lambda requests: requests[0].over)
    with pytest.raises(SourceError, match="closed"):
        next(given(feed))
    origin.change("/blob", stall_after=None)
    assert read(source) == BLOB
    assert len({request.connection for request in origin.requests()}) == 2


def test_a_feed_that_is_not_closed_warns(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=1000)
    with pytest.warns(ResourceWarning, match="not closed"):
        next(given(HTTPSource(url).open()))


@pytest.mark.parametrize("tls", [False, True])
def test_closing_ends_the_wait_of_another_thread(
    tls: bool, origin: Origin, tls_origin: Origin, tls_certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    server = tls_origin if tls else origin
    feed = HTTPSource(server.serve("/blob", seed=1, size=SIZE, stall_after=1000)).open()
    got = bytearray()
    errors: list[BaseException] = []

    def read_on() -> None:
        try:
            for data in given(feed):
                got.extend(bytes(data))
        except SourceError as error:
            errors.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    wait_until(lambda: len(got) == 1000)
    feed.close()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert [type(error) for error in errors] == [SourceError]
    assert got == BLOB[:1000]
    server.wait("/blob", lambda requests: requests[0].over)


def test_a_feed_that_was_read_to_its_end_leaves_its_connection_to_others(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    first = HTTPSource(url).open()
    assert b"".join(bytes(data) for data in given(first)) == BLOB
    with HTTPSource(url).open() as second:
        first.close()
        assert everything(second) == BLOB
    assert len({request.connection for request in origin.requests()}) == 1


# HTTP: through the kernel.


def test_what_cannot_go_through_the_kernel(
    origin: Origin, tls_origin: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    for url in (
        origin.serve("/chunked", seed=1, size=SIZE, framing="chunked"),
        origin.serve("/close", seed=1, size=SIZE, framing="close"),
        tls_origin.serve("/tls", seed=1, size=SIZE),
    ):
        with HTTPSource(url).open() as feed:
            assert feed.by_kernel is None


def test_bytes_gather_until_it_is_time_or_there_are_enough(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, stall_after=100_000))
    with source.open() as feed, tempfile.TemporaryFile() as file:
        kernel, fd = feed.by_kernel, file.fileno()
        assert kernel is not None

        def until(goal: int, gather: float, enough: int) -> None:
            while os.fstat(fd).st_size < goal:
                assert kernel.wait(gather, enough)
                kernel.move(fd, SIZE)

        until(100_000, 0, 1)
        began = time.monotonic()
        assert kernel.wait(0.2, 50_000)
        assert time.monotonic() - began >= 0.2
        assert kernel.move(fd, SIZE) == 0, "there was nothing"
        origin.release()
        assert kernel.wait(PATIENCE, 100_000)
        assert kernel.move(fd, SIZE) >= 100_000
        until(SIZE, PATIENCE, SIZE)  # more than there will be
        assert not kernel.wait(0, 1)
        assert os.pread(fd, SIZE + 1, 0) == BLOB
    origin.change("/blob", stall_after=None)
    assert read(source) == BLOB, "and the connection waits for single bytes again"
    assert len({request.connection for request in origin.requests()}) == 1


def test_a_stall_while_bytes_may_gather_is_one(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=1000)
    with HTTPSource(url, timeout=(3600, 1)).open() as feed, tempfile.TemporaryFile() as file:
        kernel = feed.by_kernel
        assert kernel is not None
        assert kernel.wait(0, 1)
        while os.fstat(file.fileno()).st_size < 1000:
            kernel.move(file.fileno(), SIZE)
        with pytest.raises(SourceError, match="no answer in time"):
            kernel.wait(3600, SIZE)


def test_patience_without_end(origin: Origin) -> None:
    """More milliseconds than `poll` can wait for."""
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE), timeout=(60, 1e7))
    assert read(source) == BLOB


def test_looking_waits_for_nothing_whatever_sockets_do_by_default(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_body._Pipe, "make", lambda: None)
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=1000)
    socket.setdefaulttimeout(3600)
    try:
        with HTTPSource(url).open() as feed, tempfile.TemporaryFile() as file:
            kernel, fd = feed.by_kernel, file.fileno()
            assert kernel is not None
            while os.fstat(fd).st_size < 1000:
                assert kernel.wait(0, 1)
                kernel.move(fd, SIZE)
            assert kernel.wait(0.01, 1)
            assert kernel.move(fd, SIZE) == 0
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENOSYS])
def test_a_connection_that_gives_nothing_to_a_pipe(
    number: int, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another kind; or whoever watches over this process does not let it."""

    def refuse(*_args: Any, **_named: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "splice", refuse)
    assert read(HTTPSource(origin.serve("/blob", seed=1, size=SIZE))) == BLOB


def test_a_file_that_takes_nothing_from_a_pipe(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    splice = os.splice

    def refuse(source: int, destination: int, *args: Any, **named: Any) -> int:
        if stat.S_ISREG(os.fstat(destination).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return splice(source, destination, *args, **named)

    monkeypatch.setattr(os, "splice", refuse)
    assert read(HTTPSource(origin.serve("/blob", seed=1, size=SIZE))) == BLOB


def test_a_file_that_fails_is_no_fault_of_the_source(origin: Origin) -> None:
    with (
        HTTPSource(origin.serve("/blob", seed=1, size=SIZE)).open() as feed,
        open("/dev/full", "wb", buffering=0) as full,
    ):
        kernel = feed.by_kernel
        assert kernel is not None
        assert kernel.wait(0, 1)
        with pytest.raises(OSError, match="No space left"):
            kernel.move(full.fileno(), SIZE)


# HTTP: who may see what.

SECRETS = {"Authorization": "Bearer s3cret", "Cookie": "id=s3cret", "X-Api-Key": "s3cret"}


def seen_secrets(server: Origin) -> set[str]:
    names = {name.lower() for name in SECRETS}
    return names & set(chain.from_iterable(request.headers for request in server.requests("/blob")))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_within_the_origin(origin: Origin, status: int) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    url = origin.serve("/here", status=status, headers={"Location": "blob"})
    assert read(HTTPSource(url, headers=SECRETS), 10, '"1-300000"') == BLOB[10:]
    assert len(seen_secrets(origin)) == 3


def test_a_challenge_of_another_origin_is_not_told(origin: Origin, elsewhere: Origin) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1/token"'}
    url = elsewhere.serve("/blob", status=401, headers=challenge)
    assert fails_to_open(HTTPSource(url)).challenge == challenge["WWW-Authenticate"]
    here = origin.serve("/blob", status=307, headers={"Location": url})
    error = fails_to_open(HTTPSource(here, auth=("me", "secret")))
    assert (error.status, error.challenge) == (401, None)


@pytest.mark.parametrize("where", ["port", "host", "user"])
def test_credentials_do_not_follow_to_another_origin(
    origin: Origin, elsewhere: Origin, where: str
) -> None:
    server = elsewhere if where != "host" else origin
    server.serve("/blob", seed=1, size=SIZE)
    there = server.url("/blob", "localhost" if where == "host" else None)
    if where == "user":
        there = there.replace("//", "//them:theirs@")
    url = origin.serve("/here", status=307, headers={"Location": there})
    headers = SECRETS | {"Accept": "image/png", "User-Agent": "test"}
    source = HTTPSource(url, headers=headers)
    assert read(source, 10, '"1-300000"') == BLOB[10:]
    assert seen_secrets(server) == set()
    (request,) = server.requests("/blob")
    assert "s3cret" not in str(request)
    assert (request.headers["accept"], request.headers["user-agent"]) == ("image/png", "test")
    assert request.range == "bytes=10-"
    assert origin.requests("/here")[0].headers["x-api-key"] == "s3cret"


def test_credentials_do_not_come_back(origin: Origin, elsewhere: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    elsewhere.serve("/there", status=302, headers={"Location": origin.url("/blob")})
    url = origin.serve("/here", status=302, headers={"Location": elsewhere.url("/there")})
    assert read(HTTPSource(url, auth=("me", "s3cret"))) == BLOB
    assert origin.requests("/here")[0].headers["authorization"].startswith("Basic ")
    assert seen_secrets(origin) == set()


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "//", "http://[", "http://a:b:c/", "\x01"],
)
def test_a_redirect_to_no_http_url(origin: Origin, location: str) -> None:
    url = origin.serve("/here", status=302, headers={"Location": location})
    assert not fails_to_open(HTTPSource(url)).retryable


def test_redirects_without_end(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/here", status=302, headers={"Location": "/here"}))
    assert not fails_to_open(source).retryable
    assert len(origin.requests()) == 11
    assert not fails_to_open(HTTPSource(origin.serve("/nowhere", status=302))).retryable


def test_ten_redirects(origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    origin.serve("/here", status=302, headers={"Location": "/here"})
    origin.change("/here", first=9, headers={"Location": "/blob"})
    assert read(HTTPSource(origin.url("/here"))) == BLOB


def test_user_and_password_in_the_url(origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    url = origin.url("/blob?key=s3cret&bare#s3cret").replace("//", "//me:s3%40cret@")
    source = HTTPSource(url)
    assert read(source) == BLOB
    (request,) = origin.requests()
    assert request.path == "/blob?key=s3cret&bare"
    assert request.headers["authorization"] == "Basic bWU6czNAY3JldA=="
    assert source.name == origin.url("/blob?key=***&***")
    origin.refuse()
    for text in (repr(source), str(fails_to_open(source)), repr(fails_to_open(source))):
        assert "s3" not in text


def test_authentication(origin: Origin) -> None:
    url = origin.serve("/blob", size=10)
    read(HTTPSource(url, auth=("me", "pa:ss")))
    read(HTTPSource(url, auth="token"))
    read(HTTPSource(url.replace("//", "//a:b@"), auth="token"))
    read(HTTPSource(url.replace("//", "//a:b@"), headers={"authorization": "mine"}))
    sent = [request.headers["authorization"] for request in origin.requests()]
    assert sent == ["Basic bWU6cGE6c3M=", "Bearer token", "Bearer token", "mine"]
    for mistake in ({"auth": ("a:b", "c")}, {"auth": "t", "headers": SECRETS}):
        with pytest.raises(ValueError):
            HTTPSource(url, **mistake)


@pytest.mark.parametrize(
    "url",
    ["http://a/\r\nX: y", "http://a/\n", "http://a\x00/", "http:///x", "ftp://a/", "a/b", "http://",
     "http://me:s3cret@[", "http://me:s3cret@a:port/", "http://me:s3cret@exa mple/"],
)  # fmt: skip
def test_a_url_that_is_not_valid(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        HTTPSource(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [{"X": "a\r\nY: b"}, {"X": "a\nb"}, {"X": "a\0"}, {"X\r\nY": "b"}, {"": "a"}, {"X Y": "a"},
     {"X:": "a"}, {"Range": "bytes=1-"}, {"Accept-Encoding": "gzip"}, {"If-Range": "x"}],
)  # fmt: skip
def test_a_header_that_is_not_valid(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        HTTPSource("http://localhost/", headers=headers)
    if "X" in headers:
        with pytest.raises(ValueError):
            HTTPSource("http://localhost/", auth=headers["X"])


def test_a_source_can_be_sent_to_another_process(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE), auth="token")
    assert read(pickle.loads(pickle.dumps(source))) == BLOB


# HTTP: TLS, proxies, processes.


def test_tls(tls_origin: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HTTPSource(tls_origin.serve("/blob", seed=1, size=SIZE))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    error = fails_to_open(source)
    assert not error.retryable
    assert "certificate" in error.reason
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    close_pools()
    assert read(source) == BLOB
    error = fails_to_open(HTTPSource(tls_origin.url("/blob", "127.0.0.1")))
    assert not error.retryable
    assert "127.0.0.1" in error.reason


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("fault", ["reset_after", "close_after"])
def test_tls_that_is_cut_off(
    tls_origin: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch, fault: str,
    framing: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    url = tls_origin.serve("/blob", seed=1, size=SIZE, framing=framing, **{fault: 200_000})
    assert fails(HTTPSource(url))[1].retryable


def test_no_redirect_from_https_to_http(
    origin: Origin, tls_origin: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    there = origin.serve("/blob", seed=1, size=SIZE)
    source = HTTPSource(tls_origin.serve("/here", status=302, headers={"Location": there}))
    assert "https to http" in fails_to_open(source).reason
    assert origin.requests() == []
    there = tls_origin.serve("/blob", seed=1, size=SIZE)
    source = HTTPSource(
        origin.serve("/here", status=302, headers={"Location": there}), headers=SECRETS
    )
    assert read(source) == BLOB
    assert seen_secrets(tls_origin) == set()


def test_tls_where_there_is_none(nginx: Nginx) -> None:
    error = fails_to_open(HTTPSource(nginx.url("").replace("http", "https")))
    assert "SSL" in error.reason


def test_a_proxy_of_the_environment(
    origin: Origin, elsewhere: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.serve("http://blob.invalid/blob", seed=1, size=SIZE)
    proxy = elsewhere.url("").replace("//", "//me:s3cret@")
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    there = "http://them:s3cret@blob.invalid/blob#fragment"
    elsewhere.serve("http://blob.invalid/here", status=302, headers={"Location": there})
    assert read(HTTPSource("http://me:s3cret@blob.invalid/here")) == BLOB
    hop, request = elsewhere.requests()
    assert (hop.path, request.path) == ("http://blob.invalid/here", "http://blob.invalid/blob")
    assert request.headers["host"] == "blob.invalid"
    assert request.headers["authorization"] == hop.headers["authorization"]
    assert request.headers["proxy-authorization"] == "Basic bWU6czNjcmV0"
    assert read(HTTPSource(origin.serve("/blob", seed=2, size=SIZE))) == OTHER
    assert "proxy-authorization" not in origin.requests()[0].headers
    elsewhere.refuse()
    error = fails_to_open(HTTPSource("http://blob.invalid/blob"))
    assert error.retryable
    assert "s3cret" not in str(error)


def test_a_proxy_for_tls_sees_nothing(
    tls_origin: Origin, elsewhere: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    monkeypatch.setenv("https_proxy", elsewhere.url("").replace("//", "//me:s3cret@"))
    source = HTTPSource(tls_origin.serve("/blob", seed=1, size=SIZE), headers=SECRETS)
    assert read(source) == BLOB
    (request,) = elsewhere.requests()
    assert (request.method, request.path) == ("CONNECT", f"localhost:{tls_origin.port}")
    assert request.headers["proxy-authorization"] == "Basic bWU6czNjcmV0"
    assert "cookie" not in request.headers
    assert "proxy-authorization" not in tls_origin.requests()[0].headers


def test_a_proxy_without_a_scheme_and_one_that_is_unknown(
    elsewhere: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.serve("http://blob.invalid/blob", seed=1, size=SIZE)
    monkeypatch.setenv("all_proxy", f"127.0.0.1:{elsewhere.port}")
    assert read(HTTPSource("http://blob.invalid/blob")) == BLOB
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    assert not fails_to_open(HTTPSource("http://blob.invalid/blob")).retryable


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": "upper"},
        {"HTTP_PROXY": "upper", "http_proxy": "lower"},
        {"HTTP_PROXY": "upper", "http_proxy": ""},
        {"HTTP_PROXY": "upper", "http_proxy": "", "ALL_PROXY": "all"},
        {"HTTP_PROXY": "", "all_proxy": "all", "ALL_PROXY": "ALL"},
        {"HTTP_PROXY": "a client's", "REQUEST_METHOD": "GET"},
        {"HTTP_PROXY": "a client's", "REQUEST_METHOD": "GET", "http_proxy": "lower"},
        {"HTTPS_PROXY": "another", "REQUEST_METHOD": "GET"},
    ],
)
def test_a_proxy_is_found_where_urllib_finds_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxies = getproxies()
    for scheme in ("http", "https"):
        proxy = proxies.get(scheme) or proxies.get("all")
        expected = f"http://{proxy}" if proxy else None
        assert http_client._proxy_for(http_client.parse(f"{scheme}://host/")) == expected


def test_a_forked_child_makes_its_own_connections(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    assert read(source) == BLOB
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if read(source) == BLOB else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert read(source) == BLOB
    mine, childs, again = (request.connection for request in origin.requests())
    assert mine == again != childs


def fetch(link: Link, url: str) -> None:
    """A client process: say what came of it, as often as it is told to."""
    source = HTTPSource(url)
    while link.hear() == "fetch":
        try:
            link.say(sha256(read(source)))
        except SourceError as error:
            link.say(error.reason)
    close_pools()


def test_many_processes_while_the_origin_changes(origin: Origin, start: Start) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    clients = [start(fetch, url) for _ in range(4)]

    def ask_all() -> set[Any]:
        for client in clients:
            client.say("fetch")
        return {client.hear() for client in clients}

    assert ask_all() == {sha256(BLOB)}
    origin.change("/blob", seed=2)
    assert ask_all() == {sha256(OTHER)}
    origin.change("/blob", status=503)
    assert ask_all() == {"it answered 503 Whatever"}
    assert len(origin.requests("/blob")) == 12
    for client in clients:
        client.say("end")
        assert client.finish() == ""


def keep_an_origin(link: Link) -> None:
    link.say(Origin().pid)
    link.hear()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_origin_ends_with_its_test(start: Start, how: signal.Signals) -> None:
    test = start(keep_an_origin)
    server = psutil.Process(test.hear())
    test.signal(how)
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


# nginx.


def test_nginx(nginx: Nginx) -> None:
    (nginx.folder / "blob").write_bytes(BLOB)
    os.utime(nginx.folder / "blob", (1e9, 1e9))
    source = HTTPSource(nginx.url("blob"))
    first = source.open()
    assert (first.size, first.media_type) == (SIZE, "application/octet-stream")
    assert everything(first) == BLOB
    assert read(source, 123, first.validator) == BLOB[123:]
    assert read(source, SIZE, first.validator) == b""
    (nginx.folder / "blob").write_bytes(OTHER)
    assert read(source, 123, first.validator) == OTHER
    assert not fails_to_open(HTTPSource(nginx.url("nothing"))).retryable
    served = nginx.wait(5)
    assert [each.status for each in served] == [200, 206, 416, 200, 404]
    assert served[1].range == "bytes=123-"
    assert served[1].if_range == first.validator
    assert served[1].bytes == SIZE - 123
    assert len({each.connection for each in served}) == 1


def test_nginx_at_a_limited_rate(nginx: Nginx) -> None:
    (nginx.folder / "blob").write_bytes(BLOB)
    source = HTTPSource(nginx.url("blob", rate="600k"))
    with source.open() as feed:
        sizes = [len(memoryview(data)) for data in given(feed)]
    assert sum(sizes) == SIZE
    assert len(sizes) > 2
    with HTTPSource(nginx.url("blob", rate="1k")).open() as feed:
        next(given(feed))
    assert nginx.wait(2)[1].bytes < SIZE


# Paths, file objects, iterables.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(BLOB)
    return path


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
    with pytest.raises(TypeError):
        everything(IterableSource(["text"]).open())  # type: ignore[list-item]


# Which source is meant.


def test_as_sources(path: Path) -> None:
    class Mine:
        name = "mine"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:
            return Feed(iter([b"mine"]), validator=validator, offset=offset)

    with path.open("rb") as file, path.open("rb") as other:
        for given, kinds in (
            ("http://localhost/", [HTTPSource]),
            ("HTTPS://localhost/", [HTTPSource]),
            ("memory://a", [FsspecSource]),
            ("zip://a::http://localhost/b", [FsspecSource]),
            ("some/path", [PathSource]),
            ("c:/path", [PathSource]),
            (path, [PathSource]),
            (file, [FileSource]),
            (io.BytesIO(), [FileSource]),
            (b"bytes", [FileSource]),
            (memoryview(b"bytes"), [FileSource]),
            (Mine(), [Mine]),
            ([b"some", b"bytes"], [IterableSource]),
            ((each for each in [b""]), [IterableSource]),
            (repeat(b"", 2), [IterableSource]),
            (["http://localhost/", path, Mine(), file], [HTTPSource, PathSource, Mine, FileSource]),
            ((path, other), [PathSource, FileSource]),
        ):
            assert [type(source) for source in as_sources(given)] == kinds  # type: ignore[arg-type]
    assert read(as_sources(b"bytes")[0], 2) == b"tes"
    with mmap.mmap(-1, 10) as mapped:
        assert read(as_sources(mapped)[0]) == bytes(10)


@pytest.mark.parametrize("mistake", [5, None, object(), io.StringIO("text"), ["path", b"bytes"],
                                     [b"bytes", 5], [["path"]], Path, 1.5])  # fmt: skip
def test_what_is_no_source(mistake: Any) -> None:
    with pytest.raises(TypeError, match="a source"):
        as_sources(mistake)


def test_a_list_of_nothing_is_no_source() -> None:
    with pytest.raises(ValueError, match="at least one"):
        as_sources([])


@pytest.mark.parametrize(
    ("url", "room", "package"),
    [("http://localhost/", "http", "urllib3"), ("s3://a/b", "fsspec", "fsspec")],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, room: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for each in (room, "http_client"):
        monkeypatch.delitem(sys.modules, f"shmstream.sources.{each}")
    with pytest.raises(ImportError, match=rf"pip install 'shmstream\[{room}\]'"):
        as_sources(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pass@host:1/a/b?x=1&y=2&z#f", "https://host:1/a/b?x=***&y=***&***"),
        ("http://host", "http://host"),
        ("http://host?secret", "http://host?***"),
        ("s3://key:secret@bucket/a@b", "s3://bucket/a@b"),
        ("zip://x@y::ftp://me:pass@host/a", "zip://y::ftp://host/a"),
        ("http://me:pass@[/a?b", "http://***"),
    ],
)
def test_names_have_no_credentials(url: str, shown: str) -> None:
    assert public(url) == shown


# fsspec.


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
    """A store that gives ranges, as those of the clouds do."""

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
