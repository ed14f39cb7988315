"""`InFlightResponse`: a blob over HTTP while it arrives, for any ASGI application.

    return InFlightResponse(store, key, source)           Starlette, FastAPI
    await InFlightResponse(store, key, source)(scope, receive, send)      any other

What is sent is decided before anything goes out (answer.py): the status, the range and the headers,
from the request and from what the source says of the blob. Then come the headers, at once, and the
bytes as they arrive. After the headers there is nothing but the body: if the flight fails, the
connection ends short of its Content-Length, and no error text is taken for data.

Bytes are sent by the kernel, straight from the file, where the server has the ASGI extension
`http.response.zerocopysend` (server.py gives it to uvicorn); elsewhere they are read and handed on
(sending.py).

A client that leaves cancels its own reading and never the flight. A client that takes nothing for
`write_timeout` is cut; one that takes a little, now and then, is not.

Where there is no room for a flight, or not for the rest of it, each client gets what it lacks
straight from the source (passing.py), and notices nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shmstream.asgi.body import SERVER, Message, Send, Sending
from shmstream.asgi.conditions import Answer, etag_of, with_the_blob, without_the_blob
from shmstream.errors import (
    BlobNotFound,
    CannotStart,
    ContentChanged,
    DigestMismatch,
    OutOfRoom,
    ShmstreamError,
    SourceError,
    SourceFailed,
    WriterStalled,
)
from shmstream.sources.base import Description, describe
from shmstream.sources.select import as_sources
from shmstream.system.threads import in_thread

if TYPE_CHECKING:
    from shmstream.flight.async_blob import AsyncBlob
    from shmstream.flight.pass_through import Passage
    from shmstream.sources.select import AnySource
    from shmstream.store import Store

try:  # FastAPI tells a response from data by its class
    from starlette.responses import Response as _Response
except ImportError:

    class _Response:  # type: ignore[no-redef]
        """Where there is no Starlette, an application that is called is enough."""


__all__ = ["InFlightResponse", "Message", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_STATUS_OF: tuple[tuple[type[ShmstreamError], int], ...] = (
    (BlobNotFound, 404),
    (WriterStalled, 504),
    (DigestMismatch, 502),
    (ContentChanged, 502),
    (SourceFailed, 502),
    (SourceError, 502),
    (OutOfRoom, 503),
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
        self.background = None  # FastAPI may set it
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in ("GET", "HEAD"):
            await _send_whole(send, Answer(405, {"allow": "GET, HEAD", "content-length": "0"}))
        else:
            ours = (scope.get("extensions") or {}).get(SERVER, {})
            with _Leaving(receive, ours.get("when_lost")), suppress(ConnectionError):
                await self._serve(scope, send)
        if self.background is not None:
            await self.background()

    def refuse(self, error: ShmstreamError) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request that fails before its headers."""
        status = next((code for kind, code in _STATUS_OF if isinstance(error, kind)), 500)
        headers = {"cache-control": "no-store"}
        if status == 503:
            headers["retry-after"] = "5"
        return status, headers, b""

    async def _serve(self, scope: Scope, send: Send) -> None:
        request = _request(scope)
        began = False

        async def begin(answer: Answer) -> None:
            nonlocal began
            began = True
            self.status_code = answer.status
            await _start(send, answer)

        try:
            opened = self._open()
            etag = self._extra.get("etag") or etag_of(self._key)
            is_any = request.get("if-none-match", "").strip() == "*"  # if there is one at all
            if etag and not is_any and (answer := without_the_blob(request, etag)):
                answer.headers = answer.headers | self._extra
                await begin(answer)
                await send({"type": "http.response.body", "body": b""})
                return
            if scope["method"] == "HEAD" and (about := await self._described()) is not None:
                await begin(self._answer(request, about))
                await send({"type": "http.response.body", "body": b""})
                return
            await self._stream(opened, request, scope, send, begin)
        except ShmstreamError as error:
            if began:
                raise  # the server closes the connection, short of what was promised
            status, headers, body = self.refuse(error)
            headers["content-length"] = str(len(body))
            self.status_code = status
            await _send_whole(send, Answer(status, headers), body)

    async def _stream(
        self,
        opened: AsyncBlob,
        request: Mapping[str, str],
        scope: Scope,
        send: Send,
        begin: Callable[[Answer], Awaitable[None]],
    ) -> None:
        """Answer with the blob: from the store, a flight, or where there is no room, the source."""
        sending = Sending(send, self._write_timeout, scope.get("extensions") or {})
        is_get = scope["method"] == "GET"
        needs_size = is_get and scope.get("http_version") == "1.0"  # it knows no chunked coding
        is_known = False

        async def reply(
            about: AsyncBlob | Description, give: Callable[[Answer], Awaitable[None]]
        ) -> None:
            await self.authorise(about)
            answer = self._answer(request, about)
            await begin(answer)
            if is_get and answer.status in (200, 206):
                await give(answer)
            else:
                await send({"type": "http.response.body", "body": b""})

        try:
            async with opened as blob:
                await blob.known()
                if needs_size:
                    await blob.seek(0, os.SEEK_END)
                is_known = True
                await reply(blob, partial(self._give, sending, blob))
        except ShmstreamError as error:
            if is_known:
                raise
            async with self._instead(error) as passage:
                about = await passage.ask()
                if needs_size and about.size is None:
                    raise error from None
                await reply(about, partial(_pass, sending, passage, about))

    async def _give(self, sending: Sending, blob: AsyncBlob, answer: Answer) -> None:
        """Send the body; what the flight has no room for, from the source."""
        try:
            await sending.send(blob, answer.start, answer.end)
        except ShmstreamError as error:
            async with self._instead(error) as passage:
                known = Description(blob.size, blob.validator, blob.media_type)
                file = blob.descriptor if sending.position > answer.start else -1
                passage.give(sending.position, answer.end, known, file)
                await sending.pass_on(passage)

    def _instead(self, error: ShmstreamError) -> Passage:
        """A way to the blob without a flight, if that has failed for want of room; else raises."""
        return self._store.pass_through(
            self._key, self._source, error, stall_timeout=self._stall_timeout
        )

    def _open(self) -> AsyncBlob:
        """Not entered yet.

        Raises:
            BlobNotFound: the key is none, so there is no such blob.
        """
        try:
            return self._store.aopen(self._key, self._source, stall_timeout=self._stall_timeout)
        except ValueError as error:
            raise BlobNotFound(self._key, self._store.folder) from error

    async def authorise(self, blob: AsyncBlob | Description) -> None:
        """For subclasses: called once the source has answered, before anything is sent.

        `blob` is what it has said, where there is no room for a flight.

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


_Undo = Callable[[], object]


class _Leaving:
    """Inside, the client's leaving cancels the task, and ends the block without an error.

    Our server tells of it (`when_lost`). Of others we ask, in a task of its own; whoever never
    waits inside is not watched, for that would cost a tenth of a small response.
    """

    def __init__(
        self, receive: Receive, when_lost: Callable[[Callable[[], None]], _Undo] | None
    ) -> None:
        self._receive = receive
        self._when_lost = when_lost
        self._left = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._when_lost is not None:
            self._stop = self._when_lost(self._leave)
        else:
            self._stop = asyncio.get_running_loop().call_soon(self._begin).cancel

    def _begin(self) -> None:
        self._stop = asyncio.ensure_future(self._watch()).cancel

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # its request's body, if any, is not looked at
        self._leave()

    def _leave(self) -> None:
        if self._task is not None:
            self._left = self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._stop()
        if not self._left or self._task is None:
            return False
        # A cancellation that is not ours as well goes on.
        return self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)


def _request(scope: Scope) -> dict[str, str]:
    """The headers; several of one name are a list. A range is only ever for a GET."""
    request: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        request[name] = f"{request[name]}, {value}" if name in request else value
    if scope["method"] != "GET":
        request.pop("range", None)
    return request


async def _pass(sending: Sending, passage: Passage, about: Description, answer: Answer) -> None:
    passage.give(answer.start, answer.end, about)
    await sending.pass_on(passage)


async def _start(send: Send, answer: Answer) -> None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1"))
             for name, value in answer.headers.items()]  # fmt: skip
    await send({"type": "http.response.start", "status": answer.status, "headers": pairs})


async def _send_whole(send: Send, answer: Answer, body: bytes = b"") -> None:
    await _start(send, answer)
    await send({"type": "http.response.body", "body": body})
