"""Disk, shared memory, slots or descriptors run out: a clear error, and no leak."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import (
    BlobStreamer,
    InFlightCopier,
    NoFreeSlot,
    OutOfResources,
    OutOfRoom,
    sweep,
)
from shmstream.stream import waiter
from tests.support import roles
from tests.support.interpreters import Interpreter
from tests.support.root import unmount

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
    unmount(folder)
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

            def run_out(*_: object, **__: object) -> None:
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


# A store whose process lacks something.

BEGIN = """
import asyncio, collections, os, resource, sys
import encodings.ascii, encodings.idna, shmstream.http_source
from shmstream import *
from shmstream.asgi.statuses import status_of
from shmstream.flight import cancelling
from shmstream.system import threads

threads._A_WHILE = 0.1  # an idle thread ends after that time
cancelling._IDLE = 1  # tick; and so does this one
DATA = bytes(300_000)

class Source:
    name = "a source"
    def open(self, offset=0, validator=None):
        return Feed(iter([DATA[offset:]]), offset=offset, size=len(DATA))

async def read(store, key, source=None):
    async with store.aopen(key, source) as blob:
        return await blob.read()

def told(call):
    try:
        assert call() == DATA
    except ShmstreamError as error:
        return status_of(error), type(error).__name__, str(error)
    return 200, "", ""

def ways(store, key, source=None):
    yield told(lambda: store.open(key, source).read())
    yield told(lambda: asyncio.run(read(store, key, source)))

if len(sys.argv) > 2:  # to be another user
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
store = Store(sys.argv[1], durable=False)
store.fetch("stored", Source())
"""

WITHOUT_THREADS = """
import time
deadline = time.monotonic() + 60
while len(os.listdir("/proc/self/task")) > 1:
    assert time.monotonic() < deadline
    time.sleep(0.05)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for status, kind, text in ways(store, "missing", Source()):
    assert (status, kind) == (503, "OutOfResources"), (status, kind, text)
    assert "out of threads: raise `ulimit -u`" in text, text
assert not store.flights()
assert [each[0] for each in ways(store, "stored")] == [200, 200]
"""

WITHOUT_DESCRIPTORS = """
asyncio.run(read(store, "stored"))
loop = asyncio.new_event_loop()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
def ways(store, key, source=None):
    yield told(lambda: store.open(key, source).read())
    yield told(lambda: loop.run_until_complete(read(store, key, source)))
found = [*ways(store, "stored"), *ways(store, "missing", Source())]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
for status, kind, text in found:
    assert (status, kind) == (503, "OutOfResources"), (status, kind, text)
    assert "out of file descriptors" in text, text
assert [each[0] for each in ways(store, "missing", Source())] == [200, 200]
loop.close()
"""

WITHOUT_MEMORY = """
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20), size + (40 << 20)))

async def one(number):
    try:
        return 200 if await read(store, f"key {number}", Source()) == DATA else "wrong"
    except ShmstreamError as error:
        return status_of(error)

async def all():
    return await asyncio.wait_for(asyncio.gather(*map(one, range(60))), 60)

found = collections.Counter(asyncio.run(all()))
assert set(found) <= {200, 503}, found
assert found[503], found
"""


@pytest.mark.parametrize(
    ("program", "user"),
    [
        pytest.param(WITHOUT_THREADS, "54321", marks=needs_mounts, id="threads"),
        pytest.param(WITHOUT_DESCRIPTORS, None, id="descriptors"),
        pytest.param(WITHOUT_MEMORY, None, id="memory"),
    ],
)
def test_a_store_that_lacks_something_says_so(program: str, user: str | None) -> None:
    """Never a hang, a traceback, wrong bytes, or another status than 503; and then it works."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o711)
        home = folder / "home"
        home.mkdir(0o700)
        if user is not None:
            os.chown(home, int(user), int(user))
        command = [sys.executable, "-c", BEGIN + program, str(home / "store")]
        command += [user] if user else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(folder)
    assert sweep() == []
