"""The access log: one JSON line for each response, on standard output. No request waits for it.

A response adds its facts to a queue. Ten times a second, if the queue is not empty, a thread writes
them as lines. Lines of several workers do not mix: each line is one write, and no longer than what
a pipe takes in one write. If nobody reads the lines for long, some are dropped, and the next line
says how many.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from shmstream.errors import OutOfResources
from shmstream.system.threads import in_thread

_INTERVAL = 0.1  # s
_KEPT = 20_000  # responses that may wait in the queue
_LONGEST_LINE = select.PIPE_BUF  # bytes
_TEXT, _SHORT_TEXT = 1000, 64  # characters of a path, a user agent and the like

_log = logging.getLogger("shmstream")


@dataclass(slots=True)
class Entry:
    """A response that has ended; times in seconds, `ended` since 1970.

    `complete`: whether the whole body was sent. `cache` and `route` as in the metrics.
    """

    ended: float
    client: str | None
    method: str
    path: str
    namespace: str | None
    wanted_range: str | None
    user_agent: str | None
    status: int
    sent: int
    complete: bool
    duration: float
    ttfb: float | None
    route: str | None
    cache: str | None
    user: str | None = None
    request_id: str | None = None

    def line(self, lost: int = 0) -> bytes:
        """The line as JSON with its line feed: short, and ASCII, whatever the texts are."""
        line = self._line(lost, _TEXT)
        return line if len(line) <= _LONGEST_LINE else self._line(lost, _SHORT_TEXT)

    def _line(self, lost: int, longest: int) -> bytes:
        facts = {
            "time": datetime.fromtimestamp(self.ended, UTC).isoformat(timespec="milliseconds"),
            "client": self.client and self.client[:longest],  # a proxy may hand on any text
            "user": self.user and self.user[:longest],
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path[:longest],
            "ns": self.namespace and self.namespace[:longest],
            "range": self.wanted_range and self.wanted_range[:longest],
            "status": self.status,
            "bytes": self.sent,
            "complete": self.complete,
            "duration": round(self.duration, 6),
            "ttfb": None if self.ttfb is None else round(self.ttfb, 6),
            "route": self.route,
            "cache": self.cache,
            "user_agent": self.user_agent and self.user_agent[:longest],
            "lost": lost or None,
        }
        told = {name: value for name, value in facts.items() if value is not None}
        return json.dumps(told, separators=(",", ":")).encode() + b"\n"


class AccessLog:
    """Writes entries to a descriptor. For one event loop."""

    def __init__(self, lost: Callable[[int], None], descriptor: int = 1) -> None:
        """`lost` is called with the number of entries that were dropped."""
        self._tell_lost = lost
        self._descriptor = descriptor
        self._entries: deque[Entry] = deque()
        self._lost = 0
        self._is_due = False
        self._is_broken = False
        self._thread = (f"shmstream-access-log-{descriptor}", 1)  # one thread keeps the order

    def add(self, entry: Entry) -> None:
        """Have an entry written soon. For the event loop; does not block."""
        if len(self._entries) >= _KEPT:
            self._lost += 1
            self._tell_lost(1)
            return
        self._entries.append(entry)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_INTERVAL, self._begin)

    def _begin(self) -> None:
        self._is_due = bool(self._entries)
        if self._is_due:
            try:
                self._hand_over().add_done_callback(lambda _: self._begin())
            except OutOfResources:  # no thread can be started just now
                asyncio.get_running_loop().call_later(_INTERVAL, self._begin)

    def _hand_over(self) -> asyncio.Future[None]:
        """Give all entries to the thread.

        Raises:
            OutOfResources: no thread can be started. The entries stay.
        """
        entries, self._entries = self._entries, deque()
        lost, self._lost = self._lost, 0
        try:
            return in_thread(partial(self._write, entries, lost), self._thread)
        except OutOfResources:
            self._entries, self._lost = entries, lost
            raise

    def _write(self, entries: deque[Entry], lost: int) -> None:
        try:
            for entry in entries:
                self._write_line(entry.line(lost))
                lost = 0
        except OSError as error:
            self._tell_lost(len(entries))
            if not self._is_broken:  # warn once
                self._is_broken = True
                _log.warning("the access log cannot be written: %s", error)

    def _write_line(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # another process made the shared pipe non-blocking
                select.select([], [self._descriptor], [])

    async def close(self, patience: float = 1.0) -> None:
        """Write the entries that are left, for at most `patience` seconds.

        An entry that is added later is still written, if the process lives long enough.
        """
        count = len(self._entries)
        try:
            async with asyncio.timeout(patience):
                await self._hand_over()  # ends after the write that is in progress
                while count := len(self._entries):
                    await self._hand_over()
        except TimeoutError:
            _log.warning("nobody reads the access log: %d lines are lost", count)
        except OutOfResources as error:
            _log.warning("the access log cannot be written: %d lines are lost: %s", count, error)
