"""The small rooms by themselves: doorbells, the pacer, locks, identities, threads."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from shmstream import BlobStreamer, InFlightCopier
from shmstream.stream import doorbell
from shmstream.stream.doorbell import Doorbell, Ringer
from shmstream.stream.pacer import Pacer
from shmstream.stream.subscribers import Subscribers
from shmstream.system import threads
from shmstream.system.locks import WHOLE_FILE, KernelLock
from shmstream.system.process import Identity
from tests.support.interpreters import live_threads, wait_until

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


def test_locks_on_ranges(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    one = KernelLock(str(path))
    two = KernelLock.reopen(one.fd)
    assert one.try_acquire((0, 10))
    assert one.try_acquire((0, 10)), "again is fine"
    assert not two.try_acquire((5, 10))
    assert two.try_acquire((10, 10))
    assert two.is_held_elsewhere((9, 1))
    assert not two.is_held_elsewhere((10, 100)), "only by itself"
    assert not two.try_acquire(WHOLE_FILE)
    one.release((0, 10))
    assert two.try_acquire(WHOLE_FILE)
    assert one.is_held_elsewhere((1 << 40, 1))
    assert two.is_at(str(path))
    path.rename(tmp_path / "moved")
    assert not two.is_at(str(path))
    path.touch()
    assert not two.is_at(str(path)), "another file of that name"
    two.close()
    two.close()
    assert not one.is_held_elsewhere(WHOLE_FILE)
    one.close()


def test_identities() -> None:
    me = Identity.mine()
    assert me.pid == os.getpid()
    assert "python" in str(me)
    assert "since ended" in str(Identity(me.pid, me.started + 10**9, me.namespace))
    assert "since ended" in str(Identity(2**22 - 1, 1, me.namespace))
    assert "another pid namespace" in str(Identity(1, 1, 1))


class Published:
    """Counts how often it was told to publish."""

    def __init__(self, publish_bytes: int, interval: float) -> None:
        self.lock = threading.RLock()
        self.pacer = Pacer(self.lock, self.publish, publish_bytes, interval)
        self.told = threading.Semaphore(0)
        self.threads: list[str] = []

    def publish(self) -> None:
        self.pacer.published()
        self.threads.append(threading.current_thread().name)
        self.told.release()

    def end(self) -> None:
        with self.lock:
            self.pacer.close()
        self.pacer.join()


def test_pacing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("shmstream.stream.pacer.time", SimpleNamespace(monotonic=lambda: now))
    owner = Published(1000, 60)
    with owner.lock:
        assert owner.pacer.is_due(1), "the first bytes go out at once"
        owner.pacer.published()
        assert not owner.pacer.is_due(999)
        assert not owner.pacer.is_due(1000), "enough have gathered, but too soon"
        now += 0.004
        assert not owner.pacer.is_due(999)
        assert owner.pacer.is_due(1000), "enough have gathered"
        owner.pacer.published()
        now += 60
        assert owner.pacer.is_due(1), "a pause"
    owner.end()


def test_what_is_left_over_goes_out_by_itself() -> None:
    owner = Published(1000, 0.03)
    for _ in range(4):  # also after the thread has parked
        with owner.lock:
            owner.pacer.published()
            assert not owner.pacer.is_due(1)
        assert owner.told.acquire(timeout=10)
    assert owner.threads == ["shmstream-pacer"] * 4
    owner.end()


def test_enough_that_came_too_soon_does_not_wait_for_the_interval() -> None:
    owner = Published(1000, 3600)
    with owner.lock:
        owner.pacer.published()
        while owner.pacer.is_due(1000):
            owner.pacer.published()
    assert owner.told.acquire(timeout=10)
    owner.end()


def test_who_promised_to_come_back_does_not_wait_for_more() -> None:
    """Even if the time to publish passes just before it asks how long it may wait."""
    owner = Published(1 << 20, 0.01)
    with owner.lock:
        owner.pacer.published()
        assert not owner.pacer.is_time(1)
        wait_until(lambda: time.monotonic() > owner.pacer._due)
        assert owner.pacer.due_in() > 0, "0 would be: until more has come"
        assert owner.pacer.is_time(1)
        owner.pacer.published()
        wait_until(lambda: time.monotonic() > owner.pacer._due)
        assert owner.pacer.due_in() == 0, "nothing is left over"
    assert live_threads() == ["MainThread"]


def test_no_pacing_without_interval() -> None:
    owner = Published(1 << 20, 0)
    with owner.lock:
        for _ in range(100):
            assert owner.pacer.is_due(1)
            owner.pacer.published()
    assert live_threads() == ["MainThread"]
    owner.end()


def test_a_forgotten_owner_is_collected_and_its_thread_ends() -> None:
    owner = Published(1000, 0.02)
    pacer = owner.pacer
    with owner.lock:
        owner.pacer.published()
        assert not owner.pacer.is_due(1)
    del owner
    assert pacer._thread is not None
    pacer._thread.join(10)
    assert not pacer._thread.is_alive()


def test_publishing_goes_on_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threads, "_idle", [])  # else one of those would do
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with BlobStreamer.create(blob) as streamer:
        for count in range(1, 5):
            streamer.append(b"x")
            assert streamer.published == count
        streamer.commit()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the pacer looks at the clock, four milliseconds have passed."""
    clock = count(step=0.004)
    monkeypatch.setattr(
        "shmstream.stream.pacer.time", SimpleNamespace(monotonic=lambda: next(clock))
    )


