"""Blobs in asyncio: one thread for a flight, spans shared, and cancelling that leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shmstream import (
    Blob,
    BlobNotFound,
    ContentChanged,
    DigestMismatch,
    Feed,
    OutOfResources,
    Role,
    SourceFailed,
    Store,
    StreamClosed,
    WriterStalled,
)
from shmstream.flight import async_blob, hub
from shmstream.sources.http import HTTPSource
from shmstream.stream.growing_file import View
from shmstream.stream.partial import partial_path
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.system import threads
from tests.support import flights
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, has_published

Start = Callable[..., Interpreter]
MIB = 1 << 20


def watched() -> dict[tuple[object, ...], hub.Lookout]:
    """The flights that are watched in this process."""
    with hub._lookouts.lock:
        found = hub._lookouts.value
        return dict(found)


def lookouts() -> int:
    return sum(each.name == "shmstream-lookout" for each in threading.enumerate())


@contextmanager
def no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, no thread can be started."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(OutOfResources, match="out of threads"):
        patch.setattr(threading.Thread, "start", fail)
        patch.setattr(threads, "_idle", [])
        yield


async def read_all(store: Store, key: str, url: str | None) -> str:
    async with store.aopen(key, url) as blob:
        return sha256(b"".join([data async for data in blob]))


class Held:
    """A source that is silent until it may `go` on; it gives a small blob of known size."""

    name = "held"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.go = threading.Event()

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        assert self.go.wait(PATIENCE)
        return Feed(iter([self._data]), 0, len(self._data))


def test_a_small_blob_wakes_no_event_loop_before_its_end(store: Store) -> None:
    """Each time that a loop is woken, its thread and the leader's thread compete for a while."""
    data = content(1, 4096)
    source, woken = Held(data), []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def note(*given: Any, **options: Any) -> asyncio.Handle:
            lookout = getattr(given[0], "__self__", None)
            if isinstance(lookout, hub.Lookout):
                woken.append("at the end" if lookout.is_complete else f"at {lookout.view}")
            return wake(*given, **options)

        loop.call_soon_threadsafe = note  # type: ignore[assignment, method-assign]

        async def read() -> bytes:
            async with store.aopen(digest(1, 4096), source).at_once() as blob:
                await blob.known()
                await blob.wait_past(0)
                return await blob.read()

        reading = asyncio.create_task(read())
        while not (there := watched()) or not all(each.is_open for each in there.values()):
            await asyncio.sleep(0)
        source.go.set()
        assert await reading == data

    asyncio.run(main())
    assert set(woken) == {"at the end"}


def test_while_bytes_come_the_timer_wakes_only_tasks_with_news() -> None:
    """They may be told as rarely as the timer looks, and each of them would wake for nothing."""
    news: set[str] = set()

    async def main() -> None:
        waiting = hub._Waiting(asyncio.get_running_loop(), lambda: "it is quiet" in news)
        for each in ("was not told", "it is quiet"):
            _, future, begun = waiting.add(lambda: "was not told" in news)
            while waiting._ticks < begun + 4:
                await asyncio.sleep(0.01)
            assert not future.done()
            news.add(each)
            await asyncio.wait_for(future, PATIENCE)
            news.clear()
            waiting.tasks.clear()

    asyncio.run(main())


