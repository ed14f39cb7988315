"""Eviction keeps a store within its limit, and runs `gc` now and then.

A thread of the process does both, and no flight waits for it: looking at 100,000 blobs takes half a
second. A flight only tells its size, as soon as the size is known, and its end. One look serves all
flights that have told something since the last look. After the look the thread rests for three
times as long as the look took, so that a store of many blobs does not spend a processor on looking.
If no flight has told anything by then, the thread ends.

In one case a flight waits: the disk has no space for the bytes that are coming. Then the flight
itself evicts blobs first.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from shmstream.events import Event, EventKind
from shmstream.storage.gc import WEEK, gc, is_due
from shmstream.storage.layout import RECORD, Entry, Layout
from shmstream.system import threads
from shmstream.system.process import register

_UNTOLD = 1_000_000_000  # ns; longer than a flight needs from its commit to telling its end
_REST = 3.0  # times as long as the look took
_LAST_LOOK = 10.0  # s; the end of the process waits so long for the last look
_TIDY_EVERY = 3600.0  # s; `gc` runs after a flight if no process has run it for so long

_log = logging.getLogger("shmstream")


class Upkeep:
    """Keeps the store in `layout` within `max_bytes`. Any thread of this process may call it."""

    def __init__(
        self, layout: Layout, max_bytes: int | None, tell: Callable[[Event], None]
    ) -> None:
        self._layout = layout
        self._max_bytes = max_bytes
        self._tell = tell
        self._begin()
        register(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._coming: dict[str, int] = {}  # path -> bytes, of flights that this process leads
        self._latest = ""
        self._wanted = False
        self._tidying = False
        self._thread: threads.Call | None = None
        self._ending = threading.Event()

    def expect(self, size: int, path: str) -> None:
        """A flight will bring `size` bytes to `path`: make room for them.

        Blocks only if the disk lacks that space. A failure to make room is logged, and the flight
        goes on.
        """
        if self._max_bytes is None:
            return
        with self._lock:
            self._coming[path] = size
            self._latest = ""
        self._want()
        if self._has_no_space(size):
            self._look()

    def ended(self, path: str) -> None:
        """The flight to `path` has ended, with a blob or without."""
        is_time = self._is_time_to_tidy()
        with self._lock:
            self._coming.pop(path, None)
            # Flights may report their end out of order.
            self._latest = max(path, self._latest, key=self._completed)
            self._tidying |= is_time
        if self._max_bytes is not None or is_time:
            self._want()

    @staticmethod
    def _completed(path: str) -> int:
        """When the blob at `path` was complete, in nanoseconds since 1970; 0 if unknown."""
        try:
            completed = os.stat(path).st_mtime_ns
        except OSError:
            return 0
        return completed if completed <= time.time_ns() else 0  # the clock was set back

    def evict(self, limit: int) -> list[str]:
        """Remove the least recently used blobs, also the newest, until `limit` bytes stay.

        Returns the paths of what was removed.
        """
        return self._evict(self._blobs(), limit)

    def _blobs(self) -> list[Entry]:
        return [each for each in self._layout.entries() if each.kind == "blob"]

    def _evict(self, blobs: list[Entry], limit: int, latest: str = "") -> list[str]:
        """As `evict`, of these `blobs`; but never `latest`, nor a blob that was complete later."""
        completed = {each.path: each.facts.st_mtime_ns for each in blobs}
        since, now = completed.get(latest, math.inf), time.time_ns()
        if latest in completed and since > now:  # the clock was set back: nothing is younger
            since = now - _UNTOLD
        excess = sum(each.size for each in blobs) - limit
        if excess <= 0:
            return []
        gone = []
        for entry in sorted(blobs, key=lambda each: (each.used, each.path)):
            if excess <= 0:
                break
            # The flight of a younger blob may not have told yet that it has ended.
            if entry.path == latest or since < completed[entry.path] <= now:
                continue
            excess -= entry.size  # also if another process removes it: it counts the same blobs
            key = self._layout.key_of(entry.path)
            if self._layout.remove(entry.path):
                self._layout.remove(entry.path + RECORD)
                _log.info("evicted %s, %d bytes", entry.path, entry.size)
                self._tell(Event(EventKind.EVICTED, key or entry.path, entry.size))
                gone.append(entry.path)
        return gone

    def _has_no_space(self, size: int) -> bool:
        try:
            disk = os.statvfs(self._layout.folder)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < size

    def _is_time_to_tidy(self) -> bool:
        try:
            return is_due(self._layout, _TIDY_EVERY)
        except OSError as error:
            _log.warning("%s: %s", self._layout.folder, error)
            return False

    def _want(self) -> None:
        """Have the thread look; where no thread can be started, look in this one."""
        with self._lock:
            self._wanted = True
            if self._thread is not None:
                return
            thread = threads.Call(self._run, "shmstream-upkeep")
            register(self)  # again, because a forked child begins with nothing registered
            try:
                if not self._ending.is_set():
                    thread.start()
                    self._thread = thread
                    return
            except RuntimeError:  # this interpreter is ending
                pass
        self._look()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                self._wanted = False
            began = time.monotonic()
            self._look()
            self._ending.wait(_REST * (time.monotonic() - began))

    def _look(self) -> None:
        try:
            if self._max_bytes is not None:
                blobs = self._blobs()
                with self._lock:  # a blob that has come meanwhile is in `blobs`, or in `_coming`
                    coming, latest = dict(self._coming), self._latest
                limit = self._max_bytes - sum(coming.values())
                self._evict([each for each in blobs if each.path not in coming], limit, latest)
            with self._lock:
                tidying, self._tidying = self._tidying, False
            if tidying:
                for gone in gc(self._layout, partial_age=WEEK):
                    _log.info("removed %s, which no download goes on with", gone)
        except OSError as error:
            _log.warning("%s: cannot make room: %s", self._layout.folder, error)

    def close(self) -> None:
        """At the end of the process: wait for the last look."""
        self._ending.set()
        if (thread := self._thread) is not None:
            thread.join(_LAST_LOOK)

    def abandon(self) -> None:
        """In a forked child: forget the thread and the flights, which are the parent's."""
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layout, self._max_bytes, self._tell)
