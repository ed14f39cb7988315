"""The narrow places of a flight, each forced: nothing that once went wrong goes wrong again."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shmstream import (
    BlobNotFound,
    ContentChanged,
    Event,
    EventKind,
    Feed,
    Retries,
    SourceError,
    SourceFailed,
    Store,
    StreamExists,
    WriterStalled,
)
from shmstream.flight.flight import Flight, Reader
from shmstream.flight.leader import Leader
from shmstream.sources.base import Description
from shmstream.storage.journal import Journal
from shmstream.stream import resumable_writer, segment
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.stream.stream import Stream
from shmstream.system.locks import KernelLock
from shmstream.system.process import close_all
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, has_published, interrupt

Start = Callable[..., Interpreter]
MIB = 1 << 20
DIGEST_OF_ZEROS = "sha256:" + sha256(bytes(3_000_000))


def read_blocking(store: Store, key: str, source: str) -> bytes:
    with store.open(key, source) as blob:
        return blob.read()


def read_in_a_loop(store: Store, key: str, source: str) -> bytes:
    async def read() -> bytes:
        async with store.aopen(key, source) as blob:
            return await blob.read()

    return asyncio.run(read())


class Ranged:
    """A source with ranges and a validator that breaks at `stop`, and cannot be tried again."""

    def __init__(self, data: bytes, validator: str | None, stop: int | None = None) -> None:
        self.name = f"source of {validator}"
        self._data = data
        self._validator = validator
        self._stop = len(data) if stop is None else stop
        self.offsets: list[int] = []

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        if validator not in (None, self._validator):
            offset = 0
        self.offsets.append(offset)
        return Feed(self._pieces(offset), offset, len(self._data), self._validator)

    def _pieces(self, offset: int) -> Iterator[bytes]:
        for start in range(offset, self._stop, 65536):
            yield self._data[start : min(start + 65536, self._stop)]
        if self._stop < len(self._data):
            raise SourceError(self.name, self._stop, "it broke", retryable=False)


def give_up(store: Store, key: str, source: Ranged) -> None:
    with pytest.raises(SourceFailed):
        store.fetch(key, source)
    wait_until(lambda: store.flights() == [])


def test_a_slow_reader_of_an_aborted_flight_reads_no_other_content(store: Store) -> None:
    """The next flight of that key finds other content: it must not use the same file (I2)."""
    before, after = content(1, 3 * MIB), content(2, 3 * MIB)
    with store.open("a name", Ranged(before, "v1", stop=2 * MIB)) as slow:
        read = slow.read(1000)
        wait_until(lambda: store.flights() == [])
        published = slow.published
        assert published > len(read)
        with store.open("a name", Ranged(after, "v2")) as blob:
            assert sha256(blob.read()) == sha256(after)
        while len(read) < published:
            read += slow.read1(4096)
        assert sha256(read) == sha256(before[:published])
        with pytest.raises(SourceFailed):
            slow.read(1)


def test_the_journal_vouches_only_for_what_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader is killed right after it began a new journal: the file has no old bytes then."""
    before, after = content(1, 3 * MIB), content(2, 3 * MIB)
    give_up(store, "a name", Ranged(before, "v1", stop=2 * MIB))
    child = os.fork()
    if child == 0:
        die = partial(os.kill, os.getpid(), signal.SIGKILL)
        monkeypatch.setattr(ResumableStreamer, "resume", lambda _: die())
        store.fetch("a name", Ranged(after, "v2"))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with store.open("a name", Ranged(after, "v2")) as blob:
        assert sha256(blob.read()) == sha256(after)


def test_nobody_waits_for_the_journal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key, data = digest(1, MIB), content(1, MIB)
    has_read, begun = threading.Event(), []
    begin = Journal.begin

    def begin_later(self: Journal, *arguments: Any) -> None:
        begun.append(has_read.wait(60))
        begin(self, *arguments)

    monkeypatch.setattr(Journal, "begin", begin_later)
    with store.open(key, Ranged(data, "v")) as blob:
        first = blob.read1()
        has_read.set()
        assert first + blob.read() == data
    assert begun == [True]