def test_entering_at_once_waits_for_the_flight_as_long_as_it_takes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No leader can be slow before there is a flight: it is not gone past, and no error is told."""
    go_on, waits = threading.Event(), []
    blobs: list[async_blob.AsyncBlob] = []
    join = Store._flight

    def slowly(*given: Any, **options: Any) -> Any:
        assert go_on.wait(PATIENCE)
        return join(*given, **options)

    def note(lookout: hub.Lookout, enough: Callable[[], bool]) -> Any:
        waits.append(lookout)
        if len(waits) > 5:  # each is as long as `stall_timeout`, or longer
            blobs[0]._stall_timeout = PATIENCE  # once there is a leader, it may be slow
            go_on.set()
        return wait(lookout, enough)

    async def main() -> None:
        held = Held(content(1, 4096))
        held.go.set()
        blobs.append(store.aopen(digest(1, 4096), held, stall_timeout=0.1).at_once())
        async with blobs[0] as blob:
            await blob.known()
            assert await blob.read() == content(1, 4096)

    wait = hub.Lookout.wait
    monkeypatch.setattr(threads, "is_ready", lambda: False)  # another thread joins the flight
    monkeypatch.setattr(Store, "_flight", slowly)
    monkeypatch.setattr(hub.Lookout, "wait", note)
    asyncio.run(main())
    assert not any(each._wants_past for each in waits)


def test_entering_at_once_leaves_the_errors_to_the_first_wait(store: Store) -> None:
    async def main() -> None:
        async with store.aopen(digest(1, 4096)).at_once() as blob:
            with pytest.raises(BlobNotFound):
                await blob.known()

    asyncio.run(main())


def test_who_catches_up_in_the_event_loop_lags_behind_nothing(
    store: Store, start: Start, folder: str, origin: Origin
) -> None:
    """It has taken its place after it has read: that place tells how far it is."""
    key, url = digest(1, MIB), origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", first=0, count=1, stall_after=MIB // 2)
    leader = start(flights.take, folder, {})
    leader.hear()
    leader.say([key, url, 0])
    leader.hear()
    wait_until(lambda: has_published(store, MIB // 2 - 65536))

    async def main() -> None:
        async with store.aopen(key, url) as blob:
            assert blob.role == Role.FOLLOWS
            await blob.read(1000)
            wait_until(lambda: len(store.flights()[0].followers) == 2)
            wait_until(lambda: {each.lag for each in store.flights()[0].followers} == {0})

    asyncio.run(main())
    origin.release()
    leader.hear()
    leader.finish()


class InTurn:
    """A source that gives the next piece of a blob when all tasks have read those before."""

    name = "in-turn"

    def __init__(self, data: bytes) -> None:
        self._pieces = [data[start : start + MIB] for start in range(0, len(data), MIB)]
        self._size = len(data)
        self._may = threading.Semaphore(1)
        self.given, self.asked = 0, 0

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        self.asked += 1
        return Feed(self._give(), 0, self._size)

    def _give(self) -> Iterator[bytes]:
        for piece in self._pieces:
            assert self._may.acquire(timeout=PATIENCE)
            self.given += len(piece)
            yield piece

    def go_on(self) -> None:
        self._may.release()


def test_many_tasks_and_one_thread(store: Store) -> None:
    data, count = content(1, 4 * MIB), 100
    source, sums, reads = InTurn(data), [0] * count, list[int]()
    pread = async_blob._pread

    async def count_reads(fd: int, count: int, offset: int) -> bytes:
        reads.append(count)
        return await pread(fd, count, offset)

    async def read(index: int) -> str:
        parts = []
        async with store.aopen(digest(1, 4 * MIB), source) as blob:
            async for part in blob:
                parts.append(part)
                sums[index] += len(part)
                if min(sums) == source.given:
                    source.go_on()
        return sha256(b"".join(parts))

    async def main() -> None:
        tasks = [asyncio.create_task(read(index)) for index in range(count)]
        while lookouts() == 0:
            await asyncio.sleep(0)
        assert lookouts() == 1
        assert set(await asyncio.gather(*tasks)) == {sha256(data)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(async_blob, "_pread", count_reads)
        asyncio.run(main())
    assert sum(reads) < 20 * 4 * MIB, "a hundred tasks share what they read at the tail"
    assert source.asked == 1
    wait_until(lambda: lookouts() == 0)


def test_a_stored_blob_needs_no_thread(store: Store) -> None:
    store.fetch("key", [content(1, 300_000)])

    async def main() -> None:
        async with store.aopen("key") as blob:
            assert lookouts() == 0
            assert (blob.role, blob.size, blob.published) == ("stored", 300_000, 300_000)
            assert await blob.read() == content(1, 300_000)
            assert await blob.read(5) == await blob.read1() == b""
        with pytest.raises(StreamClosed):
            await blob.read()

    asyncio.run(main())


def test_reading_and_seeking_ahead_of_the_tail(store: Store, origin: Origin) -> None:
    data = content(1, MIB)
    url = origin.serve("/blob", seed=1, size=MIB, media_type="text/x-test")
    origin.change("/blob", stall_after=500_000)

    async def main() -> None:
        async with store.aopen(digest(1, MIB), url) as blob:
            assert await blob.read(1000) == data[:1000]
            assert (blob.size, blob.media_type, blob.role) == (MIB, "text/x-test", "leads")
            assert await blob.seek(-10, os.SEEK_END) == MIB - 10
            assert await blob.seek(5, os.SEEK_CUR) == blob.tell() == MIB - 5
            with pytest.raises(ValueError, match="negative"):
                await blob.seek(-1)
            reading = asyncio.create_task(blob.read())
            await asyncio.sleep(0)
            assert not reading.done()
            origin.release()
            assert await reading == data[-5:]
            await blob.seek(100)
            assert await blob.read(200_000) == data[100:200_100]
            assert await blob.wait() == MIB
            assert "leads" in repr(blob)

    asyncio.run(main())


def test_a_span_of_which_a_part_is_not_in_memory(store: Store, origin: Origin) -> None:
    """Where the page cache has only the beginning of a span, the disk has the rest."""
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)

    async def main() -> None:
        async with store.aopen(digest(1, MIB), url) as blob:
            await blob.seek(400_000)
            assert await blob.read1(1) == content(1, MIB)[400_000:400_001]
            os.fdatasync(blob.descriptor)
            os.posix_fadvise(blob.descriptor, 65536, 65536, os.POSIX_FADV_DONTNEED)
            await blob.seek(70_000)
            assert await blob.read(1000) == content(1, MIB)[70_000:71_000]
            origin.release()
            assert await blob.wait() == MIB

    asyncio.run(main())


def test_cancelling_leaves_nothing_and_the_position(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)

    async def main() -> None:
        async with store.aopen(digest(1, MIB), url) as blob:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await blob.read()
            assert blob.tell() == 0
            for _ in range(50):
                task = asyncio.create_task(read_all(store, digest(1, MIB), url))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            [watching] = watched().values()
            assert watching._users == 1
            assert not any(waiting.tasks for waiting in watching._waiting.values())
            origin.release()
            assert await blob.read() == content(1, MIB)

    asyncio.run(main())
    assert watched() == {}
    wait_until(lambda: lookouts() == 0)


def test_who_still_reads_a_blob_keeps_nobody_with_what_it_was(store: Store) -> None:
    async def main() -> None:
        async with store.aopen("name", [b"before"]) as blob:
            await blob.wait()
            store.evict(0)
            store.fetch("name", [b"after"])
            async with store.aopen("name") as other:
                assert await other.read() == b"after"
                assert other.role == Role.STORED
            assert await blob.read() == b"before"

    asyncio.run(main())


def test_a_stall_is_each_tasks_own(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)

    async def main() -> None:
        async with (
            store.aopen(digest(1, MIB), url, stall_timeout=0.05) as hasty,
            store.aopen(digest(1, MIB), url) as patient,
        ):
            reading = asyncio.create_task(patient.read())
            with pytest.raises(WriterStalled):
                await hasty.read()
            origin.wait("/blob", bool)
            origin.release()
            assert await reading == await hasty.read() == content(1, MIB)

    asyncio.run(main())


def test_errors_reach_every_task(store: Store, origin: Origin) -> None:
    wrong = origin.serve("/wrong", seed=1, size=MIB, wrong_at=5)
    none = origin.serve("/none", seed=1, size=MIB, status=404)

    async def main() -> None:
        for url, kind in ((wrong, DigestMismatch), (none, SourceFailed)):
            tasks = [read_all(store, digest(1, MIB), url) for _ in range(20)]
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in errors} == {kind}
            assert len({id(each) for each in errors}) == 20
        with pytest.raises(LookupError):
            await read_all(store, "absent", None)

    asyncio.run(main())


def test_a_leader_elsewhere_is_killed(
    start: Start, store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells it: the next look at the leader's lock would come in an hour."""
    monkeypatch.setattr("shmstream.stream.waiter._SLICE", 3600.0)
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", count=1, stall_after=MIB)
    leader = start(flights.take, store.folder, {})
    leader.hear()
    leader.say([digest(1, 2 * MIB), url, 0])
    assert leader.hear() == {"role": "leads"}
    wait_until(lambda: has_published(store, MIB - 65536))

    async def main() -> None:
        tasks = [asyncio.create_task(read_all(store, digest(1, 2 * MIB), url)) for _ in range(10)]
        await asyncio.sleep(0)
        leader.kill()
        assert set(await asyncio.gather(*tasks)) == {sha256(content(1, 2 * MIB))}

    asyncio.run(main())
    assert len(origin.requests("/blob")) == 2


