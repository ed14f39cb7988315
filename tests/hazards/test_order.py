"""The protocol is an order of stores: the stores are recorded, and compared with a list."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmstream import (
    BlobAborted,
    BlobStreamer,
    DigestMismatch,
    InFlightCopier,
    SizeMismatch,
    WriterDied,
)
from shmstream.stream import doorbell
from shmstream.stream.claims import reap_unread
from shmstream.stream.control_block import TERMINAL, Block, Slot, State, Text, Word, fields_of
from shmstream.stream.partial import partial_path
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.stream.subscribers import Subscribers
from shmstream.stream.waiter import Tail

NAMES = {
    id(field): name for structure in (Block, Slot) for name, field in fields_of(structure).items()
}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All stores to shared memory, and all else that other processes can see, in order."""
    events: list[str] = []

    def note(owner: Any, name: str, event: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            events.append(event(*args))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    def store(field: Word | Text, _block: Any, value: Any) -> str:
        name = NAMES[id(field)]
        return f"{name} = {State(value).name}" if name == "state" else name

    note(Word, "__set__", store)
    note(Text, "__set__", store)
    note(Subscribers, "ring", lambda _self: "ring")
    for name in ("write", "rename", "unlink"):
        note(os, name, lambda *_, name=name: name)
    membership = vars(Slot)["membership"]

    def store_and_note(slot: Slot, value: tuple[int, bool]) -> None:
        events.append(f"membership {'active' if value[1] else 'free'}")
        membership.fset(slot, value)

    monkeypatch.setattr(Slot, "membership", membership.setter(store_and_note))
    note(doorbell.Doorbell, "__init__", lambda *_: "doorbell")
    return events


def test_create_stores_the_magic_last(record: list[str], blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        assert record[:2] == ["resumable", "path"], (
            "before the partial file exists, so that a reaper finds the file"
        )
        assert record[-3:] == ["state = OPENING", "version", "magic"]
        streamer.abort("")


def test_publish(record: list[str], blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        streamer.append(b"first")
        del record[:]
        streamer.append(b"second")
        assert record == ["write", "published", "chunk_count", "progress", "ring"]
        streamer.commit()


def test_each_reader_is_rung_once_and_those_who_are_known_first(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    rung: list[str] = []
    memberships: list[str] = []

    class Telling(doorbell.Ringer):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            post = self.ring

            def tell() -> None:
                rung.append(name)
                memberships.append("looked at" if streamer._subscribers._seen == now() else "old")
                post()

            self.ring = tell

    def now() -> bytes:
        return streamer._subscribers._memberships.tobytes()

    monkeypatch.setattr("shmstream.stream.subscribers.Ringer", Telling)
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as known:
            streamer.append(b"x")
            first = rung.pop()
            with InFlightCopier.attach(streamer.name) as newcomer:
                del memberships[:]
                streamer.append(b"y")
                bells = {name for _, name in doorbell.names()}
                assert rung == [first, *bells - {first}]
                assert memberships == ["old", "looked at"]
                assert known.read(2) == newcomer.read(2) == b"xy"
        streamer.commit()


def test_the_first_bytes_open_the_stream(record: list[str], blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=3600) as streamer:
        del record[:]
        streamer.append(b"first")
        assert record == [
            "state = STREAMING", "write", "published", "chunk_count", "progress", "ring",
        ]  # fmt: skip
        del record[:]
        streamer.append(b"second")
        assert record == ["write"], "too soon for another wake-up"
        streamer.commit()


def test_commit(record: list[str], blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        streamer.append(b"data")
        del record[:]
        streamer.commit()
        assert record == [
            "rename", "size", "published", "chunk_count", "progress", "state = COMMITTED", "ring",
        ]  # fmt: skip


def test_abort(record: list[str], blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        streamer.append(b"data")
        del record[:]
        streamer.abort("reason")
        assert record == ["error", "state = ABORTED", "ring", "unlink"]


def test_a_wrong_digest_publishes_nothing(record: list[str], blob: str) -> None:
    with BlobStreamer.create(blob, digest="sha256:" + "0" * 64) as streamer:
        streamer.append(b"data")
        del record[:]
        with pytest.raises(DigestMismatch):
            streamer.commit()
        assert record == ["error", "state = ABORTED", "ring", "unlink"]


def test_subscribe_and_leave(record: list[str], blob: str) -> None:
    with BlobStreamer.create(blob) as streamer:
        del record[:]
        reader = InFlightCopier.attach(streamer.name)
        assert record == [
            "membership free", "doorbell", "unlink", "write",
            "pid", "started", "namespace", "position", "sources", "ahead",
                "membership active",
        ]  # fmt: skip
        streamer.append(b"data")
        del record[:]
        assert reader.read1() == b"data"
        assert record == []
        reader.close()
        assert record == ["membership free", "unlink"]
        streamer.abort("")


def test_a_reader_looks_again_before_it_waits_and_before_it_concludes(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    """The two lost wake-ups, forced: a publish and a commit in the narrowest places."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            wait = doorbell.Doorbell.wait

            def publish_then_wait(self: doorbell.Doorbell, seconds: float) -> int:
                # after the reader saw nothing, before it sleeps
                streamer.append(b"between")
                return wait(self, seconds)

            def wait_then_publish(self: doorbell.Doorbell, seconds: float) -> int:
                # after the reader took the old ring, before it loads
                rings = wait(self, seconds)
                streamer.append(b"after")
                return rings

            monkeypatch.setattr(doorbell.Doorbell, "wait", publish_then_wait)
            monkeypatch.setattr("shmstream.stream.waiter._SLICE", 3600.0)
            assert reader.read1() == b"between"
            streamer.append(b" old ")
            assert reader.read1() == b" old ", "without a wait, so its ring is left"
            monkeypatch.setattr(doorbell.Doorbell, "wait", wait_then_publish)
            assert reader.read1() == b"after"
            monkeypatch.setattr(doorbell.Doorbell, "wait", wait)

            conclude = Tail._conclude

            def finish_then_conclude(self: Tail, position: int) -> int:
                # the writer finishes after the reader saw it dead, before it concludes
                if not streamer.size:
                    streamer.transfer([b"the rest"])
                return conclude(self, position)

            monkeypatch.setattr(Tail, "_conclude", finish_then_conclude)
            monkeypatch.setattr("shmstream.stream.stream.Stream.is_orphaned", lambda _: True)
            reader._tail._next_look = 0
            assert reader.read() == b"the rest"


def test_a_kill_between_published_and_the_ring_costs_a_quarter_of_a_second(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    """A ring never comes (I4)."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            monkeypatch.setattr(Subscribers, "ring", lambda _: None)
            wait = doorbell.Doorbell.wait

            def wait_unrung(self: doorbell.Doorbell, seconds: float) -> int:
                streamer.append(b"unheard")
                return wait(self, seconds)

            monkeypatch.setattr(doorbell.Doorbell, "wait", wait_unrung)
            assert reader.read1() == b"unheard"
            assert reader.statistics().waits == 1
            monkeypatch.undo()
            streamer.abort("")
            with pytest.raises(BlobAborted):
                reader.read()


@pytest.mark.parametrize("is_rung_before", [False, True])
def test_a_handover_whose_ring_is_taken_with_those_of_bytes_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, blob: str, *, is_rung_before: bool
) -> None:
    """The writer publishes, rings, unlocks the header and rings, while the reader wakes once."""
    streamer = ResumableStreamer.create(blob, publish_interval=0)
    with InFlightCopier.attach(streamer.name) as reader:
        wait = doorbell.Doorbell.wait

        def hand_over_then_wait(self: doorbell.Doorbell, seconds: float) -> int:
            monkeypatch.setattr(doorbell.Doorbell, "wait", never)
            streamer.append(b"the last")
            streamer.close()
            return wait(self, seconds)

        def never(*_: object) -> int:
            raise AssertionError("it waited for a ring that it had taken")

        if is_rung_before:
            streamer.append(b"the first")
            assert reader.read1() == b"the first", "without a wait, so its ring is left"
        monkeypatch.setattr(doorbell.Doorbell, "wait", hand_over_then_wait)
        assert reader.read1() == b"the last"
        with pytest.raises(WriterDied):
            reader.read1()
    reap_unread(streamer.name)
    os.unlink(partial_path(blob))


@pytest.mark.parametrize(("size", "given"), [(4, b"them"), (9, b"some"), (3, b"some"), (4, b"")])
def test_a_warning_comes_before_readers_can_see_an_abort(
    blob: str, size: int, given: bytes
) -> None:
    """The bytes are others, too few, too many; or the source fails."""
    digest = f"sha256:{hashlib.sha256(b'some').hexdigest()}"
    with ResumableStreamer.create(blob, digest=digest, size=size) as streamer:
        warned: list[tuple[BlobAborted, State]] = []
        streamer.warn_by(lambda error: warned.append((error, streamer.state)))

        def source() -> Iterator[bytes]:
            if not given:
                raise ConnectionResetError("peer went away")
            yield given

        with pytest.raises((BlobAborted, ConnectionResetError)):
            streamer.transfer(source())
        [(error, state)] = warned
        assert state not in TERMINAL
        assert streamer.state == State.ABORTED
    kinds = {b"them": DigestMismatch, b"some": SizeMismatch, b"": BlobAborted}
    assert type(error) is kinds[given]


def test_a_view_loads_the_state_before_what_it_makes_final(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    """A commit between the two loads: published and size are those of the complete blob (I3)."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            assert reader.view() == (0, None, False, -1)
            streamer.append(b"some")
            assert reader.view()[:3] == (4, None, False)
            look = Tail.look

            def commit_before_the_look(self: Tail) -> tuple[State, int, int | None]:
                monkeypatch.setattr(Tail, "look", look)
                streamer.transfer([b" and the rest"])
                return look(self)

            monkeypatch.setattr(Tail, "look", commit_before_the_look)
            published, size, is_complete, fd = reader.view()
            assert (published, size, is_complete) == (17, 17, True)
            assert os.pread(fd, 100, 0) == b"some and the rest"


def test_a_reader_that_takes_the_rest_sees_at_once_that_its_writer_has_died(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    """A takeover would wait for the next look, a quarter of a second, for each reader of a file."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            streamer.append(b"the rest")
            monkeypatch.setattr("shmstream.stream.stream.Stream.is_orphaned", lambda _: True)
            assert reader.readinto1(bytearray(100)) == 8
            slept = reader._tail.waits
            reader.seek(0)
            with pytest.raises(WriterDied):  # which no real writer can bring about
                reader.readinto(bytearray(100))
            assert reader._tail.waits == slept
            monkeypatch.undo()


def test_a_look_loads_the_state_first(monkeypatch: pytest.MonkeyPatch, blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            loads: list[str] = []
            block = reader._block.at_once()  # which makes all three loads after one comparison
            load_published, load_state = reader._tail.load, block.load_state
            load = Word.__get__

            def note_published() -> int:
                loads.append("published")
                return load_published()

            def note_state() -> int:
                loads.append("state")
                return load_state()

            def note(self: Word, of: Any, owner: Any = None) -> Any:
                if of is block:
                    loads.append(NAMES[id(self)])
                return load(self, of, owner)

            monkeypatch.setattr(reader._tail, "load", note_published)
            monkeypatch.setattr(block, "load_state", note_state)
            monkeypatch.setattr(Word, "__get__", note)
            reader.view()
            monkeypatch.undo()
            assert loads == ["state", "published", "size"]
            streamer.abort("")
