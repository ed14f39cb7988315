"""`Leases`: renews the leases of this process, all in one call, for as long as it has some.

A lease that is lost (another node has it by now) ends the pull from the upstream at once. After
this process was stopped, or its machine slept, the thread wakes up late, and renews first of all:
so a node whose lease has passed on pulls for some milliseconds more, and not to the end. While the
directory is away, no node loses its lease: the node that pulls goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from shmstream.cluster.directory import DirectoryAway, Me
from shmstream.system import threads
from shmstream.system.process import register

_OFTEN = 3  # times in a lease


class Held(Protocol):
    """What has the lease of `key` as `me`."""

    key: str
    me: Me

    def lose(self) -> None:
        """Another node has the lease: end what it is for."""


Renew = Callable[[Sequence[tuple[str, Me]]], Sequence[bool]]
"""As `Directory.renew`."""


class Leases:
    """The leases of this process. Any thread may call it."""

    def __init__(self, lease: float, renew: Renew) -> None:
        self._pause = lease / _OFTEN
        self._renew = renew
        self._begin()
        register(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._held: set[Held] = set()
        self._runs = False

    def close(self) -> None:
        """Renew nothing any more."""
        with self._changed:
            self._held.clear()
            self._changed.notify_all()

    def abandon(self) -> None:
        """In a forked child: the leases are the parent's."""
        self._begin()

    def hold(self, held: Held) -> None:
        """Renew this lease from now on. Idempotent.

        If no thread can be started, nothing renews it: then another node may pull as well.
        """
        with self._changed:
            self._held.add(held)
            if self._runs:
                return
            try:
                threads.Call(self._run, "shmstream-lease").start()
            except RuntimeError:
                return
            self._runs = True

    def release(self, held: Held) -> None:
        """Renew this lease no more. Idempotent."""
        with self._changed:
            self._held.discard(held)
            if not self._held:
                self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(self._pause)
                if not self._held:
                    self._runs = False
                    return
                held = list(self._held)
            try:
                are_kept = self._renew([(each.key, each.me) for each in held])
            except DirectoryAway:
                continue
            for each, is_kept in zip(held, are_kept, strict=True):
                if not is_kept:
                    each.lose()
