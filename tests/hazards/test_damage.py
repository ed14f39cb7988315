"""What others do to our things: foreign and damaged segments, files changed underneath, doorbells
removed or rung without end. A clear error or a late arrival, never a wrong byte, never SIGBUS."""

from __future__ import annotations

import io
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import posix_ipc
import pytest

from shmstream import (
    BlobAborted,
    BlobStreamer,
    DamagedPartial,
    DamagedSegment,
    Feed,
    ForeignSegment,
    InFlightCopier,
    ShmstreamError,
    SourceFailed,
    Store,
    StreamExists,
    WriterDied,
    sweep,
)
from shmstream.storage.journal import Journal
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import HEADER_SIZE, MAGIC, MAX_SLOTS, UNKNOWN, Block, State
from shmstream.stream.partial import REAPER
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.system.locks import KernelLock, file_identity
from tests.support import flights, roles
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, interrupt

Start = Callable[..., Interpreter]


def forge(name: str, size: int, change: Callable[[Block], None] | None = None) -> Path:
    """A segment that no writer made: a valid block, with changes."""
    path = Path(segment.path_of(name))
    path.touch(0o600)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    if size >= HEADER_SIZE:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as memory:
            block = Block(memoryview(memory))
            block.slots, block.chunk_size, block.version = 4, 65536, 1
            block.path = b"/somewhere"
            block.magic = MAGIC
            if change is not None:
                change(block)
            block.memory.release()
            block.release()
    return path


def setting(**values: int | bytes) -> Callable[[Block], None]:
    def change(block: Block) -> None:
        for field, value in values.items():
            setattr(block, field, value)

    return change


