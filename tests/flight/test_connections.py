"""Several connections for one blob: the bytes are right, in order, and none is pulled twice.

The origin gives each connection few bytes a second, so that one is worth others. Where a test needs
others to be used, the first one falls silent. How fast it all is decides nothing here
(bench/connections.py measures).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmstream import (
    ContentChanged,
    DigestMismatch,
    Event,
    EventKind,
    SizeMismatch,
    SourceError,
    Store,
)
from shmstream.flight import lanes, supply
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from shmstream.sources.base import Description
from shmstream.sources.http import HTTPSource
from shmstream.sources.origin import Request
from shmstream.storage.ahead import BLOCK, AheadFile
from shmstream.storage.journal import Journal
from shmstream.storage.layout import AHEAD
from shmstream.system.locks import file_identity
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 6 * MIB + 12_345
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
RATE = 4 * MIB

Start = Callable[..., Interpreter]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine is, other connections are worthwhile, and pieces are short."""
    monkeypatch.setattr(lanes, "_SOON", 0.0)
    monkeypatch.setattr(lanes, "_WORTHWHILE", 0.0)
    monkeypatch.setattr(supply, "_MOST", MIB)


def ranges(origin: Origin, path: str, since: int = 0) -> list[tuple[int, int]]:
    """The bytes of the blob that were sent with each answer, from the `since`th request on."""
    found = []
    for each in origin.requests(path)[since:]:
        if each.status in (200, 206):
            start = begin_of(each)
            found.append((start, start + each.sent))
    return found


