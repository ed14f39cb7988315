"""Whether an upstream is well: what begins and what ends a problem that operators are told of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shmstream.errors import SourceError
from shmstream.upstreams import health
from shmstream.upstreams.health import Reach
from shmstream.upstreams.notes import Notes


@pytest.fixture
def workers(tmp_path: Path) -> list[Reach]:
    """What two workers know of one upstream."""
    return [Reach("http://a", "a.io", Notes(str(tmp_path), "reach")) for _ in range(2)]


def failure(status: int | None = None, retry_after: float | None = None) -> SourceError:
    return SourceError("it", 0, f"it said {status}", status=status, retry_after=retry_after)


def wants(reach: Reach) -> bool:
    """Whether a probe would begin."""
    if is_wanted := reach.begin_probe():
        reach.end_probe()
    return is_wanted


@pytest.mark.parametrize("status", [None, 500, 503])
def test_what_any_worker_hears_ends_a_problem(workers: list[Reach], status: int | None) -> None:
    one, other = workers
    one.failed(failure(status), 0.0, "a/b/manifests/c")
    assert "a.io, http://a: it said" in (other.problem or "")
    assert other.failed_path == "a/b/manifests/c"
    other.answered()
    assert one.problem is other.problem is None


def test_one_probe_at_a_time(workers: list[Reach]) -> None:
    one, other = workers
    assert not one.begin_probe(), "it is well"
    one.failed(failure(), 0.0)
    assert one.begin_probe()
    assert not one.begin_probe()
    assert wants(other), "that is another process"
    one.end_probe()
    assert not one.begin_probe(), "it was asked a moment ago"


def test_what_fails_for_long_is_asked_more_rarely(
    workers: list[Reach], monkeypatch: pytest.MonkeyPatch
) -> None:
    reach, now = workers[0], time.time()
    monkeypatch.setattr(time, "time", lambda: now - 100)
    reach.failed(failure(), 0.0)
    monkeypatch.setattr(time, "time", lambda: now)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert wants(reach)
    clock[0] += 9
    assert not wants(reach)
    clock[0] += 1
    assert wants(reach)


@pytest.mark.parametrize("retry_after", [None, 20.0, 3600.0])
def test_an_upstream_that_wants_to_be_left_alone(
    workers: list[Reach], monkeypatch: pytest.MonkeyPatch, retry_after: float | None
) -> None:
    """It is told as long as it wants that, and is asked again then."""
    reach, now = workers[0], time.time()
    rest = retry_after or 60.0
    monkeypatch.setattr(time, "time", lambda: now)
    reach.failed(failure(429, retry_after), 0.0)
    monkeypatch.setattr(time, "time", lambda: now + rest - 1)
    assert not wants(reach)
    assert f"for {rest - 1:.0f} s" in (reach.problem or "")
    monkeypatch.setattr(time, "time", lambda: now + rest)
    assert wants(reach)


def test_a_probe_that_fails(workers: list[Reach], monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the problem told for longer, if that is the whole upstream's; it begins none."""
    reach, now = workers[0], time.time()
    reach.failed(failure(503), 0.0, is_probe=True)
    assert reach.problem is None, "it has ended while the probe was under way"
    reach.failed(failure(503), 0.0)
    for after, lasts in ((200, True), (400, False), (600, False)):
        monkeypatch.setattr(time, "time", lambda after=after: now + after)
        known = reach.problem
        reach.failed(failure(503), 0.0, is_probe=True, lasts=lasts)
        assert known is None if after == 600 else known is not None, after
    assert reach.problem is None


def test_a_note_that_is_not_understood(tmp_path: Path) -> None:
    """Such as one of another version: nothing is known then."""
    notes = Notes(str(tmp_path), "reach")
    reach = Reach("http://a", "a.io", notes)
    for text in ("", "[]", "{}", '{"reason": "x", "since": 1.0, "status": 503}'):
        notes.write(("a.io", "http://a"), text)
        assert reach.problem is None
        assert not wants(reach)


def test_a_long_path_is_not_noted(workers: list[Reach]) -> None:
    reach = workers[0]
    reach.failed(failure(), 0.0, "a" * (health._LONGEST_PATH + 1))
    assert reach.problem is not None
    assert reach.failed_path is None
