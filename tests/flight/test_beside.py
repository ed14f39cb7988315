"""A leader that is stopped: followers with a source go past it, and nothing is wrong afterwards."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from shmstream import DigestMismatch, InFlightCopier, SourceFailed, Store, WriterStalled
from shmstream.flight import beside, hub
from tests.support import flights
from tests.support.asgi_servers import Server
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, has_published

MIB = 1 << 20
SIZE = 4 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)

Stopped = Callable[[str], None]


@pytest.fixture
def url(origin: Origin) -> str:
    """The first request stalls after 2 MiB."""
    address = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, stall_after=2 * MIB)
    return address


@pytest.fixture
def stopped(
    start: Callable[..., Interpreter], folder: str, store: Store, origin: Origin, url: str
) -> Iterator[Stopped]:
    """Lead the flight of a key in a process that stops after 2 MiB. In the end it wakes up."""
    leaders = []

    def stop(key: str) -> None:
        leaders.append(leader := start(flights.read_in_steps, folder, key, url, None))
        assert leader.hear()["role"] == "leads"
        wait_until(partial(has_published, store, 2 * MIB))
        leader.stop()

    yield stop
    for leader in leaders:
        origin.release()
        leader.resume()
        leader.say(-1)
        assert leader.hear()["sha256"] == sha256(DATA)
        leader.finish()


@contextmanager
def long_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The leader has made no progress for longer than anybody waits."""
    with monkeypatch.context() as patch:
        patch.setattr(InFlightCopier, "quiet_for", 1000.0)
        yield


@pytest.mark.parametrize("key", [KEY, "a name"])
def test_a_blob_goes_past(
    key: str, stopped: Stopped, store: Store, origin: Origin, url: str
) -> None:
    stopped(key)
    with store.open(key, url, stall_timeout=0.3) as blob:
        assert blob.role == "follows"
        assert blob.read() == DATA
        assert blob.is_complete
        blob.seek(-10, 2)
        assert blob.read() == DATA[-10:]
    assert [each.range for each in origin.requests("/blob")] == [None, f"bytes={2 * MIB}-"]
    with store.open(key) as stored:
        assert (stored.role, stored.read()) == ("stored", DATA)
    assert store.check() == []


def test_fetch_goes_past(stopped: Stopped, store: Store, url: str) -> None:
    stopped(KEY)
    assert Path(store.fetch(KEY, url, stall_timeout=0.3)).read_bytes() == DATA


def test_what_is_complete_is_told_although_its_folder_cannot_be_synced(
    stopped: Stopped, folder: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its final name already, and other processes find it there."""

    def fails(_path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    stopped(KEY)
    monkeypatch.setattr(beside, "sync_folder", fails)
    with Store(folder).open(KEY, url, stall_timeout=0.3) as blob:
        assert blob.read() == DATA


def test_who_comes_later_does_not_wait(
    stopped: Stopped, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(KEY)
    began = time.monotonic()
    with long_quiet(monkeypatch), store.open(KEY, url, stall_timeout=300) as blob:
        assert blob.read() == DATA
    assert time.monotonic() - began < 300


def test_without_a_source_it_waits(stopped: Stopped, store: Store, url: str) -> None:
    stopped(KEY)
    with store.open(KEY, stall_timeout=0.3) as blob:
        assert blob.read(MIB) == DATA[:MIB]
        for _ in range(2):
            with pytest.raises(WriterStalled) as caught:
                blob.read(2 * MIB)
            assert (caught.value.name, caught.value.offset) == (KEY, MIB)
            assert caught.value.seconds == 0.3
        assert Path(store.fetch(KEY, url, stall_timeout=0.3)).read_bytes() == DATA
        assert blob.read() == DATA[MIB:], "another reader had a source"


def test_its_own_source_fails_or_is_wrong(
    stopped: Stopped, store: Store, origin: Origin, url: str
) -> None:
    stopped(KEY)
    origin.change("/blob", first=1, count=1, wrong_at=3 * MIB)
    origin.change("/blob", first=2, count=2, status=404)  # of a part, and of the whole
    with store.open(KEY, url, stall_timeout=0.3) as blob:
        with pytest.raises(DigestMismatch):
            blob.read()
        assert blob.tell() == 0
    with store.open(KEY, url, stall_timeout=0.3) as blob, pytest.raises(SourceFailed, match="404"):
        blob.read()
    assert KEY not in store


def test_where_no_file_can_be_without_a_name(
    stopped: Stopped, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(KEY)
    monkeypatch.setattr("os.O_TMPFILE", os.O_DIRECTORY)  # an error, as where there are none
    with store.open(KEY, url, stall_timeout=0.3) as blob:
        assert blob.read(3 * MIB) == DATA[: 3 * MIB]
        assert store.check() == [], "it is known as a temporary file"
    assert KEY not in store
    with store.open(KEY, url, stall_timeout=0.3) as blob:
        assert blob.read() == DATA
    assert Path(blob.path).read_bytes() == DATA
    left = {each.kind for each in store._layout.entries()}
    assert left == {"blob", "partial", "journal"}, "and the leader's files are left alone"


def test_tasks_go_past_together(stopped: Stopped, store: Store, origin: Origin, url: str) -> None:
    stopped(KEY)

    async def read() -> bytes:
        async with store.aopen(KEY, url, stall_timeout=0.5) as blob:
            return await blob.read()

    async def main() -> list[bytes]:
        return [*await asyncio.gather(read(), read(), read())]

    assert asyncio.run(main()) == [DATA] * 3
    assert len(origin.requests("/blob")) == 2
    with hub._lookouts.lock:
        lookouts = hub._lookouts.value
        assert not lookouts


def test_a_stopped_worker(
    folder: str, store: Store, origin: Origin, url: str, tmp_path: Path
) -> None:
    """All clients of the other worker are served; in the end also those of the stopped one."""
    server = Server(folder, origin, tmp_path / "log", response={"stall_timeout": 1.0})
    assert url.endswith("/blob")
    with closing(server):
        connection, first = server.open("GET", f"/blob/{KEY}")
        with closing(connection):
            wait_until(partial(has_published, store, 2 * MIB))
            [flight] = store.flights()
            assert flight.leader is not None
            leader = psutil.Process(flight.leader.pid)
            leader.send_signal(signal.SIGSTOP)
            wait_until(lambda: leader.status() == psutil.STATUS_STOPPED)
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: server.request("GET", f"/blob/{KEY}"), range(4)))
            assert [sha256(each.body) for each in answers] == [sha256(DATA)] * 4
            assert len(origin.requests("/blob")) == 2
            leader.send_signal(signal.SIGCONT)
            origin.release()
            assert sha256(first.read()) == sha256(DATA)
        assert "never retrieved" not in (tmp_path / "log").read_text()