def test_without_a_journal_there_is_a_blob_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    key, data = digest(1, MIB), content(1, MIB)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write_anew", fail)
        patch.setattr(Journal, "_append", fail)
        give_up(store, key, Ranged(data, "v", stop=500_000))
        assert left_of(store) == [], "nothing would vouch for it"
        with store.open(key, Ranged(data, "v")) as blob:
            assert blob.read() == data
    assert "no journal: " in caplog.text


def left_of(store: Store) -> list[str]:
    return sorted(
        each.name.rpartition("-")[2] for each in Path(store.folder).rglob("*.shmstream-*")
    )


@pytest.mark.parametrize(
    ("size", "kept", "left"), [(65536, 0, []), (65537, 65536, ["journal", "partial"])]
)
def test_a_small_blob_is_asked_for_anew(
    size: int, kept: int, left: list[str], store: Store
) -> None:
    """Such a blob has no journal, so its flight leaves nothing that can be resumed."""
    key, data = digest(1, size), content(1, size)
    give_up(store, key, Ranged(data, "v", stop=size - 1 if size <= 65536 else 65536))
    assert left_of(store) == left
    source = Ranged(data, "v")
    with store.open(key, source) as blob:
        assert blob.read() == data
    assert source.offsets == [kept]
    wait_until(lambda: store.flights() == [])
    assert left_of(store) == []


def test_a_small_blob_is_left_by_its_last_reader(store: Store, origin: Origin) -> None:
    key, url = digest(1, 60_000), origin.serve("/blob", seed=1, size=60_000)
    origin.change("/blob", stall_after=30_000)
    with store.open(key, url, linger=False):
        wait_until(lambda: store.flights()[0].size == 60_000)
        assert left_of(store) == ["partial"]
    wait_until(lambda: store.flights() == [])
    assert left_of(store) == []
    origin.release()


def test_what_an_earlier_version_kept_of_a_small_blob(store: Store) -> None:
    key, data = digest(1, 60_000), content(1, 60_000)
    place = store._layout.place(key)
    Journal(place.journal, "sha256").begin(Description(60_000, "v"))
    Path(place.partial).write_bytes(data[:20_000])
    fd = os.open(place.partial, os.O_RDONLY)
    Journal(place.journal, "sha256").seal(fd)
    os.close(fd)
    source = Ranged(data, "v", stop=40_000)
    give_up(store, key, source)
    assert left_of(store) == ["journal", "partial"], "what is gone on with can be once more"
    again = Ranged(data, "v")
    with store.open(key, again) as blob:
        assert blob.read() == data
    assert (source.offsets[0], again.offsets) == (20_000, [40_000])


def test_a_journal_of_other_content_vouches_for_no_small_blob(store: Store) -> None:
    """A leader is killed while a small blob arrives: the old journal is gone by then."""
    key, data = digest(1, 60_000), content(1, 60_000)
    place = store._layout.place(key)
    Journal(place.journal, "sha256").begin(Description(70_000, "old"))
    Path(place.partial).write_bytes(content(2, 50_000))
    child = os.fork()
    if child == 0:
        die = partial(os.kill, os.getpid(), signal.SIGKILL)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ResumableStreamer, "commit", lambda _: die())
            store.fetch(key, Ranged(data, "v"))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    store.gc()
    assert left_of(store) == ["partial"]
    source = Ranged(data, "v")
    with store.open(key, source) as blob:
        assert blob.read() == data
    assert source.offsets == [0]


