"""A copier as a file: whatever reads files can be given a blob that is still arriving."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shmstream import (
    BlobAborted,
    BlobStreamer,
    DamagedPartial,
    InFlightCopier,
    StreamBroken,
    StreamClosed,
)
from shmstream.stream.partial import partial_path
from tests.support import roles
from tests.support.arriving import arriving
from tests.support.interpreters import wait_until

SIZE = 1_500_000
DATA = roles.content(1, SIZE)


def by_readinto(copier: InFlightCopier) -> bytes:
    got, buffer = b"", bytearray(70_000)
    while count := copier.readinto(buffer):
        got += buffer[:count]
    return got


def by_readinto1(copier: InFlightCopier) -> bytes:
    got, buffer = b"", bytearray(70_000)
    while count := copier.readinto1(buffer):
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
    "readinto1": by_readinto1,
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
            wait_until(lambda: copier.statistics().waits > 0)
            waits = copier.statistics().waits
            streamer.append(DATA[: SIZE - 7])
            wait_until(lambda: copier.statistics().waits > waits)
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


@pytest.mark.parametrize("end", ["abort", "truncate"])
def test_fewer_bytes_are_never_the_end_of_a_broken_stream(blob: str, end: str) -> None:
    """A program takes fewer bytes than it asked for as the end of the file, or even as data."""
    with BlobStreamer.create(blob, size=8, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            streamer.append(b"half")
            assert copier.read(1) == b"h"
            broken: type[StreamBroken]
            if end == "abort":
                broken = BlobAborted
                streamer.abort("no rest")
            else:
                broken = DamagedPartial
                streamer.append(b"-all")
                os.truncate(partial_path(blob), 4)
            with pytest.raises(broken):
                copier.readinto(bytearray(7))
            assert copier.tell() == 1
            assert b"".join(itertools.islice(copier, 1)) == b"alf"
            with pytest.raises(broken):
                next(copier)


def test_bytes_that_are_known_to_be_published_are_read_without_the_block(
    blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            streamer.append(bytes(1 << 20))
            looks = []
            load = copier._tail.load

            def look() -> int:
                looks.append(copier.tell())
                return load()

            monkeypatch.setattr(copier._tail, "load", look)
            behind = []
            while copier.tell() < 1 << 20:
                assert len(copier.read(4096)) == 4096
                [told] = streamer.statistics().subscribers
                behind.append(copier.tell() - told.position)
            assert 0 <= min(behind) <= max(behind) < 64 * 1024
            assert looks == [0]
        streamer.commit()


def test_a_reader_that_waits_tells_exactly_what_it_has_read(blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            streamer.append(bytes(20))
            copier.read(20)
            waiter = threading.Thread(target=copier.read, args=(1,))
            waiter.start()
            wait_until(lambda: streamer.statistics().subscribers[0].position == 20)
            streamer.append(b"1")
            waiter.join()
        streamer.commit()


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
            assert (subscriber.position, subscriber.lag) == (0, 52)  # it tells of few bytes later
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


def test_a_view_looks_at_the_size_of_the_block_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is a system call, at which another thread may take the interpreter."""
    looks, lseek = [], os.lseek

    def look(*args: int) -> int:
        looks.append(args)
        return lseek(*args)

    with (
        BlobStreamer.create(tmp_path / "blob", publish_interval=0.0, size=2) as streamer,
        InFlightCopier.attach(streamer.name) as copier,
    ):
        streamer.append(b"1")
        assert copier.view()[:3] == (1, 2, False)
        monkeypatch.setattr(os, "lseek", look)
        assert copier.view()[:3] == (1, 2, False)
        assert len(looks) == 1
