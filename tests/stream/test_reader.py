"""A copier as a file: whatever reads files can be given a blob that is still arriving."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmstream import (
    BlobAborted,
    BlobStreamer,
    DigestMismatch,
    InFlightCopier,
    ShmstreamError,
    StreamClosed,
    StreamNotFound,
    WriterDied,
    errors,
)
from shmstream.system.copying import Mover
from tests.support import roles
from tests.support.interpreters import Interpreter

SIZE = 1_500_000


@contextmanager
def arriving(path: str, data: bytes, size: int | None = None) -> Iterator[InFlightCopier]:
    """A copier of `data`, which a thread streams in pieces of 50,000 bytes."""
    with BlobStreamer.create(path, size=size, publish_interval=0) as streamer:
        pieces = (data[start : start + 50_000] for start in range(0, len(data), 50_000))
        with InFlightCopier.attach(streamer.name) as copier:
            pump = threading.Thread(target=streamer.transfer, args=(pieces,))
            pump.start()
            try:
                yield copier
            finally:
                pump.join()


DATA = roles.content(1, SIZE)


def by_readinto(copier: InFlightCopier) -> bytes:
    got, buffer = b"", bytearray(70_000)
    while count := copier.readinto(buffer):
        got += buffer[:count]
    return got


def by_copyfileobj(copier: InFlightCopier) -> bytes:
    out = io.BytesIO()
    shutil.copyfileobj(copier, out)
    return out.getvalue()


WAYS: dict[str, Callable[[InFlightCopier], bytes]] = {
    "iteration": lambda copier: b"".join(copier),
    "read()": lambda copier: copier.read(),
    "read(None)": lambda copier: copier.read(None),
    "read(n)": lambda copier: b"".join(iter(lambda: copier.read(10_007), b"")),
    "read1": lambda copier: b"".join(iter(copier.read1, b"")),
    "readall": lambda copier: copier.readall(),
    "readinto": by_readinto,
    "copyfileobj": by_copyfileobj,
    "BufferedReader": lambda copier: io.BufferedReader(copier).read(),
    "a huge read": lambda copier: copier.read(10 * SIZE),
}


@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_read(way: str, size: int | None, blob: str) -> None:
    with arriving(blob, DATA, size) as copier:
        assert WAYS[way](copier) == DATA


def test_file_digest(blob: str) -> None:
    with arriving(blob, DATA) as copier:
        digest = hashlib.file_digest(copier, "sha256")
        assert digest.hexdigest() == roles.sha256(DATA)


@pytest.mark.parametrize("mode", ["r|", "r|gz", "r:", "r:gz"])
def test_tarfile(mode: str, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz" if "gz" in mode else "w") as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"file{number}")
            info.size = 100_000
            tar.addfile(info, io.BytesIO(roles.content(number, 100_000)))
    with arriving(str(tmp_path / "blob"), packed.getvalue()) as copier:
        with tarfile.open(fileobj=copier, mode=mode) as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar):
                extracted = tar.extractfile(member)
                assert extracted is not None
                assert extracted.read() == roles.content(number, 100_000)
        assert number == 4


def test_zipfile_pickle_and_text(tmp_path: Path) -> None:
    """These seek to the end, ask for exact lengths, and read lines."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("member", DATA)
    with arriving(str(tmp_path / "zip"), packed.getvalue()) as copier:
        with zipfile.ZipFile(copier) as archive:
            assert archive.read("member") == DATA
    thing = {"data": DATA, "more": list(range(1000))}
    with arriving(str(tmp_path / "pickle"), pickle.dumps(thing)) as copier:
        assert pickle.load(io.BufferedReader(copier)) == thing
    text = "".join(f"line {number} \N{SNOWMAN}\n" for number in range(20_000))
    with arriving(str(tmp_path / "text"), text.encode()) as copier:
        assert list(io.TextIOWrapper(io.BufferedReader(copier), "utf-8")) == text.splitlines(True)


