"""The body of an answer: it arrives by hand or by kernel, breaks, stalls, and is closed."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shmstream.errors import SourceError
from shmstream.sources import http_body
from shmstream.sources.http import HTTPSource
from tests.support.feeds import (
    BLOB,
    SIZE,
    everything,
    fails,
    fails_to_open,
    fails_to_read,
    given,
    read,
)
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.nginx import Nginx
from tests.support.origin import Origin


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
        pieces = [bytes(data) for data in given(feed)]
    assert b"".join(pieces) == BLOB
    assert len(pieces) > 1


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
        assert len(got) <= after  # at a reset the kernel drops bytes that were not yet read
    assert read(source) == BLOB


def test_a_reset_of_what_ends_with_its_connection(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, framing="close", reset_after=SIZE)
    _, error = fails_to_read(HTTPSource(url).open())
    assert error.retryable


def test_bytes_after_the_end(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, extra=10))
    errors = []
    for _ in range(20):
        try:
            assert read(source) == BLOB
        except SourceError as error:
            errors.append(error)  # the bytes came late, before the head of the next answer
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


def test_a_stall_that_passes(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=1000, stall_for=0.1)
    assert read(HTTPSource(url)) == BLOB


@pytest.mark.parametrize("after", [0, 1000, SIZE - 1])
def test_a_byte_out_of_band_is_none_of_the_body(origin: Origin, after: int) -> None:
    """`splice` moves nothing past it, while `poll` says that the bytes behind it are readable."""
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=500, urgent_after=after)
    with HTTPSource(url).open() as feed:
        got = bytearray()
        for data in given(feed):
            got += data
            origin.release()
        assert got == BLOB


def test_wrong_bytes_are_given_as_they_are(origin: Origin) -> None:
    got = read(HTTPSource(origin.serve("/blob", seed=1, size=SIZE, wrong_at=12345)))
    assert [at for at in range(SIZE) if got[at] != BLOB[at]] == [12345]


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
        until(SIZE, PATIENCE, SIZE)  # more bytes than will come
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
    """The timeout has more milliseconds than `poll` can wait for."""
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
    """It is of another kind, or a sandbox forbids `splice` to this process."""

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


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("fault", ["reset_after", "close_after"])
def test_tls_that_is_cut_off(
    tls_origin: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch, fault: str,
    framing: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    url = tls_origin.serve("/blob", seed=1, size=SIZE, framing=framing, **{fault: 200_000})
    assert fails(HTTPSource(url))[1].retryable


def test_nginx_at_a_limited_rate(nginx: Nginx) -> None:
    (nginx.folder / "blob").write_bytes(BLOB)
    source = HTTPSource(nginx.url("blob", rate="600k"))
    with source.open() as feed:
        sizes = [len(memoryview(data)) for data in given(feed)]
    assert sum(sizes) == SIZE
    assert len(sizes) > 1
    with HTTPSource(nginx.url("blob", rate="1k")).open() as feed:
        next(given(feed))
    assert nginx.wait(2)[1].bytes < SIZE
