"""uvicorn with what it lacks for blobs: zero-copy sends, and bounds on the head of a request.

    uvicorn.Config(app, http=shmstream.server.Protocol)

`Protocol` is uvicorn's own for httptools, and more:

    zero-copy   the ASGI extension `http.response.zerocopysend`: the kernel sends a span of a file
                (`sendfile`), so its bytes never enter this process. For connections without TLS
    408         a client that has not sent the head of its request in `head_timeout` seconds
    431         a head of more than `head_size` bytes
    local       no paced sending to clients on this host (congestion.py)

And a response that fails ends its connection at once.

The descriptor that is sent to is a duplicate of the connection's, ours until the connection is
lost: one that was closed in the meantime could be another connection by now.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import termios
from contextlib import suppress
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

try:
    from uvicorn.protocols.http import httptools_impl
except ImportError as missing:
    raise ImportError("serving needs uvicorn: pip install 'shmstream[serve]'") from missing

from shmstream import congestion

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

_ZERO_COPY = "http.response.zerocopysend"
_SERVER = "shmstream.server"
_FIRST = 64 * 1024  # bytes


class Protocol(httptools_impl.HttpToolsProtocol):
    """One connection. See the module; subclasses may set other bounds."""

    zero_copy = True
    """Whether to offer it, where it is possible."""

    head_timeout = 20.0
    """Seconds that a client has for the head of a request, from its connection or first byte; and
    to take some of the rest of a response that is complete."""

    head_size = 64 * 1024
    """Bytes that the head of a request may have."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._application, self.app = self.app, self._answer
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._unparsed = 0  # bytes since the parser has last had something to tell
        self._is_first = True  # nothing of the response's file was sent yet
        self._file = -1  # the duplicate
        self._passed = 0  # bytes that went past the transport
        self._writable: asyncio.Future[None] | None = None
        self._rest_timer: asyncio.TimerHandle | None = None

    # The head of a request.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        if self.client is not None and self.server is not None:
            connection = transport.get_extra_info("socket")
            congestion.suit(connection, self.server, self.client)
        self._expect_head()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        """Unless a response is under way: until it is complete nothing more may be read."""
        if self._head_timer is None and not self._is_answering():
            self._head_timer = self.loop.call_later(self.head_timeout, self._head_is_late)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._refuse(408, b"Request Timeout")

    def _refuse(self, status: int, phrase: bytes) -> None:
        self._head_is_here()
        if not self.transport.is_closing():
            if not self._is_answering():  # else in another's body
                head = b"content-length: 0\r\nconnection: close\r\n\r\n"
                self.transport.write(b"HTTP/1.1 %d %b\r\n%b" % (status, phrase, head))
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """What came is no request."""
        self._refuse(400, b"Bad Request")

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; none that come after it was refused."""
        if self.transport.is_closing():
            return
        self._expect_head()  # of empty lines before it the parser tells nothing
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > self.head_size:  # a header, perhaps one after a body
            self._refuse_head()

    def on_message_begin(self) -> None:
        """A request begins, the first of the connection or a later one."""
        super().on_message_begin()
        self._head_size = self._unparsed = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        """A part of the request's line."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def _count(self, size: int) -> None:
        self._unparsed = 0
        self._head_size += size
        if self._head_size > self.head_size:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(431, b"Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        """The head is here: have the application answer."""
        self._head_is_here()
        if self.transport.is_closing():
            return
        self._is_first = True
        extensions: dict[str, dict[str, Any]] = {_SERVER: {"last": None, "taken": self._taken}}
        if self.zero_copy and self.scheme == "http":
            extensions[_ZERO_COPY] = {}
        self.scope["extensions"] = cast("dict[str, dict[object, object]]", extensions)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the request's body, if there is one that was not refused."""
        self._unparsed = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        if not self.transport.is_closing():
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """The connection is another protocol's from now on."""
        if not self.transport.is_closing():
            self._let_go()
            super().handle_websocket_upgrade()

    async def _answer(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """The application that uvicorn calls. What ours leaves incomplete ends here and now.

        uvicorn would wait for the client to take what is in its buffer, perhaps for ever.
        """
        cycle = cast("httptools_impl.RequestResponseCycle", cast("MethodType", send).__self__)
        try:
            await self._application(scope, receive, partial(self._send, cycle))
        finally:
            if cycle.response_started and not cycle.response_complete:
                self.transport.abort()

    # The end of a response.

    def on_response_complete(self) -> None:
        """All of it was written, though perhaps not sent: the transport may have some left.

        Nobody else waits for that. A connection that was closed meanwhile would stay for as long as
        its client likes.
        """
        super().on_response_complete()
        if self._rest_timer is None and self.transport.get_write_buffer_size():
            self._see_it_out(None)

    def _see_it_out(self, before: int | None) -> None:
        self._rest_timer = None
        if self.transport.get_write_buffer_size() and (before is None or not self._is_answering()):
            taken = self._taken()
            if taken == before:
                self.transport.abort()
            else:
                self._rest_timer = self.loop.call_later(self.head_timeout, self._see_it_out, taken)

    # Zero-copy.

    async def _send(
        self, cycle: httptools_impl.RequestResponseCycle, message: ASGISendEvent
    ) -> None:
        told = cast("dict[str, Any]", message)
        cast("dict[str, Any]", cycle.scope)["extensions"][_SERVER]["last"] = told["type"]
        if told["type"] != _ZERO_COPY:
            await cycle.send(message)
        elif not cycle.disconnected:
            count = told["count"]
            if cycle.scope["method"] == "HEAD" or cycle.chunked_encoding is not False:
                raise RuntimeError("a file is sent in the body of a GET with a Content-Length")
            if count > cycle.expected_content_length:
                raise RuntimeError("Response content longer than Content-Length")
            await self._send_file(told["file"], told.get("offset", 0), count)
            cycle.expected_content_length -= count
            if not told.get("more_body", False):
                await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        """Send `count` bytes of `file`, once everything before has gone out.

        Returns early only when the connection is lost.

        Raises:
            EOFError: the file is shorter.
        """
        if self.transport.get_write_buffer_size():
            self.transport.set_write_buffer_limits(0)  # so that `drain` waits for all of it
            await self.flow.drain()
        if self._file < 0 and not self._duplicate():
            return
        while count and self._file >= 0:
            try:
                sent = os.sendfile(self._file, file, offset, self._at_once(count))
            except BlockingIOError:
                await self._until_writable()
                continue
            except ConnectionError:
                self.transport.abort()  # which notices nothing while it is not to read
                return
            if not sent:
                raise EOFError(f"the file is shorter than {offset + count} bytes")
            offset += sent
            count -= sent
            self._passed += sent
            if self._is_first:
                self._is_first = False
                if count:
                    os.sched_yield()

    def _at_once(self, count: int) -> int:
        """Bytes of a span to send before others have their turn: the first are few.

        They wake a client on this host, which the system has wait for this processor until we have
        nothing to do any more: that may be long, if the rest of the span goes out before.
        """
        return min(count, _FIRST) if self._is_first else count

    def _taken(self) -> int:
        """Bytes that the client's machine has acknowledged, but for a constant."""
        waiting = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            with suppress(OSError):  # a system that cannot tell
                queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
                waiting += int.from_bytes(queued, sys.byteorder)
        return self._passed - waiting

    def _duplicate(self) -> bool:
        connection = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or connection is None:
            return False
        self._file = os.dup(connection.fileno())
        return True

    async def _until_writable(self) -> None:
        self._writable = self.loop.create_future()
        self.loop.add_writer(self._file, self._is_writable)
        try:
            await self._writable
        finally:
            self._writable = None
            if self._file >= 0:
                self.loop.remove_writer(self._file)

    def _is_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more: nobody waits for it any longer."""
        self._let_go()
        super().connection_lost(exc)

    def _let_go(self) -> None:
        self._head_is_here()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        if self._file >= 0:
            file, self._file = self._file, -1
            if self._writable is not None:
                self.loop.remove_writer(file)
                self._is_writable()
            os.close(file)