def serve_silently(origin: Origin, path: str, rate: int = RATE) -> str:
    """Serve the blob; the first connection gives no more than half a MiB."""
    url = origin.serve(path, seed=1, size=SIZE, rate=rate)
    origin.change(path, first=0, count=1, stall_after=MIB // 2)
    return url


def begin_of(request: Request) -> int:
    return int(request.range.removeprefix("bytes=").partition("-")[0]) if request.range else 0


def ahead_files(folder: str) -> list[Path]:
    return list(Path(folder).rglob("*" + AHEAD))


def test_pieces_come_over_several_connections(folder: str, origin: Origin) -> None:
    told: list[Event] = []
    store = make_store(folder, {"connections": 4, "on_event": told.append})
    url = serve_silently(origin, "/blob")
    with store.open(KEY, url) as blob:
        assert blob.read() == DATA
        blob.wait()
    origin.release()
    asked = [each.range for each in origin.requests("/blob")]
    assert asked[0] is None, "it begins as one connection does"
    assert len({each.connection for each in origin.requests("/blob")}) > 1
    assert ahead_files(folder) == []
    assert sum(each.count for each in told if each.kind == EventKind.RECEIVED) == SIZE


def test_an_upstream_of_a_registry(folder: str, origin: Origin) -> None:
    url = serve_silently(origin, f"/v2/a/b/blobs/{KEY}")
    upstream = Upstream(url.partition("/v2/")[0], connections=3)
    source = Repository(upstream, "a/b").source("blobs", KEY, lambda *_: None, None)
    assert Path(make_store(folder, {}).fetch(KEY, source)).read_bytes() == DATA
    origin.release()
    asked = [each.range for each in origin.requests(f"/v2/a/b/blobs/{KEY}")]
    assert len(asked) > 2
    manifest = Repository(upstream, "a/b").source("manifests", KEY, lambda *_: None, None)
    assert manifest.connections == 1


def test_a_source_says_how_many_itself(folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, rate=4 * RATE)
    store = make_store(folder, {"connections": 4})
    store.fetch(KEY, HTTPSource(url, connections=1))
    assert len(origin.requests("/blob")) == 1
    with pytest.raises(ValueError, match="connections is between 1 and 64, not 0"):
        store.open(KEY, url, connections=0)
    with pytest.raises(ValueError, match="connections"):
        Store(folder, connections=65)
    with pytest.raises(ValueError, match="connections"):
        HTTPSource(url, connections=-1)


@pytest.mark.parametrize(
    ("key", "behaviour"),
    [
        (KEY, {"ranges": False}),
        ("a name", {"for_ranges": {"status": 403}}),
        (KEY, {"for_ranges": {"status": 500}}),
        ("a name", {"range_resets": True}),
        (KEY, {"all_is_rest": True}),
        ("a name", {"all_is_rest": True}),
        (KEY, {"etag": None}),
    ],
    ids=str,
)
def test_a_server_without_good_ranges(
    key: str, behaviour: dict[str, Any], folder: str, origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, rate=4 * RATE, **behaviour)
    store = make_store(folder, {"connections": 4})
    with store.open(key, url) as blob:
        assert blob.read() == DATA
        blob.wait()
    assert ahead_files(folder) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_bears_few(status: int, folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, rate=RATE)
    origin.change("/blob", first=2, count=8, status=status)
    store = make_store(folder, {"connections": 8})
    with store.open(KEY, url) as blob:
        assert blob.read() == DATA
        blob.wait()


def test_how_many_a_source_bears() -> None:
    one = supply.Supply(HTTPSource("http://a/b"), 8, 1e6, is_first=True)
    before = time.monotonic()
    assert one.allowed(before, own=1) == 1, "one shows that it gives parts"
    one.is_proved = True
    assert (one.allowed(before, own=1), one.allowed(before, own=0)) == (7, 8)
    one.active = 5
    one.failed(SourceError("a", 0, "too many", retry_after=3.0, status=429), 1, "key")
    after = time.monotonic()
    assert one.allowed(before + 2.9, 0) == 0, "as it said"
    assert one.allowed(after + 3.1, 0) == 5, "one fewer than were open"
    assert one.allowed(after + 33.1, 0) == 6
    assert one.allowed(after + 33.2, 0) == 6
    before = time.monotonic()
    for _ in range(6):
        one.failed(SourceError("a", 0, "broke off"), 0, "key")
    assert one.allowed(before + 6.3, 0) == 0, "it rests"
    assert one.allowed(time.monotonic() + 10.1, 0) == 6
    one.failed(SourceError("a", 0, "no parts", retryable=False), 0, "key")
    assert one.allowed(before + 1000, 0) == 0
    assert not one.may_come_again


def test_a_content_that_changes(folder: str, origin: Origin) -> None:
    """Whatever came before, no reader has all bytes of a mixture."""
    url = origin.serve("/blob", seed=1, size=SIZE, rate=RATE)
    origin.change("/blob", first=3, count=None, seed=2)
    store = make_store(folder, {"connections": 4})
    try:
        with store.open("a name", url) as blob:
            assert blob.read() == DATA
            blob.wait()
    except ContentChanged:
        assert store.fetch("a name", url)
        assert Path(store.fetch("a name", url)).read_bytes() == content(2, SIZE)


def test_two_sources_at_once(folder: str, origin: Origin) -> None:
    one = origin.serve("/one", seed=1, size=SIZE, rate=RATE)
    origin.change("/one", first=0, count=None, stall_after=MIB // 2)  # never a whole piece
    two = origin.serve("/two", seed=1, size=SIZE, rate=RATE)
    store = make_store(folder, {"connections": 2})
    with store.open(KEY, [one, two]) as blob:
        assert blob.read() == DATA
        blob.wait()
    origin.release()
    assert sum(end - start for start, end in ranges(origin, "/two")) > MIB


def test_two_sources_of_a_name_are_asked_in_turn(folder: str, origin: Origin) -> None:
    one = origin.serve("/one", seed=1, size=SIZE, rate=4 * RATE)
    two = origin.serve("/two", seed=1, size=SIZE, rate=4 * RATE)
    make_store(folder, {"connections": 2}).fetch("a name", [one, two])
    assert origin.requests("/two") == []


@pytest.mark.parametrize(
    "lie", [{"seed": 2}, {"seed": 2, "size": SIZE + 1}, {"size": 100}, {"status": 404}], ids=str
)
def test_a_second_source_that_lies_is_left(
    lie: dict[str, Any], folder: str, origin: Origin
) -> None:
    good = origin.serve("/good", seed=1, size=SIZE, rate=RATE)
    bad = origin.serve("/bad", **{"seed": 1, "size": SIZE, "rate": RATE, **lie})
    store = make_store(folder, {"connections": 3})
    with store.open(KEY, [good, bad]) as blob:
        assert blob.read() == DATA
        blob.wait()
    assert len(origin.requests("/bad")) <= 2


def test_a_second_source_that_lies_in_one_place(folder: str, origin: Origin) -> None:
    good = origin.serve("/good", seed=1, size=SIZE, rate=RATE)
    bad = origin.serve("/bad", seed=1, size=SIZE, rate=RATE, wrong_at=SIZE - 2 * MIB)
    store = make_store(folder, {"connections": 2})
    for _ in range(2):
        try:
            with store.open(KEY, [good, bad]) as blob:
                assert blob.read() == DATA
                blob.wait()
            break
        except DigestMismatch:
            before = len(origin.requests("/bad"))
    else:
        pytest.fail("the next flight does without the helper")
    if before := locals().get("before", 0):
        assert len(origin.requests("/bad")) == before


def test_a_second_source_that_dies(folder: str, origin: Origin) -> None:
    good = origin.serve("/good", seed=1, size=SIZE, rate=RATE)
    dying = origin.serve("/dying", seed=1, size=SIZE, rate=RATE)
    origin.change("/dying", first=2, count=None, reset_after=100_000)
    store = make_store(folder, {"connections": 2})
    with store.open(KEY, [good, dying]) as blob:
        assert blob.read() == DATA
        blob.wait()


def test_a_first_source_that_falls_silent_is_left(folder: str, origin: Origin) -> None:
    """The connection that the leader began with gives nothing more; nobody waits for it."""
    url = serve_silently(origin, "/blob")
    store = make_store(folder, {"connections": 4})
    with store.open("a name", url) as blob:
        assert blob.read() == DATA
        blob.wait()
    origin.release()


def test_a_piece_that_falls_silent_is_left(folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, rate=RATE)
    origin.change("/blob", first=3, count=1, stall_after=BLOCK + 1000)
    store = make_store(folder, {"connections": 4})
    with store.open(KEY, url) as blob:
        assert blob.read() == DATA
        blob.wait()
    origin.release()


def noted(folder: str) -> tuple[int, set[int]]:
    """How many bytes are in the partial file, and which blocks after them are here."""
    [path] = ahead_files(folder)
    partial = Path(str(path).removesuffix(AHEAD) + ".shmstream-partial")
    journal = Journal(str(path).removesuffix(AHEAD) + ".shmstream-journal", "sha256")
    fd = os.open(partial, os.O_RDONLY)
    try:
        with AheadFile(str(path), file_identity(fd), journal.metadata, KEY) as file:
            return os.fstat(fd).st_size, file.adopt(os.fstat(fd).st_size)
    finally:
        os.close(fd)


def take_eagerly(link: Any, folder: str, options: dict[str, Any]) -> None:
    """A taker for which other connections are always worthwhile."""
    lanes._SOON = lanes._WORTHWHILE = 0.0
    supply._MOST = MIB
    flights.take_patiently(link, folder, options)


def test_the_only_leader_is_killed(start: Start, folder: str, origin: Origin) -> None:
    """What was noted is not asked for again, by a process that begins when nobody is left."""
    url = origin.serve("/blob", seed=1, size=SIZE, rate=RATE // 4)
    # The front waits for a connection that gives nothing, until the others have brought much.
    origin.change("/blob", first=0, count=1, stall_after=BLOCK)
    taker = start(take_eagerly, folder, {"connections": 4})
    taker.hear()
    taker.say([KEY, url, 0])
    taker.hear()
    wait_until(lambda: bool(ahead_files(folder)) and len(noted(folder)[1]) > 4)
    taker.kill()
    wait_until(lambda: not Store(folder).flights() or Store(folder).flights()[0].leader is None)
    wait_until(lambda: all(each.over for each in origin.requests("/blob")))
    appended, here = noted(folder)
    before = len(origin.requests("/blob"))
    origin.release()
    origin.serve("/blob", seed=1, size=SIZE, rate=4 * RATE)
    path = make_store(folder, {"connections": 4}).fetch(KEY, url)
    assert sha256(Path(path).read_bytes()) == KEY.partition(":")[2]
    assert len(here) > 4
    for begin, end in ranges(origin, "/blob", before):
        assert begin >= appended
        again = {each for each in here if begin < (each + 1) * BLOCK and each * BLOCK < end}
        assert again <= {appended // BLOCK}, "with which it asks whether the content is the same"
    assert ahead_files(folder) == []


@pytest.mark.parametrize("key", [KEY, "a name"])
@pytest.mark.parametrize("hashes", [True, False])
def test_a_leader_is_killed_and_a_follower_goes_on(
    hashes: bool, key: str, start: Start, folder: str, origin: Origin
) -> None:
    url = serve_silently(origin, "/blob", RATE // 16)
    options = {"connections": 4, "hash_named": hashes}
    takers = [start(take_eagerly, folder, options) for _ in range(2)]
    for each in takers:
        each.hear()
    leader, follower = takers
    leader.say([key, url, 0])
    assert leader.hear()["role"] == "leads"
    follower.say([key, url, 0])
    assert follower.hear()["role"] == "follows"
    wait_until(lambda: len(origin.requests("/blob")) > 3)
    leader.kill()
    origin.change("/blob", first=len(origin.requests("/blob")), count=None, rate=4 * RATE)
    outcome = follower.hear()
    assert (outcome["error"], outcome["sha256"]) == (None, KEY.partition(":")[2])
    assert outcome["role"] == "leads"
    wait_until(lambda: ahead_files(folder) == [])


def test_a_flight_is_cancelled(folder: str, origin: Origin) -> None:
    url = serve_silently(origin, "/blob", RATE // 16)
    store = make_store(folder, {"connections": 4})
    with store.open(KEY, url):
        wait_until(lambda: len(origin.requests("/blob")) > 3)
        assert store.cancel(KEY)
        wait_until(lambda: not store.flights())
    origin.release()
    wait_until(lambda: ahead_files(folder) == [])
    wait_until(lambda: not [each for each in threading.enumerate() if "lane" in each.name])


def test_what_is_of_no_use_any_more_is_removed(folder: str, origin: Origin) -> None:
    """Also by a flight that needs nothing ahead of its turn, and by who cancels no live flight."""
    url = origin.serve("/small", seed=1, size=MIB)
    key = digest(1, MIB)
    store = make_store(folder, {})
    blob = Path(folder, "blobs/sha256", key.partition(":")[2])
    ring = Path(f"{blob}{AHEAD}")
    ring.write_bytes(b"of an earlier leader")
    Path(f"{blob}.shmstream-partial").write_bytes(b"kept")
    assert store.cancel(key)
    assert not ring.exists()
    ring.write_bytes(b"of an earlier leader")
    store.fetch(key, url)
    assert not ring.exists()


def test_a_wrong_size_and_a_wrong_digest(folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=2, size=SIZE, rate=4 * RATE)
    store = make_store(folder, {"connections": 4})
    with pytest.raises(DigestMismatch):
        store.fetch(KEY, url)
    with pytest.raises(SizeMismatch):
        store.fetch("a name", url, size=SIZE - 1)
    wait_until(lambda: ahead_files(folder) == [])


# The ring.


@pytest.fixture
def partial(tmp_path: Path) -> Any:
    fd = os.open(tmp_path / "partial", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def make_ring(tmp_path: Path, partial: int, known: Description) -> AheadFile:
    return AheadFile(str(tmp_path / "ring"), file_identity(partial), known, "sha256")


def test_the_ring_keeps_what_was_noted(tmp_path: Path, partial: int) -> None:
    known = Description(20 * BLOCK + 5, '"1"')
    with make_ring(tmp_path, partial, known) as ring:
        assert ring.adopt(0) == set()
        ring.make(8)
        assert ring.locate(7 * BLOCK + 1)[1] == BLOCK - 1, "it goes on in the first slot"
        for block in (3, 9, 20):
            position, run = ring.locate(block * BLOCK)
            fd = ring.reopen()
            os.pwrite(fd, b"x" * min(run, BLOCK), position)
            os.close(fd)
            ring.complete(block)
        ring.forget([9])
    with make_ring(tmp_path, partial, known) as ring:
        assert ring.adopt(2 * BLOCK + 1) == {3}
    with make_ring(tmp_path, partial, known) as ring:
        assert ring.adopt(14 * BLOCK) == {20}, "those before are over"
        buffer = memoryview(bytearray(BLOCK))
        assert ring.read(20 * BLOCK, buffer[:5]) == 5
        assert bytes(buffer[:5]) == b"xxxxx"
    other = [
        Description(20 * BLOCK + 5, '"2"'),
        Description(20 * BLOCK, '"1"'),
    ]
    for each in other:
        with make_ring(tmp_path, partial, each) as ring:
            assert ring.adopt(0) == set()
            assert not ring.is_open
    with (tmp_path / "ring").open("r+b") as file:
        file.truncate(100)
    with make_ring(tmp_path, partial, known) as ring:
        assert ring.adopt(0) == set()
        ring.remove()
        ring.remove()


def test_a_ring_of_an_earlier_boot_counts_for_nothing(
    tmp_path: Path, partial: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Description(20 * BLOCK)
    with make_ring(tmp_path, partial, known) as ring:
        ring.make(8)
        ring.complete(3)
    monkeypatch.setattr("shmstream.storage.ahead.boot_id", lambda: "another")
    with make_ring(tmp_path, partial, known) as ring:
        assert ring.adopt(0) == set()


def test_gc_removes_a_ring_without_its_partial_file(folder: str) -> None:
    store = Store(folder)
    path = Path(folder, "blobs/sha256", "0" * 64 + AHEAD)
    path.write_bytes(b"")
    assert store.check() == [], "a leader may be making its partial file"
    os.utime(path, (0, 0))
    assert [each.kind for each in store.check()] == ["abandoned"]
    assert store.gc() == [str(path)]
