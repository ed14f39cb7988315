"""Connections and their pools: those of urllib3, with what real servers need.

    target      a request has the text of its URL as it was given. A signature in a URL is made of
                that very text, so `%2b` does not become `%2B`, and dot segments stay
    kept        a kept connection that the server has closed meanwhile is no failure: all idle
                connections to the server are closed, and the request goes out on a new connection
    head        interim answers (102, 103) are skipped; a head may have many headers, and long
                ones, and `Content-Length: 5, 5` is 5
    waiting     `Waiting`: how long the head may take, how long the body may be silent, and when all
                has to be there. A server that sends a byte now and then gains no time by that,
                except for the silence of a body

    this thread                             the server, at the same time
    takes a kept connection from the pool,
    which has not ended
                                            ends the connection, because it was idle
    sends its request; reads the end
    instead of an answer

No look at a connection can tell that in advance, so a request is sent a second time. That is done
only if the connection was a kept one. What a server does to a request on a new connection is its
answer, and the caller's matter.

Needs urllib3, the extra `http`.
"""

from __future__ import annotations

import email.policy
import http.client
import io
import queue
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from urllib3 import connection, connectionpool, exceptions
from urllib3.util import Timeout

if TYPE_CHECKING:
    import urllib3
    from typing_extensions import Buffer

_IDLE = 60.0  # s; routers forget a connection that is idle for longer, and tell nobody
_NEARLY = 1.01  # so many times as long as it should, a wait may take
_LONGEST_HEAD = 1 << 20  # bytes
_SPACE = " \t"  # around a value; other whitespace may be part of one that is UTF-8


@dataclass(frozen=True)
class Waiting:
    """How long to wait for an answer: `head` seconds for the whole head; in the body `silence`
    seconds for the next bytes. `until`: when all has to be there, on the monotonic clock.
    """

    head: float
    silence: float
    until: float | None = None


class ClosedMeanwhile(ConnectionError):
    """The server has closed a kept connection before it answered."""


