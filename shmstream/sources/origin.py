"""The HTTP origin that the demo, the tests and the benches download from: a thread a connection.

Here is what they have in common: the connections, the requests and their count, the part that is
asked for, the pace of a body, and a fault after so many bytes of it. A subclass says what it serves
and which faults there are: `demo.pages`, tests/support/origin.py and quirks.py,
bench/peers/upstream.py and bench/cluster/member.py.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from ssl import SSLContext

RANGE = re.compile(r"bytes=(\d+)-(\d*)")
"""The header `Range` as an origin understands it: the first and the last byte, or to the end."""

_REASONS = {200: "OK", 206: "Partial Content", 416: "Range Not Satisfiable"}
_STEP = 0.008  # s between the pieces of a body that has a rate
Part = range
"""Bytes of a content, from `start` to before `stop`."""
Fault = Callable[[], bool]
"""What happens in the middle of a body; false ends the answer there."""


@dataclass
class Request:
    """One request, and how much of its answer was sent."""

    number: int  # among those for its path
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    connection: int  # counts the connections, so that kept ones show
    host: str  # of the client; likewise `port`
    port: int
    body: str = ""  # as Latin-1
    status: int | None = None
    start: int = 0  # the byte of the content that the answer begins with
    sent: int = 0  # body bytes that the kernel took
    over: bool = False

    @property
    def range(self) -> str | None:
        """The header."""
        return self.headers.get("range")

    @property
    def authorization(self) -> str | None:
        """The header."""
        return self.headers.get("authorization")

    def part(self, size: int, *validators: str | None) -> tuple[int, Part, dict[str, str]]:
        """The status, the bytes and the header for what is asked for of `size` bytes.

        `validators` are those that If-Range may have.
        """
        part = range(size)
        wanted = RANGE.fullmatch(self.range or "")
        if wanted is None or self.headers.get("if-range") not in (None, *validators):
            return 200, part, {}
        part = part[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else size]
        if not part:
            return 416, part, {"Content-Range": f"bytes */{size}"}
        self.start = part.start
        return 206, part, {"Content-Range": f"bytes {part.start}-{part.stop - 1}/{size}"}


class Pace:
    """When the bytes of a body are due: all at once, or at `rate` bytes a second."""

    def __init__(self, rate: float, least: int, most: int) -> None:
        """`least` and `most` bound the bytes that are sent at once."""
        self.piece: int = min(max(int(rate * _STEP), least), most) if rate else most
        self._rate = rate
        self.begin()

    def begin(self, sent: int = 0) -> None:
        """The byte after so many is due now."""
        self._began = time.monotonic() - (sent / self._rate if self._rate else 0)

    def keep(self, sent: int, wait: Callable[[float], None] = time.sleep) -> None:
        """Return when the byte after so many is due; `wait(seconds)` waits."""
        due = self._began + sent / self._rate if self._rate else self._began
        while (left := due - time.monotonic()) > 0:
            wait(min(left, 0.02))


class Server(ABC):
    """An origin; with `tls`, it speaks TLS."""

    least: int = 1  # bytes that are sent at once
    most: int = 4 << 20

    def __init__(self, tls: SSLContext | None = None) -> None:
        self._tls = tls
        self.lock: threading.Lock = threading.Lock()  # guards what follows
        self.asked: list[Request] = []
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._count = 0  # of connections

    @abstractmethod
    def answer(self, channel: socket.socket, request: Request) -> bool:
        """Answer a request; whether the connection can be used for another."""

    def note(self, request: Request) -> None:  # noqa: B027  (few subclasses need it)
        """A request begins, or is over. The lock is held."""

    def start(self, listener: socket.socket) -> None:
        """Accept connections in a thread, until `stop`."""
        self._listener = listener
        self._accepting = threading.Thread(target=self.accept, args=[listener], daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Accept no more connections; those that there are go on."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it
        self._accepting.join()

    def cut(self) -> None:
        """End every connection with a reset, as a crash does."""
        self._cut()

    def cut_and_wait(self) -> None:
        """End every connection, and wait for the ends of its threads, each for 10 s at most."""
        for thread in self._cut():
            thread.join(10)

    def _cut(self) -> list[threading.Thread]:
        with self.lock:
            ending = dict(self._connections)
        for connection in ending.values():
            with suppress(OSError):
                reset_on_close(connection)
                connection.shutdown(socket.SHUT_RDWR)
        return list(ending)

    def accept(self, listener: socket.socket) -> None:
        """Accept connections until the listener is shut down."""
        with suppress(OSError), listener:
            while True:
                connection, client = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self.lock:
                    self._count += 1
                    told = (connection, self._count, *client)
                    thread = threading.Thread(target=self._converse, args=told, daemon=True)
                    self._connections[thread] = connection
                    thread.start()

    def _converse(self, channel: socket.socket, number: int, host: str, port: int) -> None:
        me = threading.current_thread()
        try:
            if self._tls is not None:
                channel.settimeout(60)
                channel = self._connections[me] = self._tls.wrap_socket(channel, server_side=True)
                channel.settimeout(None)
            with channel.makefile("rb") as incoming:
                while self._answer_one(channel, incoming, number, host, port):
                    pass
        except OSError:
            pass  # the client has gone
        finally:
            channel.close()
            with self.lock:
                del self._connections[me]

    def _answer_one(
        self, channel: socket.socket, incoming: BinaryIO, number: int, host: str, port: int
    ) -> bool:
        words = incoming.readline(65536).decode("latin-1").split()
        if len(words) != 3:
            return False
        headers = {}
        while (line := incoming.readline(65536)) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = incoming.read(int(headers.get("content-length", "0"))).decode("latin-1")
        with self.lock:
            earlier = sum(each.path == words[1] for each in self.asked)
            request = Request(earlier, words[0], words[1], headers, number, host, port, body)
            self.asked.append(request)
            self.note(request)
        try:
            return self.answer(channel, request)
        finally:
            with self.lock:
                request.over = True
                self.note(request)

    def send_head(
        self,
        channel: socket.socket,
        request: Request,
        status: int,
        headers: Mapping[str, object],
        reason: str | None = None,
    ) -> bool:
        """Send the head of an answer; whether a body belongs to it."""
        request.status = status
        lines = [f"HTTP/1.1 {status} {reason or _REASONS.get(status, 'Whatever')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        channel.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return request.method != "HEAD"

    def send_file(
        self,
        channel: socket.socket,
        request: Request,
        file: int,
        etag: str,
        headers: Mapping[str, object],
        rate: float = 0,
        faults: Mapping[int, Fault] | None = None,
    ) -> bool:
        """Answer with what is asked for of a file, by `sendfile`; see `send_body`.

        A fault is called before this byte of the file, if it is asked for.
        """
        status, part, told = request.part(os.fstat(file).st_size, etag)
        about = {"Accept-Ranges": "bytes", "ETag": etag, "Content-Length": len(part)}
        if not self.send_head(channel, request, status, {**headers, **about, **told}):
            return True

        def send(first: int, last: int) -> int:
            return os.sendfile(channel.fileno(), file, part.start + first, last - first)

        within = {at - part.start: fault for at, fault in (faults or {}).items() if at in part}
        return self.send_body(request, len(part), send, rate, within)

    def send_body(
        self,
        request: Request,
        size: int,
        send: Callable[[int, int], int],
        rate: float = 0,
        faults: Mapping[int, Fault] | None = None,
    ) -> bool:
        """Send a body at its pace; whether it came to its end.

        `send(first, last)` sends these bytes of the body and returns how many. A fault is called
        when so many bytes were sent.
        """
        faults, pace = faults or {}, Pace(rate, self.least, self.most)
        while request.sent < size:
            pace.keep(request.sent)
            if fault := faults.get(request.sent):
                if not fault():
                    return False
                pace.begin(request.sent)  # what the fault has taken is not made up for
            sent = request.sent  # a fault may have sent something
            last = min([size, sent + pace.piece, *(at for at in faults if at > sent)])
            request.sent += send(sent, last)
        return (fault := faults.get(size)) is None or fault()


def reset_on_close(connection: socket.socket) -> None:
    """Have the connection end with RST when it is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
