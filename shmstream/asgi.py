"""`InFlightResponse`: a blob over HTTP while it arrives, for any ASGI application.

    return InFlightResponse(store, key, source)           Starlette, FastAPI
    await InFlightResponse(store, key, source)(scope, receive, send)      any other

What is sent is decided before anything goes out (answer.py): the status, the range and the headers,
from the request and from what the source says of the blob. Then come the headers, at once, and the
bytes as they arrive. After the headers there is nothing but the body: if the flight fails, the
connection ends short of its Content-Length, and no error text is taken for data.

Bytes are sent by the kernel, straight from the file, where the server has the ASGI extension
`http.response.zerocopysend` (server.py gives it to uvicorn); elsewhere they are read and handed on.

A client that leaves cancels its own reading and never the flight. A client that takes nothing for
`write_timeout` is cut; one that takes a little, now and then, is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shmstream.aio import in_thread
from shmstream.answer import Answer, etag_of, with_the_blob, without_the_blob
from shmstream.errors import (
    BlobNotFound,
    CannotStart,
    ContentChanged,
    DigestMismatch,
    ShmstreamError,
    SourceError,
    SourceFailed,
    WriterStalled,
)
from shmstream.source import Description, describe
from shmstream.sources import as_sources

if TYPE_CHECKING:
    from shmstream.aio import AsyncBlob
    from shmstream.sources import AnySource
    from shmstream.store import Store

try:  # FastAPI tells a response from data by its class
    from starlette.responses import Response as _Response
except ImportError:

    class _Response:  # type: ignore[no-redef]
        """Where there is no Starlette, an application that is called is enough."""


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_ZERO_COPY = "http.response.zerocopysend"
_PIECE = 1 << 17  # bytes; what is read to be handed on at one time
_LEAST, _MOST = 1 << 16, 1 << 20  # bytes; what the kernel is told to send at one time
_QUICK = 1.0  # s; a client that takes longer for so much is given less at one time
_STATUS_OF: tuple[tuple[type[ShmstreamError], int], ...] = (
    (BlobNotFound, 404),
    (WriterStalled, 504),
    (DigestMismatch, 502),
    (ContentChanged, 502),
    (SourceFailed, 502),
    (SourceError, 502),
    (CannotStart, 503),
)


class InFlightResponse(_Response):
    """Sends the blob of `key`, complete or in flight, as `Store.aopen` gives it.

    GET and HEAD; 200, 206 for one range (also for bytes that have not arrived), 304, 412, 416,
    ETag, If-Range, Content-Length as soon as the size is known and chunked coding until then.
    Before the headers, errors are answers: 404, 502 (the source), 503 with Retry-After (this
    machine, or `max_flights`) or 504 (a stall); a subclass may say it otherwise (`refuse`). Other
    methods get 405. A HEAD, or a condition that a digest answers, begins no download unless its
    source can say nothing without one.

    Args:
        store: where the blob is or will be.
        key: as for `Store.open`.
        source: as for `Store.open`.
        headers: to be sent with a 200, 206 or 304.
        media_type: Content-Type, if the source says none or another.
        stall_timeout: seconds without a byte after which the client is cut.
        write_timeout: seconds in which the client must take something.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        source: AnySource | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        stall_timeout: float | None = 60.0,
        write_timeout: float = 60.0,
    ) -> None:
        self._store = store
        self._key = key
        self._source = source
        self._extra = {name.lower(): value for name, value in (headers or {}).items()}
        self._media_type = media_type
        self._stall_timeout = stall_timeout
        self._write_timeout = write_timeout
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in ("GET", "HEAD"):
            await _send_whole(send, Answer(405, {"allow": "GET, HEAD", "content-length": "0"}))
            return
        with _Leaving(receive), suppress(ConnectionError):  # the client has left
            await self._serve(scope, send)

    def refuse(self, error: ShmstreamError) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request that fails before its headers."""
        status = next((code for kind, code in _STATUS_OF if isinstance(error, kind)), 500)
        headers = {"cache-control": "no-store"}
        if status == 503:
            headers["retry-after"] = "5"
        return status, headers, b""

    async def _serve(self, scope: Scope, send: Send) -> None:
        request = {name.decode("latin-1").lower(): value.decode("latin-1")
                   for name, value in scope["headers"]}  # fmt: skip
        began = False

        async def begin(answer: Answer) -> None:
            nonlocal began
            began = True
            self.status_code = answer.status
            await _start(send, answer)

        try:
            etag = self._extra.get("etag") or etag_of(self._key)
            if etag and (answer := without_the_blob(request, etag)):
                answer.headers = answer.headers | self._extra
                await begin(answer)
                await send({"type": "http.response.body", "body": b""})
                return
            if scope["method"] == "HEAD" and (about := await self._described()) is not None:
                await begin(self._answer(request, about))
                await send({"type": "http.response.body", "body": b""})
                return
            opened = self._store.aopen(self._key, self._source, stall_timeout=self._stall_timeout)
            async with opened as blob:
                await blob.known()
                await self.authorise(blob)
                answer = self._answer(request, blob)
                await begin(answer)
                if scope["method"] == "GET":
                    sized = answer.end is not None  # else in chunks, which the server makes
                    zero_copy = sized and _ZERO_COPY in (scope.get("extensions") or {})
                    await _Sending(send, blob, self._write_timeout).send(
                        answer, zero_copy=zero_copy
                    )
                else:
                    await send({"type": "http.response.body", "body": b""})
        except ShmstreamError as error:
            if began:
                raise  # the server closes the connection, short of what was promised
            status, headers, body = self.refuse(error)
            headers["content-length"] = str(len(body))
            self.status_code = status
            await _send_whole(send, Answer(status, headers), body)

    async def authorise(self, blob: AsyncBlob) -> None:
        """For subclasses: called once the source has answered, before anything is sent.

        Raises:
            ShmstreamError: this client is not to have it; `refuse` says so.
        """

    async def _described(self) -> Description | None:
        """What a HEAD request is told, without a download; None if only a download can tell."""
        if self._key in self._store or self._source is None:
            return None
        sources = as_sources(self._source)
        return await in_thread(lambda: describe(sources))

    def _answer(self, request: Mapping[str, str], about: Description | AsyncBlob) -> Answer:
        """What to send, decided from the request and from what is known of the blob."""
        etag = self._extra.get("etag") or etag_of(self._key, about.validator)
        answer = without_the_blob(request, etag) or with_the_blob(request, etag, about.size)
        if answer.status not in (304, 412):
            media_type = self._media_type or about.media_type or "application/octet-stream"
            answer.headers["content-type"] = media_type
        answer.headers = answer.headers | self._extra
        return answer


class _Sending:
    """Sends bytes of a blob to a client, as long as it takes some."""

    def __init__(self, send: Send, blob: AsyncBlob, timeout: float) -> None:
        self._send = send
        self._blob = blob
        self._timeout = timeout
        self._writing_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle
        self._cut = False

    async def send(self, answer: Answer, *, zero_copy: bool) -> None:
        """Send the body of the answer, waiting for the client, and for the blob.

        Raises:
            ConnectionAbortedError: the client took nothing for too long.
            StreamBroken: as `AsyncBlob.read1`.
        """
        self._task = asyncio.current_task()
        self._look()
        try:
            await (self._by_kernel(answer) if zero_copy else self._by_hand(answer))
            await self._write({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if not self._cut or self._task is None:
                raise
            self._task.uncancel()
            reason = f"the client took nothing for {self._timeout:g} s"
            raise ConnectionAbortedError(reason) from None
        finally:
            self._timer.cancel()

    def _look(self) -> None:
        """One timer for all writes: they are many, and one that takes too long is rare."""
        now = time.monotonic()
        due = (self._writing_since or now) + self._timeout
        if due <= now and self._task is not None:
            self._cut = self._task.cancel()
        else:
            self._timer = asyncio.get_running_loop().call_later(due - now, self._look)

    async def _by_hand(self, answer: Answer) -> None:
        blob = self._blob
        await blob.seek(answer.start)
        end = float("inf") if answer.end is None else answer.end
        while blob.tell() < end:
            data = await blob.read1(int(min(end - blob.tell(), _PIECE)))
            if not data:
                break
            await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def _by_kernel(self, answer: Answer) -> None:
        blob, position, end = self._blob, answer.start, answer.end
        assert end is not None
        most = _LEAST
        while position < end:
            count = min(await blob.wait_past(position), end, position + most) - position
            if count <= 0:
                break
            took = await self._write(
                {
                    "type": _ZERO_COPY,
                    "file": blob.descriptor,
                    "offset": position,
                    "count": count,
                    "more_body": True,
                }
            )
            position += count
            # A write that is under way shows no progress, so a slow client is given less at a time.
            most = min(2 * most, _MOST) if took < _QUICK else max(most // 2, _LEAST)

    async def _write(self, message: Message) -> float:
        """Have the server send it; the seconds that took."""
        began = self._writing_since = time.monotonic()
        await self._send(message)
        self._writing_since = None
        return time.monotonic() - began


class _Leaving:
    """Inside, the client's leaving cancels the task, and ends the block without an error."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # its request's body, if any, is not looked at
        if self._task is not None:
            self._left = self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._watching.cancel()
        if not self._left or self._task is None:
            return False
        # A cancellation that is not ours as well goes on.
        return self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)


async def _start(send: Send, answer: Answer) -> None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1"))
             for name, value in answer.headers.items()]  # fmt: skip
    await send({"type": "http.response.start", "status": answer.status, "headers": pairs})


async def _send_whole(send: Send, answer: Answer, body: bytes = b"") -> None:
    await _start(send, answer)
    await send({"type": "http.response.body", "body": body})