GOOD = Block.size_for(4)
FORGERIES: dict[str, tuple[int, Callable[[Block], None] | None]] = {
    "one byte": (1, None),
    "shorter than a header": (HEADER_SIZE - 1, None),
    "shorter than it claims": (GOOD - 1, None),
    "wrong magic": (GOOD, setting(magic=0x1234)),
    "wrong version": (GOOD, setting(version=2)),
    "no slots": (GOOD, setting(slots=0)),
    "too many slots": (GOOD, setting(slots=MAX_SLOTS + 1)),
    "absurdly many slots": (GOOD, setting(slots=(1 << 64) - 1)),
    "no chunk size": (GOOD, setting(chunk_size=0)),
    "unknown state": (GOOD, setting(state=4)),
    "more published than there is": (GOOD, setting(size=10, published=11)),
    "committed, not complete": (GOOD, setting(size=10, published=9, state=2)),
    "committed, of unknown size": (GOOD, setting(size=UNKNOWN, published=9, state=2)),
    "token out of bounds": (GOOD, setting(token=1 << 48)),
    "no path": (GOOD, setting(path=b"")),
    "relative path": (GOOD, setting(path=b"etc/passwd")),
    "a path with a zero byte": (GOOD, setting(path=b"/some\0where")),
    "a path with too long a name": (GOOD, setting(path=b"/" + b"x" * 238)),
    "a digest that is no text": (GOOD, setting(digest=b"\xff\xfe")),
    "a digest of no known kind": (GOOD, setting(digest=b"crc32:01234567")),
    "a digest with a digit too few": (GOOD, setting(digest=b"sha256:" + b"0" * 63)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_damaged_segment(forgery: str, blob: str) -> None:
    path = forge("forged", *FORGERIES[forgery])
    content = path.read_bytes()
    with pytest.raises(DamagedSegment, match="remove /dev/shm/shms-forged") as caught:
        InFlightCopier.attach("forged", timeout=0.1)
    assert caught.value.name == "forged"
    with pytest.raises(DamagedSegment):
        BlobStreamer.create(blob, name="forged")
    assert sweep() == []
    assert path.read_bytes() == content, "what is not ours is left alone"
    path.unlink()


def test_a_valid_block_whose_file_is_another(blob: str) -> None:
    Path(blob).write_bytes(b"secret")
    path = forge("forged", GOOD, setting(path=os.fsencode(blob), size=6, published=6, state=2))
    with pytest.raises(DamagedPartial, match="replaced or removed"):
        InFlightCopier.attach("forged")
    path.unlink()


def test_an_error_text_that_is_none(blob: str) -> None:
    facts = b'{"error": "BlobAborted", "name": "x", "offset": 1, "reason": "no"'
    for text in (
        b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"error": "SystemExit"}', b'{"error": ["x"]}',
        b'{"error": "BlobAborted"}', facts + b', "more": 1}', facts.replace(b"1", b"null") + b"}",
        facts.replace(b'"no"', b"7") + b"}",
        facts.replace(b"BlobAborted", b"SourceFailed") + b', "kind": []}',
    ):  # fmt: skip
        path = forge("forged", GOOD, setting(path=os.fsencode(blob), state=3, error=text))
        with pytest.raises(DamagedSegment, match="error cannot be read"):
            InFlightCopier.attach("forged")
        path.unlink()


def test_a_half_made_segment_with_a_path_that_is_none() -> None:
    """Its writer was killed before it stored the magic; or another program made it."""
    for junk in (b"/some\0where", b"relative", b"\xff" * 4096, b"/" + b"x" * 4000, b"/dev/null/x"):
        forge("forged", GOOD, setting(magic=0, path=junk))
        assert sweep() == ["forged"]


def test_a_stream_whose_path_leads_nowhere(blob: str) -> None:
    """Its writer is dead, and a file lies where the folder of its blob was."""
    for resumable in (0, 1):
        forge("forged", GOOD, setting(path=b"/dev/null/x", state=1, resumable=resumable))
        with pytest.raises(WriterDied):
            InFlightCopier.attach("forged", timeout=0)
        BlobStreamer.create(blob, name="forged").close()


def test_a_stream_with_more_takeovers_than_a_word_can_count(blob: str) -> None:
    Path(blob + ".shmstream-partial").touch()
    fd = os.open(blob + ".shmstream-partial", os.O_RDONLY)
    device, inode, generation = file_identity(fd)
    os.close(fd)
    words = {"epoch": UNKNOWN, "size": UNKNOWN, "state": 1, "resumable": 1}
    file = {"device": device, "inode": inode, "file_generation": generation}
    forge("forged", GOOD, setting(path=os.fsencode(blob), **words, **file))
    with ResumableStreamer.succeed("forged") as streamer:
        streamer.transfer([b"data"])
    assert Path(blob).read_bytes() == b"data"


def test_junk_that_comes_after_attaching(blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        reader = InFlightCopier.attach(streamer.name)
        streamer.append(b"x" * 100)
        assert reader.read(100) == b"x" * 100
        streamer._block.state = 7
        with pytest.raises(DamagedSegment, match="its state is 7"):
            reader.read(1)
        streamer._block.state = State.STREAMING
        streamer._block.path = b"\0"
        with pytest.raises(DamagedSegment, match="path"):
            InFlightCopier.attach(streamer.name)
        streamer._block.path = os.fsencode(blob)
        for number in (0, 1 << 32, 1 << 63):
            streamer._block.writer_pid = number
            goes_on = threading.Timer(0.1, streamer.append, [b"y" * 100])
            goes_on.start()
            assert reader.read(100) == b"y" * 100
            goes_on.join()
        reader.close()


CUT = """
import io, os, sys
from contextlib import suppress
from shmstream import BlobStreamer, DamagedSegment, InFlightCopier
from shmstream.stream import segment

blob, size, whose = sys.argv[1], int(sys.argv[2]), sys.argv[3]
streamer = BlobStreamer.create(blob, publish_interval=0)
readers = [InFlightCopier.attach(streamer.name, subscribes_late=late) for late in (True, False)]
streamer.append(bytes(1000))
for reader in readers:
    reader.read(10)
os.truncate(segment.path_of(streamer.name), size)

def tries(act):
    try:
        return act() and "no error"
    except DamagedSegment as error:
        return "cut off from" in str(error)

for reader in readers:
    assert reader.read(990) == bytes(990)  # they were published when it looked last
    for act in (
        lambda: reader.read(10), lambda: reader.read1(), lambda: reader.copy(io.BytesIO()),
        lambda: reader.published, lambda: reader.state, lambda: reader.view(), reader.wait,
        lambda: reader.seek(0, 2),
    ):
        assert tries(act) is True, act
    repr(reader)
    reader.close()
streamer.append(bytes(10))  # it finds that these cannot be published
for act in (
    lambda: streamer.append(bytes(10)), streamer.commit, lambda: streamer.published,
):
    assert tries(act) is True, act
repr(streamer)
assert whose in ("close", "abort", "forgotten"), whose
if whose != "forgotten":
    if whose == "abort":
        streamer.abort("no")
    streamer.close()
    assert not os.path.exists(blob + ".shmstream-partial")
print("ended")
"""


@pytest.mark.parametrize(
    ("size", "whose"), [(0, "close"), (0, "abort"), (0, "forgotten"), (HEADER_SIZE, "close")]
)
def test_a_segment_that_is_cut_off(size: int, whose: str, blob: str) -> None:
    """An error, where to touch the missing page would be SIGBUS."""
    command = [sys.executable, "-c", CUT, blob, str(size), whose]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr


def test_a_flight_whose_segment_is_cut_off(store: Store) -> None:
    """Nothing is lost: the next flight goes on with what this one has."""
    pieces, going_on = content(1, 400_000), threading.Event()
    key = f"sha256:{sha256(pieces)}"
    offsets = []

    class Stalling:
        name = "stalling"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:
            offsets.append((offset, validator))
            return Feed(self.give(offset), offset, len(pieces), "v")

        def give(self, offset: int) -> Iterator[bytes]:
            for start in range(offset, len(pieces), 100_000):
                if start == 200_000:
                    going_on.wait(60)
                yield pieces[start : start + 100_000]

    with store.open(key, Stalling()) as blob:
        assert blob.read(100_000) == pieces[:100_000]
        os.truncate(segment.path_of(store._layout.place(key).stream), 0)
        with pytest.raises(DamagedSegment):
            blob.read(300_000)
        going_on.set()
        wait_until(lambda: segment.names() == [])
    with store.open(key, Stalling()) as blob:
        assert blob.read() == pieces
    assert all(offset >= 100_000 for offset, _ in offsets[1:])


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("SHMSTREAM_REQUIRE_REAL"),
    reason="only root can make another user's segment",
)


@needs_root
def test_the_segment_of_another_user(blob: str) -> None:
    path = forge("foreign", GOOD)
    os.chown(path, 12345, 12345)
    with pytest.raises(ForeignSegment, match="user 12345"):
        InFlightCopier.attach("foreign")
    with pytest.raises(ForeignSegment):
        BlobStreamer.create(blob, name="foreign")
    assert sweep() == []
    assert path.exists()
    path.unlink()


@needs_root
def test_our_segment_seen_by_another_user(start: Start, blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        stranger = start(roles.read_as_user, 12345, streamer.name)
        outcome = stranger.hear()
        assert outcome["error"] == "ForeignSegment"
        assert "user 0 owns it" in outcome["text"]
        stranger.finish()
        assert stat.S_IMODE(Path(segment.path_of(streamer.name)).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(blob + ".shmstream-partial").stat().st_mode) == 0o600


def test_a_segment_that_others_may_write_to() -> None:
    path = forge("open", GOOD)
    path.chmod(0o622)
    with pytest.raises(ForeignSegment, match="other users may write"):
        InFlightCopier.attach("open")
    path.unlink()


def test_a_segment_that_is_a_link_or_a_folder(tmp_path: Path, blob: str) -> None:
    link = Path(segment.path_of("link"))
    link.symlink_to(tmp_path / "elsewhere")
    folder = Path(segment.path_of("folder"))
    folder.mkdir()
    for name in ("link", "folder"):
        with pytest.raises(DamagedSegment):
            InFlightCopier.attach(name, timeout=0.1)
        with pytest.raises(DamagedSegment):
            BlobStreamer.create(blob, name=name)
    assert sweep() == []
    BlobStreamer.create(blob).close()
    link.unlink()
    folder.rmdir()


def plant(path: Path, kind: str) -> None:
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path, 0o600)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a link":
        path.symlink_to("/somewhere")
    else:
        path.touch(0o600)


KINDS = ["a folder", "a pipe", "a socket", "a link"]
OUR_NAMES = ["shms-{}", "sem.shmd-00000000abcd.1.1"]
IMPOSSIBLE_NAMES = ["shms-no name", "sem.shmd-x", "shms-"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [*product(KINDS, OUR_NAMES), *product([*KINDS, "a file"], IMPOSSIBLE_NAMES)],
)
def test_what_has_a_name_of_ours_and_is_not_ours(kind: str, name: str, store: Store) -> None:
    """It is overlooked, reported, and left alone; only its own name cannot be had."""
    place = store._layout.place("a name")
    path = Path("/dev/shm", name.format(place.stream))
    plant(path, kind)
    try:
        assert store.fetch("other", [b"data"])
        if "{}" in name:
            with pytest.raises(DamagedSegment):
                store.fetch("a name", [b"data"])
            with pytest.raises(DamagedSegment):
                InFlightCopier.attach(place.stream, timeout=0)
        else:
            assert store.fetch("a name", [b"data"])
        wait_until(lambda: store.flights() == [])
        assert (sweep(), store.gc()) == ([], [])
        [finding] = store.check()
        assert (finding.kind, finding.path) == ("foreign", str(path))
        assert os.path.lexists(path)
    finally:
        path.rmdir() if kind == "a folder" else path.unlink()


@pytest.mark.parametrize("what", ["the name", "the partial file"])
def test_a_reaper_that_has_stopped(what: str, blob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a lock, and is no writer: to wait for it must neither spin nor last."""
    partial_file = Path(blob + ".shmstream-partial")
    if what == "the name":
        held = forge("forged", GOOD, setting(path=os.fsencode(blob)))
    else:
        partial_file.touch()
        held = partial_file
    reaper = KernelLock(str(held))
    assert reaper.try_acquire(REAPER)
    used, began = time.process_time(), time.monotonic()
    with pytest.raises(StreamExists, match="is it stopped"):
        BlobStreamer.create(blob, name="forged")
    assert time.monotonic() - began < PATIENCE
    assert time.process_time() - used < 0.5 * (time.monotonic() - began)
    monkeypatch.setattr("shmstream.stream.partial._PATIENCE", PATIENCE)
    goes_on = threading.Timer(0.1, reaper.close)
    goes_on.start()
    BlobStreamer.create(blob, name="forged").close()
    goes_on.join()


@pytest.mark.parametrize("late", [False, True])
def test_a_partial_file_that_is_truncated(late: bool, blob: str) -> None:
    data = roles.content(1, 300_000)
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with ExitStack() as leaving:
            reader = leaving.enter_context(InFlightCopier.attach(streamer.name))
            streamer.append(data)
            assert reader.read(1000) == data[:1000]
            os.truncate(blob + ".shmstream-partial", 2000)
            if late:
                reader = leaving.enter_context(InFlightCopier.attach(streamer.name))
            rest = data[reader.tell() : 2000]
            assert reader.read1(len(rest)) == rest
            with pytest.raises(DamagedPartial, match="shorter") as caught:
                reader.read1()
            assert caught.value.offset == 2000
            with pytest.raises(DamagedPartial):
                reader.copy(io.BytesIO())
            with pytest.raises(DamagedPartial, match="truncated or written to"):
                streamer.append(data)
            with pytest.raises(DamagedPartial):
                reader.read1()
        with pytest.raises(BlobAborted, match="truncated"):
            InFlightCopier.attach(streamer.name)


def test_a_partial_file_that_somebody_appends_to(blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        streamer.append(b"ours")
        with Path(blob + ".shmstream-partial").open("ab") as file:
            file.write(b"theirs")
        with pytest.raises(DamagedPartial):
            streamer.commit()
    assert not Path(blob).exists()


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_partial_file_that_is_replaced(how: str, blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            streamer.append(b"true bytes")
            os.unlink(blob + ".shmstream-partial")
            if how == "replaced":
                Path(blob + ".shmstream-partial").write_bytes(b"false byte")
            assert reader.read(10) == b"true bytes", "who has it open has the true one"
            with pytest.raises(DamagedPartial, match="replaced or removed"):
                InFlightCopier.attach(streamer.name)
            with pytest.raises(DamagedPartial):
                streamer.commit()
            with pytest.raises(BlobAborted):
                reader.read1()
    assert not Path(blob).exists()
    if how == "replaced":
        assert Path(blob + ".shmstream-partial").read_bytes() == b"false byte", "not ours to remove"
        os.unlink(blob + ".shmstream-partial")


def test_a_doorbell_that_is_removed(start: Start, blob: str) -> None:
    """The reader reads everything all the same (I4)."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        reader = start(roles.read, streamer.name, {})
        assert [reader.hear(), reader.hear()] == ["starting", "attached"]
        for _, name in list(doorbell.names(streamer._block.token)):
            posix_ipc.unlink_semaphore(name)
        whole = roles.content(1, 300_000)
        for index in range(0, 300_000, 100_000):
            streamer.append(whole[index : index + 100_000])
        streamer.commit()
        outcome = reader.hear()
        assert (outcome["error"], outcome["sha256"]) == (None, roles.sha256(whole))


@pytest.mark.parametrize("posts", [1000, 100_000])
def test_a_doorbell_that_is_posted_without_end(posts: int, start: Start, blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        reader = start(roles.read, streamer.name, {"stall_timeout": PATIENCE})
        assert [reader.hear(), reader.hear()] == ["starting", "attached"]
        [(_, name)] = doorbell.names(streamer._block.token)
        bell = posix_ipc.Semaphore(name)
        for _ in range(posts):
            bell.release()
        whole = roles.content(1, 300_000)
        streamer.append(whole)
        for _ in range(posts):
            bell.release()
        bell.close()
        streamer.commit()
        outcome = reader.hear()
        assert (outcome["error"], outcome["sha256"]) == (None, roles.sha256(whole))


def test_a_doorbell_posted_to_its_limit(blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name):
            [(_, name)] = doorbell.names(streamer._block.token)
            # glibc keeps the value in the low half of the first word of the semaphore's file
            with Path(f"/dev/shm/sem.{name[1:]}").open("r+b") as file:
                file.write((2**31 - 1).to_bytes(4, "little"))
            streamer.append(b"x")
            streamer.append(b"y")
            assert streamer.published == 2


def test_a_segment_removed_underneath(start: Start, blob: str) -> None:
    """Another program empties /dev/shm: the readers that are attached read everything."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        reader = start(roles.read, streamer.name, {})
        assert [reader.hear(), reader.hear()] == ["starting", "attached"]
        for _, bell in list(doorbell.names(streamer._block.token)):
            doorbell.unlink(bell)
        segment.unlink(streamer.name)
        whole = roles.content(1, 300_000)
        streamer.transfer([whole])
        assert reader.hear()["sha256"] == roles.sha256(whole)


def test_a_block_that_was_cut_off_leaves_no_doorbells(start: Start, blob: str) -> None:
    """Its writer remembers the readers that it rang last, of which one was killed."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        victim = start(roles.read, streamer.name, {})
        assert [victim.hear(), victim.hear()] == ["starting", "attached"]
        streamer.append(b"data")
        victim.kill()
        assert len(list(doorbell.names(streamer._block.token))) == 1
        os.truncate(segment.path_of(streamer.name), 0)
    assert list(doorbell.names()) == []


def test_orphaned_doorbells_are_swept(blob: str) -> None:
    with BlobStreamer.create(blob) as streamer, InFlightCopier.attach(streamer.name):
        orphan = doorbell.name_of(12345, 1, 1)
        posix_ipc.Semaphore(orphan, posix_ipc.O_CREX).close()
        assert sweep() == [orphan], "and not that of the living"
        assert len(list(doorbell.names())) == 1


def test_a_stream_of_another_version_keeps_its_doorbells() -> None:
    other = forge("newer", GOOD, setting(version=2))
    bell = doorbell.name_of(12345, 1, 1)
    posix_ipc.Semaphore(bell, posix_ipc.O_CREX).close()
    assert sweep() == []
    other.unlink()
    assert sweep() == [bell]


def test_names_that_nobody_has() -> None:
    for wrong in ("nobody", "x" * 24):
        with pytest.raises(ShmstreamError):
            InFlightCopier.attach(wrong, timeout=0)


# The partial file of a flight that nobody leads.


def wrong_in_place(path: Path) -> None:
    """Other bytes in the middle; then the time of change is set back."""
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"wrong" * 100)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def wrong_and_longer(path: Path) -> None:
    wrong_in_place(path)
    with path.open("ab") as file:
        file.write(b"more")


def another_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    shutil.copystat(path, other)
    other.replace(path)


CHANGES: list[Callable[[Path], None]] = [wrong_in_place, wrong_and_longer, another_file]
ENDS = ("given up", "handed over", "killed", "killed and swept", "killed and wiped")
MIB = 1 << 20


def end_flight(end: str, start: Start, store: Store, origin: Origin, key: str, at: int) -> Path:
    """Have a flight of /blob end after about `at` bytes; its partial file, which nobody leads."""
    if end == "given up":
        origin.serve("/blob", seed=1, size=4 * MIB)
        origin.change("/blob", first=0, count=1, close_after=at)
        origin.change("/blob", first=1, count=2, status=404)
        with pytest.raises(SourceFailed):
            store.fetch(key, origin.url("/blob"))
    elif end == "handed over":
        origin.serve("/blob", seed=1, size=4 * MIB)
        origin.change("/blob", first=0, count=1, stall_after=at)
        leader = start(flights.open_and_leave, store.folder, key, origin.url("/blob"), "exit")
        leader.hear()
        wait_until(lambda: store.flights()[0].published > at - 65536)
        leader.say("exit")
        leader.finish()
    else:
        interrupt(start, store.folder, origin, key, 4 * MIB, at)
    wait_until(lambda: end.startswith("killed") or store.flights() == [])
    if end == "killed and swept":
        store.gc()
    elif end == "killed and wiped":  # as when a container ends that had its own /dev/shm
        for name in segment.names():
            segment.unlink(name)
        sweep()  # the doorbells
    [partial] = Path(store.folder).rglob("*.shmstream-partial")
    return partial


@pytest.mark.parametrize(
    ("end", "change", "named"),
    [
        *((end, wrong_in_place, True) for end in ENDS),
        *(("given up", change, True) for change in CHANGES[1:]),
        *(("killed", change, False) for change in CHANGES),
    ],
)
def test_a_partial_file_that_is_changed_while_nobody_leads(
    end: str,
    change: Callable[[Path], None],
    named: bool,
    start: Start,
    store: Store,
    origin: Origin,
) -> None:
    """The next download has the right bytes, at once, and says what it does not believe."""
    key = "a name" if named else digest(1, 4 * MIB)
    change(end_flight(end, start, store, origin, key, 2 * MIB))
    asked = len(origin.requests("/blob"))
    with store.open(key, origin.url("/blob")) as blob:
        assert blob.read() == roles.content(1, 4 * MIB)
    assert [each.range for each in origin.requests("/blob")[asked:]] == [None]


@pytest.mark.parametrize(
    ("end", "named"), [*((end, True) for end in ENDS[:-1]), ("handed over", False)]
)
def test_nothing_is_lost_of_a_partial_file_that_nobody_changed(
    end: str, named: bool, start: Start, store: Store, origin: Origin
) -> None:
    key = "a name" if named else digest(1, 4 * MIB)
    end_flight(end, start, store, origin, key, 2 * MIB).read_bytes()  # reading changes nothing
    asked = len(origin.requests("/blob"))
    with store.open(key, origin.url("/blob")) as blob:
        assert blob.read() == roles.content(1, 4 * MIB)
    [last] = origin.requests("/blob")[asked:]
    assert 2 * MIB - 65536 <= int((last.range or "")[6:-1]) <= 2 * MIB


def test_a_changed_file_is_used_up_to_its_last_good_checkpoint(
    start: Start, store: Store, origin: Origin
) -> None:
    key, data = digest(1, 4 * MIB), roles.content(1, 4 * MIB)
    partial = end_flight("given up", start, store, origin, key, 3 * MIB)
    journal = Journal(store._layout.place(key).journal, "sha256")
    checkpoints = [MIB, 2 * MIB, 5 * MIB // 2]
    for offset in checkpoints:
        journal.note(offset, sha256(data[:offset]))
    with partial.open("r+b") as file:
        file.seek(checkpoints.pop())
        file.seek(-1, os.SEEK_CUR)
        file.write(b"wrong")
    asked = len(origin.requests("/blob"))
    with store.open(key, origin.url("/blob")) as blob:
        assert blob.read() == roles.content(1, 4 * MIB)
    assert [each.range for each in origin.requests("/blob")[asked:]] == [
        f"bytes={checkpoints[-1]}-"
    ]


def test_a_follower_is_told_that_the_file_was_changed_before_the_takeover(
    start: Start, store: Store, origin: Origin
) -> None:
    """What it has read may be wrong, and it must not take the rest for the blob."""
    key = "a name"
    origin.serve("/blob", seed=1, size=4 * MIB)
    origin.change("/blob", first=0, count=1, stall_after=2 * MIB)
    taker = start(flights.take, store.folder, {})
    taker.hear()
    taker.say([key, origin.url("/blob"), 0])
    taker.hear()
    wait_until(lambda: bool(store.flights()) and store.flights()[0].published > 2 * MIB - 65536)
    with store.open(key, origin.url("/blob")) as follower:
        assert follower.role == "follows"
        [partial] = Path(store.folder).rglob("*.shmstream-partial")
        taker.kill()
        wrong_in_place(partial)
        follower.seek(100_000)
        with pytest.raises(DamagedPartial, match="written to by somebody else"):
            follower.read()
    assert Path(store.fetch(key, origin.url("/blob"))).read_bytes() == roles.content(1, 4 * MIB)
