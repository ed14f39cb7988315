"""The two ways to run something in a thread, `Call` and a bounded pool; what threads wait for.

    Call            one call in a thread that is used again
    in_thread       one call in a pool, which a task of asyncio awaits
    side_by_side    several calls in a pool of their own, which the caller waits for
    Flag            what one thread sets, and other threads wait for

Starting a thread takes longer than many of the calls. `threading.Thread.start` waits until the new
thread has had the interpreter's lock, which takes a while in a busy process. So a thread that has
finished its call waits for the next one. It gets the call within 20 us, and the caller waits for
nothing:

    start     give the call to an idle thread, or start a thread
    thread    run the call; wake the threads that join it; be idle for 5 s, or end if 16 threads
              are idle already

The threads of `Call` are daemons: the interpreter does not wait for them when it ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from shmstream.errors import OutOfResources
from shmstream.system import greenlets, process
from shmstream.system.process import PerProcess

if TYPE_CHECKING:
    import asyncio

S = TypeVar("S")
T = TypeVar("T")

IDLE = "shmstream-idle"
"""The name of every thread that waits for a call."""

_ENOUGH = 16  # idle threads
_A_WHILE = 5.0  # s; an idle thread ends after that time
_LOOK = 1.0  # s; the longest that a thread waits without looking at its flag
_ROOM = 12 << 20  # bytes of address space: the stack of a thread, and what its first steps need
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Flag:
    """As `threading.Event`, but an error that a signal handler raises in it leaves no lock taken.

    An Event is guarded by a lock that methods written in Python take. If a signal handler raises
    between the end of such a method and the `with` statement that called it, the lock stays taken,
    and every thread that uses the Event waits for ever. A Flag has no such lock: each waiting
    thread has one of its own, which `set` releases.

        wait                                      set
        1 add its own lock, taken, to the list
                                                  1 store True
        2 look: if it is True, return
                                                  2 release each lock of the list
        3 take the lock again: wait for that

    If 1 of `set` comes before 2 of `wait`, the thread does not wait. If it comes after, the lock
    is in the list when `set` looks there. If a signal handler raises between 1 and 2 of `set`, a
    waiting thread notices the flag at its next look, a second later at most.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake the threads that wait. Does not block. Idempotent."""
        self._is_set = True
        for each in [*self._waiting]:
            with suppress(RuntimeError):  # another call of `set` was faster
                each.release()

    def clear(self) -> None:
        """Set it back."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most `timeout` seconds; whether it is set."""
        if self._is_set:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        mine = threading.Lock()
        mine.acquire()
        self._waiting.append(mine)
        try:
            while not self._is_set:
                pause = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
                if pause <= 0:
                    break
                mine.acquire(timeout=pause)
        finally:
            self._waiting.remove(mine)
        return self._is_set


