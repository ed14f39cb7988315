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
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

try:
    import httptools
    from uvicorn.protocols.http import flow_control, httptools_impl
except ImportError as _missing:
    raise ImportError("serving needs uvicorn: pip install 'shmstream[serve]'") from _missing

from shmstream.asgi import congestion
from shmstream.asgi.messages import SERVER, ZERO_COPY, Again
from shmstream.asgi.remembering import remembered
from shmstream.system import tcp

if TYPE_CHECKING:
    from uvicorn._types import (
        ASGI3Application,
        ASGIReceiveCallable,
        Scope,
    )

_FIRST = 64 * 1024  # bytes of a file that are sent in the first call
_BODY = (b"content-length", b"transfer-encoding")  # headers of a request with a body
_OF_CONNECTION = (b"connection", b"transfer-encoding")  # headers of a response
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
        if self.read_paused and self._has_room():
            super().resume_reading()


@remembered
def _line(name: bytes, value: bytes) -> bytes | None:
    """A header of a response as it is written; most of them are those of others, too.

    None if it is not valid, or says something of the connection: uvicorn sees to that.
    """
    if httptools_impl.HEADER_RE.search(name) or httptools_impl.HEADER_VALUE_RE.search(value):
        return None
    if name != name.lower() or name in _OF_CONNECTION:
        return None
    return b"%b: %b\r\n" % (name, value)