def test_a_part_without_validator_is_not_believed(store: Store, origin: Origin) -> None:
    """The second server has another file. It knows ranges, but no If-Range, and has no ETag."""
    first = origin.serve("/first", seed=1, size=MIB)
    origin.change("/first", first=0, count=1, close_after=MIB // 2)
    origin.change("/first", first=1, status=503)
    second = origin.serve("/second", seed=2, size=MIB, etag=None, if_range=False)
    with store.open("a name", [first, second]) as blob, pytest.raises(ContentChanged):
        blob.read()


def test_what_was_kept_survives_a_source_that_cannot_be_reached(
    start: Start, store: Store, folder: str, origin: Origin
) -> None:
    interrupt(start, folder, origin, digest(1, 2 * MIB), 2 * MIB, MIB)
    store.gc()
    [partial_file] = Path(folder).rglob("*.shmstream-partial")
    kept = partial_file.stat().st_size
    with pytest.raises(SourceFailed):
        store.fetch(digest(1, 2 * MIB), "/nowhere")
    wait_until(lambda: store.flights() == [])
    assert partial_file.stat().st_size == kept >= MIB - 65536
    with store.open(digest(1, 2 * MIB), origin.url("/blob")) as blob:
        assert blob.read() == content(1, 2 * MIB)
    assert origin.requests("/blob")[-1].range == f"bytes={kept}-"


def test_space_is_reserved_in_steps_and_given_back(store: Store, origin: Origin) -> None:
    size = 64 * MIB
    url = origin.serve("/blob", seed=1, size=1)
    origin.serve("/blob", seed=1, size=size)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    origin.change("/blob", first=1, status=404)
    key = "sha256:" + "0" * 64
    with store.open(key, url) as blob:
        blob.read(MIB // 2)
        [partial_file] = Path(store.folder).rglob("*.shmstream-partial")
        wait_until(lambda: partial_file.stat().st_size == MIB)
        assert MIB <= partial_file.stat().st_blocks * 512 <= 4 * MIB
        origin.cut()
        with pytest.raises(SourceFailed):
            blob.read()
    wait_until(lambda: store.flights() == [])
    assert partial_file.stat().st_blocks * 512 <= MIB + 8192


def test_published_never_decreases_after_a_takeover(tmp_path: Path) -> None:
    """A successor keeps all bytes, of which the last chunk is withheld as before (I1, I5)."""
    data = content(1, MIB)
    path = str(tmp_path / "blob")
    key = f"sha256:{sha256(data)}"
    first = ResumableStreamer.create(path, name="handed-over", digest=key, publish_interval=0)
    with Stream.attach("handed-over", timeout=0) as watching:
        slot = watching.block.slot(0)
        assert watching.lock.try_acquire(slot.span)  # as a reader, so that the writer hands over
        first.append(data)
        published = first.published
        first.close()
        with ResumableStreamer.succeed("handed-over", publish_interval=0) as second:
            assert (second.published, second.appended) == (published, MIB)
            second._publish()
            assert second.published == published
            second.commit()
            assert second.digest == key
        slot.release()


def test_the_blob_just_brought_is_not_evicted(folder: str, origin: Origin) -> None:
    store = flights.make_store(folder, {"max_bytes": MIB + 1000})
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)
    with store.open(digest(1, MIB), url) as blob:
        blob.read(1)
        other = store.fetch("other", [b"x" * 2000])
        origin.release()
        assert Path(store.fetch(digest(1, MIB))).stat().st_size == MIB
    wait_until(lambda: not Path(other).exists())


def test_a_succession_that_cannot_be_does_not_spin(
    start: Start, store: Store, folder: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reaper has stopped while it holds the writer's lock."""
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", count=1, stall_after=MIB)
    leader = start(flights.take, folder, {})
    leader.hear()
    leader.say([digest(1, 2 * MIB), url, 0])
    leader.hear()
    wait_until(partial(has_published, store, MIB - 65536))
    [flight] = store.flights()
    joins = []
    join = Flight.join

    def count(self: Flight) -> Reader:
        joins.append(1)
        return join(self)

    monkeypatch.setattr(Flight, "join", count)
    with store.open(digest(1, 2 * MIB), url, stall_timeout=0.5) as blob:
        blob.read(flight.published)
        reaper = KernelLock(segment.path_of(flight.stream))
        leader.kill()
        wait_until(lambda: reaper.try_acquire((0, 1)))
        with pytest.raises(WriterStalled):
            blob.read(1)
        assert len(joins) < 30
        with monkeypatch.context() as patch:
            patch.setattr("shmstream.flight.blob._PATIENCE", 0.5)
            with store.open(digest(1, 2 * MIB), url) as endless:
                endless.seek(flight.published)
                with pytest.raises(WriterStalled):
                    endless.read(1)
        reaper.close()
        with store.open(digest(1, 2 * MIB), url) as patient:  # the takeover may take its time
            assert sha256(patient.read()) == sha256(content(1, 2 * MIB))
        blob.seek(0)
        assert sha256(blob.read()) == sha256(content(1, 2 * MIB))


def test_who_has_no_source_finds_what_has_just_come(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader looks in the store; a whole flight lands; it finds no flight, and looks again."""
    follow = Flight._follow

    def follow_later(self: Flight, patience: float) -> Any:
        monkeypatch.setattr(Flight, "_follow", follow)
        Store(store.folder).fetch("key", [b"data"])
        return follow(self, patience)

    monkeypatch.setattr(Flight, "_follow", follow_later)
    with store.open("key") as blob:
        assert blob.read() == b"data"
    with pytest.raises(BlobNotFound):
        store.open("another key")


def test_killed_between_the_rename_and_the_end(
    start: Start, store: Store, folder: str, origin: Origin
) -> None:
    """A reader of a blob without digest or validator goes on in the same file only."""
    url = origin.serve("/blob", seed=1, size=MIB, etag=None, stall_after=MIB // 2)
    doomed = start(flights.take, folder, {}, "after the rename")
    doomed.hear()
    doomed.say(["a name", url, 0])
    doomed.hear()
    with store.open("a name", url) as blob:
        assert blob.role == "follows"
        origin.wait("/blob", bool)
        origin.release()
        assert sha256(blob.read()) == sha256(content(1, MIB))
    doomed.wait_killed()
    assert len(origin.requests("/blob")) == 1


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_last_reader_of_a_dead_flight_leaves_nothing(
    how: str, start: Start, store: Store, folder: str, origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", stall_after=MIB)
    leader = start(flights.open_and_leave, folder, digest(1, 2 * MIB), url, "exit")
    assert leader.hear() == "leads"
    with store.open(digest(1, 2 * MIB)) as blob:
        blob.read(1)
        if how == "exit":
            leader.say("exit")
            leader.finish()
        else:
            leader.kill()
    assert segment.names() == []


def test_a_silent_source_does_not_keep_a_lonely_flight(store: Store) -> None:
    released = threading.Event()

    def silent() -> Iterator[bytes]:
        yield b"x" * 100
        released.wait()
        yield b"y"

    with store.open("key", silent(), linger=False) as blob:
        assert blob.read(100) == b"x" * 100
    try:
        wait_until(lambda: store.flights() == [])
    finally:
        released.set()


def test_what_came_before_a_source_broke_does_not_wait_for_the_next_try(
    folder: str, origin: Origin
) -> None:
    """A leader whose bytes the kernel moves must publish them before it pauses."""
    patient = Retries(first_pause=30, longest_pause=30)
    store = Store(folder, retries=patient, publish_interval=0.5)
    url = origin.serve("/blob", seed=1, size=MIB, rate=2 * MIB, close_after=200_000)
    with store.open("key", url, stall_timeout=20, linger=False) as blob:
        assert sha256(blob.read(200_000)) == sha256(content(1, 200_000))
    wait_until(lambda: store.flights() == [])


def test_a_leader_that_hands_over_has_not_failed(folder: str, origin: Origin) -> None:
    """The end of the process ends the only try that the source has, but that is no failure."""
    told: list[Event] = []
    store = Store(folder, retries=Retries(attempts=1), on_event=told.append)
    url = origin.serve("/blob", seed=1, size=MIB, stall_after=1000)
    with store.open("key", url, linger=False) as blob:
        blob.read(1000)
    wait_until(lambda: told[-1].kind in (EventKind.HANDED_OVER, EventKind.ABORTED))
    assert told[-1] == Event(EventKind.HANDED_OVER, "key", 1000)


@pytest.mark.parametrize("when", ["after the writer has seen it", "after the writer has reaped"])
def test_the_last_reader_leaves_a_leader_that_hands_over(
    folder: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Nobody has the stream any more, and nobody was killed: so nothing is left."""
    owner, name = {
        "after the writer has seen it": (ResumableStreamer, "has_readers"),
        "after the writer has reaped": (resumable_writer, "reap_unread"),
    }[when]
    original = getattr(owner, name)
    go_on = threading.Event()

    def feed() -> Iterator[bytes]:
        yield b"x" * 1000
        go_on.wait(PATIENCE)

    blob = make_store(folder, {}).open("key", feed())
    blob.read(1000)
    leader = blob._flight._leader
    assert leader is not None

    def leave_after(*args: Any) -> Any:
        answer = original(*args)
        monkeypatch.undo()
        blob.close()
        return answer

    monkeypatch.setattr(owner, name, leave_after)
    leader.close()
    assert segment.names() == []
    go_on.set()
    leader.join()


def test_a_leader_that_hands_over_while_it_asks_waits_for_no_bytes(folder: str) -> None:
    """The source has not answered yet, so there is no feed to close."""
    told: list[Event] = []
    store = make_store(folder, {"on_event": told.append})
    asked, answers, closed = threading.Event(), threading.Event(), threading.Event()
    opened = count()

    class Breaking:
        name = "breaking"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
            if next(opened) == 0:
                return Feed(self.breaks())
            asked.set()
            assert answers.wait(PATIENCE)
            return Feed(self.stalls(), close=closed.set)

        def breaks(self) -> Iterator[bytes]:
            yield b"x" * 100
            raise SourceError(self.name, 100, "it broke")

        def stalls(self) -> Iterator[bytes]:
            closed.wait(PATIENCE)
            yield b"x" * 100

    with store.open("key", Breaking(), linger=False) as blob:
        blob.read(100)
        assert asked.wait(PATIENCE)
    wait_until(lambda: store.flights() == [])
    answers.set()
    wait_until(lambda: told[-1].kind == EventKind.HANDED_OVER)
    assert closed.is_set()


def test_exiting_while_standard_input_is_read(folder: str) -> None:
    """Else the interpreter finds standard input locked by the leader's thread, and aborts."""
    program = (
        "import sys; from shmstream import Store\n"
        "blob = Store(sys.argv[1]).open('key', sys.stdin.buffer)\n"
        "print(blob.read(3)); blob.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"abc")
        process.stdin.flush()
        assert process.stdout.readline() == b"b'abc'\n"
        assert process.wait(60) == 0


def test_exiting_waits_for_no_silent_source(start: Start, folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=1000)
    leader = start(flights.lead_many, folder, url, 8)
    assert leader.hear() == "leads"
    leader.say("exit")
    leader.finish()  # though the source says nothing until the test ends


def test_many_tries_do_not_overflow(folder: str) -> None:
    store = Store(folder, retries=Retries(attempts=1200, first_pause=0, longest_pause=0))
    tries = []

    class Never:
        name = "never"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:
            tries.append((offset, validator))
            raise SourceError(self.name, offset, "not yet")

    with pytest.raises(SourceFailed):
        store.fetch("key", Never())
    assert len(tries) == 1200


@pytest.mark.parametrize("is_followed", [True, False])
@pytest.mark.parametrize("opens", [read_blocking, read_in_a_loop])
def test_a_flight_that_began_and_lost_its_leader_between_look_and_claim(
    start: Start,
    folder: str,
    store: Store,
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
    opens: Callable[[Store, str, str], bytes],
    is_followed: bool,
) -> None:
    """A reader finds no flight; one begins, publishes, and is orphaned; then the reader claims."""
    key, url = digest(1, MIB), origin.serve("/blob", seed=1, size=MIB)
    leader = start(flights.take, folder, {}, "before the journal")  # by then it has published
    follower = start(flights.take_patiently, folder, {})
    assert leader.hear() == leader.pid
    assert follower.hear() == follower.pid
    begin = Flight._begin
    published = []

    def begin_later(self: Flight) -> Any:
        monkeypatch.setattr(Flight, "_begin", begin)
        leader.say([key, url, 0])
        leader.wait_killed()
        [flight] = store.flights()
        published.append(flight.published)
        if is_followed:
            follower.say([key, None, 0])  # it waits for a process that has a source
            wait_until(lambda: store.flights()[0].followers != ())
        return begin(self)

    monkeypatch.setattr(Flight, "_begin", begin_later)
    assert opens(store, key, url) == content(1, MIB)
    if is_followed:
        assert follower.hear() == {"role": "follows"}
        assert follower.hear()["sha256"] == sha256(content(1, MIB))
    follower.finish()
    _, second = origin.requests("/blob")
    assert second.range is not None, "what was published is not asked for again"
    assert int(second.range[6:-1]) >= published[0] > 0


def test_an_aborted_stream_whose_reaper_has_stopped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no flight to follow, and its name cannot be claimed: waiting for that must not spin."""
    name = store._layout.place("a name").stream
    child = os.fork()
    if child == 0:
        streamer = ResumableStreamer.create(store._layout.place("a name").path, name=name)
        streamer.abort("no")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    monkeypatch.setattr("shmstream.flight.flight._PATIENCE", 0.5)
    reaper = KernelLock(segment.path_of(name))
    assert reaper.try_acquire((0, 1))
    used, began = time.process_time(), time.monotonic()
    with pytest.raises(StreamExists, match="a process that removes what"):
        store.fetch("a name", [b"data"])
    assert time.process_time() - used < 0.5 * (time.monotonic() - began)
    reaper.close()
    assert Path(store.fetch("a name", [b"data"])).read_bytes() == b"data"


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_what_was_published_before_the_journal_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its leader is killed, or ends in good order, right before; and another flight sweeps."""
    key, data = digest(1, MIB), content(1, MIB)
    child = os.fork()
    if child == 0:
        reached = threading.Event()

        def stop(*_: object) -> None:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            reached.set()
            threading.Event().wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Leader, "_keep_journal", stop)
            blob = store.open(key, Ranged(data, "v"))
            reached.wait(PATIENCE)
            blob.close()
            close_all()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == (signal.SIGKILL if how == "killed" else 0)
    monkeypatch.setattr("shmstream.stream.claims._swept", float("-inf"))
    store.fetch("another", [b"data"])
    source = Ranged(data, "v")
    with store.open(key, source) as blob:
        assert blob.read() == data
    assert source.offsets == [65536]


RESUMES_AND_DIES = """
import os, signal, sys
from shmstream import Store
from shmstream.stream.control_block import Block, State

advance = Block.advance

def then_die(block, state, name):
    if sys.argv[4] == "after":
        advance(block, state, name)
    if state == State.STREAMING:
        os.kill(os.getpid(), signal.SIGKILL)

Block.advance = then_die
Store(sys.argv[1]).fetch(sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_leader_killed_while_it_resumes_loses_nothing(
    start: Start, store: Store, origin: Origin, moment: str
) -> None:
    """Around the store of STREAMING: the kept bytes must be published by then."""
    key, url = digest(1, 6 * MIB), origin.url("/blob")
    interrupt(start, store.folder, origin, key, 6 * MIB, 4 * MIB)
    store.gc()  # it removes the stream, and keeps the partial file for the next leader
    arguments = [store.folder, key, url, moment]
    dying = subprocess.run([sys.executable, "-c", RESUMES_AND_DIES, *arguments])
    assert dying.returncode == -signal.SIGKILL
    [partial_file] = Path(store.folder).rglob("*.shmstream-partial")
    assert partial_file.stat().st_size > 3 * MIB
    asked = len(origin.requests("/blob"))
    assert sha256(Path(store.fetch(key, url)).read_bytes()) == sha256(content(1, 6 * MIB))
    [last] = origin.requests("/blob")[asked:]
    assert last.range is not None
    assert int(last.range.removeprefix("bytes=").removesuffix("-")) > 3 * MIB


LEADS_WITHOUT_DESCRIPTORS = """
import resource, sys
from shmstream import Feed, Store

class Source:
    name = "a source"
    def open(self, offset=0, validator=None):
        def give():
            yield bytes(3_000_000)
            sys.stdin.readline()
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, 4096))
        return Feed(give(), size=3_000_000)

print(Store(sys.argv[1]).fetch(sys.argv[2], Source()), flush=True)
"""


@pytest.mark.parametrize("key", [DIGEST_OF_ZEROS, "a name"])
def test_a_leader_without_a_free_descriptor_completes_its_blob(store: Store, key: str) -> None:
    """Nothing that can fail comes between the rename and the wake-up of the readers."""
    command = [sys.executable, "-c", LEADS_WITHOUT_DESCRIPTORS, store.folder, key]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, bufsize=1) as leader:
        assert leader.stdin is not None
        assert leader.stdout is not None
        wait_until(lambda: any(each.published for each in store.flights()))
        with store.open(key) as blob:
            leader.stdin.write("\n")
            assert blob.read() == bytes(3_000_000)
            assert blob.is_complete
        assert leader.stdout.readline().strip() == blob.path
    assert [each for each in store.check() if each.kind != "abandoned"] == []
