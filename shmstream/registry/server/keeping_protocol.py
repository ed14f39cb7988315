"""`KeptProtocol`: the protocol of one kept connection, which another worker can go on with.

It is `Protocol`, and keeps two rules more (`connections`, K1 and K2): a response is in the record
before its first byte is written, and a request stays in the socket until its response is written
whole. So it reads in its own way:

    bytes come             look at them, and leave them in the socket (`MSG_PEEK`). Parse those of a
                           head, also if it is not whole yet; if it is, have the request answered
    more bytes come        they stay in the socket, too, and so that this process is not woken again
    meanwhile              and again, it wants to be woken for still more only (`SO_RCVLOWAT`)
    the response is in     read the request from the socket, and look for the next one
    the kernel

The head of a response is held back for a moment, until its body comes or the event loop goes on, so
that a short answer is in the record as a whole before its first byte is written.

If the application has said of an earlier small response that an equal request may get it again,
the response is made in one step, without the application: the short way. `repeats` tells its steps,
and what can come in between.

A request with a body, and other methods than GET and HEAD, are read at once, as `Protocol` does it.
So is a head that is not whole after `_LOOK_AGAIN` bytes. The record says so: if the worker is
killed, that client is cut, unless the rest of the response is in the record. A refusal (408, 431,
400) ends the keeping.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import Any

from uvicorn.protocols.http import httptools_impl

from shmstream.asgi.messages import SERVER, Again, Ready
from shmstream.asgi.protocol import Protocol
from shmstream.registry.server.connections import (
    UNKNOWN,
    Response,
    Step,
    continuation,
    etag_of,
    is_same_content,
)
from shmstream.registry.server.kept import KeptConnection
from shmstream.registry.server.repeats import Repeat, Repeats
from shmstream.registry.server.transport import Transport
from shmstream.system import tcp

_LOOK = 4096  # bytes that are looked at; more of them if that is no head
_LOOK_AGAIN = 64 * 1024
_LONGEST = Response.text.capacity  # bytes of a head that is noted
_SHORT = 16 * 1024  # bytes of a body that are copied behind a head
_AT_ONCE = 64 * 1024  # bytes of a body; more of them are not sent in the short way
_UNREAD = 1 << 20  # bytes that are dropped when the connection is closed, so that it is not reset
_MOST_BEHIND = 64 * 1024  # bytes; with so many behind a request, the client is not watched


class _Outgoing:
    """The transport as a cycle of uvicorn sees it: all that it writes is noted first."""

    __slots__ = ("_cycle", "_is_head_written", "_protocol", "_transport")

    def __init__(
        self,
        protocol: KeptProtocol,
        transport: asyncio.Transport,
        cycle: httptools_impl.RequestResponseCycle,
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._cycle = cycle
        self._is_head_written = False

    def write(self, data: bytes) -> None:
        """Note, then write."""
        if self._is_head_written:
            self._protocol.write_body(data)
        elif self._cycle.response_started:
            self._is_head_written = True
            self._protocol.write_head(self._cycle, data)
        else:
            self._protocol.write_before(data)

    def is_closing(self) -> bool:
        """As of the transport."""
        return self._transport.is_closing()

    def close(self) -> None:
        """As of the transport."""
        self._protocol.on_last_response()
        self._transport.close()


class KeptProtocol(Protocol):
    """One kept connection."""

    limit_concurrency: int | None
    transport: Transport

    def __init__(
        self,
        keeping: KeptConnection,
        connection: socket.socket,
        repeats: Repeats | None = None,
        **named: Any,
    ) -> None:
        """`keeping`: of a new connection, or of one that another worker had.

        `repeats`: of all connections of this worker; None: of this one alone.
        """
        super().__init__(**named)
        self._keeping: KeptConnection | None = keeping
        self._socket = connection
        self._repeats = repeats or Repeats()
        self._asked = b""  # the head that was parsed last, if it came at once
        self._idle_since = float("-inf")  # when the last response of the short way was complete
        self._request = 0  # bytes of the request that is answered, which are still in the socket
        self._parsed = 0  # bytes of a head that is not whole, which are still in the socket
        self._read = 0  # bytes that were read from the connection
        self._sent = 0  # bytes that were written to it when its last response was complete
        self._response: Response | None = None  # that is written just now, if it was noted
        self._end_of_it = 0  # bytes that are written to the connection when it is complete
        self._counted = 0  # bytes of its body, if that has no Content-Length
        self._is_text = False  # the text of its record has all of its body until now
        self._is_midway = False  # bytes were read of a request that is not complete
        self._is_anothers = False  # the response was made by another worker, which has ended
        self._is_late = False  # a response is complete, and waits for the kernel to take it
        self._is_ending = False  # the server stops: this is the last response
        self._low = 1  # bytes; fewer than these wake nobody
        self._resumes: tuple[bytes, int] | None = None  # a head, and how much of all is written
        self._jumps = False  # another worker has written it, and has counted it
        self._held = b""  # the head of a response, before the first part of its body
        self._skip = 0  # bytes of the body that another worker has written

    # The connection goes on where another worker has ended.

    def go_on(self) -> None:
        """Go on where another worker has ended. Once, after `connection_made`."""
        assert self._keeping is not None
        last = self._keeping.record.last
        try:
            self._low = 0  # whatever the other worker has wanted
            self._wake_at(1)
            sent, self._read = tcp.written(self._socket), tcp.taken(self._socket)
            if tcp.waiting(self._socket):  # a request that the other worker was there for
                self.limit_concurrency = None
        except OSError:  # the client is gone
            self.transport.abort()
            return
        todo = continuation(last, sent, self._read)
        self._sent = last.written
        if todo.step is Step.GIVE_UP:
            self.transport.abort()
        elif todo.step is Step.RESUME:
            self._resumes, self._jumps = (last.text[: last.head], todo.gone), True
        elif todo.step is not Step.ANSWER:
            self._is_anothers = True
            self._response = last
            self._end_of_it = last.end
            self._request = todo.unread
            self.transport.write(last.text[todo.gone :] if todo.step is Step.TEXT else b"")
            self.on_response_complete()

    # Reading.

    def readable(self) -> None:
        """Bytes have come, or the end, or an error."""
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if (is_answering or self._is_late) and not self._is_midway:
            self._look_behind()
            return
        try:
            data = self._socket.recv(_LOOK, socket.MSG_PEEK)
            if (size := len(data)) == _LOOK:
                data = self._socket.recv(_LOOK_AGAIN, socket.MSG_PEEK)
                size = len(data)
            if not data:
                self._client_ended()
            elif self._is_midway:
                self._take(size)
                self.data_received(data)
            elif size > self._parsed:
                if (repeat := self._repeats.find(data)) is None or not self._repeat(data, repeat):
                    self._parse_head(data)
            elif tcp.has_ended(self._socket):  # in the middle of a head
                self._client_ended()
            else:  # the kernel has woken us for less than we want: it lacks memory
                self._request, self._is_midway = self._parsed, True
                self._read_on()
        except BlockingIOError:
            pass
        except OSError:
            self.transport.abort()

    def _parse_head(self, data: bytes) -> None:
        """Parse the bytes of a head that are new; all of them stay in the socket if possible."""
        whole = _size_of_head(data)
        size = whole or len(data)
        before, self._parsed = self._parsed, size
        self._request = size
        self._asked = b"" if before or whole > _LONGEST else data[:whole]
        self._is_midway = True  # until `on_message_complete`
        self.data_received(data[before:size])
        if not self._is_midway:
            self._parsed = 0
        elif self._parsed and size < _LOOK_AGAIN:  # the head is not whole
            self._request, self._is_midway = 0, False
            self._wake_at(size + 1)
        else:
            self._read_on()

    def _read_on(self) -> None:
        """Read the request from the socket, as it comes: a body, or a head that is too long."""
        self._take(self._request)
        self._parsed = 0
        self._wake_at(1)

    def _take(self, count: int) -> None:
        """Read bytes from the socket that were looked at before."""
        if count:
            taken = len(self._socket.recv(count))  # all of it, mostly
            self._read += taken if taken == count else taken + tcp.drop(self._socket, count - taken)
        self._request = 0

    def _look_behind(self) -> None:
        """Something has come while a request is answered: more bytes, or the end."""
        try:
            behind = tcp.waiting(self._socket)
            has_ended = tcp.has_ended(self._socket)
            if has_ended and (behind <= self._request or tcp.is_lost(self._socket)):
                self._client_ended()
            elif has_ended or behind < self._low or behind > _MOST_BEHIND:
                self.transport.pause_reading()  # until the response is complete
            else:
                self._wake_at(behind + 1)
        except OSError:
            self.transport.abort()

    def _wake_at(self, count: int) -> None:
        if count != self._low:
            self._low = count
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def _client_ended(self) -> None:
        self.transport.pause_reading()
        if tcp.is_lost(self._socket):
            self.transport.abort()
        elif not self.eof_received():
            self.transport.close()

    def _reads_on(self) -> bool:
        """Further requests are still in the socket."""
        has_more = tcp.waiting(self._socket) > 0
        if has_more:
            self._wake_at(1)
            self.transport.resume_reading()
        return has_more

    # Parsing.

    def on_message_begin(self) -> None:
        """The first bytes of a request. They may have come with the body of the one before."""
        self._is_midway = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._is_midway = False
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """The head is complete: have the application answer."""
        self._parsed = 0
        before = self.cycle
        super().on_headers_complete()
        self.limit_concurrency = self.config.limit_concurrency
        if self.cycle is before:  # it was refused
            return
        scope = self.scope
        server = scope["extensions"][SERVER]
        if self._request:
            if not self._can_be_repeated():
                self._take(self._request)
            elif self._asked and (scope["method"], scope["http_version"]) == ("GET", "1.1"):
                server["again"] = None
        if self._is_ending:
            self.cycle.keep_alive = False
        outgoing: Any = _Outgoing(self, self.transport, self.cycle)
        self.cycle.transport = outgoing
        if self._resumes is not None:
            if self._jumps:
                server["jump"] = partial(self._jump, self.cycle)
            server["promised"] = etag_of(self._resumes[0])

    def _can_be_repeated(self) -> bool:
        """Whether it is a GET or HEAD without a body."""
        has_no_body = "when_lost" in self.scope["extensions"][SERVER]
        is_simple = has_no_body and not self.expect_100_continue
        return is_simple and self.scope["method"] in ("GET", "HEAD")

    def _jump(self, cycle: httptools_impl.RequestResponseCycle) -> int:
        """How many bytes of the body the application leaves out. It calls this after the head."""
        skip, self._skip = self._skip, 0
        cycle.expected_content_length -= skip
        return skip

    # The short way.

    def _remember(
        self,
        cycle: httptools_impl.RequestResponseCycle,
        headers: list[tuple[bytes, bytes]],
        again: Again,
    ) -> None:
        """Note that an equal request may get this response, whose head was just written."""
        count, scope = cycle.expected_content_length, cycle.scope
        is_strong = any(each[0] == b"etag" and each[1].startswith(b'"') for each in headers)
        if is_strong and 0 < count <= _AT_ONCE:
            self._repeats.remember(self._asked, scope["headers"], Repeat(again, headers, count))

    def _repeat(self, data: bytes, repeat: Repeat) -> bool:
        """Answer a request with that head in the short way; False: the usual way is to do it."""
        if not self._is_at_rest():
            return False
        head, ready = repeat.head(self.server_state.default_headers), None
        try:
            if 0 < len(head) <= _LONGEST:
                ready = repeat.again(self.client)
        finally:
            if ready is None:  # also after an error: the request is still in the socket
                self._repeats.forget(data)
        if ready is None:
            return False
        try:
            return ready.count == repeat.count and self._send_again(data, head, ready)
        finally:
            os.close(ready.file)

    def _is_at_rest(self) -> bool:
        """Whether a request that has come now is like the first one of a connection."""
        limit = self.limit_concurrency
        if limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit):
            return False  # it gets a 503
        is_busy = self._parsed or self._unparsed or self.pipeline or self.flow.write_paused
        is_last = self._is_ending or self._has_ended or self._last is not None
        goes_on = self._keeping is not None and self._resumes is None and self._may_drop < 0
        return goes_on and not (is_busy or is_last)

    def _send_again(self, asked: bytes, head: bytes, ready: Ready) -> bool:
        """Send a whole response. False: the kernel took a part or nothing; the rest is left."""
        assert self._keeping is not None
        size, length = len(asked), len(head)
        self._keeping.record.begin(
            self._sent, self._read, size, head, ready.count, is_last=False
        )  # K1
        sent, end = 0, length + ready.count
        try:
            if ready.count <= _SHORT:
                sent = self._socket.send(head + os.pread(ready.file, ready.count, 0))
            elif (sent := self._socket.send(head, socket.MSG_MORE)) == length:
                sent += os.sendfile(self._connection, ready.file, 0, ready.count)
        except OSError:  # the usual way meets it again
            pass
        if sent != end:
            if sent:
                self._resumes, self._jumps = (head, sent), False
            return False
        self._sent += end
        self._request = size
        try:
            self._take(size)  # K2
        except OSError:
            self.transport.abort()
        self._wait_for_next()
        if ready.sent is not None:
            ready.sent()
        return True

    def _wait_for_next(self) -> None:
        """Wait for the next request. One timer serves many responses of the short way."""
        self.server_state.total_requests += 1
        self.limit_concurrency = self.config.limit_concurrency
        self._head_since = None
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless the short way has answered a request meanwhile."""
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(
                left, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def _refuse(self, status: int, phrase: bytes) -> None:
        self._give_up()
        super()._refuse(status, phrase)

    # Writing.

    def write_before(self, data: bytes) -> None:
        """Write an interim response (100)."""
        self._sent += len(data)
        self.transport.write(data)

    def write_head(self, cycle: httptools_impl.RequestResponseCycle, head: bytes) -> None:
        """Write the head of a response, after it was noted (K1)."""
        if self._resumes is not None:
            self._write_rest(cycle, head)
            return
        if (length := len(head)) > _LONGEST:
            self._give_up()
        if self._keeping is not None:
            body = cycle.expected_content_length
            if cycle.scope["method"] == "HEAD":
                body = 0
            elif cycle.chunked_encoding:
                body = UNKNOWN
            are_more = self.pipeline or self._is_midway  # of requests that were read
            self._counted, self._is_text = 0, True
            self._end_of_it = UNKNOWN if body == UNKNOWN else self._sent + length + body
            self._response = self._keeping.record.begin(
                self._sent,
                UNKNOWN if are_more else self._read,
                self._request,
                head,
                body,
                is_last=not cycle.keep_alive,
            )
        self._held = head
        self.loop.call_soon(self._write_held)

    def _write_held(self, *, more: bool = False) -> None:
        """Write a head that was held back; `more` follows at once."""
        if self._held:
            head, self._held = self._held, b""
            self.transport.write(head, more=more)

    def _write_rest(self, cycle: httptools_impl.RequestResponseCycle, head: bytes) -> None:
        """Write what another worker has not written of the head; see that it is the same one."""
        assert self._resumes is not None
        assert self._keeping is not None
        (noted, gone), self._resumes = self._resumes, None
        if not is_same_content(noted, head):
            self.transport.abort()
            return
        self._response = self._keeping.record.last
        self._end_of_it = self._response.end
        self._skip = max(gone - len(noted), 0)
        if self._response.is_last:
            cycle.keep_alive = False
        self.transport.write(noted[gone:])

    def write_body(self, data: bytes) -> None:
        """Write a part of the body, in the coding of the connection."""
        gone = min(self._skip, len(data))
        self._skip -= gone
        data = data[gone:]
        self._counted += len(data)
        if self._is_text and self._response is not None:
            self._is_text = self._response.append(data)
        if self._held and len(data) <= _SHORT:
            data, self._held = self._held + data, b""
        self._write_held(more=True)
        self.transport.write(data)

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        self._is_text = False
        if self._skip:
            gone = min(self._skip, count)
            self._skip -= gone
            offset, count = offset + gone, count - gone
        if self._held and count <= _SHORT:  # cheaper than two calls of the kernel
            data = os.pread(file, count, offset)
            self._held += data
            offset, count = offset + len(data), count - len(data)
        self._write_held(more=count > 0)
        await super()._send_file(file, offset, count)

    def on_last_response(self) -> None:
        """The connection ends with the response that was just given to the transport."""
        self._write_held()

    def on_response_complete(self) -> None:
        """The transport has the whole response: wait until the kernel has it."""
        if self._held:
            self._write_held()
        if self.transport.get_write_buffer_size():
            self._is_late = True
            self._see_it_out(None)
        else:
            self._conclude()

    def resume_writing(self) -> None:
        """The kernel has everything."""
        super().resume_writing()
        if self._is_late:
            self._conclude()

    def _conclude(self) -> None:
        """The kernel has the whole response: its request is done with (K2)."""
        self._is_late = self._is_text = False
        response, self._response = self._response, None
        if response is not None:
            if self._end_of_it == UNKNOWN:
                response.body = self._counted
                self._end_of_it = response.end
            self._sent = self._end_of_it
        try:
            self._take(self._request)
            self._wake_at(1)
        except OSError:
            self.transport.abort()
        if not self.flow.read_paused:
            self.transport.resume_reading()
        if not self._is_anothers:
            super().on_response_complete()
        elif response is not None and response.is_last:
            self.transport.close()
        elif self._sent:
            self._wait_for_another()
        self._is_anothers = False

    def _wait_for_another(self) -> None:
        """A connection of another worker waits for its next request."""
        self._head_since = None
        self.timeout_keep_alive_task: asyncio.TimerHandle | None = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    # The end.

    def _give_up(self) -> None:
        """Have the connection kept no more; this worker goes on with it."""
        self._response = None
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.close()

    def shutdown(self) -> None:
        """The server stops: end the connection, after the response to a request that has come."""
        self._is_ending = True
        try:
            has_come = tcp.waiting(self._socket) > self._parsed and not self._is_answering()
        except OSError:
            has_come = False
        if not has_come:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is lost. The client sees the end, although there is a duplicate."""
        super().connection_lost(exc)
        with suppress(OSError):
            tcp.drop(self._socket, _UNREAD)
            self._socket.shutdown(socket.SHUT_WR)
        self._give_up()

    def hand_over(self) -> bool:
        """Have another worker go on with the connection; False if that is not possible.

        After it, this worker does not touch the connection any more.
        """
        if self._keeping is None or self.transport.is_closing():
            return False
        try:
            sent, taken = tcp.written(self._socket), tcp.taken(self._socket)
        except OSError:
            return False
        step = continuation(self._keeping.record.last, sent, taken).step
        if step in (Step.GIVE_UP, Step.END):
            return False
        try:
            self._keeping.hand_over(self._socket)
        except OSError:
            return False
        self._keeping = self._response = None
        self.transport.release()
        super().connection_lost(None)
        return True


def _size_of_head(data: bytes) -> int:
    """Bytes of the first head of a request and the empty lines before it; 0 if it is not whole."""
    start = 0
    if data[:1] in (b"\r", b"\n"):
        start = len(data) - len(data.lstrip(b"\r\n"))  # the parser skips them, too
    end = data.find(b"\r\n\r\n", start)
    return 0 if end < 0 else end + 4
