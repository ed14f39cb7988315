"""Eviction keeps a store within its limit, and runs `gc` now and then.

A thread of the process does both, and no flight waits for it: looking at 100,000 blobs takes half a
second. A flight only tells how far it will come next, and its end. The thread looks a moment later.
By then a small blob is complete, and its flight did not share the interpreter with the look. One
look serves all flights that have told something since the last look. After the look the thread
rests for three times as long as the look took, so that a store of many blobs does not spend a
processor on looking. If no flight has told anything by then, the thread ends.

In one case a flight waits: the disk has no space for the bytes that come next. Then the flight
itself makes room first.

Everything counts that takes space: complete blobs, and partial files with what is reserved for
them, and with the bytes beside them that came ahead of their turn. A flight takes its space in
steps, as its bytes come, so a source that announces more than it sends evicts nothing for it. What
goes, in this order:

    1 partial files that nobody writes to or waits for, the oldest first; also of a store without a
      limit, if the disk is full. The name of a stream follows from its key, so the stream of each
      is found, and tells whether somebody waits
    2 the least recently used blobs; not those that are pinned, which count for the limit all the
      same, and not those that have come just now. But where the disk has no space for the bytes
      that come next, a blob that is complete may go, also if its flight has not told its end yet
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from shmstream.errors import ShmstreamError
from shmstream.events import Event, EventKind
from shmstream.storage.gc import WEEK, gc, is_due
from shmstream.storage.layout import AHEAD, PIN, Entry, Layout
from shmstream.stream.claims import is_read
from shmstream.stream.control_block import State
from shmstream.stream.partial import is_written, partial_path, remove_partial
from shmstream.stream.stream import Stream
from shmstream.system import threads
from shmstream.system.process import register

_UNTOLD = 1_000_000_000  # ns; longer than a flight needs from its commit to telling its end
_LETTING_GO = 0.5  # s; a writer that has aborted needs less to close its file
_GATHER = 0.05  # s; from the first news of a flight to the look
_REST = 3.0  # times as long as the look took
_LAST_LOOK = 10.0  # s; the end of the process waits so long for the last look
_TIDY_EVERY = 3600.0  # s; `gc` runs after a flight if no process has run it for so long

_log = logging.getLogger("shmstream")


class Upkeep:
    """Keeps the store in `layout` within `max_bytes`. Any thread of this process may call it."""

    def __init__(
        self, layout: Layout, max_bytes: int | None, tell: Callable[[Event], None] | None
    ) -> None:
        """`tell` is told of each blob that is evicted; None: nobody wants to know."""
        self._layout = layout
        self.max_bytes = max_bytes
        self._tell = tell
        self._begin()
        register(self)

    def _begin(self) -> None:
        # One look at a time: a file that another thread removes is out of sight before its space is
        # free. A receiver of events may begin a flight, which looks.
        self._looking = threading.RLock()
        self._lock = threading.Lock()  # guards all below
        # Of flights that this process leads: path -> how many bytes the blob has, or will have next
        self._coming: dict[str, int] = {}
        self._latest = ""
        self._wanted = False
        self._tidying = False
        self._thread: threads.Call | None = None
        self._ending = threads.Flag()

    def misfit(self, size: int, path: str) -> str | None:
        """Why a blob of `size` bytes can never be kept at `path`; None if it can, as it seems.

        Looks at all files, and blocks for that, only if the disk has less free space. Nothing is
        evicted.
        """
        limit = self.max_bytes
        if limit is not None and size > limit:
            return f"it has {size} bytes, and this store keeps {limit} at most"
        free = self._free()
        if free is None or size <= free:
            return None
        space, entries, mine = self._layout.space, self._entries(), partial_path(path)
        own = sum(space(each) for each in entries if each.path == mine)
        rings, others = self._rings(entries), 0
        for each in self._idle([each for each in entries if each.path != mine]):
            others += space(each) + rings.get(_ring_of(each.path), 0)
        stored = sum(space(each) for each in entries if each.kind == "blob")
        most = free + own + others + (0 if limit is None else stored)
        if size <= most:
            return None
        return f"it has {size} bytes, and its disk has space for {most} at most"

    def expect(self, count: int, path: str, more: int) -> None:
        """A flight will soon have `count` bytes of the blob at `path`: keep to the limit then.

        It will write `more` bytes for which it has no space yet. Blocks only if the disk lacks that
        space. A failure to make room is logged, and the flight goes on.
        """
        with self._lock:
            self._coming[path] = count
            self._latest = ""
        if self.max_bytes is not None:
            self._want()
        self.make_room(more)

    def make_room(self, count: int) -> None:
        """Evict what is needed so that `count` more bytes can be written to the disk.

        Returns at once if they can.
        """
        if self._lacks(count) > 0:
            with self._looking:
                if (short := self._lacks(count)) > 0:
                    self._look(short)

    def _lacks(self, count: int) -> int:
        """How many bytes of `count` the disk has no space for; less than 0: so many are left."""
        free = self._free()
        return 0 if free is None else count - free

    def ended(self, path: str) -> None:
        """The flight to `path` has ended, with a blob or without."""
        is_time = self._is_time_to_tidy()
        with self._lock:
            self._coming.pop(path, None)
            if self._latest:  # flights may report their end out of order
                path = max(path, self._latest, key=self._completed)
            self._latest = path
            self._tidying |= is_time
        if self.max_bytes is not None or is_time:
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
        """Remove what goes first (see above), also the newest blobs, until `limit` bytes stay.

        Returns the paths of what was removed.
        """
        entries = self._entries()
        excess = self._total(entries, {}) - limit
        return self._evict(entries, excess, {}, "")

    def _entries(self) -> list[Entry]:
        """All files that take space: complete blobs, `pinned` or `blob`, `partial` and `ahead`."""
        found, pinned = [], set()
        for each in self._layout.entries(("blob", "partial", "ahead", "pin")):
            if each.kind == "pin":
                pinned.add(each.path.removesuffix(PIN))
            elif each.kind != "foreign":
                found.append(each)
        if not pinned:
            return found
        return [each._replace(kind="pinned") if each.path in pinned else each for each in found]

    def _rings(self, entries: Iterable[Entry]) -> dict[str, int]:
        """The space of all bytes that came ahead of their turn, by the path of their file."""
        return {each.path: self._layout.space(each) for each in entries if each.kind == "ahead"}

    def _idle(self, entries: Iterable[Entry]) -> list[Entry]:
        """The partial files that nobody writes to, and that no reader waits for; the oldest first.

        Locks tell, not ages: see `stream/claims`.
        """
        found = []
        deadline = time.monotonic() + _LETTING_GO
        for each in entries:
            if each.kind != "partial":
                continue
            while not (is_free := _is_free(each.path)) and self._is_ending(each.path):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.005)
            if is_free and not self._is_waited_for(each.path):
                found.append(each)
        return sorted(found, key=lambda each: each.facts.st_mtime_ns)

    def _is_ending(self, partial: str) -> bool:
        """Whether the stream of a partial file is aborted: its writer is about to let go of it."""
        with self._stream_of(partial) as stream:
            return stream is not None and stream.state == State.ABORTED

    def _is_waited_for(self, partial: str) -> bool:
        """Whether a process reads the stream of a partial file: it may be taking over just now."""
        with self._stream_of(partial) as stream:
            if stream is None or stream.state == State.ABORTED:
                return False
            return is_read(stream.block, stream.lock)

    @contextmanager
    def _stream_of(self, partial: str) -> Iterator[Stream | None]:
        """The stream of a partial file on this host; None if there is none.

        Its name follows from the key. A partial file without a key has no bytes: a leader records
        the key of a named blob before it appends.
        """
        name = self._layout.stream_at(partial.removesuffix(partial_path("")))
        stream = None if name is None else Stream.find(name)
        if stream is None:
            yield None
        else:
            with stream:
                yield stream

    def _evict(
        self, entries: list[Entry], excess: int, coming: dict[str, int], latest: str
    ) -> list[str]:
        """Remove `excess` bytes; but blobs in `coming`, at `latest` and after it stay.

        What cannot be removed, such as an immutable file, is passed over.

        Raises:
            OSError: nothing can be removed.
        """
        gone: list[str] = []
        stuck: list[OSError] = []
        if excess <= 0:
            return gone
        rings = self._rings(entries)
        for entry in self._idle(entries):
            if excess <= 0:
                return gone
            if _is_removed(entry, remove_partial, stuck):  # `gc` removes its journal
                _log.info("removed %s, %d bytes, to make room", entry.path, entry.size)
                excess -= self._layout.space(entry)
                with suppress(OSError):  # then `gc` removes it
                    self._layout.remove(_ring_of(entry.path))
                    excess -= rings.get(_ring_of(entry.path), 0)
                gone.append(entry.path)
        for entry in self._by_use(entries, coming, latest):
            if excess <= 0:
                break
            # Also if another process removes it: it counts the same blobs.
            excess -= self._layout.space(entry)
            # First, because the record goes with the blob.
            key = self._key_of(entry)
            known = len(stuck)
            if _is_removed(entry, self._remove_unpinned, stuck):
                self._note_evicted(entry, key)
                gone.append(entry.path)
            elif len(stuck) > known or entry.is_pinned:
                excess += self._layout.space(entry)
        if stuck and not gone and excess > 0:
            raise stuck[0]
        return gone

    def _key_of(self, entry: Entry) -> str | None:
        """The key of a blob, if anybody wants to know it."""
        if self._tell is not None:
            with suppress(OSError):  # the path is told instead
                return self._layout.key_of(entry.path)
        return None

    def _note_evicted(self, entry: Entry, key: str | None) -> None:
        _log.info("evicted %s, %d bytes", entry.path, entry.size)
        if self._tell is not None:
            self._tell(Event(EventKind.EVICTED, key or entry.path, entry.size))

    def _remove_unpinned(self, path: str) -> bool:
        """Remove a blob and its record, unless it has been pinned since the look at all blobs."""
        if os.path.lexists(path + PIN):
            return False
        return self._layout.remove_blob(path, record=True, waits=False)

    @staticmethod
    def _by_use(entries: list[Entry], coming: dict[str, int], latest: str) -> list[Entry]:
        """The blobs that may go, the least recently used first."""
        blobs = [each for each in entries if each.kind == "blob" and each.path not in coming]
        since, now = math.inf, time.time_ns()
        for each in blobs:
            if each.path == latest:
                completed = each.facts.st_mtime_ns
                # The clock may have been set back: then nothing is younger.
                since = completed if completed <= now else now - _UNTOLD
        # The flight of a younger blob may not have told yet that it has ended.
        may_go = [
            each
            for each in blobs
            if each.path != latest and not since < each.facts.st_mtime_ns <= now
        ]
        return sorted(may_go, key=lambda each: (each.facts.st_atime, each.path))

    def _free(self) -> int | None:
        """Bytes that this user can write to the disk; None if the file system does not tell."""
        try:
            disk = os.statvfs(self._layout.folder)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else None

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
        self._ending.wait(_GATHER)
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                self._wanted = False
            began = time.monotonic()
            self._look()
            self._ending.wait(_REST * (time.monotonic() - began))

    def _look(self, short: int = 0) -> None:
        """Evict what is above the limit, or `short` bytes if that is more. Now and then run `gc`.

        Without a limit no blob is evicted, only partial files.
        """
        with self._looking:
            self._look_alone(short)

    def _look_alone(self, short: int) -> None:
        try:
            if self.max_bytes is not None or short > 0:
                entries = self._entries()
                with self._lock:  # a blob that has come meanwhile is an entry, or in `_coming`
                    coming, latest = dict(self._coming), self._latest
                limit = self.max_bytes
                if limit is None:
                    entries = [each for each in entries if each.kind in ("partial", "ahead")]
                    limit = sum(self._layout.space(each) for each in entries)
                excess = max(self._total(entries, coming) - limit, short)
                if short > 0:
                    complete = {each.path for each in entries if each.kind == "blob"}
                    coming = {path: coming[path] for path in coming.keys() - complete}
                self._evict(entries, excess, coming, latest)
            with self._lock:
                tidying, self._tidying = self._tidying, False
            if tidying:
                for gone in gc(self._layout, partial_age=WEEK):
                    _log.info("removed %s, which no download goes on with", gone)
        except (OSError, ShmstreamError) as error:  # such as a disk that was unmounted
            _log.warning("%s: cannot make room: %s", self._layout.folder, str(error))

    def _total(self, entries: list[Entry], coming: dict[str, int]) -> int:
        """Bytes that are taken or coming: of a flight the larger number counts."""
        space = self._layout.space
        total = sum(map(space, entries))
        if coming:
            paths = {*coming, *map(partial_path, coming)}
            taken = {each.path: space(each) for each in entries if each.path in paths}
            for path, count in coming.items():
                total += max(count - taken.get(path, 0) - taken.get(partial_path(path), 0), 0)
        return total

    def close(self) -> None:
        """At the end of the process: wait for the last look."""
        self._ending.set()
        if (thread := self._thread) is not None:
            thread.join(_LAST_LOOK)

    def abandon(self) -> None:
        """In a forked child: forget the thread and the flights, which are the parent's."""
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layout, self.max_bytes, self._tell)


def _ring_of(partial: str) -> str:
    return partial.removesuffix(partial_path("")) + AHEAD


def _is_removed(entry: Entry, remove: Callable[[str], bool], stuck: list[OSError]) -> bool:
    """Remove a file; whether this process did. If it cannot be removed, `stuck` has the error."""
    try:
        return remove(entry.path)
    except OSError as error:
        if not stuck:
            _log.warning("%s cannot be removed: %s", entry.path, error.strerror)
        stuck.append(error)
        return False


def _is_free(partial: str) -> bool:
    """Whether a partial file has no live writer, as far as this user can know."""
    try:
        return not is_written(partial)
    except OSError:
        return False
