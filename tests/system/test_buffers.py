"""`buffers`: the bytes of anything that has bytes, in order, as soon as they are there."""

from __future__ import annotations

import gzip
import http.client
import io
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from shmstream.system.buffers import buffers
from tests.support.interpreters import PATIENCE
from tests.support.roles import content

SIZE = 300_000
BLOB = content(1, SIZE)


def joined(source: Any) -> bytes:
    return b"".join(bytes(data) for data in buffers(source))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(BLOB)
    return path


def test_a_buffer_is_given_as_it_is() -> None:
    for source in (BLOB, bytearray(BLOB), memoryview(BLOB)):
        (data,) = buffers(source)
        assert data == BLOB


def test_file_objects(path: Path) -> None:
    with (
        path.open("rb") as buffered,
        path.open("rb", buffering=0) as raw,
        gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(BLOB))) as zipped,
        tempfile.NamedTemporaryFile() as named,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        for file in (named, spooled):
            file.write(BLOB)
            file.seek(0)
        for source in (buffered, raw, zipped, io.BytesIO(BLOB), named, spooled):
            assert joined(source) == BLOB
            assert not source.closed


def test_an_iterable_and_what_only_reads() -> None:
    class Reading:
        def __init__(self) -> None:
            self._left = [b"some ", b"bytes"]

        def read(self, size: int) -> bytes:
            assert size > 0
            return self._left.pop(0) if self._left else b""

    def generate() -> Iterator[bytes]:
        yield b"some "
        yield b"bytes"

    for source in (Reading(), generate(), [b"some ", b"bytes"]):
        assert joined(source) == b"some bytes"


@pytest.mark.parametrize("buffering", [-1, 0])
def test_what_trickles_through_a_pipe_is_given_at_once(buffering: int) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering) as file, os.fdopen(writer, "wb", 0) as out:
        data = buffers(file)
        for piece in (b"some", b"more", b"last"):
            out.write(piece)
            assert bytes(next(data)) == piece
        out.close()
        assert list(data) == []


def test_a_socket_is_read_as_a_file() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as file:
        with pytest.raises(TypeError, match="makefile"):
            buffers(ours)  # type: ignore[arg-type]
        data = buffers(file)
        theirs.sendall(b"some")
        assert bytes(next(data)) == b"some"
        theirs.shutdown(socket.SHUT_WR)
        assert list(data) == []


@pytest.mark.parametrize("text", ["text", io.StringIO("text")])
def test_text_is_refused(text: Any) -> None:
    with pytest.raises(TypeError, match="binary mode"):
        buffers(text)


def test_what_has_no_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="not int"):
        buffers(5)  # type: ignore[arg-type]


def test_a_file_in_non_blocking_mode_is_refused() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", 0) as file, os.fdopen(writer, "wb", 0):
        with pytest.raises(ValueError, match="non-blocking"):
            next(buffers(file))


def answer(connection: socket.socket, length: int, body: bytes) -> None:
    with connection:
        while b"\r\n\r\n" not in connection.recv(4096):
            pass
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body)


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("length", [4, 10])
def test_an_http_response_that_is_cut_off_does_not_just_end(length: int, *, buffered: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.getsockname()[1], PATIENCE)
        client.request("GET", "/")
        connection, _ = server.accept()
        thread = threading.Thread(target=answer, args=(connection, length, b"some"))
        thread.start()
        with client.getresponse() as response:
            file = io.BufferedReader(response) if buffered else response
            if length == 4:
                assert joined(file) == b"some"
            else:
                with pytest.raises(EOFError, match="6 bytes short"):
                    joined(file)
        client.close()
        thread.join()


def test_a_response_of_urllib3_that_is_cut_off_does_not_just_end() -> None:
    """Also where urllib3 was told not to look."""
    with socket.create_server(("127.0.0.1", 0)) as server, urllib3.PoolManager() as pool:
        thread = threading.Thread(target=lambda: answer(server.accept()[0], 10, b"some"))
        thread.start()
        response = pool.request(
            "GET",
            f"http://127.0.0.1:{server.getsockname()[1]}/",
            preload_content=False,
            enforce_content_length=False,
        )
        with pytest.raises(EOFError, match="6 bytes short"):
            joined(response)
        response.close()
        thread.join()
