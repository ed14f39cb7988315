"""The parts of several connections one by one: which blocks, which source, and what goes wrong."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import fsspec.core
import pytest

from shmstream.errors import SourceError, StreamClosed
from shmstream.filesystem.target import TargetSource
from shmstream.flight.lanes import Lanes, _Lane
from shmstream.flight.pieces import Piece, Pieces
from shmstream.flight.shares import Share
from shmstream.flight.supply import Supply
from shmstream.sources.base import Description, Feed, connections_of, open_at
from shmstream.sources.fsspec import FsspecSource
from shmstream.sources.http import HTTPSource
from shmstream.storage.ahead import BLOCK, AheadFile
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.system.locks import file_identity

SLOTS = 8
SIZE = 40 * BLOCK
KNOWN = Description(SIZE, '"1"')


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[AheadFile]:
    fd = os.open(tmp_path / "partial", os.O_RDWR | os.O_CREAT)
    with AheadFile(str(tmp_path / "ring"), file_identity(fd), KNOWN, "sha256") as file:
        file.make(SLOTS)
        yield file
    os.close(fd)


def adopted(ring: AheadFile, tmp_path: Path, front: int) -> set[int]:
    """What a successor would take."""
    fd = os.open(tmp_path / "partial", os.O_RDWR)
    with AheadFile(ring.path, file_identity(fd), KNOWN, "sha256") as file:
        found = file.adopt(front)
    os.close(fd)
    return found


def make_supply() -> Supply:
    return Supply(HTTPSource("http://a/b"), 4, 1e6, is_first=True)


def test_two_pieces_never_share_a_slot(ring: AheadFile) -> None:
    """The leader's own feed may give more than it was asked for, and overtake a piece."""
    pieces = Pieces(ring, SIZE, 0, set())
    slow = pieces.claim(make_supply(), 2 * BLOCK)
    assert slow is not None
    pieces.came(slow, BLOCK)
    pieces.advance(6 * BLOCK)
    while (piece := pieces.claim(make_supply(), 2 * BLOCK)) is not None:
        assert not {each % SLOTS for each in piece.blocks} & {1, 2, 3}, "slots it still writes to"
    assert pieces.overtaken() == [slow]
    pieces.came(slow, BLOCK)
    pieces.release(slow)
    assert pieces.overtaken() == []
    piece = pieces.claim(make_supply(), 2 * BLOCK)
    assert piece is not None
    assert piece.blocks.start == SLOTS + 1
    assert not pieces.here


def test_a_block_that_is_here_in_part_is_not_for_a_successor(
    ring: AheadFile, tmp_path: Path
) -> None:
    pieces = Pieces(ring, SIZE, BLOCK + 5, set())
    piece = pieces.claim(make_supply(), 4 * BLOCK)
    assert piece is not None
    assert piece.start == BLOCK + 5
    pieces.came(piece, 2 * BLOCK - 5)
    assert pieces.here == {1, 2}, "for this leader, which has the bytes before"
    assert adopted(ring, tmp_path, BLOCK) == {2}


LARGE = 64 << 20


class Parts:
    """A source of a user, which gives parts, and does not say over how many connections."""

    name = "parts"
    open_part: Any = print


def test_how_many_connections_a_blob_comes_over() -> None:
    """What a source says counts first, then the call or the store, then the size of the blob."""
    source, parts = HTTPSource("http://a/b"), cast("Any", Parts())
    for size, usual in ((LARGE, None), (LARGE - 1, 1)):
        of = [connections_of(source, each, size) for each in (None, 1, 5)]
        assert of == [usual, 1, 5]
        assert connections_of(HTTPSource("http://a/b", connections=3), 5, size) == 3
        assert [connections_of(parts, each, size) for each in (None, 5)] == [1, 5]


@pytest.mark.parametrize(
    ("protocol", "expected"), [("http", None), ("s3", None), ("memory", 1), ("file", 1)]
)
def test_a_file_of_a_target_file_system(protocol: str, expected: int | None) -> None:
    given = {"asynchronous": True} if expected is None else {}  # begins no thread
    system = fsspec.filesystem(protocol, skip_instance_cache=True, **given)
    source = TargetSource(lambda: system, "a/b", "a name", None)
    assert connections_of(source, None, LARGE) == expected
    assert connections_of(source, 5, LARGE) == (5 if expected is None else 1)


