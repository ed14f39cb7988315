"""Disk, shared memory, slots or descriptors run out: a clear error, and no leak."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import BlobStreamer, InFlightCopier, NoFreeSlot, OutOfResources, OutOfRoom
from shmstream.stream import waiter
from tests.support import roles
from tests.support.interpreters import Interpreter

Start = Callable[..., Interpreter]

needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("SHMSTREAM_REQUIRE_REAL"),
    reason="only root can mount a small file system",
)


def with_shared_memory_of(size: str) -> tuple[str, ...]:
    """A command prefix: it runs a command in a mount namespace with so small a /dev/shm."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    left = list(folder.iterdir())
    subprocess.run(["umount", folder], check=True)
    assert left == []


@needs_mounts
def test_disk_full(start: Start, small_disk: Path) -> None:
    with BlobStreamer.create(small_disk / "blob", publish_interval=0) as streamer:
        reader = start(roles.read, streamer.name, {})
        assert [reader.hear(), reader.hear()] == ["starting", "attached"]
        streamer.append(bytes(600_000))
        with pytest.raises(OutOfResources, match=f"space in {small_disk}") as caught:
            streamer.append(bytes(600_000))
        assert caught.value.number == 28
        outcome = reader.hear()
        assert (outcome["error"], outcome["bytes"]) == ("OutOfRoom", 600_000)
        assert "No space left on device" in outcome["text"]
        with pytest.raises(OutOfRoom, match="No space left"):
            InFlightCopier.attach(streamer.name)


@needs_mounts
def test_a_blob_that_will_not_fit_is_refused_before_the_first_byte(small_disk: Path) -> None:
    with pytest.raises(OutOfResources, match=f"space in {small_disk}"):
        BlobStreamer.create(small_disk / "blob", size=2 << 20)
    assert list(small_disk.iterdir()) == []


def test_file_size_limit(start: Start, blob: str) -> None:
    limited = start(roles.write_beyond_the_file_size_limit, blob)
    assert limited.hear() == "OutOfResources"
    limited.finish()
    assert not Path(blob).exists()


@needs_mounts
def test_shared_memory_full_at_create(start: Start, blob: str) -> None:
    full = start(roles.create_once, blob, within=with_shared_memory_of("16k"))
    outcome = full.hear()
    assert outcome["error"] == "OutOfResources"
    assert "space in shared memory (/dev/shm)" in outcome["text"]
    assert outcome["left"] == []
    assert not Path(blob + ".shmstream-partial").exists()


@needs_mounts
def test_shared_memory_full_at_attach(start: Start, blob: str) -> None:
    """The segment just fits, but no doorbell does."""
    full = start(roles.attach_without_room, blob, within=with_shared_memory_of("12k"))
    outcome = full.hear()
    assert outcome["error"] == "OutOfResources"
    assert "space in shared memory (/dev/shm)" in outcome["text"]
    assert outcome["doorbells"] == []
    assert full.hear() == "the writer went on"
    full.finish()


def test_no_free_slot(blob: str) -> None:
    with BlobStreamer.create(blob, max_subscribers=2) as streamer:
        with InFlightCopier.attach(streamer.name), InFlightCopier.attach(streamer.name) as second:
            with pytest.raises(NoFreeSlot, match="all 2 are taken") as caught:
                InFlightCopier.attach(streamer.name)
            assert caught.value.max_subscribers == 2
            second.close()
            InFlightCopier.attach(streamer.name).close()
        streamer.transfer([b"data"])
        copiers = [InFlightCopier.attach(streamer.name) for _ in range(3)]  # without a slot
        for copier in copiers:
            assert copier.read() == b"data"
            copier.close()


def test_who_subscribes_late_is_told_late(blob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are there can be read without a slot. A wait needs a slot, and fails each time."""
    with BlobStreamer.create(blob, max_subscribers=1, publish_interval=0) as streamer:
        streamer.append(b"data")
        with InFlightCopier.attach(streamer.name, subscribes_late=True) as late:
            with InFlightCopier.attach(streamer.name):
                assert late.read1() == b"data"
                for _ in range(2):
                    with pytest.raises(NoFreeSlot, match="all 1 are taken"):
                        late.read1()

            def run_out(*_: object) -> None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            with monkeypatch.context() as patch, pytest.raises(OutOfResources, match="ulimit"):
                patch.setattr(waiter, "Subscription", run_out)
                late.read1()
            streamer.transfer([b" and more"])
            assert late.read() == b" and more"


@pytest.mark.parametrize("what", ["create", "attach"])
def test_every_shortage_of_descriptors(what: str, start: Start, blob: str) -> None:
    """Room for no, one, two, ... descriptors, until it works; no try leaks anything."""
    with BlobStreamer.create(blob + ".other", publish_interval=0) as streamer:
        short = start(roles.run_short_of_descriptors, what, blob, streamer.name)
        for _ in range(30):
            outcome = short.hear()
            assert outcome["leaked"] == [], outcome
            if outcome["error"] is None:
                break
            assert outcome["error"] == "OutOfResources"
            assert "ulimit -n" in outcome["text"]
            streamer.append(b"unharmed")
        else:
            raise AssertionError("it never worked")
        assert outcome["room"] >= 3
        short.finish()


def test_a_writer_without_descriptors_still_wakes_those_it_knows(start: Start, blob: str) -> None:
    writer = start(roles.write_short_of_descriptors, blob)
    name = writer.hear()
    with InFlightCopier.attach(name) as known:
        writer.say("append")
        assert writer.hear() == "append"
        assert known.read1() == b"x"
        writer.say("exhaust")
        assert writer.hear() == "exhaust"
        with InFlightCopier.attach(name) as unknown:
            writer.say("append")
            assert writer.hear() == "append"
            assert known.read1() == b"x"
            assert unknown.read(2) == b"xx"
            writer.say("append")
            assert unknown.read1() == b"x", "late, but it arrives"
    writer.say("end")
    assert writer.hear() == "append"
    writer.finish()
