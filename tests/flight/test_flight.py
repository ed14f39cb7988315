"""Flights with real processes: one download, whichever process leads, however often it dies."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shmstream import (
    ContentChanged,
    DigestMismatch,
    FlightInfo,
    Retries,
    SourceFailed,
    State,
    Store,
)
from shmstream.flight.flight import Flight
from shmstream.sources.http import HTTPSource
from shmstream.stream import segment
from tests.support import flights
from tests.support.flights import LEADER_POINTS, make_store
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.nginx import Nginx
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, has_published, interrupt, reboot

Start = Callable[..., Interpreter]

ROUNDS = int(os.environ.get("SHMSTREAM_FLIGHT_ROUNDS", "200"))
MIB = 1 << 20


def outcome(taker: Interpreter) -> dict[str, Any]:
    """What came of it in the end; its role, said before, is passed over."""
    heard = taker.hear()
    while "bytes" not in heard:
        heard = taker.hear()
    return dict(heard)


def kill_leader(store: Store, takers: list[Interpreter]) -> FlightInfo:
    """Kill the one of the `takers` that leads, and remove it; the flight as it was before."""
    [flight] = store.flights()
    assert flight.leader is not None
    [leader] = [taker for taker in takers if taker.pid == flight.leader.pid]
    leader.kill()
    takers.remove(leader)
    return flight


def pool(start: Start, count: int, folder: str, **options: Any) -> list[Interpreter]:
    takers = [start(flights.take, folder, options) for _ in range(count)]
    for taker in takers:
        taker.hear()
    return takers


def test_sixteen_ask_at_once_and_there_is_one_download(
    start: Start, folder: str, origin: Origin
) -> None:
    takers = pool(start, 16, folder)
    for number in range(ROUNDS):
        size = random.Random(number).choice([0, 1, 5000, 65536, 300_000, MIB])
        path = f"/{number}"
        url = origin.serve(path, seed=number, size=size)
        key = digest(number, size) if number % 4 and size > 1 else f"round {number}"
        for taker in takers:
            taker.say([key, url, 0.02 * (number % 3)])
        outcomes = [outcome(taker) for taker in takers]
        assert {each["error"] for each in outcomes} == {None}, outcomes
        assert {each["sha256"] for each in outcomes} == {sha256(content(number, size))}
        assert [each.method for each in origin.requests(path)] == ["GET"]
    wait_until(lambda: segment.names() == [])
    for taker in takers:
        taker.finish()


@pytest.mark.parametrize("point", LEADER_POINTS)
def test_a_leader_killed_at_a_named_point(
    point: str, start: Start, folder: str, origin: Origin
) -> None:
    data = content(5, 500_000)
    url = origin.serve("/blob", seed=5, size=500_000)
    if point == "after the takeover":
        origin.change("/blob", count=1, stall_after=200_000)
        first = start(flights.take, folder, {})
        first.hear()
        first.say([f"sha256:{sha256(data)}", url, 0])
        first.hear()
        origin.wait("/blob", lambda requests: len(requests) == 1)
        first.kill()
    doomed = start(flights.take, folder, {}, point)
    doomed.hear()
    doomed.say([f"sha256:{sha256(data)}", url, 0])
    doomed.wait_killed()
    followers = pool(start, 2, folder)
    for follower in followers:
        follower.say([f"sha256:{sha256(data)}", url, 0])
    for follower in followers:
        assert outcome(follower)["sha256"] == sha256(data)
        follower.finish()
    Store(folder).gc()


@pytest.mark.parametrize("named", [False, True])
def test_what_was_published_before_the_journal_is_kept(
    named: bool, start: Start, folder: str, origin: Origin, store: Store
) -> None:
    """Also if the stream is removed before the next flight: its block is as good as a journal."""
    url = origin.serve("/blob", seed=1, size=MIB)
    key = "a name" if named else digest(1, MIB)
    doomed = start(flights.take, folder, {}, "before the journal")
    doomed.hear()
    doomed.say([key, url, 0])
    doomed.wait_killed()
    store.gc()
    assert store.flights() == []
    [partial] = Path(folder).rglob("*.shmstream-partial")
    kept = partial.stat().st_size
    assert kept > 0
    assert Path(store.fetch(key, url)).read_bytes() == content(1, MIB)
    assert [each.range for each in origin.requests("/blob")] == [None, f"bytes={kept}-"]


def test_a_leader_killed_before_a_digest_that_nobody_waits_for(
    start: Start, folder: str, origin: Origin, store: Store
) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    doomed = start(flights.take, folder, {}, "before the digest")
    doomed.hear()
    doomed.say(["a name", url, 0])
    doomed.wait_killed()
    with store.open("a name") as blob:
        assert (blob.role, blob.read()) == ("stored", content(1, MIB))
    store.gc()
    assert store.check() == []
    path = Path(store.fetch("a name"))
    path.write_bytes(content(2, MIB))
    assert [each.kind for each in store.check()] == ["damaged"], "its digest is known by now"
    path.unlink()
    store.gc()


def test_leader_and_successor_killed(
    start: Start, folder: str, origin: Origin, store: Store
) -> None:
    """The kernel tells the followers each death: their own next look would come in an hour."""
    size = 2 * MIB
    url = origin.serve("/blob", seed=1, size=size)
    origin.change("/blob", first=0, count=1, stall_after=500_000)
    origin.change("/blob", first=1, count=1, stall_after=500_000)
    takers = [start(flights.take_without_looks, folder) for _ in range(4)]
    for taker in takers:
        assert taker.hear() == taker.pid
        taker.say([digest(1, size), url, 0])
    for taker in takers:
        taker.hear()
    for epoch in range(2):
        wait_until(partial(has_published, store, 500_000 * (epoch + 1) - 65536, epoch))
        kill_leader(store, takers)
    for taker in takers:
        assert outcome(taker)["sha256"] == sha256(content(1, size))
        taker.finish()
    assert len(origin.requests("/blob")) == 3


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_all_killed_and_asked_again(
    swept: bool, named: bool, start: Start, folder: str, store: Store, origin: Origin
) -> None:
    size = 2 * MIB
    key = "a name" if named else digest(1, size)
    interrupt(start, folder, origin, key, size, MIB)
    if swept:
        gone = store.gc()
        assert gone, "the segment, perhaps a doorbell, and not the partial file"
        assert not [each for each in gone if "partial" in each]
    with store.open(key, origin.url("/blob")) as blob:
        assert blob.read() == content(1, size)
    _, second = origin.requests("/blob")
    assert second.status == 206
    assert MIB - 65536 <= int((second.range or "")[6:-1]) <= MIB


@pytest.mark.parametrize("damage", ["none", "torn tail", "zeros", "short", "torn journal", "other"])
def test_after_a_reboot(
    damage: str,
    start: Start,
    folder: str,
    store: Store,
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It resumes from the last checkpoint that holds, and never serves a wrong byte."""
    size = 40 * MIB
    rate = 64 * MIB  # a busy machine hashes meanwhile, too: it notes how far
    interrupt(start, folder, origin, digest(1, size), size, 36 * MIB, rate)
    [partial_file] = Path(folder).rglob("*.shmstream-partial")
    [journal] = Path(folder).rglob("*.shmstream-journal")
    reboot(folder, monkeypatch)
    lines = journal.read_text().splitlines(keepends=True)
    offsets = [int(line.split()[0]) for line in lines[1:]]
    assert len(offsets) == 2
    assert 0 < offsets[0] < offsets[1] < 35 * MIB
    expected = offsets[1]
    with partial_file.open("r+b") as file:
        if damage == "torn tail":
            file.seek(35 * MIB)
            file.write(bytes(4096))
        elif damage == "zeros":  # before the second checkpoint, after the first
            file.seek(offsets[0] + 4096)
            file.write(bytes(4096))
            expected = offsets[0]
        elif damage == "short":
            file.truncate(offsets[1] - 1)
            expected = offsets[0]
        elif damage == "other":
            file.seek(0)
            file.write(b"x" * 100)
            expected = 0
        elif damage == "torn journal":
            journal.write_text("".join(lines[:2]) + lines[2][:10] + "\0\0\0\0")
            expected = offsets[0]
    with store.open(digest(1, size), origin.url("/blob")) as blob:
        assert sha256(blob.read()) == sha256(content(1, size))
    second = origin.requests("/blob")[1]
    assert (second.status, second.range) == (
        (206, f"bytes={expected}-") if expected else (200, None)
    )


