"""The end of another process is told at once, to each watcher that has not left."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

import psutil
import pytest

from shmstream.system import exit_watcher, greenlets
from shmstream.system.exit_watcher import watch
from shmstream.system.process import Identity
from tests.support.interpreters import PATIENCE, Interpreter, Link
from tests.system.test_process import is_true_in_a_child


def wait_for_its_end(link: Link) -> None:
    link.say("here")
    link.hear()


def identity_of(process: subprocess.Popen[str] | Interpreter) -> Identity:
    started = round(psutil.Process(process.pid).create_time() * 1e6)
    return Identity(process.pid, started, Identity.mine().namespace)


Start = Callable[..., Interpreter]


@pytest.fixture
def other(start: Start) -> Interpreter:
    process = start(wait_for_its_end, fresh=True)
    process.hear()
    return process


def test_a_killed_process(other: Interpreter) -> None:
    told = threading.Event()
    found = watch(identity_of(other), told.set)
    assert found is not None
    assert not found.has_ended
    other.kill()
    assert told.wait(PATIENCE)
    assert found.has_ended


def test_a_process_that_is_no_more(other: Interpreter) -> None:
    identity = identity_of(other)
    other.kill()
    told: list[int] = []
    found = watch(identity, lambda: told.append(threading.get_ident()))
    assert found is not None
    assert found.has_ended
    assert told == [threading.get_ident()]


def test_a_process_that_no_parent_has_waited_for(other: Interpreter) -> None:
    identity = identity_of(other)
    os.kill(other.pid, 9)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie
    told = threading.Event()
    assert watch(identity, told.set) is not None
    assert told.wait(PATIENCE)


def test_only_those_are_told_that_still_want_to_know(other: Interpreter) -> None:
    told: list[str] = []
    done = threading.Event()
    identity = identity_of(other)
    left = watch(identity, lambda: told.append("left"))
    both = [watch(identity, lambda: told.append("stays")), watch(identity, done.set)]
    assert left is not None
    left.close()
    left.close()
    other.kill()
    assert done.wait(PATIENCE)
    for each in both:
        assert each is not None
        each.close()  # holds the lock that the call holds
    assert told == ["stays"]


def test_nothing_is_kept_for_a_process_that_is_watched_no_more(other: Interpreter) -> None:
    """The fixture of all tests compares descriptors and threads."""
    for _ in range(100):
        found = watch(identity_of(other), lambda: None)
        assert found is not None
        found.close()
    assert exit_watcher._watcher._poll is None


def test_processes_that_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Identity.mine()
    assert watch(me, pytest.fail) is None
    assert watch(Identity(1, 1, me.namespace + 1), pytest.fail) is None
    for number in (0, 1 << 31, 1 << 32, (1 << 64) - 1):  # another program has stored it
        found = watch(Identity(number, 1, me.namespace), pytest.fail)
        assert found is None, number
    parent = Identity(os.getppid(), 1, me.namespace)
    with monkeypatch.context() as patched:
        patched.delattr(os, "pidfd_open")
        assert watch(parent, pytest.fail) is None
    with monkeypatch.context() as patched:
        patched.setattr(greenlets, "pausing", lambda: int)  # as gevent makes it
        assert watch(parent, pytest.fail) is None


def test_without_a_free_descriptor() -> None:
    parent = Identity(os.getppid(), 1, Identity.mine().namespace)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    for spare in range(3):  # a pidfd, an eventfd, an epoll
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, limits[1]))
        try:
            found = watch(parent, pytest.fail)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if found is not None:  # there were gaps between the descriptors
            found.close()


def descriptors() -> set[str]:
    """The descriptors of this process, each with what it leads to."""
    links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    return {f"{each} {os.readlink(each)}" for each in links if os.path.lexists(each)}


def test_a_forked_child_watches_for_itself(other: Interpreter) -> None:
    told = threading.Event()
    identity = identity_of(other)
    before = descriptors()
    found = watch(identity, told.set)
    assert found is not None
    assert len(descriptors() - before) == 3

    def in_the_child() -> bool:
        inherited = {each for each in descriptors() - before if "pidfd" in each or "event" in each}
        found.close()  # the parent's, which stays
        heard = threading.Event()
        own = watch(identity, heard.set)
        other.signal(9)
        return not inherited and own is not None and heard.wait(PATIENCE)

    assert is_true_in_a_child(in_the_child)
    assert told.wait(PATIENCE)


def sleeper() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=-1, text=True)


def test_many_processes_and_threads() -> None:
    """Threads watch and leave at random while the processes are killed: no end is missed."""
    seed = random.randrange(2**32)
    print("seed", seed)
    processes = [sleeper() for _ in range(12)]
    identities = [identity_of(each) for each in processes]
    left = threading.Event()
    errors: list[BaseException] = []
    told = [[threading.Event() for _ in identities] for _ in range(4)]
    barrier = threading.Barrier(5)

    def watch_and_leave(number: int) -> None:
        chance = random.Random(seed + number)
        try:
            stays = [watch(i, e.set) for i, e in zip(identities, told[number], strict=True)]
            barrier.wait(PATIENCE)
            while not left.is_set():
                if (found := watch(chance.choice(identities), int)) is not None:
                    found.close()
            assert None not in stays
        except BaseException as error:  # noqa: BLE001  shown by the test
            errors.append(error)

    threads = [threading.Thread(target=partial(watch_and_leave, n)) for n in range(4)]
    for each in threads:
        each.start()
    barrier.wait(PATIENCE)
    for process in processes:
        process.kill()
        process.wait()
    try:
        assert all(event.wait(PATIENCE) for events in told for event in events)
    finally:
        left.set()
        for each in threads:
            each.join()
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
    assert not errors