@pytest.mark.usefixtures("unhurried")
def test_pacing_saves_rings(blob: str) -> None:
    with BlobStreamer.create(blob, publish_bytes=100_000, publish_interval=60) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            for _ in range(250):
                streamer.append(bytes(1000))
            # the first at once, then at every 100,000
            assert streamer.published == 201_000
            streamer.commit()
            assert len(reader.read()) == 250_000


@pytest.mark.usefixtures("unhurried")
def test_a_long_buffer_is_published_in_steps(monkeypatch: pytest.MonkeyPatch, blob: str) -> None:
    seen: list[int] = []
    ring = Subscribers.ring
    with BlobStreamer.create(blob, publish_interval=60) as streamer:

        def note_and_ring(self: Subscribers) -> None:
            seen.append(streamer.published)
            ring(self)

        monkeypatch.setattr(Subscribers, "ring", note_and_ring)
        streamer.append(bytes(5 << 19))
        assert seen == [1 << 20, 2 << 20], "and half a MiB is not due"
        streamer.commit()
        assert streamer.statistics().appended == seen[-1] == 5 << 19
    assert streamer.statistics().subscribers == ()


# Threads.


def test_a_thread_is_used_again() -> None:
    used = []
    for name in ("first", "second"):
        call = threads.Call(lambda: used.append(threading.current_thread()), name)
        call.start()
        call.join()
        wait_until(threads.is_ready)
        assert name not in live_threads()
    assert used[0] is used[1]


def test_a_call_has_its_name_and_does_not_wait_for_itself() -> None:
    names = []

    def run() -> None:
        names.append(threading.current_thread().name)
        call.join()

    call = threads.Call(run, "a name")
    call.start()
    call.join(20)
    assert names == ["a name"]


def test_many_at_once_have_a_thread_each_and_few_stay() -> None:
    at_once = 2 * threads._ENOUGH
    gate = threading.Barrier(at_once)
    calls = [threads.Call(lambda: gate.wait(20), "busy") for _ in range(at_once)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    idle = [thread for thread in threading.enumerate() if thread.name == threads.IDLE]
    wait_until(lambda: sum(thread.is_alive() for thread in idle) <= len(threads._idle))
    assert (
        threads._ENOUGH <= len(threads._idle) <= threads._ENOUGH + 2
    )  # two may have been as quick


def test_who_is_idle_for_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_idle", [])
    monkeypatch.setattr(threads, "_A_WHILE", 0.01)
    used = []
    call = threads.Call(lambda: used.append(threading.current_thread()), "short")
    call.start()
    call.join()
    used[0].join(20)
    assert not threads.is_ready()
    assert not used[0].is_alive()


def test_a_thread_that_was_promised_a_call_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has been taken from those that are idle just before it would have ended."""
    monkeypatch.setattr(threads, "_A_WHILE", 0.0)
    second = threads.Call(lambda: None, "second")
    thread = threads._Thread(second)
    thread.calls.get()
    got: list[threads.Call | None] = []
    waiting = threading.Thread(target=lambda: got.append(thread._wait()))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    thread.calls.put(second)
    waiting.join(20)
    assert got == [second]


def test_what_fails_ends_its_thread_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    call = threads.Call(lambda: 1 / 0, "bad")
    call.start()
    call.join(20)
    wait_until(lambda: told == [ZeroDivisionError])
    after = threads.Call(lambda: told.append(None), "good")
    after.start()
    after.join(20)
    assert told[1:] == [None]


def test_a_forked_child_has_threads_of_its_own() -> None:
    call = threads.Call(lambda: None, "parent's")
    call.start()
    wait_until(threads.is_ready)
    going_on = threading.Event()
    busy = threads.Call(going_on.wait, "parent's, too")
    busy.start()
    child = os.fork()
    if child == 0:
        busy.join()  # it has no such thread
        done = threads.Call(lambda: os._exit(7), "child's")
        done.start()
        time.sleep(20)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert busy.is_alive()
    going_on.set()
    busy.join()
    assert not busy.is_alive()
