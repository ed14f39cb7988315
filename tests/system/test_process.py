"""This process: its identity, and what happens when it forks or ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

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
with process.fork_lock:
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
