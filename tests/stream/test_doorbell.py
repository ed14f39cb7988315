"""One semaphore: it is rung, waited for, and replaced."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import posix_ipc
import pytest

from shmstream import BlobStreamer, InFlightCopier, sweep
from shmstream.stream import doorbell
from shmstream.stream.doorbell import Doorbell, Ringer

NAME = doorbell.name_of(0xABCDEF, 3, 7)


def test_names_are_portable() -> None:
    assert len(doorbell.name_of((1 << 48) - 1, (1 << 16) - 1, doorbell.GENERATIONS - 1)) <= 30


class WithoutClockwait:
    """The C library as musl has it."""

    sem_timedwait = doorbell._libc.sem_timedwait


@pytest.mark.parametrize("clock", ["monotonic", "wall"])
def test_ring_and_wait(clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert bell.wait(60) == 1
    for _ in range(1000):
        ringer.ring()
    assert bell.wait(0) == 1000, "one wait takes all rings"
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
    assert heir.wait(60) == 1
    assert dead.wait(0) == 0
    for each in (dead, heir):
        each.close(unlink_name=True)
    ringer.close()


_CREATED = 0x100 | 0x80  # IN_CREATE | IN_MOVED_TO
_EVENT = struct.Struct("iIII")


@contextmanager
def noting_names(folder: str) -> Iterator[list[str]]:
    """Every name that comes to be in `folder` inside, however short it lives."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(fd, folder.encode(), _CREATED) >= 0
    found: list[str] = []
    try:
        yield found
        raw = os.read(fd, 1 << 20)
    finally:
        os.close(fd)
    while raw:
        length = _EVENT.unpack_from(raw)[3]
        found.append(raw[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode())
        raw = raw[_EVENT.size + length :]


def test_no_name_is_ever_made_that_a_sweep_does_not_know(blob: str) -> None:
    """A process may be killed while a name is there: then that name stays (I8)."""
    with noting_names("/dev/shm") as made:
        with BlobStreamer.create(blob, name="known") as streamer:
            for _ in range(3):
                InFlightCopier.attach(streamer.name).close()
    bells = [each.removeprefix("sem.") for each in made if each != "shms-known"]
    assert len(bells) == 3, made
    assert all(each.startswith("shmd-") for each in bells), made


@pytest.mark.parametrize("size", [0, 31])
def test_a_doorbell_whose_maker_was_killed(size: int) -> None:
    """Its file is not complete: the writer must not touch it, and `sweep` removes it."""
    path = Path(doorbell.path_of(NAME))
    path.write_bytes(bytes(size))
    with pytest.raises(FileNotFoundError):
        Ringer(NAME)
    assert NAME in sweep()
    assert not path.exists()


def test_another_program_opens_the_same_semaphore() -> None:
    bell = Doorbell(NAME)
    other = posix_ipc.Semaphore(NAME)
    other.release()
    assert bell.wait(60)
    assert (other.value, bell.wait(0)) == (0, 0)
    other.close()
    bell.close(unlink_name=True)


def test_errors_of_the_c_library_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    bell = Doorbell(NAME)

    def failing(*_: object) -> int:
        ctypes.set_errno(22)
        return -1

    monkeypatch.setattr(doorbell, "_timedwait", failing)
    with pytest.raises(OSError, match="Invalid argument"):
        bell.wait(1)
    bell.close(unlink_name=True)


def test_a_doorbell_is_rung_while_it_is_closed() -> None:
    """The thread that rings must not touch memory that the closing thread unmaps."""
    bells: list[Doorbell] = []
    ending = threading.Event()

    def ring() -> None:
        while not ending.is_set():
            for bell in bells:
                bell.ring()

    ringing = threading.Thread(target=ring)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ringing.start()
        for turn in range(300):
            bells[:] = [Doorbell(doorbell.name_of(9, 0, turn))]
            waiting = threading.Thread(target=bells[0].wait, args=(0.0005,))
            waiting.start()
            bells[0].close(unlink_name=True)
            waiting.join()
    finally:
        ending.set()
        sys.setswitchinterval(interval)
    ringing.join()


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
for turn in range(100):
    if (child := os.fork()) == 0:
        signal.alarm(60)  # a child that hangs is ended by that
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


def test_a_bell_that_is_closed_between_two_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a signal handler that waits for the same bell and closes it."""
    bell, trywait = Doorbell(NAME), doorbell._trywait

    def wait_and_be_interrupted(*arguments: object) -> int:
        code: int = trywait(*arguments)
        monkeypatch.setattr(doorbell, "_trywait", trywait)
        assert bell.wait(0) == 1
        bell.close(unlink_name=True)
        return code

    monkeypatch.setattr(doorbell, "_trywait", wait_and_be_interrupted)
    bell.ring()
    bell.ring()
    assert bell.wait(60) == 1
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.Semaphore(NAME)
