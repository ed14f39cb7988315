"""The body of one HTTP answer, on its way to a file: through the kernel where that can be.

    by kernel   the bytes go from the connection through a pipe to the file (`splice`): they are
                copied once, and never enter this process. For connections without TLS, and bodies
                whose length is known
    by hand     urllib3 reads, and hands on: for all others

By kernel, what comes may gather in the connection: whoever has no use for it before a certain time,
or for less than so many bytes, is not woken before (SO_RCVLOWAT). The first bytes, those that came
with the head, are urllib3's to read; it gets the connection back when the body is at its end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self, cast

from shmstream.errors import SourceError

try:
    import urllib3
except ImportError as _missing:
    raise ImportError("an HTTP source needs urllib3: pip install 'shmstream[http]'") from _missing
from urllib3.connection import HTTPConnection

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LITTLE = 128 * 1024  # bytes to ask for while they trickle: memory for more costs 10 us each time
_MUCH = 512 * 1024  # ... and while they pour in: a quarter of the steps, each as dear
_PIPE = 1 << 20  # bytes; with less in one go, the steps cost more than the copy that is saved
_LONGEST = (2**31 - 1) / 1000  # s; what `poll` can wait for: 24 days
# Neither this connection, nor this process if it is watched over, may give anything to a pipe.
_REFUSED = (errno.EINVAL, errno.EPERM, errno.ENOSYS)


class Body:
    """The body of `response`: taken by one thread, in one of the two ways; closed by any."""

    def __init__(
        self,
        response: urllib3.BaseHTTPResponse,
        offset: int,
        timeout: float,
        explain: Callable[[Exception, int], SourceError],
    ) -> None:
        """`offset`: where in the blob it begins; `timeout`: seconds to wait for the next bytes.

        `explain` says what has failed there, as a `SourceError`.
        """
        self._response = response
        self._position = offset
        self._timeout = timeout
        self._explain = explain
        self._lock = threading.RLock()  # held by whoever takes from the response, or closes it
        self._closed = False
        # By kernel only:
        self._first: bytes | None = None
        self._end = 0
        self._connection: socket.socket | None = None  # a duplicate, ours
        self._pipe: _Pipe | None = None

    @property
    def length(self) -> int | None:
        """Bytes of it, if it can be taken by kernel; else None."""
        plain = type(self._response.connection) is HTTPConnection  # that with TLS is a kind of it
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
        # Closing shuts the socket down first: what comes out of it then is no data.
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
        self._first = self._read(_LITTLE)  # after that, urllib3 has nothing in a buffer of its own
        if self._position + len(self._first) < self._end:
            self._connection = socket.socket(fileno=os.dup(self._response.fileno()))
            self._connection.setblocking(False)  # as it is, whatever the default timeout may be
            self._pipe = _Pipe.make()

    def _wait(self, gather: float, enough: int) -> None:
        timeout = self._timeout
        gather = min(gather, timeout)
        if gather > 0 and self._poll(gather, min(enough, _PIPE, self._end - self._position)):
            return
        # There is not enough. Nothing for `timeout` is a failure, however long it may gather.
        if gather in (0, timeout) and not self._poll(timeout - gather, 1):
            raise TimeoutError

    def _poll(self, timeout: float, enough: int) -> bool:
        """Wait for so many bytes, or for the end of the connection; False: not in that time."""
        connection = self._socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, enough)
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(min(timeout, _LONGEST) * 1000))

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
        """All of it was taken: let urllib3 have the connection as it was, for the next request."""
        if self._connection is not None:  # else it has seen the end itself
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._let_go()
            response = cast("urllib3.HTTPResponse", self._response)
            if (original := response._original_response) is not None:
                original.close()  # it believes that what went past it is still to come
                response.release_conn()

    # The end.

    def _let_go(self) -> None:
        connection, pipe, self._connection, self._pipe = self._connection, self._pipe, None, None
        if connection is not None:
            connection.close()
        if pipe is not None:
            pipe.close()

    def close(self) -> None:
        """Drop the connection, unless all was read; who waits for bytes fails. Idempotent."""
        self._closed = True
        if not self._lock.acquire(blocking=False):
            try:
                self._response.shutdown()  # ends the wait of the thread that has the lock
            except (ValueError, RuntimeError, OSError):
                pass  # it has just come to its end
            self._lock.acquire()
        try:
            self._let_go()
            self._response.close()
            self._response.release_conn()  # a pool that is bounded counts it, closed or not
        finally:
            self._lock.release()

    def __del__(self) -> None:
        try:
            if not self._closed and self._response.connection is not None:
                reason = "a feed of an HTTPSource was not closed"
                warnings.warn(reason, ResourceWarning, stacklevel=2)
        finally:  # a warning may be an error
            self._let_go()


class _Pipe:
    """Bytes on their way from one descriptor to another; empty but for the time in between."""

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
        """Take up to `limit` bytes that are there; how many.

        0: there are none, or none that can be taken so, such as those behind a byte out of band.
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
        """Write all `count` bytes to a file, at its position."""
        while count:
            try:
                count -= os.splice(self._out, fd, count, flags=os.SPLICE_F_MOVE)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                data = os.read(self._out, count)  # a file system without it
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
