"""Which worker takes a connection: the worker with the fewest connections.

Only without a keeper, as with TLS: a keeper (`keeper`) accepts the connections for the workers.

All workers wait at one socket, so a dead or busy worker delays nobody. But the kernel wakes all of
them, and by chance the same worker is first again and again. So a worker that has more connections
than another worker waits for a moment, and then looks whether the connection is still there:

    this worker, with 5 connections         another worker, with 3 connections
    woken; 5 > 3: sleeps for 2 ms           woken; accepts, and tells that it has 4
    looks again: the connection is gone

A worker that has as many connections as it may have takes no further one: it waits until some have
ended. So clients that connect and ask for nothing cost a bounded number of descriptors.

When the server stops, the parent ends the listening for all workers at once (`supervisor`). When
only this worker stops, it takes the connections that wait just now, and leaves the socket alone.

The counts are in a file that all workers share, 8 bytes for each worker's number: the count plus
one, or 0 if no worker of that number accepts. The counts are only hints: a torn or old one costs
2 ms.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable, Sized
from contextlib import suppress

_DEFERENCE = 0.002  # s
NO_LISTENER: tuple[int, ...] = (errno.EINVAL, errno.EBADF)
"""What `accept` fails with when the socket listens no more."""
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 1.0  # s; if the process has no descriptors left
_FULL = 0.1  # s; pause if this worker has as many connections as it may have
_HANDSHAKE = 20.0  # s; as long as a client may need for the head of a request
_COUNT = struct.Struct("=Q")
_MOST_WORKERS = 1024

_log = logging.getLogger("shmstream")


class Counts:
    """How many connections each worker has. `number` is the number of this worker."""

    def __init__(self, path: str, number: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._number = number

    def tell(self, count: int | None) -> None:
        """Tell how many connections this worker has; None: it accepts none."""
        told = 0 if count is None else count + 1
        with suppress(OSError):  # no space on the disk: then the others take their turns by chance
            os.pwrite(self._fd, _COUNT.pack(told), self._number * _COUNT.size)

    def least(self) -> int | None:
        """The smallest count of all workers; None if no worker accepts."""
        data = os.pread(self._fd, _MOST_WORKERS * _COUNT.size, 0)
        whole = len(data) // _COUNT.size * _COUNT.size
        told = [count for [count] in _COUNT.iter_unpack(data[:whole]) if count]
        return min(told) - 1 if told else None

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def prepare(connection: socket.socket) -> None:
    """Set an accepted connection up for an event loop."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Acceptor:
    """Accepts connections from `listener`.

    For one event loop; `close` it before the loop ends.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        connections: Sized,
        counts: Counts,
        most: int,
    ) -> None:
        """`connections` has the open connections; each `protocol` adds and removes its own.

        At `most` of them no further one is taken.
        """
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._connections = connections
        self._counts = counts
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[object]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._told = -1
        self._is_closed = False
        listener.setblocking(False)
        self._wait()

    @property
    def count(self) -> int:
        """How many connections this worker has."""
        return len(self._connections) + len(self._beginning)

    def tell(self) -> None:
        """Tell the other workers, if the count has changed. Call it now and then."""
        if not self._is_closed and (count := self.count) != self._told:
            self._told = count
            self._counts.tell(count)

    def _wait(self) -> None:
        self._later = None
        self.tell()
        self._loop.add_reader(self._listener, self._see)

    def _see(self) -> None:
        """A connection has come. Another worker may have it by now."""
        least = self._counts.least()
        if self.count >= self._most:
            self._pause(_FULL, self._wait)
        elif least is not None and self.count > least:
            self._pause(_DEFERENCE, self._take_late)
        else:
            self._take()

    def _pause(self, seconds: float, then: Callable[[], object]) -> None:
        self._loop.remove_reader(self._listener)
        self._later = self._loop.call_later(seconds, then)

    def _take_late(self) -> None:
        self._wait()
        self._take()

    def _take(self) -> bool:
        """Take a connection; False if there is none to be had."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # another worker has it, or the client left
            return False
        except OSError as error:
            if error.errno in NO_LISTENER:
                self.close()
            elif error.errno in _SCARCE:
                _log.error("no connection can be taken: %s", error.strerror)
                self._pause(_PAUSE, self._wait)
            else:
                raise
            return False
        prepare(connection)
        self._begin(connection)
        self.tell()
        return True

    def _begin(self, connection: socket.socket) -> None:
        begin = self._loop.connect_accepted_socket(
            self._protocol,
            connection,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE,
        )
        task: asyncio.Task[object] = self._loop.create_task(begin)
        self._beginning.add(task)
        task.add_done_callback(self._has_begun)

    def _has_begun(self, task: asyncio.Task[object]) -> None:
        self._beginning.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError):  # an OSError is the client's fault
            _log.error("a connection cannot begin: %r", error)
        self.tell()

    def finish(self) -> None:
        """Take the connections that wait just now, and accept no more. Idempotent."""
        while not self._is_closed and self.count < self._most and self._take():
            pass
        self.close()

    def close(self) -> None:
        """Accept no more connections; accepted ones stay. Idempotent."""
        if not self._is_closed:
            self._counts.tell(None)
            self._counts.close()
            self._is_closed = True
            self._loop.remove_reader(self._listener)
            if self._later is not None:
                self._later.cancel()
