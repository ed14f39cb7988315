"""This process: its identity, and what happens when it forks or ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmstream.system import process
from shmstream.system.locks import KernelLock
from shmstream.system.process import Identity, PerProcess
from tests.support.interpreters import PATIENCE


def test_identities() -> None:
    me = Identity.mine()
    assert me.pid == os.getpid()
    assert "python" in str(me)
    assert "since ended" in str(Identity(me.pid, me.started + 10**9, me.namespace))
    assert "since ended" in str(Identity(2**22 - 1, 1, me.namespace))
    assert "another pid namespace" in str(Identity(1, 1, 1))


OWNERS = """
import os
from shmstream.system import process

class Owner:
    def __init__(self, name):
        self.name = name

    def close(self):
        print(self.name, "is closed", flush=True)

    def abandon(self):
        print(self.name, "is abandoned", flush=True)
        raise ArithmeticError(self.name)

process.after_fork(lambda: print("first act", flush=True))
writer, reader, descriptor = Owner("writer"), Owner("reader"), Owner("descriptor")
process.register(writer)
process.register(reader, reads=True)
with process.own_lock():
    process.track(descriptor)
process.after_fork(lambda: print("second act", flush=True))
if os.fork() == 0:
    print("the child has nothing to close", flush=True)
    process.close_all()
    os._exit(0)
os.wait()
print("the parent ends", flush=True)
"""


FORKED_IN_C = """
import ctypes, os

def fork():
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return child

os.fork = fork
"""


@pytest.mark.parametrize("fork", ["", FORKED_IN_C], ids=["os.fork", "in C"])
def test_the_order_of_what_happens_in_a_forked_child_and_at_the_end(fork: str) -> None:
    """Whatever fails on the way; also if a server in C forks, and tells Python only afterwards."""
    command = [sys.executable, "-c", fork + OWNERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "descriptor is closed",
        "reader is abandoned",
        "writer is abandoned",
        "first act",
        "second act",
        "the child has nothing to close",
        "the parent ends",
        "reader is closed",
        "writer is closed",
    ]
    assert "ArithmeticError: writer" in done.stderr


def is_true_in_a_child(check: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_has_values_of_its_own() -> None:
    """Also if a thread of the parent holds the lock at the fork, and uses the value."""
    value: PerProcess[list[str]] = PerProcess(lambda: [f"made by {os.getpid()}"])
    held, may_end = threading.Event(), threading.Event()

    def use() -> None:
        with value.lock:
            ours = value.value
            ours.append("in use")
            held.set()
            may_end.wait(PATIENCE)

    def is_new() -> bool:
        with value.lock:
            its_own = value.value
            return its_own == [f"made by {os.getpid()}"]

    user = threading.Thread(target=use)
    user.start()
    held.wait(PATIENCE)
    try:
        assert is_true_in_a_child(is_new)
    finally:
        may_end.set()
        user.join()
    with value.lock:
        still_ours = value.value
        assert still_ours == [f"made by {os.getpid()}", "in use"]


def test_a_forked_child_does_not_free_the_value_of_its_parent() -> None:
    freed: list[str] = []

    class Connection:
        def __del__(self) -> None:
            freed.append("freed")

    value = PerProcess(Connection)

    def is_kept() -> bool:
        gc.collect()
        with value.lock:
            return freed == []

    assert is_true_in_a_child(is_kept)


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


@contextmanager
def opening() -> Iterator[threading.Event]:
    """Another thread that is opening a descriptor, until the event is set."""
    began, goes_on = threading.Event(), threading.Event()

    def open_one() -> None:
        with process.own_lock():
            began.set()
            goes_on.wait(PATIENCE)

    thread = in_thread(open_one)
    assert began.wait(PATIENCE)
    try:
        yield goes_on
    finally:
        goes_on.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def wait_for_a_fork() -> None:
    """Wait until another thread is about to fork."""
    deadline = time.monotonic() + PATIENCE
    while process.fork_lock.acquire(blocking=False):
        process.fork_lock.release()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_thread_that_opens_a_descriptor_waits_for_no_other_such_thread(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with opening():
        thread = in_thread(lambda: KernelLock(path, os.O_CREAT).close())
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_fork_waits_for_a_thread_that_opens_a_descriptor() -> None:
    order: list[str] = []
    with opening() as goes_on:

        def fork() -> None:
            assert is_true_in_a_child(lambda: order == ["the descriptor is open"])
            order.append("it forked")

        thread = in_thread(fork)
        wait_for_a_fork()
        order.append("the descriptor is open")
        goes_on.set()
        thread.join(PATIENCE)
    assert order == ["the descriptor is open", "it forked"]


def test_a_fork_lets_a_thread_go_on_that_closes_another_object_meanwhile() -> None:
    """The garbage collector may run while a descriptor is opened, and need `fork_lock`."""
    forked = threading.Event()

    def fork() -> None:
        if is_true_in_a_child(lambda: True):
            forked.set()

    with process.own_lock():
        thread = in_thread(fork)
        wait_for_a_fork()  # it has `fork_lock`, and wants the lock of this thread
        with process.fork_lock:
            pass
        assert not forked.is_set()
    assert forked.wait(PATIENCE)
    thread.join(PATIENCE)
    assert is_true_in_a_child(lambda: process.own_lock().acquire(blocking=False))
