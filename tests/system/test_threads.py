"""Threads that are used again: calls, names, idle threads, forked children."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import shmstream
from shmstream.errors import OutOfResources
from shmstream.system import threads
from tests.support.interpreters import live_threads, wait_until
from tests.support.lines import interrupted_at


def test_a_thread_is_used_again() -> None:
    used = []
    for name in ("first", "second"):
        call = threads.Call(lambda: used.append(threading.current_thread()), name)
        call.start()
        call.join()
        wait_until(lambda: used[-1] in threads._idle)  # there may be others
        assert name not in live_threads()
    assert used[0] is used[1]


def test_a_call_has_its_name_and_does_not_wait_for_itself() -> None:
    names = []

    def run() -> None:
        names.append(threading.current_thread().name)
        call.join()

    call = threads.Call(run, "a name")
    call.start()
    call.join(60)
    assert names == ["a name"]


def test_many_at_once_have_a_thread_each_and_few_stay() -> None:
    at_once = 2 * threads._ENOUGH
    gate = threading.Barrier(at_once)
    calls = [threads.Call(lambda: gate.wait(60), "busy") for _ in range(at_once)]
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
    used[0].join(60)
    assert not threads.is_ready()
    assert not used[0].is_alive()


def test_a_thread_that_was_promised_a_call_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`start` took it from the idle threads just before it would have ended."""
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
    waiting.join(60)
    assert got == [second]


def test_what_fails_ends_its_thread_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    call = threads.Call(lambda: 1 / 0, "bad")
    call.start()
    call.join(60)
    wait_until(lambda: told == [ZeroDivisionError])
    after = threads.Call(lambda: told.append(None), "good")
    after.start()
    after.join(60)
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


def test_threads_are_started_in_one_room_only() -> None:
    """So a thread is used again, is a daemon, and is forgotten in a forked child.

    Two rooms have no use for that: the demo's child, and the origin that the demo and tests serve.
    """
    house = Path(shmstream.__file__).parent
    starts = re.compile(r"\b(Thread|Timer|ThreadPoolExecutor|to_thread|run_in_executor)\(")
    starting = {
        str(room.relative_to(house))
        for room in house.rglob("*.py")
        if starts.search(room.read_text())
    }
    assert starting == {"system/threads.py", "demo/child.py", "sources/origin.py"}


def test_where_no_thread_can_be_started_a_pool_does_with_those_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a pool without any says so, and never runs the call later."""
    ran = []
    gate = threading.Event()

    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run(kind: tuple[str, int]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_more)
            with pytest.raises(OutOfResources, match="out of threads"):
                threads.in_thread(lambda: ran.append("never"), kind)
        first = threads.in_thread(lambda: gate.wait(60), kind)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_more)
            second = threads.in_thread(lambda: ran.append("later"), kind)
            third = threads.in_thread(lambda: 1 // 0, kind)
        gate.set()
        assert await first
        await second
        with pytest.raises(ZeroDivisionError):
            await third

    asyncio.run(run(("a pool", 4)))
    assert ran == ["later"]
    with threads._executors.lock:
        executors = threads._executors.value
        executors.pop("a pool").shutdown()


@pytest.mark.parametrize("nth", range(1, 30))
def test_a_flag_is_usable_after_an_interruption_anywhere(nth: int) -> None:
    """An Event is not: a thread that is interrupted in `set` may leave its lock taken."""
    flag = threads.Flag()
    waiting = threads.Call(flag.wait, "waits")
    waiting.start()
    with suppress(KeyboardInterrupt), interrupted_at(nth):
        flag.set()
    with suppress(KeyboardInterrupt), interrupted_at(nth):
        flag.wait()
    flag.set()
    assert flag.is_set()
    assert flag.wait()
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_flag_waits_for_its_time() -> None:
    flag = threads.Flag()
    assert not flag.wait(0)
    assert not flag.wait(0.01)
    flag.set()
    assert flag.wait(0)
    flag.clear()
    assert not flag.wait(0)


@pytest.mark.parametrize("nth", range(1, 40))
@pytest.mark.parametrize("is_ready", [False, True])
def test_a_call_that_was_interrupted_at_its_start_runs_or_never_will(
    nth: int, is_ready: bool
) -> None:
    ran: list[int] = []
    if is_ready:
        first = threads.Call(lambda: None, "first")
        first.start()
        first.join()
    call = threads.Call(lambda: ran.append(1), "second")
    try:
        with interrupted_at(nth):
            call.start()
    except (KeyboardInterrupt, RuntimeError):  # the second: what `threading` makes of the first
        call.join(60)
        assert not call.is_alive()
        assert len(ran) <= 1
    else:
        call.join(60)
        assert ran == [1]


LITTLE = """
import resource, threading, time
from pathlib import Path
from shmstream.errors import OutOfResources
from shmstream.system import threads

hard = resource.getrlimit(resource.RLIMIT_AS)[1]
ended = {"call": [], "pool": []}
for more in range(0, 1 << 20, 1 << 13):
    for how in ended:
        threads._idle.clear()
        while threading.active_count() > 1:
            time.sleep(0.001)
        ran = threading.Event()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20) + more, hard))
        try:
            if how == "call":
                threads.Call(ran.set, "a call").start()
            else:
                threads.in_thread(ran.set, ("a pool", 1))
        except (RuntimeError, OutOfResources):
            ended[how].append("refused")
        else:
            assert ran.wait(60)
            ended[how].append("ran")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(*sorted({*ended["call"], *ended["pool"]}))
"""


def test_a_thread_that_would_find_no_memory_is_not_started() -> None:
    """`threading` itself waits for ever for a thread whose first step finds no memory."""
    done = subprocess.run(
        [sys.executable, "-c", LITTLE], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")
