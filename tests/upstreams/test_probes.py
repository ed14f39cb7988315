"""Upstreams that have failed are asked again, and none of them keeps the others waiting."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shmstream.errors import SourceError
from shmstream.upstreams import health, probes
from shmstream.upstreams.health import Reach
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.probes import Probes
from tests.support.interpreters import PATIENCE, wait_until


class Asked:
    """An upstream that has failed. Its probe lasts until `over` is set; then it answers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.reach: Reach = Reach(name, None, Notes(str(folder), "reach"))
        self.reach.failed(SourceError(name, 0, "away"), 0.0)
        self.over = threading.Event()
        self.begun = threading.Semaphore(0)
        self.count = 0

    def probe(self) -> None:
        self.count += 1
        self.begun.release()
        assert self.over.wait(PATIENCE)
        self.reach.answered()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PROBE_EVERY", 0.0)


def test_one_that_hangs_keeps_no_other_one_waiting(tmp_path: Path) -> None:
    hanging, other = Asked(tmp_path, "hanging"), Asked(tmp_path, "other")
    looked = Probes()
    looked.begin([hanging])
    assert hanging.begun.acquire(timeout=PATIENCE)
    other.over.set()
    looked.begin([hanging, other])
    wait_until(lambda: other.reach.problem is None)
    assert hanging.count == 1, "it is asked once at one time"
    hanging.over.set()
    wait_until(lambda: hanging.reach.problem is None)


def test_the_one_that_was_asked_longest_ago_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one place: the first upstream of the list does not get it each time."""
    monkeypatch.setattr(probes, "_AT_ONCE", 1)
    first, second = Asked(tmp_path, "first"), Asked(tmp_path, "second")
    looked = Probes()
    looked.begin([first, second])
    assert first.begun.acquire(timeout=PATIENCE)
    looked.begin([first, second])
    assert second.count == 0
    first.over.set()
    wait_until(lambda: first.reach.problem is None)
    first.reach.failed(SourceError("first", 0, "away again"), 0.0)

    def is_second_asked() -> bool:
        looked.begin([first, second])
        return second.begun.acquire(blocking=False)

    wait_until(is_second_asked)
    assert first.count == 1
    second.over.set()
    wait_until(lambda: second.reach.problem is None)


def test_without_a_thread_a_later_look_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, looked = Asked(tmp_path, "it"), Probes()
    upstream.over.set()

    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("shmstream.system.threads.Call.start", no_thread)
        for _ in range(9):
            looked.begin([upstream])

    def is_well() -> bool:
        looked.begin([upstream])
        return upstream.reach.problem is None

    wait_until(is_well)
    assert upstream.count == 1