def test_a_checkpoint_waits_until_something_is_hashed(
    store: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints: list[str] = []

    def source() -> Iterator[bytes]:
        for _ in range(17):
            yield bytes(MIB)
        [journal] = Path(folder).rglob("*.shmstream-journal")
        checkpoints.extend(journal.read_text().splitlines()[1:])

    monkeypatch.setattr("shmstream.stream.digest._ENOUGH", 1 << 40)  # not before the end
    store.fetch("sha256:" + sha256(bytes(17 * MIB)), source())
    assert checkpoints == []


@pytest.mark.parametrize("how", ["exit", "SIGTERM", "handled SIGTERM"])
def test_the_end_of_the_leaders_process_hands_over(
    how: str, start: Start, folder: str, origin: Origin, store: Store
) -> None:
    size = 2 * MIB
    url = origin.serve("/blob", seed=1, size=size)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    leader = start(flights.open_and_leave, folder, digest(1, size), url, how)
    assert leader.hear() == "leads"
    with store.open(digest(1, size), url) as blob:
        assert blob.role == "follows"
        blob.read(MIB // 2)
        if how == "exit":
            leader.say("exit")
            leader.finish()
        else:
            leader.signal(signal.SIGTERM)
            leader.process.wait(60)
        blob.seek(0)
        assert blob.read() == content(1, size)
        assert blob.role == "leads"
    assert len(origin.requests("/blob")) == 2


def test_a_successor_brings_all_before_it_has_a_reader(
    start: Start, folder: str, origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has led all the same."""
    succeed = Flight._succeed

    def to_the_end(self: Flight, copier: Any) -> object:
        follower = succeed(self, copier)
        if self._leader is not None:
            self._leader.join()
        return follower

    monkeypatch.setattr(Flight, "_succeed", to_the_end)
    url = origin.serve("/blob", seed=1, size=2 * MIB)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    leader = start(flights.open_and_leave, folder, digest(1, 2 * MIB), url, "exit")
    assert leader.hear() == "leads"
    with store.open(digest(1, 2 * MIB), url) as blob:
        leader.say("exit")
        leader.finish()
        assert blob.read() == content(1, 2 * MIB)
        assert blob.role == "leads"


def test_a_leader_that_forks(start: Start, folder: str, origin: Origin) -> None:
    size = 2 * MIB
    url = origin.serve("/blob", seed=1, size=size)
    origin.change("/blob", stall_after=MIB)
    parent = start(flights.fetch_in_a_fork, folder, digest(1, size), url)
    assert parent.hear() == 0
    origin.release()
    assert parent.hear() == sha256(content(1, size))
    parent.finish()
    assert len(origin.requests("/blob")) == 1


def test_no_directory_is_listed(start: Start, folder: str, origin: Origin) -> None:
    """/dev/shm and the store may have many files: no flight, attach or close is slower for them.

    A leader, its followers in other processes and its successor; a commit, an abort, a takeover.
    Only the first flight of a process sweeps; then it does so once a minute.
    """
    warm_up = origin.serve("/warm-up", seed=9, size=MIB)
    takers = [start(flights.take_and_note_listings, folder, warm_up) for _ in range(3)]
    for taker in takers:
        taker.hear()

    def begin(path: str, key: str) -> None:
        """The first taker leads, the others follow, and the origin says no more for now."""
        url = origin.serve(path, seed=1, size=3 * MIB)
        origin.change(path, count=1, stall_after=MIB)
        for taker, role in zip(takers, ("leads", "follows", "follows"), strict=True):
            taker.say([key, url])
            assert taker.hear() == {"role": role}
            origin.wait(path, lambda requests: len(requests) == 1)

    def end() -> set[tuple[str | None, str | None]]:
        outcomes = [outcome(taker) for taker in takers]
        assert [each["listed"] for each in outcomes] == [[]] * len(takers)
        return {(each["error"], each.get("sha256")) for each in outcomes}

    right = (None, sha256(content(1, 3 * MIB)))
    begin("/commit", digest(1, 3 * MIB))
    origin.release()
    assert end() == {right}
    begin("/abort", digest(2, 3 * MIB))
    origin.release()
    assert end() == {("DigestMismatch", None)}
    begin("/takeover", "a name")
    takers.pop(0).kill()
    assert end() == {right}
    for taker in takers:
        taker.finish()


def test_everyone_leaves_and_the_flight_goes_on(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)
    with store.open(digest(1, MIB), url) as blob:
        blob.read(1)
    origin.release()
    wait_until(lambda: digest(1, MIB) in store)


def test_everyone_leaves_and_it_is_told_to_end(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=8 * MIB, rate=MIB // 4)  # half a minute
    with store.open(digest(1, 8 * MIB), url, linger=False) as blob:
        blob.read(1)
    wait_until(lambda: store.flights() == [])
    assert digest(1, 8 * MIB) not in store
    assert list(Path(store.folder).rglob("*.shmstream-partial")) != [], "it can be resumed"


def test_the_commit_race(
    store: Store, folder: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We look in the store; a whole flight takes off and lands; then we look for the flight."""
    url = origin.serve("/blob", seed=1, size=MIB)
    other = Store(folder)
    follow = Flight._follow
    seen = []

    def follow_later(self: Flight, patience: float) -> Any:
        monkeypatch.setattr(Flight, "_follow", follow)
        other.fetch(digest(1, MIB), url)
        wait_until(lambda: other.flights() == [])
        seen.append("a flight in between")
        return follow(self, patience)

    monkeypatch.setattr(Flight, "_follow", follow_later)
    with store.open(digest(1, MIB), url) as blob:
        assert blob.read() == content(1, MIB)
        assert blob.role == "stored"
    assert seen == ["a flight in between"]
    assert len(origin.requests("/blob")) == 1


def test_the_first_source_dies_at_half(store: Store, origin: Origin) -> None:
    first = origin.serve("/first", seed=1, size=MIB)
    origin.change("/first", count=1, reset_after=MIB // 2)
    origin.change("/first", first=1, status=503)
    second = origin.serve("/second", seed=1, size=MIB, etag='"another server"')
    with store.open(digest(1, MIB), [first, second]) as blob:
        assert blob.read() == content(1, MIB)
    [request] = origin.requests("/second")
    assert request.status == 206
    assert len(origin.requests("/first")) == 2


def test_sources_of_all_kinds(store: Store, tmp_path: Path) -> None:
    data = content(1, 300_000)
    path = tmp_path / "source"
    path.write_bytes(data)
    with path.open("rb") as file:
        sources: list[Any] = [path, str(path), file, [data[:1000], data[1000:]], iter([data])]
        for number, source in enumerate(sources):
            with store.open(f"kind {number}", source) as blob:
                assert blob.read() == data


def test_a_follower_without_a_source(
    start: Start, store: Store, folder: str, origin: Origin
) -> None:
    """It reads what other processes download, and raises an error when no process does any more."""
    size = 2 * MIB
    interrupt(start, folder, origin, digest(1, size), size, MIB)
    with pytest.raises(LookupError, match="no source was given"):
        store.open(digest(1, size))
    with store.open(digest(1, size), origin.url("/blob")):
        with store.open(digest(1, size)) as blob:
            assert blob.read() == content(1, size)


def test_a_real_server_is_asked_for_what_is_missing(
    start: Start, folder: str, nginx: Nginx, store: Store
) -> None:
    """nginx, throttled: eight ask, the leader is killed, and nothing is sent twice."""
    size = 4 * MIB
    (nginx.folder / "blob").write_bytes(content(1, size))
    url = nginx.url("blob", rate=str(MIB))
    takers = pool(start, 8, folder)
    for taker in takers:
        taker.say([digest(1, size), url, 0])
    for taker in takers:
        taker.hear()
    wait_until(partial(has_published, store, MIB // 4))
    flight = kill_leader(store, takers)
    for taker in takers:
        assert outcome(taker)["sha256"] == sha256(content(1, size))
        taker.finish()
    requests = nginx.wait(2)
    assert [each.status for each in requests] == [200, 206]
    begin = int(requests[1].range[6:-1])
    assert begin >= flight.published
    assert requests[1].bytes == size - begin


def test_progress_is_told(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, media_type="text/x-test")
    told: list[Any] = []
    path = store.fetch(digest(1, MIB), url, progress=told.append)
    assert Path(path).read_bytes() == content(1, MIB)
    assert [each.published for each in told] == sorted(each.published for each in told)
    assert (told[-1].published, told[-1].size, told[-1].role) == (MIB, MIB, "leads")


def test_threads_of_one_process_share_a_flight(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, rate=8 * MIB)
    got: list[str] = []

    def read() -> None:
        with store.open(digest(1, MIB), url) as blob:
            got.append(sha256(blob.read()))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [sha256(content(1, MIB))] * 8
    assert len(origin.requests("/blob")) == 1


# What an origin may do: docs/flight.md has this table.


def outcome_of(store: Store, key: str, url: str, patience: float = PATIENCE) -> str:
    """`patience` is for each answer of the origin, in seconds."""
    try:
        with store.open(key, HTTPSource(url, timeout=(PATIENCE, patience))) as blob:
            return sha256(blob.read())
    except (SourceFailed, DigestMismatch, ContentChanged) as error:
        return type(error).__name__


RIGHT = sha256(content(1, MIB))
SHORT = sha256(content(1, MIB)[:-1000])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("fault", "count", "expected", "requests"),
    [
        ({"status": 503}, 2, RIGHT, 3),
        ({"status": 500}, None, "SourceFailed", 8),
        ({"status": 404}, None, "SourceFailed", 1),
        ({"reset_after": 300_000}, 1, RIGHT, 2),
        ({"close_after": 300_000}, 1, RIGHT, 2),
        ({"close_after": 300_000, "ranges": False}, 1, RIGHT, 2),
        ({"framing": "chunked"}, None, RIGHT, 1),
        ({"framing": "chunked", "close_after": 300_000}, 1, RIGHT, 2),
        ({"extra": 1000}, None, RIGHT, 1),
        ({"stall_after": 300_000}, 1, RIGHT, 2),
        ({"stall_after": 300_000}, None, RIGHT, 4),  # each time some more comes
        ({"stall_after": 0}, None, "SourceFailed", 8),
        (
            {"content_length": str(MIB + 1000), "close_after": MIB},
            1,
            f"{RIGHT} or ContentChanged",
            3,  # then the whole blob, as the range was refused
        ),
        ({"content_length": str(MIB - 1000)}, 1, f"DigestMismatch or {SHORT}", 1),
    ],
    ids=str,
)
def test_what_an_origin_may_do(
    fault: dict[str, Any],
    count: int | None,
    expected: str,
    requests: int,
    named: bool,
    store: Store,
    origin: Origin,
) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", count=count, **fault)
    key = "a name" if named else digest(1, MIB)
    # Where the origin stalls, what it sends before must come in time, also on a busy machine.
    stalls = fault.get("stall_after")
    got = outcome_of(store, key, url, PATIENCE if stalls is None else 1.0 if stalls else 0.1)
    with_digest, _, with_name = expected.partition(" or ")
    assert got == (with_name or with_digest if named else with_digest)
    heard = origin.wait("/blob", lambda heard: len(heard) >= requests)  # one may be on its way
    assert len(heard) == requests
    wait_until(lambda: store.flights() == [])
    assert (key in store) == (got in (RIGHT, SHORT))
    left = list(Path(store.folder).rglob("*.shmstream-*"))
    if got == RIGHT:
        assert [each.name.rpartition("-")[2] for each in left] == ["record"] * named


def test_an_origin_that_refuses_for_a_while(folder: str, origin: Origin) -> None:
    often = Retries(attempts=10_000, first_pause=0.01, longest_pause=0.05)
    store = make_store(folder, {"retries": often})  # for longer than the origin is away
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.refuse()
    timer = threading.Timer(0.1, origin.accept)
    timer.start()
    try:
        assert outcome_of(store, digest(1, MIB), url) == RIGHT
    finally:
        timer.join()


@pytest.mark.parametrize("named", [False, True])
def test_content_that_changes_in_between(named: bool, store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", first=0, count=1, reset_after=300_000)
    origin.change("/blob", first=1, seed=2)
    key = "a name" if named else digest(1, MIB)
    got = outcome_of(store, key, url)
    assert got == ("ContentChanged" if named else "SourceFailed")
    if named:  # the next request starts afresh
        assert outcome_of(store, key, url) == sha256(content(2, MIB))


def test_content_without_validator_is_compared(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, etag=None)
    origin.change("/blob", first=0, count=1, reset_after=300_000)
    assert outcome_of(store, "a name", url) == RIGHT
    assert [each.range for each in origin.requests("/blob")] == [None, None]


def test_wrong_bytes_reach_nobody_and_leave_nothing(
    start: Start, store: Store, folder: str, origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, wrong_at=777_777, rate=16 * MIB)
    takers = pool(start, 3, folder)
    for taker in takers:
        taker.say([digest(1, MIB), url, 0.01])
    for taker in takers:
        result = outcome(taker)
        assert result["error"] == "DigestMismatch"
        assert result["bytes"] < MIB
        taker.finish()
    wait_until(lambda: store.flights() == [])
    assert list(store._layout.entries()) == []
    origin.change("/blob", wrong_at=None)
    assert outcome_of(store, digest(1, MIB), url) == RIGHT


def test_an_aborted_flight_tells_everybody(start: Start, folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", first=0, count=1, close_after=300_000)
    origin.change("/blob", first=1, status=404)
    takers = pool(start, 4, folder)
    for taker in takers:
        taker.say([digest(1, MIB), url, 0])
    for taker in takers:
        result = outcome(taker)
        assert result["error"] == "SourceFailed"
        assert "404" in result["text"]
        taker.finish()
    assert State.ABORTED not in {each.state for each in Store(folder).flights()}