def test_random_access_waits_for_what_it_asks(blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            copier.seek(SIZE - 10)
            got: list[bytes] = []
            reader = threading.Thread(target=lambda: got.append(copier.read(5)))
            reader.start()
            streamer.append(DATA[: SIZE - 7])
            assert reader.is_alive(), "three bytes are not five"
            streamer.append(DATA[SIZE - 7 : SIZE - 1])
            reader.join()
            assert got == [DATA[SIZE - 10 : SIZE - 5]]
            assert copier.seek(0) == 0
            assert copier.read(100) == DATA[:100]
            assert copier.seek(50, os.SEEK_CUR) == 150
            assert copier.read1(10) == DATA[150:160]
            ends: list[int] = []
            seeker = threading.Thread(target=lambda: ends.append(copier.seek(-1, os.SEEK_END)))
            seeker.start()
            streamer.append(DATA[SIZE - 1 :])
            streamer.commit()
            seeker.join()
            assert ends == [SIZE - 1] == [copier.tell()]
            assert copier.read() == DATA[-1:]
            copier.seek(SIZE + 100)
            assert (copier.read(), copier.read1(), copier.readinto(bytearray(5))) == (b"", b"", 0)
            for wrong in ((-1,), (-SIZE - 1, os.SEEK_END), (0, 9)):
                with pytest.raises(ValueError):
                    copier.seek(*wrong)


def test_seeking_from_a_known_end_does_not_wait(blob: str) -> None:
    with BlobStreamer.create(blob, size=1000) as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            assert copier.seek(-10, os.SEEK_END) == 990
        streamer.abort("")


def test_seeking_from_the_end_of_a_stream_that_is_aborted(blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            streamer.append(b"some")
            streamer.abort("no end")
            with pytest.raises(BlobAborted):
                copier.seek(0, os.SEEK_END)
            assert copier.tell() == 0
            with pytest.raises(BlobAborted):
                copier.read()
            assert copier.tell() == 0
            assert copier.read(100) == b"some"
            with pytest.raises(BlobAborted):
                copier.read(100)


def test_what_a_copier_tells(blob: str) -> None:
    with BlobStreamer.create(blob, size=104, chunk_size=5, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            assert (copier.readable(), copier.seekable(), copier.writable()) == (True, True, False)
            streamer.append(bytes(52))
            copier.read(20)
            told = copier.statistics()
            assert (told.position, told.published, told.chunk_count, told.lag) == (20, 52, 10, 32)
            assert (copier.position, copier.published, copier.chunk_count) == (20, 52, 10)
            assert (copier.size, copier.state.name) == (104, "STREAMING")
            [subscriber] = streamer.statistics().subscribers
            assert (subscriber.position, subscriber.lag) == (20, 32)
            assert subscriber.identity.pid == os.getpid()
            assert "python" in str(subscriber.identity)
            assert "at 20, 52/104" in repr(copier)
            assert "STREAMING 52/104" in repr(streamer)
            with pytest.raises(io.UnsupportedOperation):
                copier.fileno()
        assert streamer.statistics().subscribers == ()
        for use in (
            copier.read,
            copier.read1,
            copier.tell,
            lambda: copier.seek(0),
            lambda: copier.copy(io.BytesIO()),
            lambda: next(copier),
        ):
            with pytest.raises(StreamClosed):
                use()
        copier.close()
        assert copier.closed
        assert copier.statistics().position == 20
        streamer.abort("")


# Copying, through the kernel and around it.


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


def test_errors_survive_pickling_and_carry_their_facts() -> None:
    examples: list[ShmstreamError] = [
        StreamNotFound("name", 5.0),
        WriterDied("name", 7, "pid 1"),
        BlobAborted("name", 7, "reason"),
        DigestMismatch("name", 7, "reason", "sha256:a", "sha256:b"),
        errors.OutOfResources("name", "space", 28, "detail"),
        errors.OutOfRoom("name", 7, "reason"),
        errors.IllegalTransition("name", "COMMITTED", "ABORTED"),
    ]
    for error in examples:
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert back.facts == error.facts
        assert str(back) == str(error)
        assert "name" in str(error)
        with pytest.raises(type(error)):
            raise back
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, ShmstreamError):
            assert kind.__doc__


def test_an_error_crosses_processes_whole(start: Callable[..., Interpreter], blob: str) -> None:
    with BlobStreamer.create(blob, size=5) as streamer:
        reader = start(roles.read, streamer.name, {})
        assert [reader.hear(), reader.hear()] == ["starting", "attached"]
        with pytest.raises(errors.SizeMismatch) as caught:
            streamer.transfer([b"too many"])
        assert reader.hear()["text"] == str(caught.value)