class _PatientReader(io.RawIOBase):
    """The bytes of a connection, each waited for as long as `Waiting` says."""

    def __init__(self, connected: socket.socket, waiting: Waiting) -> None:
        self._socket = connected
        self._raw = cast("io.RawIOBase", connected.makefile("rb", buffering=0))
        self._waiting = waiting
        self._longest = waiting.head  # s; for the next bytes
        self._deadline: float | None = time.monotonic() + waiting.head
        if waiting.until is not None:
            self._deadline = min(self._deadline, waiting.until)

    def begin_body(self) -> None:
        """The head is there."""
        self._longest, self._deadline = self._waiting.silence, self._waiting.until
        self._wait_at_most(self._longest, self._longest)

    def readinto(self, buffer: Buffer, /) -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the time for the answer is over")
            longest = min(left, self._longest)
            self._wait_at_most(longest, longest * _NEARLY)
        return cast("int | None", self._raw.readinto(buffer))

    def _wait_at_most(self, seconds: float, nearly: float) -> None:
        """Set the timeout, unless it lies between the two: to set it is a system call."""
        now = self._socket.gettimeout()
        if now is None or not seconds <= now <= nearly:
            self._socket.settimeout(seconds)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose head is read here; http.client then finds the end of the body."""

    def __init__(
        self,
        connected: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
        *,
        waiting: Waiting | None = None,
    ) -> None:
        super().__init__(connected, debuglevel, method, url)
        self._reader: _PatientReader | None = None
        if waiting is not None:
            self.fp.close()
            self._reader = _PatientReader(connected, waiting)
            self.fp = io.BufferedReader(self._reader)

    def begin(self) -> None:
        """Read the head, and find out where the body ends (RFC 9112, 6.3)."""
        if cast("object", self.headers) is not None:
            return
        incoming = self.fp
        status_line, fields = _head(incoming)
        self.fp = io.BufferedReader(cast("io.RawIOBase", io.BytesIO(status_line)))
        try:
            version, self.status, reason = self._read_status()  # type: ignore[attr-defined]
        finally:
            self.fp = incoming
        if not version.startswith(("HTTP/1.", "HTTP/0.9")):
            raise http.client.UnknownProtocol(version)
        self.reason = reason.strip()
        self.version = 10 if version in ("HTTP/1.0", "HTTP/0.9") else 11
        self.headers = self.msg = _Fields(fields)
        self.chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        self.length = self._told_length()
        has_end = self.chunked or self.length is not None
        self.will_close = not has_end or self._check_close()  # type: ignore[attr-defined]
        if self._reader is not None:
            self._reader.begin_body()

    def _told_length(self) -> int | None:
        """Bytes of the body, if the head tells."""
        if self.status in (204, 304) or self.status < 200 or self._method == "HEAD":  # type: ignore[attr-defined]
            return 0
        if self.chunked:
            return None
        try:
            length = int(self.headers.get("content-length", ""))
        except ValueError:
            return None
        return length if length >= 0 else None


class _AsItIs(email.policy.Compat32):
    def header_fetch_parse(self, name: str, value: str) -> str:  # noqa: ARG002
        return value


_AS_IT_IS = _AsItIs()


class _Fields(http.client.HTTPMessage):
    """The header fields of an answer, as the server has sent them.

    http.client has them parsed as those of an e-mail, which takes longer than to write a small
    blob.
    """

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        super().__init__(policy=_AS_IT_IS)
        for name, value in fields:
            self.set_raw(name, value)


def _head(incoming: io.BufferedReader) -> tuple[bytes, list[tuple[str, str]]]:
    """Status line and fields of the final answer; an empty line if the connection has ended.

    Raises:
        ConnectionError: the connection ended in the middle of it.
        HTTPException: it is too long, or contradicts itself.
    """
    most = _LONGEST_HEAD
    while lines := _lines(incoming, most):
        if not _is_interim(lines[0]):
            return lines[0], _in_order(_fields(lines[1:-1]))
        most -= sum(map(len, lines))
    return b"", []


def _lines(incoming: io.BufferedReader, most: int) -> list[bytes]:
    """The lines of one head, from the status line to the empty line; none at the end."""
    lines: list[bytes] = []
    while line := incoming.readline(most + 1):
        if (most := most - len(line)) < 0:
            raise http.client.HTTPException(f"its head has more than {_LONGEST_HEAD} bytes")
        lines.append(line)
        if line in (b"\r\n", b"\n") and len(lines) > 1:
            return lines
    if lines:
        raise http.client.RemoteDisconnected("the connection ended in the middle of the head")
    return lines


def _is_interim(status_line: bytes) -> bool:
    """Whether another answer follows; 101 is final, and nobody has asked for it."""
    version, _, rest = status_line.partition(b" ")
    status = rest.lstrip()[:3]
    return version.startswith(b"HTTP/") and status[:1] == b"1" and status != b"101"


def _fields(lines: list[bytes]) -> list[tuple[str, str]]:
    """The name and the value of each field. A line that is no field counts for nothing."""
    fields: list[tuple[str, str]] = []
    for line in lines:
        text = str(line, "latin-1").rstrip("\r\n").replace("\r", " ")
        if text[:1] in (" ", "\t"):  # it continues the field before
            if fields:
                name, value = fields[-1]
                fields[-1] = name, f"{value} {text.strip(_SPACE)}"
            continue
        name, colon, value = text.partition(":")
        if colon and name:
            fields.append((name.rstrip(_SPACE), value.strip(_SPACE)))
    return fields


def _in_order(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same fields with one Content-Length, or none where it does not count."""
    lengths: set[str] = set()
    ordered: list[tuple[str, str]] = []
    is_coded = False
    for name, value in fields:
        kind = name.lower()
        if kind == "content-length":
            lengths.update(each.strip() for each in value.split(","))
        elif kind != "transfer-encoding":
            ordered.append((name, value))
        elif value.lower() not in ("", "identity"):  # else it says nothing
            ordered.append((name, value))
            is_coded = True
    lengths.discard("")
    if is_coded:
        return ordered  # a length does not count (RFC 9112, 6.3)
    if len(lengths) > 1:
        raise http.client.HTTPException("its head tells several lengths")
    return ordered + [("Content-Length", each) for each in lengths]


