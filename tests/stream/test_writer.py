"""The writer: what it appends and refuses, and how a blob ends: commit, abort, failures."""

from __future__ import annotations

import hashlib
import io
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import (
    BlobAborted,
    BlobStreamer,
    DigestMismatch,
    IllegalTransition,
    InFlightCopier,
    SizeMismatch,
    State,
    StreamClosed,
    StreamExists,
)
from shmstream.stream import partial
from shmstream.stream.described_writer import DescribedStreamer
from tests.support import roles
from tests.support.interpreters import Interpreter
from tests.support.roles import content

Start = Callable[..., Interpreter]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def present_and_late(
    start: Start, streamer: BlobStreamer, ruin: Callable[[], None]
) -> list[dict[str, object]]:
    """What becomes of a reader that was there, and of one that comes when all is over."""
    present = start(roles.read, streamer.name, {})
    assert [present.hear(), present.hear()] == ["starting", "attached"]
    ruin()
    late = start(roles.read, streamer.name, {})
    assert late.hear() == "starting"
    outcomes = [present.hear(), late.hear()]
    present.finish()
    late.finish()
    return outcomes


def test_a_source_that_raises(start: Start, blob: str) -> None:
    def source() -> Iterator[bytes]:
        yield b"x" * 1000
        raise ConnectionResetError("peer went away")

    with BlobStreamer.create(blob) as streamer:

        def ruin() -> None:
            with pytest.raises(ConnectionResetError):
                streamer.transfer(source())

        present, late = present_and_late(start, streamer, ruin)
    for outcome in (present, late):
        assert (outcome["error"], outcome["offset"]) == ("BlobAborted", 1000)
        assert "ConnectionResetError: peer went away" in str(outcome["text"])
    assert present["bytes"] == 1000, "what was published is still given"
    assert not Path(blob).exists()


@pytest.mark.parametrize("given", [999, 1001])
@pytest.mark.parametrize("digest", [None, digest_of(b"x" * 1000)])
def test_a_source_of_another_size(given: int, digest: str | None, start: Start, blob: str) -> None:
    with BlobStreamer.create(blob, size=1000, digest=digest, chunk_size=300) as streamer:

        def ruin() -> None:
            with pytest.raises(SizeMismatch) as caught:
                streamer.transfer([b"x" * 900, b"x" * (given - 900)])
            assert (caught.value.expected, caught.value.got) == (1000, given)

        present, late = present_and_late(start, streamer, ruin)
    for outcome in (present, late):
        assert outcome["error"] == "SizeMismatch"
        assert f"1000 bytes it should: {given}" in str(outcome["text"])
    assert int(str(present["bytes"])) < 1000


@pytest.mark.parametrize("size", [None, 200_000])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_wrong_bytes_are_never_complete(
    size: int | None, algorithm: str, start: Start, blob: str
) -> None:
    right = content(1, 200_000)
    wrong = b"\0" + right[1:]
    digest = digest_of(right, algorithm)
    with BlobStreamer.create(blob, size=size, digest=digest, publish_interval=0) as streamer:

        def ruin() -> None:
            with pytest.raises(DigestMismatch) as caught:
                streamer.transfer([wrong])
            assert caught.value.expected == digest
            assert caught.value.got == digest_of(wrong, algorithm)

        present, late = present_and_late(start, streamer, ruin)
        assert streamer.published == 200_000 // 65536 * 65536
    assert (present["error"], late["error"]) == ("DigestMismatch", "DigestMismatch")
    assert present["bytes"] == 200_000 // 65536 * 65536, "the last chunk was withheld"
    assert not Path(blob).exists()


