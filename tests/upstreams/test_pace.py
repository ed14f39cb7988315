"""So many bytes a second from an upstream, for all processes together."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstream.sources.base import Feed
from shmstream.upstreams import pace
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.pace import Pace, Quota
from tests.support.interpreters import PATIENCE


class Clock:
    """The time that stands still, unless the test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "_now", made)
    return made


def of(folder: Path, rate: int = 1000) -> Pace:
    return Pace(Notes(str(folder), "rates"), "docker.io", rate)


def test_all_share_the_rate(tmp_path: Path, clock: Clock) -> None:
    """Two processes have two such objects. A pause of theirs is no credit for later."""
    one, two = of(tmp_path), of(tmp_path)
    assert one.take(1000) == pytest.approx(0.9), "a tenth of a second may be made good"
    assert two.take(1000) == pytest.approx(1.9)
    clock.now += 1.9
    assert one.take(500) == pytest.approx(0.5)
    clock.now += 3600
    assert two.take(1000) == pytest.approx(0.9)
    clock.now -= 2000  # the host was started again: its clock is behind what the file says
    assert one.take(1000) == pytest.approx(0.9)


def test_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five in an hour: all at once, then one every twelve minutes; two processes share it."""
    clock = Clock()
    monkeypatch.setattr(pace, "_today", clock)
    notes = Notes(str(tmp_path), "rates")
    one, two = (Quota(notes, ("docker.io", ""), 5, 3600.0) for _ in range(2))
    assert [one.take(), two.take(), one.take(), two.take(), one.take()] == [0.0] * 5
    assert [one.take(), two.take()] == pytest.approx([720.0, 720.0]), "a refusal costs nothing"
    clock.now += 720
    assert two.take() == 0
    assert one.take() == pytest.approx(720.0)
    assert Quota(notes, ("docker.io", "others"), 5, 3600.0).take() == 0
    clock.now -= 10**6  # the clock is set back: no wait is longer than the time of one
    assert one.take() == pytest.approx(720.0)
    clock.now += 10**8
    assert [one.take() for _ in range(5)] == [0.0] * 5


def test_what_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be taken again. If nothing is left to count, there is no file."""
    clock, folder = Clock(), tmp_path / "registry" / "rates"
    monkeypatch.setattr(pace, "_today", clock)
    notes = Notes(str(tmp_path), "rates")
    one, two = (Quota(notes, ("docker.io", ""), 2, 3600.0) for _ in range(2))
    assert [one.take(), two.take()] == [0.0] * 2
    two.give_back()
    assert len(list(folder.iterdir())) == 1
    assert [one.take(), two.take()] == [0.0, pytest.approx(1800.0)]
    one.give_back()
    clock.now += 1700
    two.give_back()
    assert list(folder.iterdir()) == []
    for _ in range(3):
        two.give_back()
    assert [one.take(), two.take(), one.take()] == [0.0, 0.0, pytest.approx(1800.0)]
    clock.now += 3601
    one.give_back()
    assert list(folder.iterdir()) == [], "what came back by itself is not given twice"


def test_a_file_that_is_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waited for the lock of a removed file counts in the next one."""
    notes, folder, lock = Notes(str(tmp_path), "rates"), tmp_path / "registry" / "rates", pace._lock
    quota, removed = Quota(notes, ("docker.io",), 1, 3600.0), list[int]()

    def remove_first(fd: int) -> None:
        lock(fd)
        if not removed:
            removed.append(fd)
            notes.remove(("docker.io",))

    monkeypatch.setattr(pace, "_lock", remove_first)
    assert quota.take() == 0
    assert len(list(folder.iterdir())) == 1
    assert Quota(notes, ("docker.io",), 1, 3600.0).take() > 0


def test_a_file_that_cannot_be_used(tmp_path: Path, clock: Clock) -> None:
    """A process that is stopped while it has the lock holds up no other one."""
    one = of(tmp_path)
    one.take(1)
    (path,) = (tmp_path / "registry" / "rates").iterdir()
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert [one.take(1000), one.take(1000)] == pytest.approx([0.9, 1.9])
    finally:
        os.close(fd)
    path.write_bytes(b"no time")
    assert one.take(1000) == pytest.approx(0.9)
    path.unlink()
    path.parent.rmdir()
    assert one.take(1000) == pytest.approx(2.9), "as it has counted for itself before"
    assert clock.now == 1000.0


def test_a_feed_is_slowed(tmp_path: Path) -> None:
    """All bytes come, in order; what was waited for is told; and closing ends a wait."""
    data, closed = os.urandom(3000), threading.Event()
    feed = of(tmp_path, 10_000).slow(Feed(iter((data[:2000], data[2000:])), close=closed.set))
    assert b"".join(bytes(each) for each in feed) == data
    assert feed.by_kernel is None
    assert feed.held() > 0
    assert feed.held() == 0

    def endless() -> Iterator[bytes]:
        while not closed.is_set():
            yield b"x" * 1000

    slow = of(tmp_path, 1024).slow(Feed(endless(), close=closed.set))
    came: list[int] = []
    thread = threading.Thread(target=lambda: came.extend(1 for _ in slow))
    thread.start()
    slow.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_more_readers_than_a_minute_has_room_for(tmp_path: Path, clock: Clock) -> None:
    """They wait for a minute, and no longer; no time in the file counts as one before a restart."""
    one, two = of(tmp_path), of(tmp_path)
    waits = [each.take(1000) for _ in range(50) for each in (one, two)]
    assert waits == sorted(waits)
    assert waits[:60] == pytest.approx([0.9 + number for number in range(60)])
    assert waits[60:] == pytest.approx([60.0] * 40)
    clock.now += 30
    assert one.take(1000) == pytest.approx(31.0)
    clock.now -= 500
    assert two.take(1000) == pytest.approx(0.9), "the host was started again"


def test_files_of_rates_are_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are credentials; those that may still count stay."""
    monkeypatch.setattr("shmstream.upstreams.notes._TIDY_AFTER", 10)
    monkeypatch.setattr("shmstream.upstreams.notes._MOST", 5)
    notes, folder = Notes(str(tmp_path), "rates"), tmp_path / "registry" / "rates"
    for number in range(100):
        assert Quota(notes, ("docker.io", str(number)), 5, 3600.0).take() == 0
    assert len(list(folder.iterdir())) < 5 + 10
    monkeypatch.setattr("shmstream.upstreams.notes._MOST", 1000)
    day = 24 * 3600
    for path, age in zip(sorted(folder.iterdir()), (31.5 * day, 33 * day), strict=False):
        os.utime(path, (time.time() - age, time.time() - age))
    before = sorted(folder.iterdir())
    notes.tidy()
    assert sorted(folder.iterdir()) == [before[0], *before[2:]], "a quota may be for 31 days"