def plain_head(status: int, fields: list[tuple[bytes, bytes]]) -> tuple[bytes, int] | None:
    """The head of a response with these headers, and its Content-Length.

    None if it has no Content-Length, or if uvicorn has to see to its headers.
    """
    length = None
    for name, value in fields:
        if type(name) is not bytes or type(value) is not bytes:
            return None
        if name == b"content-length":
            if length is not None or not value.isdigit():
                return None
            length = int(value)
    lines: list[Any] = [_line(name, value) for name, value in fields]
    if length is None or None in lines:
        return None
    return b"".join([httptools_impl.STATUS_LINE[status], *lines, b"\r\n"]), length


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
        self._is_plain = False  # zero-copy bodies are possible
        self._hosts: list[bytes] = []  # one valid host, of an earlier request
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
        self._is_plain = self.zero_copy and self.scheme == "http" and self._connection >= 0
        if self._is_plain:
            transport.set_write_buffer_limits(0)  # `drain` then waits until the buffer is empty
        if self.congestion and self.client is not None and self.server is not None:
            congestion.suit(connection, self.server, self.client)
        self._expect_head()

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
        if (self._unparsed or self.pipeline) and not self._has_room():
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
        end = len(data)
        while position < end and len(self.pipeline) < self.most_queued:
            if self._is_let_go or self.transport.is_closing():
                position = end  # nobody wants the rest
                break
            size = _PIECE
            if self._body_left:
                size = max(_PIECE, min(self._body_left, _PIECE_OF_BODY))
            position += self._parse_piece(data[position : position + size])
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
        size = len(self.url)
        hosts: list[bytes] = []
        lengths: list[bytes] = []
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts.append(value)
            elif name in _BODY:
                lengths.append(value)
        if size > self.head_size:
            self._refuse_head()
            return
        if not self._is_one_host(hosts):
            self._refuse(400, b"Bad Request")
            return
        server: dict[object, object] = {"last": None, "is_blob": False, "taken": self._taken}
        self._body_left = 0
        if not lengths:  # a body that is not read hides it
            server["when_lost"] = self._tell_when_lost
        elif lengths[0].isdigit() and len(lengths) == 1:  # the parser has checked the number
            self._body_left = int(lengths[0])
        extensions: dict[str, dict[object, object]] = {SERVER: server}
        if self._is_plain:
            extensions[ZERO_COPY] = {}
        self.scope["extensions"] = extensions
        super().on_headers_complete()

    def _is_one_host(self, hosts: list[bytes]) -> bool:
        if not hosts:
            return self.parser.get_http_version() != "1.1"
        if hosts != self._hosts:
            if len(hosts) != 1 or _HOST.fullmatch(hosts[0].strip()) is None:
                return False
            self._hosts = hosts
        return True

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

    async def _answer(self, scope: Scope, receive: ASGIReceiveCallable, send: Any) -> None:
        """The application that uvicorn calls: ours, and an incomplete response ends at once.

        uvicorn would wait until the client has taken what is in the buffer, perhaps for ever.
        `send` is a method of uvicorn's cycle.
        """
        cycle: httptools_impl.RequestResponseCycle = send.__self__
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
            if self._unparsed:
                self._parse()
            if self.flow.read_paused:
                self.flow.resume_reading()
            if self.transport.get_write_buffer_size():
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

    async def _send(self, cycle: httptools_impl.RequestResponseCycle, message: Any) -> None:
        kind = message["type"]
        self._messages += 1
        cycle.scope["extensions"][SERVER]["last"] = kind
        if kind == "http.response.start":
            await self._begin(cycle, message)
        elif kind != ZERO_COPY:
            await cycle.send(message)
        elif not cycle.disconnected:
            count = message["count"]
            if cycle.scope["method"] == "HEAD" or cycle.chunked_encoding is not False:
                raise RuntimeError("a file is sent in the body of a GET with a Content-Length")
            if count > cycle.expected_content_length:
                raise RuntimeError("Response content longer than Content-Length")
            await self._send_file(message["file"], message.get("offset", 0), count)
            cycle.expected_content_length -= count
            if not message.get("more_body", False):
                await self._finish(cycle)

    async def _begin(self, cycle: httptools_impl.RequestResponseCycle, message: Any) -> None:
        """Send the head of a response. It is the last one if the request's body is not complete."""
        self._is_first = True
        headers = message.get("headers", ())
        for name, _ in headers:
            if name == b"date":  # it has its own
                others = [each for each in cycle.default_headers if each[0] != b"date"]
                cycle.default_headers = others
        if cycle.more_body:
            last: Any = {**message, "headers": [*headers, (b"connection", b"close")]}
            await cycle.send(last)
            cycle.keep_alive = True  # uvicorn would close at once, and the client would get a reset
            self._last = cycle
        elif not self._write_plain_head(cycle, message["status"], headers):
            await cycle.send(message)

    def _write_plain_head(
        self,
        cycle: httptools_impl.RequestResponseCycle,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> bool:
        """Write the head of a blob with a Content-Length, as uvicorn does it, but in less time.

        Nothing is done, and it is False, for other heads, and where uvicorn does more than that.
        """
        is_blob = cycle.scope["extensions"][SERVER]["is_blob"]
        if not (is_blob and cycle.keep_alive) or cycle.response_started or cycle.access_log:
            return False
        if cycle.disconnected or cycle.flow.write_paused:
            return False
        plain = plain_head(status, [*cycle.default_headers, *headers])
        if plain is None:
            return False
        head, length = plain
        cycle.response_started = True
        cycle.waiting_for_100_continue = cycle.chunked_encoding = False
        cycle.expected_content_length = length
        cycle.transport.write(head)
        extensions: Any = cycle.scope["extensions"]
        again = extensions[SERVER].get("again")
        if again is not None and status == 200:
            self._remember(cycle, [*headers], again)
        return True

    def _remember(
        self,
        cycle: httptools_impl.RequestResponseCycle,
        headers: list[tuple[bytes, bytes]],
        again: Again,
    ) -> None:
        """Called with what the application offered, by a server that had asked for an `Again`."""

    async def _finish(self, cycle: httptools_impl.RequestResponseCycle) -> None:
        """The body of a response was sent by the kernel: end it as uvicorn does it."""
        is_held_up = cycle.disconnected or cycle.flow.write_paused
        if is_held_up or cycle.response_complete or cycle.expected_content_length:
            await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        """Send `count` bytes of `file` from `offset` on, after everything that was written before.

        Few at first: the first bytes wake a client on this host. The system lets it wait for this
        processor until we have nothing to do, which takes long if we send the rest first.

        Returns early only when the connection ends. Until then its descriptor cannot be used again:
        only this thread closes it, and only after the connection was lost.

        Raises:
            EOFError: the file is shorter.
        """
        if self.transport.get_write_buffer_size():
            await self.flow.drain()
        while count and not self.transport.is_closing():
            try:
                at_once = _FIRST if self._is_first and count > _FIRST else count
                sent = os.sendfile(self._connection, file, offset, at_once)
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