def test_flights_share_the_connections_to_a_server() -> None:
    def share(url: str) -> Share:
        return Share(HTTPSource(url))

    flights = [share("https://a:1/0")]
    other = share("https://a:2/0")
    for expected in (8, 4, 2, 2, 1, 1):
        assert {each.connections for each in flights} == {expected}
        flights.append(share(f"https://a:1/{expected}"))
    assert other.connections == 8
    first = flights[0]
    shared = Supply(HTTPSource("https://a:1/0"), 8, 1e6, is_first=True, share=first)
    asked = Supply(HTTPSource("https://a:1/0"), 8, 1e6, is_first=True)
    shared.is_proved = asked.is_proved = True
    now = time.monotonic()
    assert [each.allowed(now, 1) for each in (shared, asked)] == [0, 7], "it was asked for"
    for each in [*flights[1:], *flights[1:], other]:
        each.leave()
    assert (first.connections, shared.allowed(now, 1)) == (8, 7)
    first.leave()


class Broken:
    """A source that cannot even say over how many connections it gives a blob."""

    name = "broken"
    open_part: Any = print

    @property
    def connections(self) -> int:
        raise ImportError("an extra is missing")


def test_a_source_is_not_connected_to_before_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken: Any = Broken()
    assert connections_of(broken, 4, LARGE) == 1

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it may connect")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    monkeypatch.setattr("fsspec.spec._Cached.__call__", fail)
    of = {
        "http://a/b": 4,
        "zip://b::http://a/c.zip": 1,
        "simplecache::http://a/b": 1,
        "memory://a": 1,
        "/a/b": 1,
        "no-such-scheme://a": 1,
    }
    for url, expected in of.items():
        assert connections_of(FsspecSource(url), 4, LARGE) == expected


class Fed:
    """The streamer and the download of a leader, as far as `Lanes` uses them."""

    size, expected, appended, guards = SIZE, "sha256", 0, True

    def __init__(self) -> None:
        self.known = KNOWN
        self.crowds: Callable[[SourceError], bool] | None = None
        self.source = HTTPSource("http://a/b")

    def received(self, count: int) -> None:
        pass

    def check_going_on(self) -> None:
        pass

    def while_held(self, note: Callable[[], object]) -> None:
        note()


@pytest.fixture
def fed() -> Fed:
    return Fed()


@pytest.fixture
def lanes(ring: AheadFile, fed: Any) -> Lanes:
    """Connections that have begun, without a thread."""
    found = Lanes("key", fed, fed, lambda: ring, 4)
    found._file, found._pieces = ring, Pieces(ring, SIZE, 0, set())
    found.prepare([fed.source])
    found._began = found._is_watched = True
    found._most = 4 * BLOCK
    return found


def supply_of(lanes: Lanes) -> Supply:
    [supply] = lanes._supplies
    supply.is_proved = True
    return supply


def claim(lanes: Lanes) -> Piece:
    piece = lanes.claim(supply_of(lanes))
    assert piece is not None
    return piece


def test_a_source_that_never_gives_a_byte_fails(lanes: Lanes, fed: Fed) -> None:
    supply = supply_of(lanes)
    late = SourceError("http://a/b", 0, "closed")
    for appended, error in ((0, "it gave nothing"), (5, "")):
        lanes.own_begins(Feed(iter(())))
        fed.appended = appended
        lanes._own_is_left = True
        supply._rests_until = math.inf
        failure = lanes.own_failed(late)
        assert (not error) if failure is None else (error in str(failure))
    lanes.own_begins(Feed(iter(())))
    lanes._own_is_left = True
    supply._rests_until, supply._failures = 0.0, 0
    assert lanes.own_failed(late) is None, "another connection may give some"


