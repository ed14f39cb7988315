"""The body of one HTTP answer, on its way to a file: through the kernel if that is possible.

    by kernel   the kernel moves the bytes from the connection through a pipe to the file
                (`splice`): they are copied once, and never enter this process. For connections
                without TLS, and bodies with a known length
    by hand     urllib3 reads the bytes and hands them on: for all other bodies

By kernel, bytes may gather in the connection: the thread that takes them is woken only after a
certain time, or when enough bytes are there (SO_RCVLOWAT). The first bytes came together with the
head, so urllib3 reads them; it gets the connection back at the end of the body.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self, cast

from shmstream.errors import SourceError
from shmstream.system import greenlets

try:
    import urllib3
except ImportError as _missing:
    raise ImportError("an HTTP source needs urllib3: pip install 'shmstream[http]'") from _missing
from urllib3.connection import HTTPConnection

from shmstream.sources.http_guard import GuardedConnection
from shmstream.sources.http_pool import PlainConnection

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PLAIN = (HTTPConnection, PlainConnection, GuardedConnection)
_LITTLE = 128 * 1024  # bytes to read while few come: memory for more costs 10 us each time
_MUCH = 512 * 1024  # bytes to read while many come: a quarter of the steps, at the same cost each
_PIPE = 1 << 20  # bytes; with a smaller pipe, the steps cost more than the saved copy
_LONGEST = (2**31 - 1) / 1000  # s; `poll` cannot wait longer than these 24 days
# This kind of connection cannot give bytes to a pipe; or a sandbox forbids that to this process.
_REFUSED = (errno.EINVAL, errno.EPERM, errno.ENOSYS)


class Body:
    """The body of `response`. One thread takes it, in one of the two ways; any thread closes it."""

    def __init__(
        self,
        response: urllib3.BaseHTTPResponse,
        offset: int,
        timeout: float,
        explain: Callable[[Exception, int], SourceError],
    ) -> None:
        """The body begins at `offset` of the blob; `timeout`: seconds to wait for the next bytes.

        `explain` makes a `SourceError` of an exception and the offset where it happened.
        """
        self._response = response
        self._position = offset
        self._timeout = timeout
        self._explain = explain
        self._lock = threading.RLock()  # held to take bytes from the response, and to close it
        self._closed = False
        # By kernel only:
        self._first: bytes | None = None
        self._end = 0
        self._connection: socket.socket | None = None  # a duplicate, ours
        self._pipe: _Pipe | None = None

    @property
    def length(self) -> int | None:
        """The number of bytes, if the body can be taken by kernel; else None."""
        plain = type(self._response.connection) in _PLAIN  # one with TLS is a subclass
        return getattr(self._response, "length_remaining", None) if plain else None

    # By hand.

    def __iter__(self) -> Iterator[Buffer]:
        data = b""
        while True:
            size = _MUCH if len(data) >= _LITTLE else _LITTLE
            with self._lock:
                data = self._read(size)
            if not data:
                return
            yield data

    def _read(self, size: int) -> bytes:
        # `close` shuts the socket down first: then the end that is read is not the body's.
        data = b"" if self._closed else self._response.read1(size, False)
        self._check_open()
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionAbortedError("the feed was closed")

    # By kernel.

    def wait(self, gather: float, enough: int) -> bool:
        """See `KernelFeed.wait`."""
        with self._lock:
            try:
                self._check_open()
                if self._first is None:
                    self._begin()
                elif not self._first and self._position < self._end:
                    self._wait(gather, enough)
                    self._check_open()
            except Exception as error:
                raise self._explain(error, self._position) from error
            return self._position < self._end

    def _begin(self) -> None:
        self._end = self._position + (self.length or 0)
        self._first = self._read(_LITTLE)  # then urllib3's own buffer is empty
        if self._position + len(self._first) < self._end:
            self._connection = socket.socket(fileno=os.dup(self._response.fileno()))
            self._connection.setblocking(False)  # whatever the default timeout of sockets is
            self._pipe = _Pipe.make()

    def _wait(self, gather: float, enough: int) -> None:
        timeout = self._timeout
        gather = min(gather, timeout)
        if gather > 0 and self._poll(gather, min(enough, _PIPE, self._end - self._position)):
            return
        # Not enough bytes came. If none came within `timeout` that is a failure, also if bytes
        # were allowed to gather for longer.
        if gather in (0, timeout) and not self._poll(timeout - gather, 1):
            raise TimeoutError

    def _poll(self, timeout: float, enough: int) -> bool:
        """Wait for `enough` bytes, or for the end of the connection; False if it takes longer."""
        connection = self._socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, enough)
        return greenlets.wait_until_ready(connection.fileno(), min(timeout, _LONGEST))

    def _socket(self) -> socket.socket:
        return cast("socket.socket", self._connection)

    def move(self, fd: int, limit: int) -> int:
        """See `KernelFeed.move`."""
        with self._lock:
            if self._first:
                count = os.write(fd, self._first[:limit])
                self._first = self._first[count:]
            else:
                count = self._move(fd, min(limit, self._end - self._position))
            self._position += count
            if self._position == self._end:
                self._give_back()
            return count

    def _move(self, fd: int, limit: int) -> int:
        pipe = self._pipe
        try:
            self._check_open()
            count = 0 if pipe is None else pipe.fill(self._socket().fileno(), limit)
            data = b"" if count else self._socket().recv(min(limit, _LITTLE))
            count = count or len(data)
            self._check_open()
            if not count:
                left = self._end - self._position
                raise EOFError(f"it ended {left} bytes short of its {self._end}")
        except BlockingIOError:
            return 0
        except (OSError, EOFError) as error:
            raise self._explain(error, self._position) from error
        if pipe is None or data:
            _write_all(fd, data)
        else:
            pipe.empty(fd, count)
        return count

    def _give_back(self) -> None:
        """At the end of the body: give the connection back to urllib3, for the next request."""
        if self._connection is not None:  # else urllib3 has read the whole body itself
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._let_go()
            response = cast("urllib3.HTTPResponse", self._response)
            if (original := response._original_response) is not None:
                original.close()  # it did not see the bytes, and would wait for them
                response.release_conn()

    # The end.

    def _let_go(self) -> None:
        connection, pipe, self._connection, self._pipe = self._connection, self._pipe, None, None
        if connection is not None:
            connection.close()
        if pipe is not None:
            pipe.close()

    def close(self) -> None:
        """Drop the connection unless the body was read to its end. Idempotent.

        A thread that waits for bytes fails at once.
        """
        self._closed = True
        if not self._lock.acquire(blocking=False):
            try:
                self._response.shutdown()  # ends the wait of the thread that holds the lock
            except (ValueError, RuntimeError, OSError):
                pass  # the body has just come to its end
            self._lock.acquire()
        try:
            self._let_go()
            self._response.close()
            self._response.release_conn()  # a bounded pool counts closed connections as well
        finally:
            self._lock.release()

    def __del__(self) -> None:
        try:
            if not self._closed and self._response.connection is not None:
                reason = "a feed of an HTTPSource was not closed"
                warnings.warn(reason, ResourceWarning, stacklevel=2)
        finally:  # the warning may be raised as an error
            self._let_go()


class _Pipe:
    """A pipe between two descriptors. It is empty except between `fill` and `empty`."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()

    @classmethod
    def make(cls) -> Self | None:
        """One that is large enough; None if there is none to be had, as when a user has many."""
        try:
            pipe = cls()
        except OSError:
            return None
        try:
            fcntl.fcntl(pipe._in, fcntl.F_SETPIPE_SZ, _PIPE)
        except OSError:
            pipe.close()
            return None
        return pipe

    def fill(self, fd: int, limit: int) -> int:
        """Take up to `limit` bytes that are there, without waiting; their number.

        0 if there are none, or none that `splice` can take, for example after an out-of-band byte.
        """
        try:
            return os.splice(fd, self._in, limit, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return 0

    def empty(self, fd: int, count: int) -> None:
        """Write all `count` bytes to the file, at its position."""
        while count:
            try:
                count -= os.splice(self._out, fd, count, flags=os.SPLICE_F_MOVE)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                data = os.read(self._out, count)  # a file system without `splice`
                _write_all(fd, data)
                count -= len(data)

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


def _write_all(fd: int, data: bytes) -> None:
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(fd, view[written:])
