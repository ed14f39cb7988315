"""A name with a digest or a size: a reader gets only what it asked for, whichever process leads."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import (
    CommandSource,
    ContentChanged,
    DamagedBlob,
    DigestMismatch,
    SizeMismatch,
    SourceFailed,
    Store,
    WriterStalled,
)
from shmstream.flight.flight import Flight
from shmstream.storage.record import Record
from shmstream.stream.digest import RunningDigest
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, Interpreter, Link, wait_until
from tests.support.origin import Origin
from tests.support.roles import content

Start = Callable[..., Interpreter]

SIZE = 300_000
CHUNK = 65536
FREE = SIZE // CHUNK * CHUNK  # all but the last chunk
DATA, OTHER = content(1, SIZE), content(2, SIZE)
NAME = "a name"


def of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Gate:
    """A source that gives one piece, and the rest when it is told to."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self.pieces[0]
        assert self.go_on.wait(60)
        yield from self.pieces[1:]


def halves(data: bytes = DATA) -> Gate:
    return Gate(data[: SIZE // 2], data[SIZE // 2 :])


def is_gone(store: Store) -> bool:
    return not store.flights() and not list(Path(store.folder).rglob("*.shmstream-*"))


# What a source gives.


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_digest_beside_a_name(algorithm: str, store: Store) -> None:
    for wrong in (DATA[:-1], DATA + b"x", OTHER, b""):
        with pytest.raises(DigestMismatch):
            store.fetch(NAME, [wrong], digest=of(DATA, algorithm))
        wait_until(lambda: is_gone(store))
    path = store.fetch(NAME, [DATA], digest=of(DATA, algorithm).upper())
    assert Path(path).read_bytes() == DATA
    assert [key for key, _ in store.blobs()] == [NAME]
    record = Record.read(path + ".shmstream-record")
    assert record is not None
    assert record.digest == of(DATA, algorithm)
    assert store.check() == []


def test_a_size_beside_a_name(store: Store, origin: Origin) -> None:
    for wrong in (DATA[:-1], DATA + b"x", b""):
        with pytest.raises(SizeMismatch) as caught:
            store.fetch(NAME, [wrong], size=SIZE)
        assert caught.value.expected == SIZE
        assert caught.value.got in (len(wrong), SIZE + 1)
        wait_until(lambda: is_gone(store))
    with pytest.raises(SizeMismatch, match="ended after 5 bytes"):
        store.fetch(NAME, CommandSource(["printf", "12345"]), size=6)
    short = origin.serve("/short", seed=1, size=SIZE - 1)
    with pytest.raises(SizeMismatch, match=f"has {SIZE - 1} bytes, and {SIZE} were asked for"):
        store.fetch(NAME, short, size=SIZE)
    assert Path(store.fetch(NAME, [DATA], size=SIZE)).read_bytes() == DATA
    good = origin.serve("/good", seed=1, size=SIZE)
    assert Path(store.fetch("two", [short, good], size=SIZE)).read_bytes() == DATA
    assert Path(store.fetch("empty", b"", size=0)).read_bytes() == b""
    wait_until(lambda: not store.flights())


def test_an_origin_without_a_length_that_breaks_off(store: Store, origin: Origin) -> None:
    """Without a size that is not to be seen; with one the rest is asked for."""
    url = origin.serve("/blob", seed=1, size=SIZE, framing="close")
    origin.change("/blob", first=0, count=1, close_after=200_000)
    assert Path(store.fetch(NAME, url, size=SIZE)).read_bytes() == DATA
    assert len(origin.requests("/blob")) == 2


@pytest.mark.parametrize("follows", [False, True])
def test_the_last_chunk_comes_after_the_end(follows: bool, store: Store) -> None:
    """So nobody has all of a blob that is too long, even if another flight has no size yet."""
    gate = Gate(DATA, b"one more")
    with store.open(NAME, gate, size=SIZE) as first, store.open(NAME, size=SIZE) as second:
        blob = second if follows else first
        assert blob.read(FREE) == DATA[:FREE]
        assert blob.published == FREE
        gate.go_on.set()
        with pytest.raises(SizeMismatch):
            blob.read(1)
    assert NAME not in store
    wait_until(lambda: not store.flights())


# What is stored.


def test_a_stored_blob_is_what_was_asked_for_or_comes_anew(store: Store) -> None:
    path = store.fetch(NAME, [DATA])
    for asked in ({"digest": of(DATA)}, {"size": SIZE}, {"digest": of(DATA), "size": SIZE}):
        with store.open(NAME, **asked) as blob:
            assert (blob.role, blob.read()) == ("stored", DATA)
    for asked in ({"digest": of(OTHER)}, {"size": SIZE - 1}):
        with pytest.raises(DamagedBlob, match=r"not sha256|were asked for"):
            store.open(NAME, **asked)
        with pytest.raises(SourceFailed):
            store.fetch(NAME, "/nowhere", **asked)
        assert Path(path).read_bytes() == DATA, "it stays until a source has answered"
    with store.open(NAME, [OTHER], digest=of(OTHER)) as blob:
        assert (blob.role, blob.read()) == ("leads", OTHER)
    with store.open(NAME) as blob:
        assert (blob.role, blob.read()) == ("stored", OTHER)
    with store.open(NAME, [DATA[:-1]], size=SIZE - 1) as blob:
        assert blob.read() == DATA[:-1]
    assert store.check() == []
    wait_until(lambda: not store.flights())


def test_another_algorithm_than_is_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored blob is hashed once."""
    store.fetch(NAME, [DATA])
    with pytest.raises(DamagedBlob, match="its digest is md5:"):
        store.open(NAME, digest=of(OTHER, "md5"))
    monkeypatch.setattr("shmstream.storage.layout.digest_of", None)
    store.open(NAME, digest=of(DATA, "md5")).close()
    monkeypatch.undo()
    assert store.check() == []


def test_a_blob_whose_record_is_lost(store: Store) -> None:
    path = store.fetch(NAME, [DATA])
    Path(path + ".shmstream-record").unlink()
    store.open(NAME, digest=of(DATA)).close()
    with pytest.raises(DamagedBlob):
        store.open(NAME, digest=of(OTHER))
    Path(path).unlink()


def test_a_damaged_blob_with_a_digest(folder: str) -> None:
    store = make_store(folder, {"verify": True})
    path = store.fetch(NAME, [DATA])
    Path(path).write_bytes(OTHER)
    assert store.check(verify=False) == []
    with store.open(NAME, [DATA], digest=of(DATA)) as blob:
        assert (blob.role, blob.read()) == ("leads", DATA)


def test_a_size_beside_a_digest(store: Store) -> None:
    with pytest.raises(SizeMismatch):
        store.fetch(of(DATA), [DATA], size=SIZE - 1)
    path = store.fetch(of(DATA), [DATA], size=SIZE, digest=of(DATA)[7:].upper())
    with pytest.raises(SizeMismatch):
        store.fetch(of(DATA), [DATA], size=SIZE - 1)
    assert Path(path).read_bytes() == DATA


def test_what_is_no_digest_and_no_size(store: Store) -> None:
    for digest in ("a name", "sha256", "sha256:00", of(DATA, "md5")[4:], "", 5):
        with pytest.raises(ValueError, match="digest"):
            store.open(NAME, [DATA], digest=digest)  # type: ignore[arg-type]
    for size in (-1, 1 << 63, 1.5, "5"):
        with pytest.raises(ValueError, match="number of bytes"):
            store.fetch(NAME, [DATA], size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the key is the digest"):
        store.aopen(of(DATA), [DATA], digest=of(DATA, "md5"))


# Flights that others began.


def test_a_flight_that_verifies_nothing(store: Store) -> None:
    """The reader waits for its end, gets nothing before, and then compares."""
    gate = halves()
    with store.open(NAME, gate) as free, store.open(NAME, digest=of(DATA), size=SIZE) as strict:
        assert free.read(100_000) == DATA[:100_000]
        assert (strict.role, strict.published, strict.size) == ("follows", 0, None)
        assert not strict.is_complete
        strict.seek(100)
        gate.go_on.set()
        assert strict.read() == DATA[100:]
        assert strict.wait() == SIZE
        assert free.read() == DATA[100_000:]


@pytest.mark.parametrize("led", [{}, {"digest": of(OTHER)}, {"size": SIZE}])
def test_a_flight_of_something_else(led: dict[str, object], store: Store) -> None:
    """Who asked for it gets it; who asked for something else gets that from its own source."""
    gate = halves(OTHER)
    first = store.open(NAME, gate, **led)  # type: ignore[arg-type]
    with first, store.open(NAME, [DATA], digest=of(DATA)) as strict:
        assert strict.published == 0
        gate.go_on.set()
        assert strict.read() == DATA
        assert strict.role == "leads"
        assert first.read() == OTHER
    gate = halves(OTHER)
    with pytest.raises(DamagedBlob):
        store.open(NAME, digest=of(OTHER))
    store.evict(0)
    with store.open(NAME, gate, digest=of(OTHER)), store.open(NAME, digest=of(DATA)) as strict:
        gate.go_on.set()
        with pytest.raises(DamagedBlob, match="its digest is"):
            strict.read()


def test_a_leader_that_clears_up_for_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flight has ended with something else, and still has the name: the reader waits once."""
    gate, go_on, looks = halves(OTHER), threading.Event(), 0
    finish, look = RunningDigest.finish, Flight._stored

    def finish_later(self: RunningDigest) -> str:
        assert self.is_given or go_on.wait(60)
        return finish(self)

    def count(self: Flight) -> object:
        nonlocal looks
        looks += 1
        if looks > 10:
            go_on.set()
        return look(self)

    monkeypatch.setattr(RunningDigest, "finish", finish_later)
    with store.open(NAME, gate), store.open(NAME, [DATA], digest=of(DATA)) as strict:
        monkeypatch.setattr(Flight, "_stored", count)
        gate.go_on.set()
        began = time.monotonic()
        assert strict.read() == DATA
        assert strict.joins == 2
        assert time.monotonic() - began > 0.1, "it sleeps between two looks"


@pytest.mark.parametrize("asked", [{"digest": of(DATA)}, {"size": SIZE}])
def test_a_flight_of_the_same_is_streamed(asked: dict[str, object], store: Store) -> None:
    gate = halves()
    with store.open(NAME, gate, **asked) as first:  # type: ignore[arg-type]
        with store.open(NAME, **asked) as second:  # type: ignore[arg-type]
            assert second.read(CHUNK) == first.read(CHUNK) == DATA[:CHUNK]
            gate.go_on.set()
            assert second.read() == first.read() == DATA[CHUNK:]


@pytest.mark.parametrize("mistake", [{"digest": of(OTHER)}, {"size": SIZE + 1}])
def test_a_mistake_of_the_leader_is_its_own(
    mistake: dict[str, object], store: Store, origin: Origin
) -> None:
    """What its leader got wrong ends no flight for a reader that has a source."""
    url = origin.serve("/blob", seed=1, size=SIZE, framing="chunked")
    origin.change("/blob", count=1, stall_after=200_000)
    with (
        store.open(NAME, url, **mistake) as wrong,  # type: ignore[arg-type]
        store.open(NAME, url) as free,
        store.open(NAME) as poor,
    ):
        assert free.read(CHUNK) == DATA[:CHUNK]
        assert free.role == "follows"
        origin.release()
        for each in (wrong, poor):
            with pytest.raises((DigestMismatch, SizeMismatch)):
                each.read()
        assert free.read() == DATA[CHUNK:]
    wait_until(lambda: not store.flights())


def test_a_reader_waits_no_longer_than_it_wants_to(store: Store) -> None:
    gate = halves()
    with store.open(NAME, gate) as free:
        free.read(10)
        with store.open(NAME, digest=of(DATA), stall_timeout=0.05) as strict:
            with pytest.raises(WriterStalled):
                strict.read(1)
        gate.go_on.set()


@pytest.mark.parametrize("asked", [{"digest": of(DATA)}, {"digest": of(OTHER)}])
def test_the_leader_of_another_flight_dies(
    asked: dict[str, str], start: Start, store: Store, origin: Origin
) -> None:
    """The reader that waited takes over, and still compares."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", count=1, stall_after=200_000)
    other = origin.serve("/other", seed=2, size=SIZE)
    leader = start(flights.take, store.folder, {})
    leader.hear()
    leader.say([NAME, url, 0])
    leader.hear()
    wait_until(lambda: store.flights()[0].published > CHUNK)
    mine = url if asked["digest"] == of(DATA) else [url, other]
    with store.open(NAME, mine, **asked) as blob:  # type: ignore[arg-type]
        assert (blob.role, blob.published) == ("follows", 0)
        leader.kill()
        if asked["digest"] == of(DATA):
            assert blob.read() == DATA
        else:  # its first source has the blob of the flight, and is asked first
            with pytest.raises(DigestMismatch):
                blob.read()
    assert origin.requests("/blob")[1].range is not None, "what was there is not asked for again"


def test_a_killed_leader_of_a_rare_digest_leaves_what_can_be_resumed(
    start: Start, store: Store, origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", count=1, stall_after=200_000)
    leader = start(lead_with_digest, store.folder, url, of(DATA, "md5"))
    leader.hear()
    wait_until(lambda: bool(list(Path(store.folder).rglob("*.shmstream-journal"))))
    leader.kill()
    store.gc()
    for journal in Path(store.folder).rglob("*.shmstream-journal"):
        os.utime(journal, (time.time() - 1000, time.time() - 1000))
    assert [each for each in store.gc() if "partial" in each] == []
    assert Path(store.fetch(NAME, url, digest=of(DATA, "md5"))).read_bytes() == DATA
    assert origin.requests("/blob")[1].range is not None


def lead_with_digest(link: Link, folder: str, url: str, digest: str) -> None:
    with make_store(folder, {}).open(NAME, url, digest=digest) as blob:
        link.say(len(blob.read(CHUNK)))
        link.hear()


def test_a_reader_goes_on_after_a_flight_that_was_wrong_only_for_its_leader(store: Store) -> None:
    """No validator tells that the next flight has the same content: what was read is compared."""
    half_is_read = threading.Event()

    def halves() -> Iterator[bytes]:
        yield DATA[: SIZE // 2]
        assert half_is_read.wait(PATIENCE)
        yield DATA[SIZE // 2 :]

    with store.open(NAME, halves(), digest=of(OTHER)) as wrong, store.open(NAME, [DATA]) as blob:
        begin = blob.read(1000)
        half_is_read.set()
        with pytest.raises(DigestMismatch):
            wrong.read()
        assert begin + blob.read() == DATA


def test_what_was_read_is_not_mixed_with_other_content(store: Store) -> None:
    half_is_read = threading.Event()

    def halves() -> Iterator[bytes]:
        yield OTHER[: SIZE // 2]
        assert half_is_read.wait(PATIENCE)
        yield OTHER[SIZE // 2 :]

    with store.open(NAME, halves(), digest=of(DATA)) as wrong, store.open(NAME, [DATA]) as blob:
        blob.read(1000)
        half_is_read.set()
        with pytest.raises(DigestMismatch):
            wrong.read()
        with pytest.raises(ContentChanged):
            blob.read()


# asyncio.


def test_tasks_that_ask_for_different_things(store: Store) -> None:
    """Each gets what it asked for, though all of them are in one process."""

    async def read(**asked: object) -> bytes | str:
        try:
            async with store.aopen(NAME, [DATA], **asked) as blob:  # type: ignore[arg-type]
                return await blob.read()
        except (DigestMismatch, SizeMismatch) as error:
            return type(error).__name__

    async def all_of_them() -> list[bytes | str]:
        asked: list[dict[str, object]] = [
            {}, {"digest": of(DATA)}, {"digest": of(DATA)[7:]}, {"size": SIZE},
            {"digest": of(OTHER)}, {"size": SIZE + 1}, {"digest": of(DATA, "md5"), "size": SIZE},
        ]  # fmt: skip
        return list(await asyncio.gather(*(read(**each) for each in asked)))

    for _ in range(2):  # in flight, and stored
        got = asyncio.run(all_of_them())
        assert [each if isinstance(each, str) else each == DATA for each in got] == [
            True, True, True, True, "DigestMismatch", "SizeMismatch", True,
        ]  # fmt: skip
        wait_until(lambda: not store.flights())
