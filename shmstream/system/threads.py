"""Threads that are used again: starting one takes longer than much of what they are for.

`threading.Thread.start` waits until the new thread has had the interpreter's lock, which in a busy
process takes a while. A thread that has done what it was for waits for the next call, and is told
of it in 20 us, without anybody waiting for it.

    start    give the call to a thread that is idle, or start one
    thread   do it, tell who joins, be idle for a while; end where enough are

They are daemons: the end of the interpreter waits for none.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

from shmstream.system import process
from shmstream.system.process import PerProcess

T = TypeVar("T")

IDLE = "shmstream-idle"
"""The name of threads that wait for a call."""

_ENOUGH = 16  # idle threads
_A_WHILE = 5.0  # s


class Call:
    """A call in a thread of its own, which has the call's name meanwhile."""

    def __init__(self, function: Callable[[], object], name: str) -> None:
        """What `function` raises ends the thread, as with any."""
        self._function = function
        self._name = name
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def start(self) -> None:
        """Once, and without waiting if a thread `is_ready`.

        Raises:
            RuntimeError: there is no thread to be had.
        """
        try:
            thread = _idle.pop()
        except IndexError:
            _Thread(self).start()
        else:
            thread.calls.put(self)

    def run(self) -> None:
        """In its thread: do it."""
        self._thread = threading.current_thread()
        self._thread.name = self._name
        try:
            self._function()
        finally:
            del self._function  # and what it holds
            self._thread.name = IDLE
            self._done.set()

    def is_alive(self) -> bool:
        """Whether it has still to return. In a forked child, which has not its thread: no."""
        return not self._done.is_set() and self._process == os.getpid()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has returned, at most `timeout` seconds; not at all inside of it."""
        if self._thread is not threading.current_thread() and self.is_alive():
            self._done.wait(timeout)


class _Thread(threading.Thread):
    """Does one call after another."""

    def __init__(self, first: Call) -> None:
        super().__init__(name=IDLE, daemon=True)
        self.calls: SimpleQueue[Call] = SimpleQueue()
        self.calls.put(first)

    def run(self) -> None:
        call: Call | None = self.calls.get()
        while call is not None:
            call.run()
            del call  # and what it holds
            if len(_idle) >= _ENOUGH:
                return
            _idle.append(self)
            call = self._wait()

    def _wait(self) -> Call | None:
        """The next call; None if there has been none for a while."""
        try:
            return self.calls.get(timeout=_A_WHILE)
        except Empty:
            pass
        try:
            _idle.remove(self)
        except ValueError:  # somebody has just taken it from there, and is about to give it one
            return self.calls.get()
        return None


def is_ready() -> bool:
    """Whether there is an idle thread, so that a `start` waits for none."""
    return bool(_idle)


# Of this process: in a forked child, the threads are the parent's.

_idle: list[_Thread] = []  # who was busy last is the first to be used

process.after_fork(_idle.clear)


_ASKERS = ("shmstream-ask", 8)  # threads that ask a source, which may take its time


def in_thread(call: Callable[[], T], kind: tuple[str, int] = _ASKERS) -> asyncio.Future[T]:
    """What `call` returns or raises, in one of a few threads that do such things."""
    name, threads = kind
    with _executors.held() as executors:
        if (executor := executors.get(name)) is None:
            executor = executors[name] = ThreadPoolExecutor(threads, name)
    return asyncio.get_running_loop().run_in_executor(executor, call)


_executors: PerProcess[dict[str, ThreadPoolExecutor]] = PerProcess(dict)
