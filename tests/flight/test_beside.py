"""A leader that is stopped: followers with a source go past it, and nothing is wrong afterwards."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from shmstream import (
    ContentChanged,
    DigestMismatch,
    InFlightCopier,
    SourceFailed,
    Store,
    WriterStalled,
)
from shmstream.flight import beside, hub
from shmstream.flight.async_blob import AsyncBlob
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
        leaders.append(lead_and_stop(start, folder, store, key, url))

    yield stop
    for leader in leaders:
        assert wake(leader, origin)["sha256"] == sha256(DATA)


def lead_and_stop(
    start: Callable[..., Interpreter], folder: str, store: Store, key: str, url: str
) -> Interpreter:
    leader = start(flights.read_in_steps, folder, key, url, None)
    assert leader.hear()["role"] == "leads"
    wait_until(partial(has_published, store, 2 * MIB))
    leader.stop()
    return leader


def wake(leader: Interpreter, origin: Origin) -> dict[str, Any]:
    """What it tells when it has read the rest."""
    origin.release()
    leader.resume()
    leader.say(-1)
    told: dict[str, Any] = leader.hear()
    if "error" in told:
        leader.say(None)
    leader.finish()
    return told


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
    origin.change("/blob", first=1, count=2, wrong_at=3 * MIB)  # beside its leader, and anew
    origin.change("/blob", first=3, count=2, status=404)  # of a part, and of the whole
    with store.open(KEY, url, stall_timeout=0.3) as blob:
        with pytest.raises(DigestMismatch):
            blob.read()
        assert blob.tell() == 0
    with store.open(KEY, url, stall_timeout=0.3) as blob, pytest.raises(SourceFailed, match="404"):
        blob.read()
    assert KEY not in store


@pytest.fixture(params=["wrong byte", "other version", "other version, no ranges", "other size"])
def misled(
    request: pytest.FixtureRequest,
    start: Callable[..., Interpreter],
    folder: str,
    store: Store,
    origin: Origin,
    url: str,
) -> Iterator[str]:
    """A leader with wrong bytes is stopped; the URL is of a source of the right ones."""
    right = origin.serve("/right", seed=1, size=SIZE, ranges="no ranges" not in request.param)
    how: dict[str, Any] = {"wrong_at": MIB}
    if "version" in request.param:
        how = {"seed": 2}
    elif "size" in request.param:
        how = {"seed": 2, "size": SIZE + 1000}
    else:
        right = url
    origin.change("/blob", first=0, count=1, **how)
    leader = lead_and_stop(start, folder, store, KEY, url)
    yield right
    wake(leader, origin)


def test_the_bytes_of_its_leader_are_wrong(store: Store, misled: str) -> None:
    assert Path(store.fetch(KEY, misled, stall_timeout=0.3)).read_bytes() == DATA


def test_a_reader_has_read_wrong_bytes(store: Store, origin: Origin, misled: str) -> None:
    """It gets an error and no other bytes, at each try, and so does another reader, which finds
    the blob in the store by then. Later ones get the blob."""
    before = len(origin.requests())
    with (
        store.open(KEY, misled, stall_timeout=0.3) as blob,
        store.open(KEY, misled, stall_timeout=0.3) as other,
    ):
        blob.read(MIB + 1)
        other.read(MIB + 1)
        for each in (blob, blob, other, other):
            with pytest.raises(ContentChanged, match="other bytes than those that were read"):
                each.read()
            assert (each.tell(), each.role) == (MIB + 1, "follows")
        with pytest.raises(ContentChanged, match="other bytes than those that were read"):
            blob.read1()
    with store.open(KEY) as blob:
        assert blob.read() == DATA
    assert len(origin.requests()) - before <= 3


async def read_patiently(blob: AsyncBlob) -> bytes:
    """The rest, however long the machine takes for it."""
    while True:
        with suppress(WriterStalled):
            return await blob.read()


def test_readers_of_which_one_is_misled(store: Store, misled: str) -> None:
    """Tasks share what is read: each of them that has read wrong bytes gets the error."""

    async def read() -> tuple[bytes | BaseException, bytes | BaseException]:
        async with (
            store.aopen(KEY, misled, stall_timeout=0.3) as one,
            store.aopen(KEY, misled, stall_timeout=0.3) as two,
        ):
            await one.read(MIB + 1)
            both = (read_patiently(one), read_patiently(two))
            return await asyncio.gather(*both, return_exceptions=True)

    misread, got = asyncio.run(read())
    assert isinstance(misread, ContentChanged)
    assert isinstance(got, ContentChanged) or got == DATA
    with store.open(KEY) as blob:
        assert blob.read() == DATA


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


@pytest.mark.parametrize("has_unnamed_files", [True, False])
def test_what_is_brought_into_a_groups_store_is_the_groups(
    has_unnamed_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its other users could not open the blob."""
    if not has_unnamed_files:
        monkeypatch.setattr("os.O_TMPFILE", os.O_DIRECTORY)
    place = Store(tmp_path / "shared", shared_group=True)._layout.place(KEY)
    fd, name = beside._make_file(place)
    try:
        assert bool(name) is not has_unnamed_files
        assert os.fstat(fd).st_mode & 0o777 == 0o660
    finally:
        os.close(fd)
        if name:
            os.unlink(name)


def test_tasks_go_past_together(stopped: Stopped, store: Store, origin: Origin, url: str) -> None:
    stopped(KEY)

    async def read() -> bytes:
        async with store.aopen(KEY, url, stall_timeout=0.5) as blob:
            return await read_patiently(blob)

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
