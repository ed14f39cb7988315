"""One semaphore: it is rung, waited for, drained, and replaced."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time

import pytest

from shmstream.stream import doorbell
from shmstream.stream.doorbell import Doorbell, Ringer

NAME = doorbell.name_of(0xABCDEF, 3, 7)


def test_names_are_portable() -> None:
    assert len(doorbell.name_of((1 << 48) - 1, (1 << 16) - 1, doorbell.GENERATIONS - 1)) <= 30


class WithoutClockwait:
    """The C library as musl has it."""

    sem_timedwait = doorbell._libc.sem_timedwait


@pytest.mark.parametrize("clock", ["monotonic", "wall"])
def test_ring_wait_drain(clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if clock == "wall":
        wait, kind, said = doorbell._waiting(WithoutClockwait())  # type: ignore[arg-type]
        assert kind == time.CLOCK_REALTIME
        monkeypatch.setattr(doorbell, "_clock", kind)
        monkeypatch.setattr(doorbell, "_timedwait", wait)
        monkeypatch.setattr(doorbell, "_said_of_clock", said)
    bell = Doorbell(NAME)
    ringer = Ringer(NAME)
    began = time.monotonic()
    assert not bell.wait(0.05)
    assert time.monotonic() - began >= 0.049
    ringer.ring()
    assert bell.wait(5)
    for _ in range(1000):
        ringer.ring()
    assert bell.drain() == 1000
    assert not bell.wait(0)
    waiter = threading.Thread(target=bell.wait, args=(30,))
    waiter.start()
    ringer.ring()
    waiter.join()
    assert "shmd-" in repr(bell)
    ringer.close()
    bell.close(unlink_name=True)
    with pytest.raises(FileNotFoundError):
        Ringer(NAME)


def test_a_doorbell_left_by_the_dead_is_replaced() -> None:
    dead = Doorbell(NAME)
    heir = Doorbell(NAME)
    ringer = Ringer(NAME)
    ringer.ring()
    assert heir.drain() == 1
    assert dead.drain() == 0
    for each in (dead, heir):
        each.close(unlink_name=True)
    ringer.close()


def test_errors_of_the_c_library_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    bell = Doorbell(NAME)

    def failing(*_: object) -> int:
        ctypes.set_errno(22)
        return -1

    monkeypatch.setattr(doorbell, "_timedwait", failing)
    with pytest.raises(OSError, match="Invalid argument"):
        bell.wait(1)
    bell.close(unlink_name=True)


FORKS = """
import os, signal, threading
from shmstream.stream import doorbell

ending = threading.Event()

def make_and_close() -> None:
    name = doorbell.name_of(7, threading.get_native_id() & 0xffff, 1)
    while not ending.is_set():
        doorbell.Doorbell(name).close(unlink_name=True)

threads = [threading.Thread(target=make_and_close) for _ in range(3)]
for each in threads:
    each.start()
for turn in range(300):
    if (child := os.fork()) == 0:
        signal.alarm(10)  # a child that hangs is ended by that
        doorbell.Doorbell(doorbell.name_of(8, 0, turn)).close(unlink_name=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, f"the child of turn {turn} hung"
ending.set()
for each in threads:
    each.join()
"""


def test_a_child_forked_while_doorbells_are_made_can_make_its_own() -> None:
    """The C library holds a lock of its own meanwhile, which a child would inherit as taken."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
