"""This process: its identity, and what happens when it ends or forks.

A forked child inherits every descriptor, and with a descriptor its kernel locks: a dead parent
would seem alive. It also inherits tables of threads and locks, but not the threads. So whatever
belongs to one process is noted here, and this is the only module that tells Python what to do at
a fork:

    register      an object that owns a stream's name, a slot, a doorbell, ...
    track         an object that owns one descriptor
    PerProcess    a value that belongs to this process, with the lock that guards it
    after_fork    anything else that a forked child has to do

    normal end    1 close every registered object, the readers first

    fork          1 take `fork_lock`, so that no thread is opening or closing a tracked descriptor
                  2 fork
      parent      3 release `fork_lock`
      child       3 release `fork_lock`
                  4 close every tracked descriptor: the child holds no kernel lock of the parent
                  5 abandon every registered object: it releases memory and descriptors, and leaves
                    the rest to the parent
                  6 make every `PerProcess` value anew, and call what `after_fork` was given, in the
                    order in which the modules asked for it

A step that fails in the child keeps no other step from being done.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import util
from typing import Generic, Protocol, TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """Identifies a process for people and reports; it never decides whether the process is alive.

    `started` is the start time in microseconds since the epoch, which tells a reused pid apart;
    `namespace` is the inode of the pid namespace in which `pid` means something.
    """

    pid: int
    started: int
    namespace: int

    @classmethod
    def mine(cls) -> Identity:
        """The calling process."""
        return _identity_of(os.getpid())

    def __str__(self) -> str:
        """`pid 123 (python train.py)`, or only the pid if nothing else can be known."""
        if self.namespace != Identity.mine().namespace:
            return f"pid {self.pid} of another pid namespace"
        try:
            process = psutil.Process(self.pid)
            if _microseconds(process.create_time()) != self.started:
                return f"pid {self.pid}, since ended"
            command = " ".join(process.cmdline()) or process.name()
        except psutil.NoSuchProcess:
            return f"pid {self.pid}, since ended"
        except (psutil.Error, OSError):
            return f"pid {self.pid}"
        return f"pid {self.pid} ({command[:60]})"


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


@cache
def _identity_of(pid: int) -> Identity:
    started = _microseconds(psutil.Process(pid).create_time())
    return Identity(pid, started, os.stat("/proc/self/ns/pid").st_ino)


# Objects and values that belong to this process.


class Owner(Protocol):
    """An object that owns something outside the process, which would outlive the process."""

    def close(self) -> None:
        """Give back everything. Idempotent."""

    def abandon(self) -> None:
        """In a forked child: release inherited memory, leave the rest to the parent."""


class Closable(Protocol):
    """An object that owns a descriptor."""

    def close(self) -> None:
        """Close the descriptor. Idempotent."""


fork_lock: threading.RLock = threading.RLock()
"""Hold it while a tracked descriptor is opened or closed: a fork in between would leave a copy in
the child that no object of the child owns, and that keeps the parent's kernel locks."""

_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_readers: weakref.WeakSet[Owner] = weakref.WeakSet()
_descriptors: weakref.WeakSet[Closable] = weakref.WeakSet()
_acts: list[Callable[[], object]] = []
_closes_at_end_of: int | None = None  # the process that has been told to


def register(owner: Owner, *, reads: bool = False) -> None:
    """Close `owner` when this interpreter ends normally, abandon it in a forked child.

    Readers are closed before all other objects, so that a writer sees which readers are left.
    `owner` is held weakly.
    """
    if _closes_at_end_of != os.getpid():
        _close_at_end()
    with fork_lock:
        (_readers if reads else _owners).add(owner)


def track(owner: Closable) -> None:
    """Close the descriptor of `owner` in a forked child. The caller holds `fork_lock`.

    `owner` is held weakly.
    """
    _descriptors.add(owner)


def after_fork(act: Callable[[], object]) -> None:
    """Call `act` in every forked child, once its inherited objects are abandoned.

    There is no way to take it back.
    """
    _acts.append(act)


class PerProcess(Generic[T]):
    """A value that belongs to this process, and the lock that guards it.

    Use `value` inside `with registry.lock:`; a thread that holds the lock must not take it again. A
    forked child begins with a new lock and with what `make` returns. It keeps the parent's value,
    but never touches or frees it: what belongs to the value is still in use in the parent, and a
    thread that the child has not may hold locks inside it.

    The lock itself is in the `with` statement: then an error that a signal handler raises finds it
    either not taken, or taken and released. A function that takes the lock, and is interrupted
    before it returns, would leave it taken.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._inherited: list[T] = []
        self.lock: threading.Lock = threading.Lock()
        self.value: T = make()
        after_fork(self._renew)

    def _renew(self) -> None:
        self._inherited.append(self.value)
        self.lock = threading.Lock()
        self.value = self._make()


# The end of a process, and a forked child.


def _close_at_end() -> None:
    """Have this process call `close_all` at its end, once for each process.

    A finalizer of `multiprocessing` does it: these run in its workers too, which skip `atexit`, and
    they run before a parent waits for its children, so that a stream that was forgotten open ends
    before the parent waits for children that read it.
    """
    global _closes_at_end_of
    util.Finalize(None, close_all, exitpriority=100)
    _closes_at_end_of = os.getpid()


def close_all() -> None:
    """Close all that is registered, as at the end: for servers whose end may be sudden.

    Blocks for a second at most. Idempotent.
    """
    with fork_lock:
        owners = [*_owners, *_readers]
    with ExitStack() as closing:  # calls them from the last to the first
        for owner in owners:
            closing.callback(owner.close)


def _begin_child() -> None:
    with suppress(RuntimeError):  # a server in C may fork, and tell Python only afterwards
        fork_lock.release()
    with ExitStack() as steps:  # calls them from the last to the first, whatever fails on the way
        for act in reversed(_acts):
            steps.callback(act)
        for known in (_owners, _readers, _descriptors):
            steps.callback(known.clear)
        for owner in [*_owners, *_readers]:
            steps.callback(owner.abandon)
        for each in list(_descriptors):
            steps.callback(each.close)  # leaves the parent's description and its locks alone


os.register_at_fork(
    before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=_begin_child
)
