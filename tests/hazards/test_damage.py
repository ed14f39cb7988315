"""What others do to our things: foreign and damaged segments, files changed underneath, doorbells
removed or rung without end. A clear error or a late arrival, never a wrong byte, never SIGBUS."""

from __future__ import annotations

import io
import mmap
import os
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
    sweep,
)
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import HEADER_SIZE, MAGIC, MAX_SLOTS, UNKNOWN, Block
from tests.support import roles
from tests.support.interpreters import Interpreter

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
