"""What others do to our things: foreign and damaged segments, files changed underneath, doorbells
removed or rung without end. A clear error or a late arrival, never a wrong byte, never SIGBUS."""

from __future__ import annotations

import io
import mmap
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import posix_ipc
import pytest

from shmstream import (
    BlobAborted,
    BlobStreamer,
    DamagedPartial,
    DamagedSegment,
    ForeignSegment,
    InFlightCopier,
    ShmstreamError,
    SourceFailed,
    Store,
    sweep,
)
from shmstream.flight import leader
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import HEADER_SIZE, MAGIC, MAX_SLOTS, UNKNOWN, Block
from tests.support import flights, roles
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
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
    for text in (b"", b"{", b"[]", b'"x"', b'{"error": "SystemExit"}', b'{"error": "BlobAborted"}'):
        path = forge("forged", GOOD, setting(path=os.fsencode(blob), state=3, error=text))
        with pytest.raises(DamagedSegment, match="error cannot be read"):
            InFlightCopier.attach("forged")
        path.unlink()


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
        reader = start(roles.read, streamer.name, {"stall_timeout": 20})
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
        origin.change("/blob", first=1, count=1, status=404)
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
    start: Start, store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "_CHECKPOINT", 1 << 20)
    key = digest(1, 4 * MIB)
    partial = end_flight("given up", start, store, origin, key, 3 * MIB)
    lines = Path(f"{partial}".replace("-partial", "-journal")).read_text().splitlines()
    checkpoints = [int(each.split()[0]) for each in lines[1:] if not each.startswith("seal")]
    assert checkpoints
    with partial.open("r+b") as file:
        file.seek(checkpoints[-1])
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
