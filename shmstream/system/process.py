"""This process: its identity, and what must happen when it ends or forks.

A forked child inherits every descriptor, and with a descriptor its kernel locks: a dead parent
would seem alive. Therefore each object that owns something outside the process is registered here:

    normal end     `close` of every registered object is called, readers before writers
    forked child   `abandon` of every registered object is called at once; it closes what the child
                   inherited, and leaves alone what the parent still uses

A module with state that belongs to one process (threads, counters, ...) registers `after_fork`
here, so that this is the only module that uses `os.register_at_fork`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from multiprocessing import util
from typing import Protocol

import psutil


@dataclass(frozen=True)
class Identity:
    """Which process: for people and reports, never for deciding who is alive.

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
        """`pid 123 (python train.py)`, or the bare pid where no more can be known."""
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


# Clean-up at the end of a process, and in a forked child.


class Owner(Protocol):
    """Something that owns what outlives the process unless it is closed."""

    def close(self) -> None:
        """Give back everything. Idempotent."""

    def abandon(self) -> None:
        """In a forked child: let go of what was inherited, leave what the parent still uses."""


class Closable(Protocol):
    """Something with a descriptor."""

    def close(self) -> None:
        """Close the descriptor. Idempotent."""


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_readers: weakref.WeakSet[Owner] = weakref.WeakSet()
_descriptors: weakref.WeakSet[Closable] = weakref.WeakSet()
_armed_in: int | None = None
fork_lock = threading.RLock()
"""Hold it while a descriptor is opened or closed: a fork in between would leave a copy in the child
that no object of the child owns, and that keeps its kernel locks."""


def track(owner: Closable) -> None:
    """Close the descriptor of `owner` in a forked child. The caller holds `fork_lock`.

    Call `arm` before taking the lock.
    """
    _descriptors.add(owner)


def after_fork(forget: Callable[[], object]) -> None:
    """Call `forget` in every forked child, after registered objects were abandoned.

    For state of a module that is true in the parent only, such as its threads. There is no way to
    take it back.
    """
    os.register_at_fork(after_in_child=forget)


def register(owner: Owner, *, reads: bool = False) -> None:
    """Close `owner` when this interpreter ends normally, abandon it in a forked child.

    Those that read are closed before those that write, so that a writer sees who else reads.

    The finalizers of `multiprocessing` run in its workers too, which end past `atexit`, and run
    before a parent waits for its children, so that a stream that was forgotten open ends before
    anyone waits for those who read it.
    """
    arm()
    with fork_lock:
        (_readers if reads else _owners).add(owner)


def arm() -> None:
    """Have this process call `close_all` at its end, and abandon everything in forked children."""
    global _armed_in
    if _armed_in != os.getpid():
        if _armed_in is None:
            os.register_at_fork(
                before=fork_lock.acquire,
                after_in_parent=fork_lock.release,
                after_in_child=_abandon_all,
            )
        util.Finalize(None, close_all, exitpriority=100)
        _armed_in = os.getpid()


def close_all() -> None:
    """Close all that is registered, as at the end: for servers whose end may be sudden.

    Blocks for a second at most. Idempotent.
    """
    with fork_lock:
        owners = [*_owners, *_readers]
    with ExitStack() as closing:
        for owner in owners:  # from the last to the first
            closing.callback(owner.close)


def _abandon_all() -> None:
    fork_lock.release()
    with ExitStack() as abandoning:  # whatever fails on the way
        abandoning.callback(_owners.clear)
        abandoning.callback(_readers.clear)
        abandoning.callback(_descriptors.clear)
        for owner in [*_owners, *_readers]:
            abandoning.callback(owner.abandon)
        for each in list(_descriptors):
            abandoning.callback(each.close)  # leaves the parent's description and its locks alone