def test_other_bytes_are_not_mixed_in(start: Start, store: Store, origin: Origin) -> None:
    """The leader dies and its partial file is lost, so that the next one has to begin anew."""
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", count=1, stall_after=MIB)
    leader = start(flights.take, store.folder, {})
    leader.hear()
    leader.say(["key", url, 0])
    leader.hear()
    wait_until(lambda: has_published(store, MIB - 65536))

    async def main() -> None:
        async with store.aopen("key", url) as blob:
            assert await blob.read(500_000) == content(1, 2 * MIB)[:500_000]
            Path(partial_path(blob.path)).unlink()
            origin.serve("/blob", seed=2, size=2 * MIB)
            leader.kill()
            with pytest.raises(ContentChanged):
                await blob.read()

    asyncio.run(main())


def test_who_has_a_source_goes_on_without_who_has_none(
    start: Start, store: Store, origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", count=1, stall_after=MIB)
    leader = start(flights.take, store.folder, {})
    leader.hear()
    leader.say([digest(1, 2 * MIB), url, 0])
    leader.hear()
    wait_until(lambda: has_published(store, MIB - 65536))

    async def main() -> None:
        async with store.aopen(digest(1, 2 * MIB)) as poor:
            assert await poor.read(1) == content(1, 2 * MIB)[:1]
            async with store.aopen(digest(1, 2 * MIB), url) as rich:
                leader.kill()
                assert await rich.read() == content(1, 2 * MIB)
            assert await poor.read() == content(1, 2 * MIB)[1:]

    asyncio.run(main())


def test_a_lookout_that_cannot_start_is_in_nobodys_way(
    store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)

    with no_thread_to_be_had(monkeypatch):
        asyncio.run(read_all(store, digest(1, MIB), url))
    assert asyncio.run(read_all(store, digest(1, MIB), url)) == sha256(content(1, MIB))


def test_what_the_source_says_is_known_when_the_blob_is_complete(
    store: Store, origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, media_type="text/x-test")

    async def main() -> None:
        said = []
        for source in (url, None):
            async with store.aopen("key", source) as blob:
                await blob.wait()
                said.append((blob.validator, blob.media_type, blob.is_complete))
            wait_until(lambda: not store.flights())
        assert said == [(f'"1-{MIB}"', "text/x-test", True)] * 2

    asyncio.run(main())


def test_a_task_that_knows_the_size_knows_what_else_the_source_says(
    store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the source answers while the `Lookout` takes its view."""
    url = origin.serve("/blob", seed=1, size=MIB, media_type="text/x-test", stall_after=0)
    may_ask = threading.Event()
    ask, look = HTTPSource.open, Blob.view

    def ask_late(source: HTTPSource, offset: int = 0, validator: str | None = None) -> Feed:
        assert may_ask.wait(PATIENCE)
        return ask(source, offset, validator)

    def look_early(self: Blob) -> View:
        view = look(self)
        may_ask.set()
        wait_until(lambda: store.flights()[0].size is not None)
        return view

    monkeypatch.setattr(HTTPSource, "open", ask_late)
    monkeypatch.setattr(Blob, "view", look_early)

    async def main() -> None:
        async with store.aopen("key", url, linger=False) as blob:
            await blob.known()
            assert (blob.size, blob.media_type) == (MIB, "text/x-test")
            assert blob.validator == f'"1-{MIB}"'

    asyncio.run(main())


def test_a_cold_blob_is_read_by_our_own_threads(store: Store) -> None:
    """And the default executor is left to others, even if they have filled it."""
    path = store.fetch("key", [content(1, 8 * MIB)])
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    gate = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        blocked = [loop.run_in_executor(None, gate.wait) for _ in range(64)]
        try:
            assert await read_all(store, "key", None) == sha256(content(1, 8 * MIB))
        finally:
            gate.set()
            await asyncio.gather(*blocked)

    asyncio.run(main())


def test_two_loops_in_two_threads(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, rate=4 * MIB)
    got: list[str] = []

    def run() -> None:
        got.append(asyncio.run(read_all(store, digest(1, MIB), url)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [sha256(content(1, MIB))] * 3
    assert len(origin.requests("/blob")) == 1


# Who leads.


def test_who_leads_needs_no_place_among_the_readers(store: Store, origin: Origin) -> None:
    """One thread leads and watches, also when all tasks have left, and for tasks that come then."""
    url = origin.serve("/blob", seed=1, size=4 * MIB)
    origin.change("/blob", stall_after=MIB)
    key = digest(1, 4 * MIB)

    async def main() -> None:
        async with store.aopen(key, url) as blob:
            assert await blob.read(1000) == content(1, 4 * MIB)[:1000]
            [flight] = store.flights()
            assert (blob.role, flight.followers) == (Role.LEADS, ())
            [watching] = watched().values()
        assert list(watched().values()) == [watching]
        assert not any(each.name == "shmstream-flight" for each in threading.enumerate())
        async with store.aopen(key, url) as blob:
            assert list(watched().values()) == [watching]
            assert lookouts() == 1
            reading = asyncio.create_task(blob.read())
            origin.release()
            assert sha256(await reading) == sha256(content(1, 4 * MIB))

    asyncio.run(main())
    wait_until(lambda: lookouts() == 0)
    assert watched() == {}
    assert len(origin.requests("/blob")) == 1


def test_a_flight_that_all_have_left_ends_in_the_store(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", stall_after=MIB)
    key = digest(1, 2 * MIB)

    async def main() -> None:
        async with store.aopen(key, url) as blob:
            await blob.read(1)

    asyncio.run(main())
    assert key not in store
    origin.release()
    wait_until(lambda: key in store)
    wait_until(lambda: lookouts() == 0)
    assert watched() == {}


def test_a_flight_goes_on_without_those_who_cannot_read_it(
    store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    key = digest(1, MIB)

    def fail(_: ResumableStreamer) -> int:
        raise OutOfResources("name", "descriptors", errno.EMFILE, "too many open files")

    async def main() -> None:
        with monkeypatch.context() as patch, pytest.raises(OutOfResources):
            patch.setattr(ResumableStreamer, "reopen", fail)
            await read_all(store, key, url)
        wait_until(lambda: key in store)
        assert await read_all(store, key, url) == sha256(content(1, MIB))

    asyncio.run(main())
    wait_until(lambda: lookouts() == 0)
    assert watched() == {}
    assert len(origin.requests("/blob")) == 1


def test_without_a_thread_no_flight_is_left(
    store: Store, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)

    for linger in (True, False):
        with no_thread_to_be_had(monkeypatch):
            store.open("key", url, linger=linger)
        assert store.flights() == []
    with store.open("key", url) as blob:
        assert blob.readall() == content(1, MIB)


def test_an_empty_blob_has_a_file_for_who_led(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=0)

    async def main() -> None:
        async with store.aopen("key", url) as blob:
            assert await blob.read() == b""
            assert os.fstat(blob.descriptor).st_size == 0

    asyncio.run(main())
    wait_until(lambda: not store.flights())


def test_another_task_closes_what_one_reads(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)

    async def main() -> None:
        blob = await store.aopen("key", url).__aenter__()
        reading = asyncio.create_task(blob.read())
        waiting = asyncio.create_task(blob.wait())
        await asyncio.sleep(0)
        await blob.aclose()
        for each in (reading, waiting):
            with pytest.raises(StreamClosed):
                await each
        origin.wait("/blob", bool)
        origin.release()

    asyncio.run(main())
    wait_until(lambda: lookouts() == 0)


LEADS_AND_ENDS = """
import asyncio, sys
from shmstream import Store, StreamClosed
from shmstream.system import process

async def main():
    store = Store(sys.argv[1])
    async with store.aopen(sys.argv[2], sys.argv[3]) as blob:
        await blob.read(1)
        print("leads", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        reading = asyncio.create_task(blob.wait())
        await asyncio.sleep(0)
        process.close_all()
        try:
            await reading
        except StreamClosed:
            print("handed over", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


def test_who_hands_over_does_not_take_it_back(store: Store, origin: Origin) -> None:
    """Its readers still have the file open, which hinders no other process."""
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", count=1, stall_after=MIB)
    key = digest(1, 2 * MIB)
    command = [sys.executable, "-c", LEADS_AND_ENDS, store.folder, key, url]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, bufsize=1) as leader:
        assert leader.stdin is not None
        assert leader.stdout is not None
        assert leader.stdout.readline() == "leads\n"
        with store.open(key, url) as blob:
            assert str(blob.role) == "follows"
            leader.stdin.write("\n")
            assert leader.stdout.readline() == "handed over\n"
            assert blob.readall() == content(1, 2 * MIB)
            assert str(blob.role) == "leads"
        leader.stdin.write("\n")
    assert leader.returncode == 0
    first, second = origin.requests("/blob")
    assert (first.range, second.range is None) == (None, False)
