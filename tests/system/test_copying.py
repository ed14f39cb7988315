"""Copying to files, pipes, sockets and other objects, through the kernel and around it."""

from __future__ import annotations

import gzip
import io
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from shmstream.system.copying import Mover
from tests.support import roles
from tests.support.arriving import arriving

SIZE = 1_500_000
DATA = roles.content(1, SIZE)


def copied(path: str, destination: object) -> int:
    with arriving(path, DATA) as copier:
        return copier.copy(destination)  # type: ignore[arg-type]


def test_copy_to_files(tmp_path: Path) -> None:
    source = str(tmp_path / "blob")
    for number, mode in enumerate(("wb", "ab", "r+b", "w+b")):
        for buffering in (0, -1):
            target = tmp_path / f"target{number}{buffering}"
            target.write_bytes(b"")
            with target.open(mode, buffering=buffering) as out:
                out.write(b"head ")
                assert copied(source, out) == SIZE
                out.write(b" tail")
            assert target.read_bytes() == b"head " + DATA + b" tail"
    target = tmp_path / "descriptor"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)
    copied(source, descriptor)
    os.close(descriptor)
    assert target.read_bytes() == DATA


def test_copy_to_another_file_system(tmp_path: Path) -> None:
    with open("/dev/shm/shmstream-test-copy", "w+b") as out:
        os.unlink("/dev/shm/shmstream-test-copy")
        copied(str(tmp_path / "blob"), out)
        out.seek(0)
        assert out.read() == DATA


def test_copy_to_what_changes_the_bytes(tmp_path: Path) -> None:
    """A compressor has a descriptor too; going past it would write the wrong bytes."""
    with gzip.open(tmp_path / "target", "wb") as out:
        copied(str(tmp_path / "blob"), out)
    assert gzip.decompress((tmp_path / "target").read_bytes()) == DATA
    memory = io.BytesIO()
    copied(str(tmp_path / "blob"), memory)
    assert memory.getvalue() == DATA


@pytest.mark.parametrize("blocking", [True, False])
def test_copy_to_a_pipe(blocking: bool, blob: str) -> None:
    with subprocess.Popen(["sha256sum"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hasher:
        assert hasher.stdin is not None
        assert hasher.stdout is not None
        os.set_blocking(hasher.stdin.fileno(), blocking)
        copied(blob, hasher.stdin)
        hasher.stdin.close()
        assert hasher.stdout.read().split()[0].decode() == roles.sha256(DATA)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_copy_to_a_socket(timeout: float | None, blob: str) -> None:
    ours, theirs = socket.socketpair()
    got: list[bytes] = []
    with ours, theirs:
        ours.settimeout(timeout)
        receiver = threading.Thread(target=lambda: got.append(theirs.makefile("rb").read()))
        receiver.start()
        copied(blob, ours)
        ours.shutdown(socket.SHUT_WR)
        receiver.join()
    assert got == [DATA]


def test_copy_to_a_socket_that_takes_nothing(blob: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, arriving(blob, DATA) as copier:
        ours.settimeout(0.05)
        with pytest.raises(TimeoutError):
            copier.copy(ours)
        there = copier.tell()
        assert 0 < there < SIZE
        theirs.setblocking(False)
        assert theirs.recv(SIZE, socket.MSG_PEEK)[:1000] == DATA[:1000]
        ours.setblocking(False)
        with pytest.raises(ValueError, match="non-blocking"):
            copier.copy(ours)
        assert copier.tell() == there


def test_copy_to_a_socket_with_tls(blob: str, tmp_path: Path) -> None:
    """The kernel would send plain bytes; the socket must see them first."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    ours, theirs = socket.socketpair()
    got: list[bytes] = []

    def receive() -> None:
        with trusting.wrap_socket(theirs, server_hostname="localhost") as plain:
            got.append(plain.makefile("rb").read(SIZE))

    with ours, theirs:
        receiver = threading.Thread(target=receive)
        receiver.start()
        with serving.wrap_socket(ours, server_side=True) as encrypting:
            copied(blob, encrypting)
            receiver.join()
    assert got == [DATA]


def test_copy_to_what_is_no_destination(blob: str) -> None:
    for wrong in ("path", None, io.StringIO(), object()):
        with arriving(blob, DATA) as copier:
            with pytest.raises(TypeError):
                copier.copy(wrong)  # type: ignore[arg-type]
            assert copier.tell() == 0
    with arriving(blob, DATA) as copier, open(os.devnull, "rb") as reading:
        with pytest.raises(OSError, match="Bad file descriptor"):
            copier.copy(reading.fileno())


def test_a_reader_that_closes_the_pipe(blob: str) -> None:
    receiving, sending = os.pipe()
    os.close(receiving)
    with arriving(blob, DATA) as copier, pytest.raises(BrokenPipeError):
        copier.copy(sending)
    os.close(sending)


def test_writers_that_take_less(blob: str) -> None:
    class Reluctant:
        def __init__(self) -> None:
            self.taken = bytearray()

        def write(self, data: bytes) -> int:
            self.taken += data[:7_000]
            return min(len(data), 7_000)

    class Refusing:
        def write(self, _data: bytes) -> int:
            return 0

    reluctant = Reluctant()
    copied(blob, reluctant)
    assert reluctant.taken == DATA
    with pytest.raises(OSError, match="took nothing"):
        copied(blob, Refusing())


def test_the_kernel_does_the_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can: then not a byte passes through this process."""

    def forbidden(*_: object) -> bytes:
        raise AssertionError("read by hand")

    (tmp_path / "blob").write_bytes(DATA)
    ours, theirs = socket.socketpair()
    receiving, sending = os.pipe()
    with (tmp_path / "blob").open("rb") as source, (tmp_path / "copy").open("wb") as target:
        monkeypatch.setattr(os, "pread", forbidden)
        for destination in (target, ours, sending):
            assert Mover(destination).move(source.fileno(), 0, 10_000) == 10_000
        monkeypatch.undo()
    assert (tmp_path / "copy").read_bytes() == DATA[:10_000]
    assert theirs.recv(10_000, socket.MSG_WAITALL) == DATA[:10_000] == os.read(receiving, 10_000)
    for end in (ours, theirs):
        end.close()
    os.close(receiving)
    os.close(sending)