@pytest.mark.parametrize("size", [None, 4 * 65536])
def test_the_last_chunk_is_withheld_even_when_it_is_whole(size: int | None, blob: str) -> None:
    data = content(1, 4 * 65536)
    with BlobStreamer.create(
        blob, size=size, digest=digest_of(data), publish_interval=0
    ) as streamer:
        for start in range(0, len(data), 65536):
            streamer.append(data[start : start + 65536])
        assert (streamer.published, streamer.chunk_count) == (3 * 65536, 3)
        streamer.commit()
        assert (streamer.published, streamer.chunk_count) == (4 * 65536, 4)
    assert Path(blob).read_bytes() == data


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 104, 65536])
@pytest.mark.parametrize("known", [True, False])
def test_sizes_at_the_edges_of_chunks(size: int, known: bool, digest: bool, blob: str) -> None:
    data = content(3, size)
    with BlobStreamer.create(
        blob,
        size=size if known else None,
        digest=digest_of(data) if digest else None,
        chunk_size=5,
    ) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            assert streamer.transfer(io.BytesIO(data)) == size
            assert reader.read() == data
            assert reader.size == streamer.size == size
            assert reader.chunk_count == streamer.chunk_count == -(-size // 5)
    assert Path(blob).read_bytes() == data
    assert streamer.state == State.COMMITTED


def test_a_source_that_goes_quiet(start: Start, blob: str) -> None:
    """100 bytes and then nothing: readers are rung for them, at the beginning and later."""
    with BlobStreamer.create(blob) as streamer:
        reader = start(roles.read_steps_when_rung, streamer.name)
        assert reader.hear() == "attached"
        for seed in range(20):
            reader.say(["read", 150])
            # The second append comes within the interval of the first: the pacer must see to it.
            streamer.append(content(seed, 100))
            streamer.append(content(seed, 50))
            assert reader.hear() == (content(seed, 100) + content(seed, 50)).hex()
        streamer.abort("enough")
        reader.say(["close"])
        assert reader.hear() == "close"


@pytest.mark.parametrize(
    "data",
    [
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc"),
        memoryview(b"a-b-c")[::2].tobytes(),
        array("I", [1, 2, 3]),
        memoryview(bytes(12)).cast("B", (3, 4)),
        b"",
        array("I"),
    ],
)
def test_appending_any_buffer(data: object, blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        streamer.append(data)  # type: ignore[arg-type]
        streamer.commit()
    assert Path(blob).read_bytes() == bytes(memoryview(data))  # type: ignore[arg-type]


def test_appending_what_is_no_buffer(blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        for wrong in ("text", 3, None):
            with pytest.raises(TypeError):
                streamer.append(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            streamer.append(memoryview(b"abcdef")[::2])
        streamer.append(b"unharmed")
        streamer.commit()
    assert Path(blob).read_bytes() == b"unharmed"


def test_leaving_without_commit_aborts(blob: str) -> None:
    with pytest.raises(ZeroDivisionError), BlobStreamer.create(blob) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            streamer.append(b"half")
            assert reader.read(4) == b"half"
            try:
                raise ZeroDivisionError("of all things")
            finally:
                streamer.__exit__(*sys.exc_info())
                with pytest.raises(BlobAborted, match="ZeroDivisionError: of all things"):
                    reader.read1()
    with BlobStreamer.create(blob) as streamer:
        reader = InFlightCopier.attach(streamer.name)
    with reader, pytest.raises(BlobAborted, match="closed it without commit"):
        reader.read1()


def test_readers_go_on_after_the_writer_has_closed(blob: str) -> None:
    data = content(1, 300_000)
    with BlobStreamer.create(blob) as streamer:
        reader = InFlightCopier.attach(streamer.name)
        streamer.transfer([data])
    with reader:
        assert reader.read() == data
        assert (reader.size, reader.state) == (300_000, State.COMMITTED)


def test_a_second_writer(start: Start, tmp_path: Path) -> None:
    writer = start(roles.write, str(tmp_path / "one"), {"name": "taken"})
    assert writer.hear() == "taken"
    with pytest.raises(StreamExists, match=f"pid {writer.pid} .*python") as caught:
        BlobStreamer.create(tmp_path / "two", name="taken")
    assert caught.value.name == "taken"
    with pytest.raises(StreamExists, match=r"one\.shmstream-partial"):
        BlobStreamer.create(tmp_path / "one", name="other")
    writer.say(["append", 1, 10])
    assert writer.hear() == "append"
    for order in (["commit"], ["close"]):
        writer.say(order)
        writer.hear()
    assert (tmp_path / "one").read_bytes() == content(1, 10)
    BlobStreamer.create(tmp_path / "two", name="taken").close()


def test_what_is_over_is_over(blob: str) -> None:
    with BlobStreamer.create(blob) as committed:
        committed.transfer([b"data"])
        again: list[Callable[[], None]] = [
            lambda: committed.append(b"more"),
            committed.commit,
            lambda: committed.abort("late"),
        ]
        for use in again:
            with pytest.raises(IllegalTransition):
                use()
    with BlobStreamer.create(blob) as aborted:
        aborted.abort("first")
        aborted.abort("second")  # changes nothing
        with pytest.raises(BlobAborted, match="first"):
            InFlightCopier.attach(aborted.name)
        with pytest.raises(IllegalTransition):
            aborted.append(b"more")
        with pytest.raises(IllegalTransition):
            aborted.commit()
    for closed in (committed, aborted):
        closed.close()
        with pytest.raises(StreamClosed):
            closed.append(b"")
        with pytest.raises(StreamClosed):
            closed.commit()
        with pytest.raises(StreamClosed):
            closed.abort("x")
    assert Path(blob).read_bytes() == b"data", "an abort leaves an earlier blob at that path alone"
    assert (committed.published, committed.size, committed.chunk_count) == (4, 4, 1)
    assert "COMMITTED 4/4" in repr(committed)


@pytest.mark.parametrize("reason", ["", "x" * 100_000, "\N{SNOWMAN}" * 50_000, "\0\x1b" * 20_000])
def test_any_reason_reaches_the_readers(reason: str, blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        reader = InFlightCopier.attach(streamer.name)
        streamer.abort(reason)
        with reader, pytest.raises(BlobAborted) as caught:
            reader.read1()
    assert caught.value.reason[:100] == reason[:100]


@pytest.mark.parametrize(
    "options",
    [
        {"size": -1},
        {"chunk_size": 0},
        {"chunk_size": -5},
        {"publish_bytes": -1},
        {"publish_interval": -0.1},
        {"max_subscribers": 0},
        {"max_subscribers": 1 << 20},
        {"digest": "sha256:xyz"},
        {"digest": "md5:" + "0" * 31},
        {"digest": "A" * 40},
        {"name": ""},
        {"name": "../etc"},
        {"name": "a/b"},
        {"name": "x" * 25},
        {"name": ".hidden"},
        {"name": "nul\0"},
        {"name": "\N{SNOWMAN}"},
    ],
)
def test_arguments_out_of_bounds(options: dict[str, object], blob: str) -> None:
    with pytest.raises(ValueError):
        BlobStreamer.create(blob, **options)  # type: ignore[arg-type]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BlobStreamer.create(tmp_path / "no" / "folder")
    with pytest.raises(NotADirectoryError):
        (tmp_path / "file").write_bytes(b"")
        BlobStreamer.create(tmp_path / "file" / "blob")
    (tmp_path / "folder.shmstream-partial").mkdir()
    with pytest.raises(IsADirectoryError):
        BlobStreamer.create(tmp_path / "folder")
    (tmp_path / "folder.shmstream-partial").rmdir()
    (tmp_path / "there").mkdir()
    with BlobStreamer.create(tmp_path / "there") as streamer:
        with pytest.raises(IsADirectoryError):
            streamer.transfer([b"data"])
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link.shmstream-partial").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        BlobStreamer.create(tmp_path / "link")
    (tmp_path / "link.shmstream-partial").unlink()
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_the_error_of_another_stream_is_only_a_reason(blob: str) -> None:
    with BlobStreamer.create(blob, name="mine") as streamer:
        streamer.append(b"data")
        streamer.abort(SizeMismatch("other" * 2000, 7, "reason", 1, 2))
        with pytest.raises(BlobAborted) as caught:
            InFlightCopier.attach("mine")
        assert type(caught.value) is BlobAborted
        assert (caught.value.name, caught.value.offset) == ("mine", 4)


def test_space_is_reserved_for_a_small_blob_only_on_a_disk_that_has_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[int] = []
    monkeypatch.setattr(partial, "reserve", lambda _fd, size: reserved.append(size))
    monkeypatch.setattr(partial, "_free", lambda _fd: 64 << 20)
    with DescribedStreamer.create(tmp_path / "blob") as streamer:
        streamer.reserve(64 << 10)
        assert reserved == []
        streamer.reserve((64 << 10) + 1)
        monkeypatch.setattr(partial, "_free", lambda _fd: (64 << 20) - 1)
        streamer.reserve(100)
        assert reserved == [(64 << 10) + 1, 100]
