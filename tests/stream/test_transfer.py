"""What a streamer can transfer: files, pipes, responses and iterables, and what it refuses."""

from __future__ import annotations

import http.client
import io
import os
import socket
import subprocess
import sys
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest

from shmstream import BlobStreamer, InFlightCopier, State
from tests.support import roles
from tests.support.roles import content


@pytest.mark.parametrize("kind", ["pipe", "buffered pipe", "socket file"])
def test_a_quiet_source_behind_a_file_object(kind: str, blob: str) -> None:
    """`transfer` does not wait until its buffer is full."""
    ours, theirs = socket.socketpair()
    source: Any
    if kind == "socket file":
        source = theirs.makefile("rb")
    else:
        source = open(os.dup(theirs.fileno()), "rb", buffering=0 if kind == "pipe" else -1)
    with ours, theirs, source, BlobStreamer.create(blob) as streamer:
        pump = threading.Thread(target=streamer.transfer, args=(source,))
        pump.start()
        with InFlightCopier.attach(streamer.name) as reader:
            for word in (b"quiet", b"again"):
                ours.sendall(word)
                assert reader.read(5) == word
            ours.close()
            assert reader.read() == b""
        pump.join()


def test_sources_of_every_kind(tmp_path: Path) -> None:
    data = content(1, 500_000)
    plain = tmp_path / "plain"
    plain.write_bytes(data)

    class OnlyRead:
        def __init__(self) -> None:
            self.inner = io.BytesIO(data)

        def read(self, size: int) -> bytes:
            return self.inner.read(size)

    def stream(source: object) -> bytes:
        path = tmp_path / "blob"
        with BlobStreamer.create(path) as streamer:
            assert streamer.transfer(source) == len(data)  # type: ignore[arg-type]
        return path.read_bytes()

    with plain.open("rb") as buffered, plain.open("rb", buffering=0) as raw:
        for source in (
            io.BytesIO(data),
            buffered,
            raw,
            OnlyRead(),
            data,
            bytearray(data),
            array("B", data),
            memoryview(data),
            [data[:1], b"", data[1:]],
            iter([memoryview(data)]),
            roles.pieces(1, 500_000),
        ):
            assert stream(source) == data
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; sys.stdout.buffer.write(open({str(plain)!r}, 'rb').read())",
        ],
        stdout=subprocess.PIPE,
    ) as process:
        assert stream(process.stdout) == data


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("text", TypeError),
        (io.StringIO("text"), TypeError),
        (7, TypeError),
        (["text"], TypeError),
        ([7], TypeError),
    ],
)
def test_what_is_no_source(source: object, error: type[Exception], blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        with pytest.raises(error):
            streamer.transfer(source)  # type: ignore[arg-type]
        assert streamer.state == State.ABORTED


def test_a_source_in_non_blocking_mode(blob: str) -> None:
    receiving, sending = os.pipe()
    os.set_blocking(receiving, False)
    with open(receiving, "rb", buffering=0) as source, BlobStreamer.create(blob) as streamer:
        with pytest.raises(ValueError, match="non-blocking"):
            streamer.transfer(source)
    os.close(sending)


def test_a_response_that_is_cut_off(blob: str) -> None:
    """It reads like one that ends; it is not counted as the whole blob."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 400)
        ours.close()
        with http.client.HTTPResponse(theirs) as response, BlobStreamer.create(blob) as streamer:
            response.begin()
            with pytest.raises(EOFError, match="600 bytes short"):
                streamer.transfer(response)
            assert streamer.state == State.ABORTED