# Connections and pools.


class PlainConnection(connection.HTTPConnection):
    """A connection without TLS."""

    response_class: type[http.client.HTTPResponse] = _Answer
    idle_since: float = 0.0


class TLSConnection(connection.HTTPSConnection):
    """A connection with TLS."""

    response_class: type[http.client.HTTPResponse] = _Answer
    idle_since: float = 0.0


class _Keeping(connectionpool.HTTPConnectionPool):
    """What both kinds of pools do. `urlopen` takes `target` and `waiting`, too."""

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        try:
            return super().urlopen(method, url, **options)
        except exceptions.ProtocolError as error:
            if not isinstance(error.args[-1], ClosedMeanwhile):
                raise
        self._close_idle()
        options["timeout"] = options["timeout"].clone()  # the first request has begun to count
        return super().urlopen(method, url, **options)

    def _get_timeout(self, timeout: Any) -> Timeout:
        """The timeout of one request; urllib3 would copy it twice, as if it were of several."""
        return timeout if isinstance(timeout, Timeout) else super()._get_timeout(timeout)

    def _make_request(  # type: ignore[override]
        self,
        conn: PlainConnection | TLSConnection,
        method: str,
        url: str,
        *,
        target: str | None = None,
        waiting: Waiting | None = None,
        **options: Any,
    ) -> urllib3.BaseHTTPResponse:
        was_kept = conn.idle_since > 0 and not conn.is_closed
        conn.idle_since = 0.0
        conn.response_class = partial(_Answer, waiting=waiting)  # type: ignore[assignment]
        try:
            return super()._make_request(conn, method, target or url, **options)
        except (ConnectionError, ssl.SSLEOFError) as error:
            if was_kept:
                raise ClosedMeanwhile(*error.args) from error
            raise

    def _get_conn(self, timeout: float | None = None) -> Any:
        try:
            conn = super()._get_conn(timeout)
        except exceptions.ClosedPoolError:
            return self._new_conn()  # another thread has closed the pool; `_put_conn` closes it
        idle_since = getattr(conn, "idle_since", 0.0)
        if idle_since and time.monotonic() - idle_since > _IDLE:
            conn.close()
        return conn

    def _put_conn(self, conn: Any) -> None:
        """Keep a connection, or close it if enough are kept, which is no reason for a warning."""
        if conn is not None:
            conn.idle_since = time.monotonic()
        pool = self.pool
        try:
            cast("queue.LifoQueue[Any]", pool).put(conn, block=False)
        except (AttributeError, queue.Full):  # without a queue, the pool was closed
            if conn is not None:
                conn.close()
        if self.pool is None and pool is not None:  # it was closed just now: perhaps before `put`
            _close_all(pool)

    def _close_idle(self) -> None:
        """Close all idle connections. They stay in the pool, and connect anew when needed."""
        if (pool := self.pool) is not None:
            for conn in _close_all(pool):
                self._put_conn(conn)


def _close_all(pool: queue.LifoQueue[Any]) -> list[Any]:
    """Take all connections out of a pool, and close them."""
    found = []
    with suppress(queue.Empty):
        while True:
            found.append(pool.get(block=False))
    for conn in found:
        if conn is not None:
            conn.close()
    return found


class Pool(_Keeping):
    """Connections to one server, without TLS."""

    ConnectionCls = PlainConnection


class TLSPool(_Keeping, connectionpool.HTTPSConnectionPool):
    """Connections to one server, with TLS."""

    ConnectionCls = TLSConnection

    def _validate_conn(self, conn: Any) -> None:
        """Connect. urllib3 warns of servers whose certificate is not checked: a user wants that."""
        if conn.is_closed:
            conn.connect()
