"""The log of the parent and of the workers: lines on standard error, and nobody waits for them.

Standard error may be a pipe or a socket that nobody reads. When it is full, a write would wait, and
the event loop with it, and all clients. So what does not fit at once is dropped, and the next line
tells how many were lost.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from shmstream.errors import escaped
from shmstream.upstreams import request_id


class _OneLine(logging.Formatter):
    """One line for each event. What an upstream or a client has written cannot begin another one.

    A traceback has its lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name of logging
        record.message = escaped(record.message.rstrip())
        return super().formatMessage(record)


class _StandardError(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._write = _writer()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or drop it."""
        try:
            lines = [*map(self.format, self._told_of_lost()), self.format(record), ""]
        except Exception:  # noqa: BLE001  as every handler of logging: a mistake in a log call
            self.handleError(record)
            return
        data = "\n".join(lines).encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[self._write(data) :]
            self._lost = 0
        except OSError:  # it is full, or closed
            self._lost += 1

    def _told_of_lost(self) -> list[logging.LogRecord]:
        """What tells of the lines that were lost; nothing if none were."""
        if not self._lost:
            return []
        words = "%d lines of the log were lost: nobody read them"
        told = logging.LogRecord(
            "shmstream", logging.WARNING, __file__, 0, words, (self._lost,), None
        )
        self.filter(told)
        return [told]


def _writer() -> Callable[[bytes], int]:
    """A function that writes to standard error, and does not wait if that is a pipe or a socket.

    Others have the same pipe, and expect that it waits. So it is opened anew.
    """
    if sys.stderr is None:  # closed: another file may have descriptor 2
        return len
    mode = os.fstat(2).st_mode
    if stat.S_ISFIFO(mode):
        with suppress(OSError):  # another user has made it
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            return partial(os.write, os.open("/proc/self/fd/2", flags))
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(2))
        return lambda data: connection.send(data, socket.MSG_DONTWAIT)
    return partial(os.write, 2)


def _told_of(record: logging.LogRecord) -> bool:
    """Add the id of the request that the record is about."""
    name = request_id.current()
    record.request_id = name or None
    record.told = f" (request {name})" if name else ""
    return True


def _json(process: str) -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "%(levelname)s %(message)s %(request_id)s",
        rename_fields={"levelname": "level"},
        static_fields={"process": process or "parent"},
        timestamp="time",
    )


def log_to_stderr(prefix: str, level: str, *, as_json: bool = False) -> None:
    """Set up the log of the parent or of a worker: one line for each event.

    With `as_json`, each line is an object with `time`, `level`, `process`, `message`, and for an
    error of a request its `request_id`, as in the access log.
    """
    handler = _StandardError()
    handler.addFilter(_told_of)
    if as_json:
        handler.setFormatter(_json(prefix.strip()))
    else:
        handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)-7s {prefix}%(message)s%(told)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("shmstream").setLevel(level)