class Call:
    """One call of `function` in a thread, which is named `name` during the call."""

    def __init__(self, function: Callable[[], object], name: str) -> None:
        """If `function` raises, its thread ends, and `threading.excepthook` reports the error."""
        self._function = function
        self._name = name
        self._done = Flag()
        self._unclaimed = [None]  # until a thread runs it, or `start` takes it back
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def start(self) -> None:
        """Start the call, once. Does not wait if there is an idle thread, see `is_ready`.

        If it raises, also what a signal handler raises, the call has begun or never will.

        Raises:
            RuntimeError: no thread can be started.
        """
        try:
            try:
                thread = _idle.pop()
            except IndexError:
                _Thread(self).start()
            else:
                thread.calls.put(self)
        except BaseException:
            if self._claim():
                self._done.set()
            raise

    def _claim(self) -> bool:
        """Whether the caller is the first to ask: no two threads are."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Run the function; the thread calls this."""
        if not self._claim():
            return
        self._thread = threading.current_thread()
        self._thread.name = self._name
        try:
            self._function()
        finally:
            del self._function  # frees the objects that it holds
            self._thread.name = IDLE
            self._done.set()

    def is_alive(self) -> bool:
        """Whether the call has not returned yet. False in a forked child: it lacks the thread."""
        return not self._done.is_set() and self._process == os.getpid()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the call has returned, at most `timeout` seconds.

        Does not wait if the call's own thread calls this.
        """
        if self._thread is not threading.current_thread() and self.is_alive():
            self._done.wait(timeout)


def _require_room() -> None:
    """See that a new thread would find memory.

    `threading.Thread.start` waits for the first step of the thread. If the thread has a stack, and
    finds no memory for that step, it ends without a word, and `start` waits for ever.

    Raises:
        RuntimeError: there is too little, as `threading` says it.
    """
    try:
        mmap.mmap(-1, _ROOM, flags=_PRIVATE).close()
    except OSError as error:
        raise RuntimeError("can't start new thread") from error


class _Thread(threading.Thread):
    """Runs one call after another."""

    def __init__(self, first: Call) -> None:
        super().__init__(name=IDLE, daemon=True)
        self.calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.calls.put(first)

    def start(self) -> None:
        """As any thread; see `_require_room`."""
        _require_room()
        super().start()

    def run(self) -> None:
        call: Call | None = self.calls.get()
        while call is not None:
            call.run()
            del call  # frees the objects that it holds
            if len(_idle) >= _ENOUGH or greenlets.pausing() is not None:
                return  # a greenlet is started faster than it is found
            _idle.append(self)
            call = self._wait()

    def _wait(self) -> Call | None:
        """The next call; None if there was none for `_A_WHILE`."""
        try:
            return self.calls.get(timeout=_A_WHILE)
        except queue.Empty:
            pass
        try:
            _idle.remove(self)
        except ValueError:  # `start` has just taken this thread, and is about to give it a call
            return self.calls.get()
        return None


def is_ready() -> bool:
    """Whether there is an idle thread, so that `start` does not wait."""
    return bool(_idle)


# Without a lock, as `start` may be called in a signal handler. The last idle thread is used first.
_idle: list[_Thread] = []

process.after_fork(_idle.clear)  # a forked child has no such threads


_ASKERS = ("shmstream-ask", 8)  # threads that ask a source, which may take long to answer


def in_thread(call: Callable[[], T], kind: tuple[str, int] = _ASKERS) -> asyncio.Future[T]:
    """Run `call` in a pool of threads; the future has what it returns or raises.

    `kind` is the name of the pool, and the greatest number of its threads. If no thread can be
    started, the call waits for those that the pool has.

    Raises:
        OutOfResources: no thread can be started, and the pool has none, or there is no memory.
    """
    import asyncio  # only those need it who have it already

    name, threads = kind
    with _executors.lock:
        executors = _executors.value
        if (executor := executors.get(name)) is None:
            executor = executors[name] = ThreadPoolExecutor(threads, name)
    if len(executor._threads) < threads:  # it may start one
        try:
            _require_room()
        except RuntimeError as error:
            raise no_thread(name, error) from error
    done: Future[T] = Future()
    try:
        executor.submit(_run, call, done)
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        if not executor._threads:  # else one of them runs it: it is in their queue
            done.cancel()
            raise no_thread(name, error) from error
    return asyncio.wrap_future(done)


def side_by_side(function: Callable[[S], T], items: Iterable[S], kind: tuple[str, int]) -> list[T]:
    """What `function` returns for each item; for several items, in as many threads as `kind` says.

    Raises:
        Exception: what `function` raises for the first item that fails.
    """
    items, (name, threads) = list(items), kind
    if len(items) < 2:
        return [function(each) for each in items]
    with ThreadPoolExecutor(min(len(items), threads), name) as pool:
        return list(pool.map(function, items))


def _run(call: Callable[[], T], done: Future[T]) -> None:
    """As the pool itself would; the pool keeps its own future if it fails to start a thread."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001  the task that awaits it gets it
        done.set_exception(error)
    else:
        done.set_result(result)


def no_thread(name: str, error: RuntimeError) -> OutOfResources:
    """The error for what `threading` raises if no thread can be started for `name`."""
    what = "threads: raise `ulimit -u`, or the limit of processes of the container"
    return OutOfResources(name, what, errno.EAGAIN, str(error))


_executors: PerProcess[dict[str, ThreadPoolExecutor]] = PerProcess(dict)