def test_readers_do_not_wait_for_a_silent_source_if_another_one_gives(lanes: Lanes) -> None:
    """Two seconds are short for the only source, and long if another one can bring the bytes."""
    supply_of(lanes).rate = 1e6
    piece, soon = claim(lanes), 2.0
    assert not lanes._is_late(piece, piece.began + soon)
    other = second_supply(lanes)
    other.is_proved = False
    assert not lanes._is_late(piece, piece.began + soon), "it has not shown that it has the bytes"
    other.is_proved = True
    assert lanes._is_late(piece, piece.began + soon)
    other.failed(SourceError("http://c/d", 0, "broke off"), 0, "key")
    assert not lanes._is_late(piece, time.monotonic()), "it rests"
    other._rests_until = 0.0
    piece.supply.delay = 1.0
    assert not lanes._is_late(piece, piece.began + soon), "the source always takes as long"


def second_supply(lanes: Lanes) -> Supply:
    """Another source, which gives."""
    other = Supply(HTTPSource("http://c/d"), 4, 1e6, is_first=False)
    other.is_proved, other.delay = True, 0.02
    lanes._supplies.append(other)
    return other


def test_what_was_late_waits_a_moment_for_a_free_connection(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader does not ask the first source itself, as long as another source may bring it."""
    piece = claim(lanes)
    second_supply(lanes)
    piece.began = piece.moved = piece.began - 10.0
    lanes._alone = piece.began
    assert lanes._wait_for_front()
    assert piece.is_dropped
    monkeypatch.setattr("shmstream.flight.lanes._LATE", 1000.0)  # the moment
    assert lanes._wait_for_front(), "no thread of the other source had the time to claim it"
    lanes._alone -= 2000.0
    assert not lanes._wait_for_front(), "none does"


def test_connections_that_are_silent_from_the_first_byte_on_are_left_together(
    lanes: Lanes, ring: AheadFile
) -> None:
    """The server answers two; readers wait once for the others, not once for each of them."""
    ring.close()
    ring.make(4 * SLOTS)
    lanes._pieces = Pieces(ring, SIZE, 0, set())
    supply, pieces = supply_of(lanes), [claim(lanes) for _ in range(4)]
    supply.delay = 0.02
    for each in pieces[:2]:
        lanes._came(each, BLOCK)
    for each in pieces:
        each.began = each.moved = each.began - 5.0
    pieces[0].moved = time.monotonic()
    lanes._pieces.advance(pieces[2].start)
    assert lanes._wait_for_front()
    assert [each.is_dropped for each in pieces] == [False, False, True, True]
    assert (supply.most, supply.active) == (2, 2)
    for each in pieces[2:]:  # their threads have waited for the heads of answers until now
        lanes.ended(each, None)
    assert supply.active == 2
    assert supply.allowed(time.monotonic() + 29.0, 0) == 2
    assert supply.allowed(time.monotonic() + 31.0, 0) == 3


def test_a_source_that_never_answers_a_second_connection_is_asked_three_times(
    lanes: Lanes, fed: Fed
) -> None:
    """The leader's own feed goes on past the pieces that another one does not bring."""
    supply = supply_of(lanes)
    supply.is_proved = False
    lanes.own_begins(Feed(iter(())))
    assert lanes._pieces is not None
    for asked in range(3):
        assert supply.may_come_again
        lanes._pieces.own_end = (asked + 1) * 4 * BLOCK
        supply._rests_until = 0.0
        piece = lanes.claim(supply)
        assert piece is not None
        piece.began -= 1.0
        fed.appended = piece.start
        assert lanes.room() > 0
        assert piece.is_dropped
    assert not supply.may_come_again
    assert not lanes._may_any(time.monotonic() + 1000)


def test_a_source_has_time_to_give_its_first_part(lanes: Lanes, ring: AheadFile) -> None:
    """From a fast source that is far away, the leader's own feed brings a piece much sooner."""
    supply = supply_of(lanes)
    ring.close()
    ring.make(4 * SLOTS)
    for rate, is_proved, end in ((64, False, 2 * SLOTS), (4, False, 8), (64, True, 4)):
        lanes._pieces = Pieces(ring, SIZE, 0, set())
        supply.rate, supply.is_proved = float(rate * BLOCK), is_proved
        lanes.own_begins(Feed(iter(())))
        lanes._share(0)
        assert lanes._pieces.own_end == end * BLOCK


def test_the_leader_has_no_connection_beside_as_many_as_its_source_bears(lanes: Lanes) -> None:
    """It asks itself while the source bears no other: the piece that is furthest ahead goes."""
    supply = supply_of(lanes)
    pieces = [claim(lanes) for _ in range(2)]
    assert lanes._pieces is not None
    lanes._pieces.release(pieces[0])  # no connection brings what is missing first
    supply.most = 2
    supply._rests_until = math.inf
    assert lanes.take_over(lambda _: None) is not None
    assert pieces[1].is_dropped
    assert (supply.active, lanes._own) == (1, 1)


def test_a_source_that_bears_one_connection_is_asked_by_the_leader(lanes: Lanes) -> None:
    supply = supply_of(lanes)
    assert lanes._can_bring()
    supply.most = 1
    assert not lanes._can_bring(), "the leader asks once for all bytes that are left"


@pytest.mark.parametrize(
    ("status", "retry_after", "is_ours"),
    [(429, None, True), (429, 60.0, True), (503, 60.0, True), (503, None, False), (500, 1, False)],
)
def test_the_leader_is_refused(
    status: int, retry_after: float | None, is_ours: bool, lanes: Lanes
) -> None:
    """Because of the further connections, if it had some: then there are none any more."""
    error = SourceError("http://a/b", BLOCK, "no", retry_after=retry_after, status=status)
    piece = claim(lanes)
    lanes._began = False
    assert not lanes.crowds(error)
    lanes._began = True
    assert [lanes.crowds(error), lanes.crowds(error)] == [is_ours] * 2
    assert (lanes._is_off, piece.is_dropped) == (is_ours, is_ours)


def test_a_source_that_refuses_again_is_asked_later() -> None:
    supply = make_supply()
    supply.active = 4
    refused = SourceError("a", 0, "too many", status=429)
    for pause in (1.0, 2.0, 4.0):
        for _ in range(3):  # what was asked at one time is refused at one time
            supply.failed(refused, 0, "key")
        assert supply.is_resting(time.monotonic() + pause - 0.5)
        assert not supply.is_resting(time.monotonic() + pause + 0.1)
        supply._rests_until = 0.0
    supply.answered(time.monotonic() - 60.0)
    assert supply._refusals == 3, "it was asked for that before"
    supply.answered(time.monotonic() + 0.1)
    assert supply._refusals == 0
    refused.retry_after = 200.0
    supply.failed(refused, 0, "key")
    assert supply.is_resting(time.monotonic() + 199.0)


def test_a_source_that_was_late_leaves_pieces_to_one_that_is_free(lanes: Lanes) -> None:
    supply = supply_of(lanes)
    other, now = second_supply(lanes), time.monotonic()
    assert not lanes._leaves_to_others(supply, now)
    supply.was_late(0.0)
    assert lanes._leaves_to_others(supply, now)
    assert not lanes._leaves_to_others(other, now)
    other.active = other.most
    assert not lanes._leaves_to_others(supply, now), "the other one has no free connection"
    other.active = 0
    other.was_late(0.0)
    assert not lanes._leaves_to_others(supply, now), "the other one is no better"


def test_a_source_may_fail_any_number_of_times() -> None:
    supply = make_supply()
    for _ in range(1100):
        supply.failed(SourceError("a", 0, "broke off"), 0, "key")
        supply.was_late(1.0)
    assert supply.is_resting(time.monotonic() + 9.0)
    assert not supply.is_resting(time.monotonic() + 10.1)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_feed_that_cannot_be_closed_keeps_nobody_from_the_end(
    error: type[BaseException], lanes: Lanes
) -> None:
    class Source:
        name = "a source"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
            return Feed(iter(()), offset, close=self._fail)

        def _fail(self) -> None:
            raise error("generator already executing")

    pieces = [claim(lanes), claim(lanes)]
    for each in pieces:
        each.feed = open_at(Source(), 0, None)
    stopping = threading.Thread(target=lanes.stop)  # in the main thread it may be a signal's
    stopping.start()
    stopping.join()
    lanes.stop()
    assert all(each.is_dropped for each in pieces)
    assert lanes.reopen() is None


@pytest.mark.parametrize("error", [LookupError, SystemExit, GeneratorExit])
def test_a_source_with_a_mistake_in_its_code_is_out(
    error: type[BaseException], lanes: Lanes, fed: Any
) -> None:
    def fail(*_: object) -> None:
        raise error("a mistake")

    fed.open_part = fail
    supply = supply_of(lanes)
    running = threading.Thread(target=_Lane(lanes, supply).run)
    running.start()
    running.join()
    assert supply.is_out
    assert (supply.active, supply.gave) == (0, 0)
    assert lanes._is_off, "no other source is left"


def test_a_disk_that_fails_ends_all_further_connections(
    lanes: Lanes, ring: AheadFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(ring, "forget", fail)
    _Lane(lanes, supply_of(lanes)).run()
    assert lanes._is_off


@pytest.mark.parametrize("how", ["cut", "EIO"])
@pytest.mark.parametrize("count", [BLOCK, 2 * BLOCK + 5])
def test_a_ring_that_cannot_be_read(
    how: str, count: int, lanes: Lanes, fed: Fed, ring: AheadFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    piece = claim(lanes)
    later = claim(lanes)
    lanes._came(piece, count)
    lanes._came(later, BLOCK)
    if how == "cut":
        os.truncate(ring.path, 0)
    else:
        monkeypatch.setattr(ring, "read", fail)
    assert lanes.take_over(lambda _: None) is not None
    assert lanes._pieces is not None
    assert 0 not in lanes._pieces.here
    assert piece.is_dropped
    assert lanes.take_over(lambda _: None) == (BLOCK if count > BLOCK * 2 else 4 * BLOCK)
    fed.appended = 4 * BLOCK
    lanes.take_over(lambda _: None)
    assert lanes._pieces.here <= {1}


@pytest.mark.parametrize(("most", "slots"), [(None, 40), (SIZE + 9 * BLOCK, 9), (SIZE, 0)])
def test_the_ring_takes_no_more_than_the_store_keeps(
    most: int | None, slots: int, ring: AheadFile, fed: Any
) -> None:
    ring.close()  # it is made anew
    made = Lanes("key", fed, fed, lambda: ring, 4, most)
    if not slots:
        with pytest.raises(OSError, match="no space"):
            made._new_file(0)
    else:
        assert made._new_file(0).slots == slots


def test_the_ring_of_the_next_leader_stays(
    lanes: Lanes, ring: AheadFile, fed: Any, tmp_path: Path
) -> None:
    """A flight is handed over while its lanes begin: a ring at that path is not theirs any more."""
    streamer = ResumableStreamer.create(tmp_path / "blob", name="lanes")
    streamer.set_size(SIZE)
    ring.close()
    beginning = Lanes("key", fed, streamer, lambda: ring, 4)
    beginning._supplies = lanes._supplies
    streamer.close()
    next_ring = Path(ring.path)
    next_ring.write_bytes(b"of the next leader")
    with pytest.raises(StreamClosed):
        beginning._begin(0)
    beginning._file, beginning._pieces = ring, lanes._pieces
    beginning.forget()
    assert next_ring.read_bytes() == b"of the next leader"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_ring_that_cannot_be_opened_now_stays(
    number: int, ring: AheadFile, fed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    ring.close()
    monkeypatch.setattr("shmstream.storage.ahead.open_file", fail)
    lanes = Lanes("key", fed, fed, lambda: ring, 4)
    assert lanes.adopt(0) is None
    lanes.prepare([fed.source])
    assert lanes._supplies == [], "no connection makes it anew"


def test_no_ring_is_made_after_the_end(ring: AheadFile, fed: Any) -> None:
    """The thread that looks is slow: the blob is complete by then, and the ring was removed."""
    ring.close()
    ring.remove()
    lanes = Lanes("key", fed, fed, lambda: ring, 4)
    lanes.stop()
    with pytest.raises(StreamClosed):
        lanes._new_file(0)
    assert not os.path.lexists(ring.path)
