"""Keeps a store within its limit, and tidy, in a thread that no flight waits for.

Looking at 100,000 blobs takes half a second. A flight that begins or ends only says so; one look
then answers for all that have, and after it the thread rests for some time, so that a store of many
blobs does not spend its processor on being looked at. It ends when nobody has said anything since.

Only where the disk has no space for what is coming, its flight waits until blobs are evicted.
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
from shmstream.system.process import register

_REST = 3.0  # times as long as a look took
_LAST_LOOK = 10.0  # s; how long the end of the process waits for it
_TIDY_EVERY = 3600.0  # s; after a flight, if nobody has for so long, `gc` runs by itself

_log = logging.getLogger("shmstream")


class Upkeep:
    """Of the store in `layout`, in this process. Any thread may call it."""

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
        self._coming: dict[str, int] = {}  # path -> bytes, of the flights that we lead
        self._latest = ""
        self._wanted = False
        self._tidying = False
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def expect(self, size: int, path: str) -> None:
        """A flight will bring so many bytes to `path`. Blocks only if the disk has no such space.

        No trouble with making room ends a flight.
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
            # They need not say so in their order.
            self._latest = max(path, self._latest, key=self._completed)
            self._tidying |= is_time
        if self._max_bytes is not None or is_time:
            self._want()

    @staticmethod
    def _completed(path: str) -> int:
        """When the blob at `path` was complete, in nanoseconds; 0 if nobody can tell."""
        try:
            completed = os.stat(path).st_mtime_ns
        except OSError:
            return 0
        return completed if completed <= time.time_ns() else 0  # the clock was set back

    def evict(self, limit: int) -> list[str]:
        """Remove the least recently used blobs until `limit` bytes are left; their paths."""
        return self._evict(self._blobs(), limit)

    def _blobs(self) -> list[Entry]:
        return [each for each in self._layout.entries() if each.kind == "blob"]

    def _evict(self, blobs: list[Entry], limit: int, latest: str = "") -> list[str]:
        """`blobs` are all that count; the one at `latest` stays, and what has come after it."""
        completed = {each.path: each.facts.st_mtime_ns for each in blobs}
        since, now = completed.get(latest, math.inf), time.time_ns()
        excess = sum(each.size for each in blobs) - limit
        if excess <= 0:
            return []
        gone = []
        for entry in sorted(blobs, key=lambda each: (each.used, each.path)):
            if excess <= 0:
                break
            # The flight of what is younger may not have said yet that it has ended.
            if entry.path == latest or since < completed[entry.path] <= now:
                continue
            excess -= entry.size  # also if somebody else was faster: they count the same blobs
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
        """Have the thread look, or look ourselves where none can be had."""
        with self._lock:
            self._wanted = True
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="shmstream-upkeep", daemon=True)
            register(self)  # a forked child has forgotten it
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
                with self._lock:  # what has come meanwhile is among them, or is still coming
                    coming, latest = dict(self._coming), self._latest
                limit = self._max_bytes - sum(coming.values())
                self._evict([each for each in blobs if each.path not in coming], limit, latest)
            with self._lock:
                tidying, self._tidying = self._tidying, False
            if tidying:
                for gone in gc(self._layout, partial_age=WEEK):
                    _log.info("removed %s, which nobody goes on with", gone)
        except OSError as error:
            _log.warning("%s: cannot make room: %s", self._layout.folder, error)

    def close(self) -> None:
        """At the end of the process: wait for the last look."""
        self._ending.set()
        if (thread := self._thread) is not None:
            thread.join(_LAST_LOOK)

    def abandon(self) -> None:
        """In a forked child: thread and flights are the parent's."""
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layout, self._max_bytes, self._tell)
