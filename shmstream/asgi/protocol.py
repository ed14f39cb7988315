"""uvicorn with what it lacks for blobs: zero-copy sends, and bounds on what a client may send.

    uvicorn.Config(app, http=shmstream.server.Protocol)

`Protocol` is uvicorn's own protocol for httptools, with these additions:

    zero-copy   the ASGI extension `http.response.zerocopysend`: the kernel sends a span of a file
                (`sendfile`), so its bytes never enter this process. For connections without TLS
    408         a client that has not sent the head of its request in `head_timeout` seconds
    431         a head of more than `head_size` bytes
    400         a request of HTTP/1.1 without a Host, and any with two or with one that is not valid
    half closed a client that has ended its side after its request gets its response all the same
    pipeline    at most `most_queued` requests, and those of one more piece, wait behind the one
                that is answered. What else has come stays as it is, and nothing more is read
    the rest    of a request's body that the application did not want ends the connection
    local       no paced sending to clients on this host (`congestion`)

A response that fails ends its connection at once. A client that ends its side may still read, or
may have left. Of a client on this host the kernel knows that (`tcp.is_held`); we ask it every two
seconds. Of a client elsewhere only the next bytes tell. So its work goes on until then. But if some
bytes were sent before, and no more follow for `end_patience`, it counts as left.

One read may bring thousands of small requests, each of which becomes some 1.4 KB of objects. So the
parser gets the bytes in small pieces, and no further piece while the queue is full:

    bytes come                     a response is complete
    1 put them to the unparsed     1 start the next request of the queue
    2 parse pieces, until the      2 parse pieces, as on the left
      queue is full                3 if all is parsed and there is room, read on
    3 if bytes are left, or the
      queue is full, stop reading

If a response is complete while the body of its request is still to come, the connection cannot be
used again. It is half closed, and what comes is dropped for a moment, within bounds: a client that
is still sending gets the response, and not a reset.

To wait until the socket is writable we register a duplicate of its descriptor, which is ours until
the connection is lost: the event loop has registered the descriptor itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

try:
    import httptools
    from uvicorn.protocols.http import flow_control, httptools_impl
except ImportError as _missing:
    raise ImportError("serving needs uvicorn: pip install 'shmstream[serve]'") from _missing

from shmstream.asgi import congestion
from shmstream.asgi.messages import SERVER, ZERO_COPY
from shmstream.system import tcp

if TYPE_CHECKING:
    from uvicorn._types import (
        ASGI3Application,
        ASGIReceiveCallable,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )

_FIRST = 64 * 1024  # bytes
_BODY = (b"content-length", b"transfer-encoding")  # headers of a request with a body
_PIECE = 512  # bytes that are parsed at one time: 28 requests at most
_PIECE_OF_BODY = 64 * 1024  # bytes, where it is known that they are all of a body
_HOST = re.compile(rb"[A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]*")  # as RFC 3986 has hosts and ports
_DROPPED = 1 << 20  # bytes of a body that nobody wants, before the connection is closed at once
_DROPPING = 2.0  # s; for the same
_LOOK = 2.0  # s from one look whether a client that has ended its side has left to the next one


class _Flow(flow_control.FlowControl):
    """Reads on only if there is room for what comes."""

    def __init__(self, transport: asyncio.Transport, has_room: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._has_room = has_room

    def resume_reading(self) -> None:
        """Read on, unless there is no room: then a later call does it."""
        if self._has_room():
            super().resume_reading()


class Protocol(httptools_impl.HttpToolsProtocol):
    """One connection. Subclasses may set the switches and bounds below otherwise."""

    zero_copy: bool = True
    """Whether to offer zero-copy bodies. They are possible without TLS only."""

    congestion: bool = True
    """Whether to choose the congestion control of connections, and of the socket that accepts them,
    where the system's is BBR (`congestion` tells how). False leaves all sockets as they are."""

    head_timeout: float = 20.0
    """Seconds that a client has for the head of a request, from its connection or its first byte;
    also to take some more of a response that is complete but not sent."""

    head_size: int = 64 * 1024
    """Bytes that the head of a request may have."""

    end_patience: float = 60.0
    """Seconds without a further byte for it, after which a client on another host counts as left
    that has ended its side in the middle of its response."""

    most_queued: int = 4
    """Requests that wait behind the one that is answered, before no more are read."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._unparsed = b""
        self._body_left = 0  # bytes that are still to come of a body, as its request says
        self._last: httptools_impl.RequestResponseCycle | None = None  # it ends the connection
        self._answered: httptools_impl.RequestResponseCycle | None = None  # now, or the last one
        self._may_drop = -1  # bytes, once the connection is half closed
        self._application = self.app
        self.app: ASGI3Application = self._answer
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_since: float | None = None  # when the wait for a head began
        self._head_size = 0  # bytes since the last head, or since a part of a body
        self._is_let_go = False  # the connection is lost, or another protocol has it
        self._is_first = True  # no bytes of the response's file were sent yet
        self._connection = -1  # its descriptor
        self._file = -1  # a duplicate
        self._passed = 0  # bytes that the kernel sent, past the transport
        self._when_lost: set[Callable[[], object]] = set()
        self._writable: asyncio.Future[None] | None = None
        self._rest_timer: asyncio.TimerHandle | None = None
        self._has_ended = False  # the client sends no more
        self._messages = 0  # of responses, that the application has sent
        self._end_timer: asyncio.TimerHandle | None = None

    # The head of a request.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self.flow: flow_control.FlowControl = _Flow(transport, self._has_room)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            self._connection = connection.fileno()
        if self._is_plain():
            transport.set_write_buffer_limits(0)  # `drain` then waits until the buffer is empty
        if self.congestion and self.client is not None and self.server is not None:
            congestion.suit(connection, self.server, self.client)
        self._expect_head()

    def _is_plain(self) -> bool:
        return self.zero_copy and self.scheme == "http" and self._connection >= 0

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        """Start the clock, unless a response is under way: until then nothing more is read."""
        if self._is_let_go:
            return
        if self._head_since is None and not self._is_answering():
            self._head_since = self.loop.time()
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(self.head_timeout, self._look_for_head)

    def _look_for_head(self) -> None:
        """Refuse a head that is late. One timer serves all heads, because they are many."""
        self._head_timer = None
        if self._head_since is not None:
            left = self._head_since + self.head_timeout - self.loop.time()
            if left > 0:
                self._head_timer = self.loop.call_later(left, self._look_for_head)
            else:
                self._refuse(408, b"Request Timeout")

    def _refuse(self, status: int, phrase: bytes) -> None:
        self._head_since = None
        if not self.transport.is_closing():
            if not self._is_answering():  # else it would land in the body of a response
                head = b"content-length: 0\r\nconnection: close\r\n\r\n"
                self.transport.write(b"HTTP/1.1 %d %b\r\n%b" % (status, phrase, head))
            self.transport.close()
            self._see_it_out(None)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests. After a refusal they are dropped."""
        if self.transport.is_closing():
            return
        if self._may_drop >= 0:
            self._may_drop -= len(data)
            if self._may_drop < 0:
                self._end()
            return
        self._unparsed += data
        self._parse()
        if not self._has_room():
            self.flow.pause_reading()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more: answer what it has sent, then close. TLS has no such state."""
        was_answering = self.scheme == "http" and self._may_drop < 0 and self._is_answering()
        self._has_ended = was_answering and not self.cycle.more_body
        if self._has_ended:
            self._look_whether_it_left(None, self.loop.time())
        return self._has_ended

    def _reads_on(self) -> bool:
        """Whether a client that has ended its side has sent more requests, which are read now."""
        return False  # all that has come was parsed

    def _look_whether_it_left(self, before: tuple[int, int] | None, since: float) -> None:
        """Cut a client that has ended its side and has left, or seems to have; look again later.

        `before`: what was sent by `since`, seconds of the loop's clock.
        """
        self._end_timer = None
        if self._is_let_go or self.transport.is_closing():
            return
        now = (self._messages, self._passed)
        if now != before or self._writable is not None or self.transport.get_write_buffer_size():
            since = self.loop.time()
        if self._is_answering() and self._has_left(self.loop.time() - since):
            self.transport.abort()
        else:
            pause = min(_LOOK, self.end_patience)
            self._end_timer = self.loop.call_later(pause, self._look_whether_it_left, now, since)

    def _has_left(self, silence: float) -> bool:
        """Whether a client that has ended its side has left; `silence`: seconds without a byte."""
        is_held = None
        if self.server is not None and self.client is not None:
            is_held = tcp.is_held(self.server, self.client)
        if is_held is None:
            return self.cycle.response_started and silence >= self.end_patience
        return not is_held

    def _has_room(self) -> bool:
        """Whether more may be read."""
        return not self._unparsed and len(self.pipeline) < self.most_queued

    def _parse(self) -> None:
        """Parse what has come, as long as there is room for the requests in it."""
        data, position = self._unparsed, 0
        if self.transport.is_closing():
            position = len(data)
        while position < len(data) and len(self.pipeline) < self.most_queued:
            piece = data[position : position + max(_PIECE, min(self._body_left, _PIECE_OF_BODY))]
            position += self._parse_piece(piece)
            if self._is_let_go or self.transport.is_closing():
                position = len(data)  # nobody wants the rest
        self._unparsed = data[position:]

    def _parse_piece(self, piece: bytes) -> int:
        """Parse a piece; how many bytes of it were used."""
        self._unset_keepalive_if_required()
        used = len(piece)
        self._head_size += used
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                return used
            used = upgrade.args[0]  # the client is answered as if it had not asked for that
        except httptools.HttpParserError:
            self.logger.info("Invalid HTTP request received.")  # TLS on a plain port, perhaps
            self._refuse(400, b"Bad Request")
        self._expect_head()  # the parser does not tell of empty lines before a head
        if self._head_size > self.head_size:  # a head without an end
            self._refuse_head()
        return used

    def _refuse_head(self) -> None:
        self._refuse(431, b"Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        """The head is complete: have the application answer."""
        self._head_since = None
        if self.transport.is_closing():
            return
        self._head_size = 0
        if self._size_of_head() > self.head_size:
            self._refuse_head()
            return
        if not self._names_one_host():
            self._refuse(400, b"Bad Request")
            return
        self._body_left = self._length_of_body()
        extensions: dict[str, dict[str, Any]] = {SERVER: {"last": None, "taken": self._taken}}
        if not any(name in _BODY for name, _ in self.headers):  # a body that is not read hides it
            extensions[SERVER]["when_lost"] = self._tell_when_lost
        if self._is_plain():
            extensions[ZERO_COPY] = {}
        self.scope["extensions"] = cast("dict[str, dict[object, object]]", extensions)
        super().on_headers_complete()

    def _names_one_host(self) -> bool:
        hosts = [value.strip() for name, value in self.headers if name == b"host"]
        if not hosts:
            return self.parser.get_http_version() != "1.1"
        return len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None

    def _size_of_head(self) -> int:
        """Bytes of the head that is complete."""
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _length_of_body(self) -> int:
        """Bytes of the body, if the head says that; else 0. The parser has checked the number."""
        length = [value for name, value in self.headers if name in _BODY]
        return int(length[0]) if len(length) == 1 and length[0].isdigit() else 0

    def on_body(self, body: bytes) -> None:
        """A part of the request's body. After a refusal it is dropped."""
        self._head_size = 0
        self._body_left = max(self._body_left - len(body), 0)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request. After a refusal it is dropped."""
        if not self.transport.is_closing():
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Another protocol has the connection from now on."""
        if not self.transport.is_closing():
            self._let_go()
            self.transport.set_write_buffer_limits()
            super().handle_websocket_upgrade()

    async def _answer(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """The application that uvicorn calls: ours, and an incomplete response ends at once.

        uvicorn would wait until the client has taken what is in the buffer, perhaps for ever.
        """
        cycle = cast("httptools_impl.RequestResponseCycle", cast("MethodType", send).__self__)
        self._answered = cycle
        try:
            await self._application(scope, receive, partial(self._send, cycle))
        finally:
            if cycle.response_started and not cycle.response_complete:
                self.transport.abort()

    # The end of a response.

    def on_response_complete(self) -> None:
        """The whole response was written. The transport may still have a part of it to send.

        Only this class waits for that. Without it, a connection that was closed meanwhile would
        stay for as long as its client likes.
        """
        if self._last is None or self.transport.is_closing():
            super().on_response_complete()
            self._parse()
            self.flow.resume_reading()
            self._see_it_out(None)
            if self._has_ended and not self._is_answering() and not self._reads_on():
                self._end()
            return
        self.server_state.total_requests += 1
        self.pipeline.clear()
        self._unparsed = b""
        if self._last.more_body:
            self._half_close()
        else:
            self._end()

    def _half_close(self) -> None:
        """No more responses; drop what comes, for a moment."""
        self._may_drop = _DROPPED
        self.loop.call_later(_DROPPING, self._end)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _end(self) -> None:
        """Close the connection as soon as the client has taken what is left."""
        if not self._is_let_go:
            self.transport.close()
            self._see_it_out(None)

    def _see_it_out(self, before: int | None) -> None:
        """Cut a client that takes nothing of what is left in the transport."""
        if before is None and self._rest_timer is not None:
            return  # that is seen to already
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
        self._messages += 1
        cast("dict[str, Any]", cycle.scope)["extensions"][SERVER]["last"] = told["type"]
        if told["type"] == "http.response.start":
            await self._begin(cycle, told)
        elif told["type"] != ZERO_COPY:
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

    async def _begin(
        self, cycle: httptools_impl.RequestResponseCycle, message: dict[str, Any]
    ) -> None:
        """Send the head of a response. It is the last one if the request's body is not complete."""
        self._is_first = True
        if any(name == b"date" for name, _ in message.get("headers", ())):  # it has its own
            others = [each for each in cycle.default_headers if each[0] != b"date"]
            cycle.default_headers = others
        if not cycle.more_body:
            await cycle.send(cast("ASGISendEvent", message))
            return
        headers = [*message.get("headers", ()), (b"connection", b"close")]
        await cycle.send(cast("ASGISendEvent", {**message, "headers": headers}))
        cycle.keep_alive = True  # uvicorn would close at once, and the client would get a reset
        self._last = cycle

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        """Send `count` bytes of `file` from `offset` on, after everything that was written before.

        Returns early only when the connection ends. Until then its descriptor cannot be used again:
        only this thread closes it, and only after the connection was lost.

        Raises:
            EOFError: the file is shorter.
        """
        if self.transport.get_write_buffer_size():
            await self.flow.drain()
        while count and not self.transport.is_closing():
            try:
                sent = os.sendfile(self._connection, file, offset, self._at_once(count))
            except BlockingIOError:
                await self._until_writable()
                continue
            except ConnectionError:
                self.transport.abort()  # a transport that does not read notices nothing itself
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
        """How many bytes of a span to send in one call: few at the beginning of a response.

        The first bytes wake a client on this host. The system lets it wait for this processor until
        we have nothing to do, which takes long if we send the rest of the span first.
        """
        return min(count, _FIRST) if self._is_first else count

    def _taken(self) -> int:
        """Bytes that the client's machine has acknowledged, up to a constant."""
        waiting = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            with suppress(OSError):  # a system that cannot tell
                queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
                waiting += int.from_bytes(queued, sys.byteorder)
        return self._passed - waiting

    async def _until_writable(self) -> None:
        if self._file < 0:
            self._file = os.dup(self._connection)
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

    def _tell_when_lost(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Call `callback` when the client has left, unless the returned function was called."""
        self._when_lost.add(callback)
        if self._is_let_go:
            self.loop.call_soon(self._say_lost)
        return partial(self._when_lost.discard, callback)

    def _say_lost(self) -> None:
        for callback in tuple(self._when_lost):
            callback()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is lost: end every wait for it."""
        self._let_go()
        if self._answered is not None:  # uvicorn tells only the request that was parsed last
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)
        self.pipeline.clear()
        self._unparsed = b""
        self._say_lost()

    def _let_go(self) -> None:
        self._is_let_go = True
        self._connection = -1
        for timer in (self._head_timer, self._rest_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._rest_timer = self._end_timer = None
        if self._file >= 0:
            file, self._file = self._file, -1
            if self._writable is not None:
                self.loop.remove_writer(file)
                self._is_writable()
            os.close(file)
