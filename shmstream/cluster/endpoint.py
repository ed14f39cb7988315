"""`Endpoint`: gives other nodes of the cluster what this node has, or has in flight.

    GET /blobs/sha256:<hex>     signed (`signing`); with `Range: bytes=N-` from N on

    200, 206      the bytes from N to the end, as they come. The last chunk of a blob in flight
                  follows when this node has verified all bytes; it does not wait until they are on
                  this node's disk, because the peer verifies them again, and withholds that chunk
                  until it has. If the flight ends otherwise, the connection ends short of its
                  Content-Length
    404           this node neither has the blob nor has it in flight
    425           it is in flight, and a second long there was no byte after N: ask again
    403, 503      the request is not signed as it should be (it is logged); too many peers just now
    416           N is after the end

A node gives what it has, and never pulls for another node. `shmstream-want: complete` asks for the
complete blob only. A stored blob is given once its bytes are known to be right: it is sealed, or
this process has hashed it. A blob whose size its source does not tell is given when it is complete.

The listener is not that of the clients. All processes of a node listen at the same address
(SO_REUSEPORT), and the kernel gives each connection to one of them. So the node is alive as long as
one of its processes is, and a process gives what another process of the node leads. Each connection
has a thread, for one request; the bytes go from the file to the socket through the kernel, except
with TLS.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from shmstream.cluster.peer import has_tls_failed
from shmstream.cluster.signing import Guard
from shmstream.errors import BlobNotFound, ShmstreamError, WriterStalled, escaped
from shmstream.flight.blob import Blob
from shmstream.flight.flight import Role
from shmstream.stream.digest import digest_of
from shmstream.stream.seal import is_sealed
from shmstream.system import process, threads

if TYPE_CHECKING:
    import ssl

PATIENCE = 1.0
"""Seconds for which a request waits for the first byte that it asks for."""
_BACKLOG = 128
_HEAD = 8192  # bytes
_HEAD_TIME = 5.0  # s
_SEND_TIME = 30.0  # s; a peer that takes nothing for so long is cut
_QUIET = 60.0  # s; a flight that brings nothing for so long is cut
_REASONS = {
    200: "OK", 206: "Partial Content", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
    416: "Range Not Satisfiable", 425: "Too Early",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
_RANGE = re.compile(r"bytes=(\d{1,18})-", re.ASCII)
_REQUEST = re.compile(r"(GET|HEAD) (/blobs/([a-z0-9_]+:[0-9a-f]+)) HTTP/1\.[01]", re.ASCII)
_LATIN = "latin-1"

_log = logging.getLogger("shmstream")


@dataclass
class _Giving:
    """A peer that is being given a digest. Guarded by the lock of the endpoint."""

    digest: str
    peer: str
    blob: Blob | None = None
    counted: int = 0  # bytes of the blob


def _nobody_listens() -> None:
    """What is woken if nobody tells of the endpoint."""


class Endpoint:
    """The listener of a node, in this process. Call `start`; closed with the process.

    Args:
        address: host and port to listen on.
        guard: refuses requests.
        opens: opens a blob that is complete or in flight here, for `PATIENCE` seconds at a time.
        most: peers that are given bytes at one time.
        context: for TLS; None for none.
    """

    def __init__(
        self,
        address: tuple[str, int],
        guard: Guard,
        opens: Callable[[str], Blob],
        most: int,
        context: ssl.SSLContext | None,
    ) -> None:
        self._address = address
        self._guard = guard
        self._opens = opens
        self._most = most
        self._context = context
        self.wake: Callable[[], None] = _nobody_listens
        """Called when a peer begins or ceases to be given bytes; it must not block."""
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._giving: dict[int, _Giving] = {}  # by a number
        self._numbers = itertools.count()
        self._verified: dict[str, tuple[int, int, int, int]] = {}
        self._thread: threads.Call | None = None
        self.given: int = 0
        """Bytes that this process has given to peers, when it was last counted."""
        self._uncounted: dict[str, int] = {}

    @property
    def children(self) -> dict[str, tuple[str, ...]]:
        """For each digest that is given just now, the peers that get it."""
        found: dict[str, tuple[str, ...]] = {}
        with self._lock:
            for each in self._giving.values():
                found[each.digest] = (*found.get(each.digest, ()), each.peer)
        return found

    def count(self) -> dict[str, int]:
        """Count the bytes that were given; those of each digest since the last call."""
        with self._lock:
            for each in self._giving.values():
                self._count(each)
            found, self._uncounted = self._uncounted, {}
        return found

    def _count(self, giving: _Giving) -> None:
        if giving.blob is not None:
            position = giving.blob.position
            if (new := position - giving.counted) > 0:  # it is 0 while the blob joins anew
                giving.counted = position
                self.given += new
                self._uncounted[giving.digest] = self._uncounted.get(giving.digest, 0) + new

    def start(self) -> None:
        """Listen, unless this process does. A forked child starts it for itself.

        Raises:
            OSError: the address cannot be listened on.
            RuntimeError: no thread can be started. Another call tries again.
        """
        with self._lock:
            if self._listener is not None:
                return
            with process.fork_lock:
                self._listener = _listen(self._address)
                process.track(self._listener)
            self._thread = threads.Call(self._accept, "shmstream-peers")
            try:
                self._thread.start()
            except BaseException:
                self._listener.close()  # else peers would connect, and wait for nothing
                self._listener = None
                raise
        process.register(self)

    # Connections.

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None:
            try:
                connection, peer = listener.accept()
            except OSError:
                if self._listener is not listener:
                    return  # it was closed
                time.sleep(0.05)  # descriptors have run out
                continue
            with self._lock:
                is_too_many = len(self._connections) >= 4 * self._most + 16
                if not is_too_many:
                    self._connections.add(connection)
            if is_too_many:
                connection.close()
                continue
            call = threads.Call(partial(self._serve, connection, peer), "shmstream-peer")
            try:
                call.start()
            except RuntimeError:  # no thread can be started
                self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _serve(self, connection: socket.socket, peer: tuple[object, ...]) -> None:
        """One request, from its first byte to its end. Whatever happens, the connection ends."""
        talk = connection
        try:
            connection.settimeout(_HEAD_TIME)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                talk = self._wrapped(connection, str(peer[0]), self._context)
                with self._lock:
                    self._connections.add(talk)
            self._answer(talk, str(peer[0]))
            with suppress(OSError):
                talk.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError) as error:  # ssl.SSLError is one; the peer has gone
            _log.debug("peer %s: %s", peer[0], error)
        except ShmstreamError as error:  # the peer sees a connection that ends too early
            _log.info("peer %s: %s", peer[0], error)
        finally:
            self._forget(talk)
            self._forget(connection)

    @staticmethod
    def _wrapped(connection: socket.socket, peer: str, context: ssl.SSLContext) -> socket.socket:
        try:
            return context.wrap_socket(connection, server_side=True)
        except OSError as error:
            if has_tls_failed(error):
                _log.warning("a connection of %s was refused: TLS with it fails: %s", peer, error)
            raise

    def _answer(self, talk: socket.socket, peer: str) -> None:
        head = _read_head(talk)
        found = _REQUEST.fullmatch(head[0])
        if found is None:
            _say(talk, 400)
            return
        method, path, digest = found.groups()
        headers = _headers(head[1:])
        if (reason := self._guard.objection(method, path, headers)) is not None:
            told = escaped(f"a request of {peer} for {digest[:80]} was refused: {reason}")
            _log.warning("%s", told)
            _say(talk, 403)
            return
        asked = _RANGE.fullmatch(headers.get("range", "bytes=0-"))
        if asked is None:
            _say(talk, 416)
            return
        giving = _Giving(
            digest, peer if headers["shmstream-peer"] == "-" else headers["shmstream-peer"]
        )
        number = next(self._numbers)
        with self._lock:
            is_busy = len(self._giving) >= self._most
            if not is_busy:
                self._giving[number] = giving
        if is_busy:
            _say(talk, 503)
            return
        try:
            talk.settimeout(_SEND_TIME)
            is_whole = headers.get("shmstream-want") == "complete"
            self._give(talk, giving, int(asked[1]), is_whole=is_whole, is_get=method == "GET")
        finally:
            with self._lock:
                del self._giving[number]
            self.wake()

    # Giving.

    def _give(
        self, talk: socket.socket, giving: _Giving, start: int, *, is_whole: bool, is_get: bool
    ) -> None:
        digest = giving.digest
        try:
            blob = self._opens(digest)
        except (BlobNotFound, ValueError):
            _say(talk, 404)
            return
        with blob:
            status = self._status(blob, digest, start, is_whole=is_whole)
            if status not in (200, 206):
                size = {"content-range": f"bytes */{blob.size}"} if status == 416 else {}
                _say(talk, status, size)
                return
            _say(talk, status, self._about(blob, start), length=(blob.size or 0) - start)
            if is_get:
                blob.seek(start)
                with self._lock:
                    giving.blob, giving.counted = blob, start
                self.wake()
                try:
                    self._copy(talk, blob, start)
                finally:
                    with self._lock:
                        self._count(giving)
                        giving.blob = None

    def _status(self, blob: Blob, digest: str, start: int, *, is_whole: bool) -> int:
        """What to answer; the first byte is there if that is 200 or 206."""
        if blob.role is Role.STORED and not self._is_right(blob, digest):
            return 404
        if is_whole and not blob.is_complete:
            return 404
        try:
            there = blob.wait_past(start)
        except WriterStalled:
            return 425
        except ShmstreamError:  # the flight was given up
            return 404
        size = blob.size
        if size is None:
            return 425
        if start > size or (start == size and size > 0) or there < start:
            return 416
        return 206 if start else 200

    @staticmethod
    def _about(blob: Blob, start: int) -> dict[str, str]:
        about, size = blob.metadata, blob.size
        headers = {"shmstream-tail": str(blob.published)}
        if start and size is not None:
            headers["content-range"] = f"bytes {start}-{size - 1}/{size}"
        if about.media_type is not None:
            headers["content-type"] = about.media_type
        if about.validator is not None:
            headers["shmstream-validator"] = about.validator
        return headers

    def _copy(self, talk: socket.socket, blob: Blob, start: int) -> None:
        blob.seek(start)
        quiet = time.monotonic()
        while True:
            before = blob.position
            try:
                blob.copy(talk)
                return
            except WriterStalled:
                if blob.position > before:
                    quiet = time.monotonic()
                if _has_left(talk) or time.monotonic() - quiet > _QUIET:
                    return

    def _is_right(self, blob: Blob, digest: str) -> bool:
        """Whether a stored blob has its digest: corruption must not go down a tree of nodes."""
        facts = os.fstat(blob.fileno())
        if is_sealed(blob.path, facts, digest):
            return True
        identity = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if self._verified.get(digest) == identity:
            return True
        got = digest_of(blob.fileno(), digest.partition(":")[0])
        if got != digest:
            _log.error("%s is not given to peers: its digest is %s", blob.path, got)
            return False
        with self._lock:
            self._verified[digest] = identity
        return True

    # The end.

    def close(self) -> None:
        """Listen no more, and end all connections. Idempotent."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._connections)
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        for each in connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(1.0)

    def abandon(self) -> None:
        """In a forked child: the listener is the parent's."""
        self._inherited = self._connections
        self._begin()


def _listen(address: tuple[str, int]) -> socket.socket:
    """A socket that listens there, beside the other processes of the node."""
    host, port = address
    [(family, kind, number, _, place), *_] = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _read_head(talk: socket.socket) -> list[str]:
    """The lines of the head of a request.

    Raises:
        ValueError: it is too long, or ends too early.
    """
    until, data = time.monotonic() + _HEAD_TIME, b""
    while b"\r\n\r\n" not in data:
        more = talk.recv(4096)
        data += more
        if not more or len(data) > _HEAD or time.monotonic() > until:
            raise ValueError("no request")
    return data.partition(b"\r\n\r\n")[0].decode(_LATIN).split("\r\n")


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _say(
    talk: socket.socket, status: int, headers: dict[str, str] | None = None, length: int = 0
) -> None:
    told = {"content-length": str(length), "connection": "close", **(headers or {})}
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{n}: {v}" for n, v in told.items())]
    talk.sendall(("\r\n".join(lines) + "\r\n\r\n").encode(_LATIN, "replace"))


def _has_left(talk: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    poll = select.poll()
    poll.register(talk, select.POLLRDHUP)
    return bool(poll.poll(0))
