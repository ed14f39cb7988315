"""A reader for another host: it is rung often, and has the last chunk before it is on the disk."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from shmstream import BlobAborted, BlobStreamer, DigestMismatch, InFlightCopier
from shmstream.stream.partial import PartialFile

DATA = hashlib.shake_256(b"ahead").digest(250_000)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
NEVER = {"publish_bytes": 1 << 40, "publish_interval": 3600.0}


def before_last(chunk_size: int = 65536) -> int:
    return (len(DATA) - 1) // chunk_size * chunk_size


def test_the_last_chunk_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers, and a disk that hangs in the commit."""
    is_syncing, disk = threading.Event(), threading.Event()
    move = PartialFile.move

    def hang(self: PartialFile) -> None:
        is_syncing.set()
        assert disk.wait(60)
        move(self)

    monkeypatch.setattr(PartialFile, "move", hang)
    path = tmp_path / "blob"
    with BlobStreamer.create(path, size=len(DATA), digest=DIGEST) as streamer:
        plain = InFlightCopier.attach(streamer.name, stall_timeout=0.2)
        ahead = InFlightCopier.attach(streamer.name, ahead=True)
        writing = threading.Thread(target=streamer.transfer, args=[DATA])
        with plain, ahead:
            writing.start()
            assert is_syncing.wait(60)
            assert ahead.read(len(DATA)) == DATA
            assert ahead.published == len(DATA)
            assert not ahead.is_complete
            assert plain.wait(before_last()) == before_last()
            assert not path.exists()
            disk.set()
            assert ahead.read() == b""  # it ends where the commit does
            assert plain.read() == DATA
        writing.join()
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("size", [len(DATA), None])
def test_nothing_goes_ahead_of_the_digest(tmp_path: Path, size: int | None) -> None:
    wrong = DATA[:-1] + b"\0"
    with BlobStreamer.create(tmp_path / "blob", size=size, digest=DIGEST) as streamer:
        with InFlightCopier.attach(streamer.name, ahead=True) as ahead:
            with pytest.raises(DigestMismatch):
                streamer.transfer(wrong)
            assert ahead.published <= before_last()
            with pytest.raises(BlobAborted):
                ahead.readall()


def test_a_blob_of_one_chunk(tmp_path: Path) -> None:
    """Nothing of it is published before, so the reader opens its file now."""
    data = b"small"
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    with BlobStreamer.create(tmp_path / "blob", size=len(data), digest=digest) as streamer:
        with InFlightCopier.attach(streamer.name, ahead=True) as ahead:
            streamer.append(data)
            assert ahead.published == 0
            streamer._tell_verified()
            assert ahead.read(len(data)) == data
            streamer.commit()
            assert ahead.read() == b""


def test_a_reader_for_another_host_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    """As soon as the writer knows of it, which is when it publishes next."""
    with BlobStreamer.create(tmp_path / "blob", size=len(DATA), **NEVER) as streamer:  # type: ignore[arg-type]
        with InFlightCopier.attach(streamer.name) as plain:
            streamer.append(DATA[:10])  # the first bytes are published at once
            streamer.append(DATA[10:20])
            assert plain.published == 10
            with InFlightCopier.attach(streamer.name, ahead=True) as ahead:
                streamer.flush()
                streamer.append(DATA[20:30])
                assert ahead.read(30) == DATA[:30]
                assert streamer.publish_bytes < NEVER["publish_bytes"]
            streamer.append(DATA[30:40])
            streamer._publish()  # it has left
            assert streamer.publish_bytes == NEVER["publish_bytes"]
            streamer.append(DATA[40:50])
            assert plain.published == 40
            streamer.append(DATA[50:])
            streamer.commit()
            assert plain.read() == DATA


def test_a_successor_hurries_too(tmp_path: Path) -> None:
    """The readers of a dead writer are those of the next one."""
    from shmstream.stream.resumable_writer import ResumableStreamer

    first = ResumableStreamer.create(tmp_path / "blob", size=len(DATA), digest=DIGEST, **NEVER)  # type: ignore[arg-type]
    with InFlightCopier.attach(first.name, ahead=True) as ahead:
        first.append(DATA[:100_000])
        first.close()
        with ResumableStreamer.succeed(first.name, **NEVER) as second:  # type: ignore[arg-type]
            assert second.publish_bytes < NEVER["publish_bytes"]
            second.append(DATA[100_000:])
            assert ahead.read(before_last()) == DATA[: before_last()]
            second.commit()
            assert ahead.read() == DATA[before_last() :]
