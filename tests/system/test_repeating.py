"""A function that is called again and again: when, and when not any more."""

from __future__ import annotations

import threading
import time

import pytest

from shmstream.system import threads
from shmstream.system.repeating import Repeating
from tests.support.interpreters import PATIENCE, wait_until

NAME = "repeats"


class Counted:
    """Counts its calls; each pauses as `pauses` say, and then never."""

    def __init__(self, *pauses: float) -> None:
        self.count = 0
        self._pauses = [*pauses]

    def __call__(self) -> float | None:
        self.count += 1
        return self._pauses.pop(0) if self._pauses else None


def is_idle(repeating: Repeating) -> bool:
    """Whether no thread looks whether the function is to be called, and none is about to."""
    thread = repeating._thread
    return thread is None or not thread.is_alive()


def test_it_is_called_while_it_says_so_and_at_each_wake() -> None:
    counted = Counted(0.001, 0.001)
    repeating = Repeating(counted, NAME)
    assert counted.count == 0
    repeating.wake()
    wait_until(lambda: is_idle(repeating))
    assert counted.count == 3
    repeating.wake()
    wait_until(lambda: counted.count == 4)
    repeating.close(PATIENCE)


def test_a_wake_during_a_call_is_not_lost() -> None:
    begun, gate = threading.Event(), threading.Event()
    count = 0

    def call() -> None:
        nonlocal count
        count += 1
        begun.set()
        gate.wait(PATIENCE)

    repeating = Repeating(call, NAME)
    repeating.wake()
    begun.wait(PATIENCE)
    repeating.wake()
    gate.set()
    wait_until(lambda: count == 2)
    repeating.close(PATIENCE)


def test_one_call_does_for_all_that_wakes_it_during_its_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted()
    delays: list[float] = []
    repeating = Repeating(counted, NAME, delay=0.5)
    changed, wait = repeating._changed, repeating._changed.wait

    def wait_for_the_test(seconds: float) -> bool:
        delays.append(seconds)
        return wait(PATIENCE)

    monkeypatch.setattr(changed, "wait", wait_for_the_test)
    repeating.wake()
    wait_until(lambda: delays == [0.5])
    for _ in range(2):
        repeating.wake()
    with changed:
        assert counted.count == 0
        changed.notify_all()
    wait_until(lambda: is_idle(repeating))
    assert (counted.count, delays) == (1, [0.5])
    repeating.close(PATIENCE)


def test_a_delay_ends_with_it_and_nothing_is_called() -> None:
    counted = Counted()
    repeating = Repeating(counted, NAME, delay=1000.0)
    repeating.wake()
    repeating.close(PATIENCE)
    assert is_idle(repeating)
    assert counted.count == 0


def test_a_pause_ends_with_it() -> None:
    counted = Counted(1000.0)
    repeating = Repeating(counted, NAME)
    repeating.wake()
    wait_until(lambda: counted.count == 1)
    repeating.wake()
    began = time.monotonic()
    for _ in range(2):
        repeating.close(1000.0)
    assert time.monotonic() - began < 1000
    repeating.wake()
    assert is_idle(repeating)
    assert counted.count == 1, "not even once more"


@pytest.mark.parametrize("fails", [RuntimeError("can't start new thread"), None])
def test_after_a_failure_the_next_wake_tries_again(
    fails: RuntimeError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread can be started, or the function itself raises."""
    calls: list[bool] = []
    monkeypatch.setattr(threading, "excepthook", lambda _error: None)

    def call() -> None:
        calls.append(True)
        if fails is None and len(calls) == 1:
            raise ZeroDivisionError

    def cannot(_self: threads.Call) -> None:
        assert fails is not None
        raise fails

    repeating = Repeating(call, NAME)
    with monkeypatch.context() as patch:
        if fails is not None:
            patch.setattr(threads.Call, "start", cannot)
        repeating.wake()
        wait_until(lambda: is_idle(repeating))
    wanted = len(calls) + 1

    def is_called_again() -> bool:
        repeating.wake()
        return len(calls) >= wanted

    wait_until(is_called_again)
    repeating.close(PATIENCE)
