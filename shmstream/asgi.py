"""`InFlightResponse`: a blob over HTTP while it arrives, for any ASGI application.

    return InFlightResponse(store, key, source)           Starlette, FastAPI
    await InFlightResponse(store, key, source)(scope, receive, send)      any other

What is sent is decided before anything goes out (`_answer`): the status, the range and the headers,
from the request and from what the source says of the blob. Then come the headers, at once, and the
bytes as they arrive. After the headers there is nothing but the body: if the flight fails, the
connection ends short of its Content-Length, and no error text is taken for data.

A client that leaves cancels its own reading and never the flight. A client that takes nothing for
`write_timeout` is cut; one that takes a little, now and then, is not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shmstream.errors import (
    BlobNotFound,
    CannotStart,
    ContentChanged,
    DigestMismatch,
    NoFreeSlot,
    OutOfResources,
    ShmstreamError,
    SourceFailed,
    WriterStalled,
)

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

_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d{1,19})-(\d{1,19})?|-(\d{1,19}))\s*", re.ASCII)
_ETAG = re.compile(r'(?:W/)?"[^"]*"')
_STATUS_OF: tuple[tuple[type[ShmstreamError], int], ...] = (
    (BlobNotFound, 404),
    (WriterStalled, 504),
    (DigestMismatch, 502),
    (ContentChanged, 502),
    (SourceFailed, 502),
    (NoFreeSlot, 503),
    (OutOfResources, 503),
    (CannotStart, 503),
)


@dataclass
class Answer:
    """What is sent: a status, headers, and which bytes of the blob (`end` None: to its end)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    start: int = 0
    end: int | None = 0


class InFlightResponse(_Response):
    """Sends the blob of `key`, complete or in flight, as `Store.aopen` gives it.

    GET and HEAD; 200, 206 for one range (also for bytes that have not arrived), 304, 412, 416,
    ETag, If-Range, Content-Length as soon as the size is known and chunked coding until then.
    Before the headers, errors are answers: 404, 502 (the source), 503 with Retry-After (this
    machine) or 504 (a stall). Other methods get 405.

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
            await _send_error(send, 405, {"allow": "GET, HEAD"})
            return
        sending = asyncio.ensure_future(self._serve(scope, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait((sending, leaving))
        if not sending.cancelled():
            with suppress(ConnectionError):  # the client has left
                sending.result()

    async def _serve(self, scope: Scope, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1")
                   for name, value in scope["headers"]}  # fmt: skip
        opened = self._store.aopen(self._key, self._source, stall_timeout=self._stall_timeout)
        started = False
        try:
            async with opened as blob:
                await blob.known()
                answer = self._answer(headers, blob)
                self.status_code = answer.status
                started = True
                await _start(send, answer.status, answer.headers)
                if scope["method"] == "GET":
                    await self._send_body(send, blob, answer)
                await self._send(send, b"", more=False)
        except ShmstreamError as error:
            if started:
                raise  # the server closes the connection, short of what was promised
            status = next((code for kind, code in _STATUS_OF if isinstance(error, kind)), 500)
            extra = {"retry-after": "5"} if status == 503 else {}
            await _send_error(send, status, extra)

    def _answer(self, request: Mapping[str, str], blob: AsyncBlob) -> Answer:
        """What to send, decided from the request and from what is known of the blob."""
        etag = self._extra.get("etag") or self._etag(blob)
        headers = {"accept-ranges": "bytes", **self._extra}
        if etag is not None:
            headers["etag"] = etag
        if not _matches(request.get("if-match"), etag, weak=False):
            return Answer(412, headers | {"content-length": "0"})
        if "if-none-match" in request and _matches(request["if-none-match"], etag, weak=True):
            return Answer(304, headers)
        headers["content-type"] = self._media_type or blob.media_type or "application/octet-stream"
        size = blob.size
        if size is None:
            return Answer(200, headers, end=None)
        wanted = request.get("range")
        if wanted is not None and request.get("if-range", etag) == etag:
            span = _span(wanted, size)
            if span is not None:
                start, end = span
                if start >= end:
                    headers["content-range"] = f"bytes */{size}"
                    return Answer(416, headers | {"content-length": "0"})
                headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
                headers["content-length"] = str(end - start)
                return Answer(206, headers, start, end)
        return Answer(200, headers | {"content-length": str(size)}, 0, size)

    def _etag(self, blob: AsyncBlob) -> str | None:
        """A digest is the best of ETags; else what the source has, if it is one and strong."""
        if self._key.startswith(("sha256:", "sha512:")):
            return f'"{self._key}"'
        validator = blob.validator
        strong = validator is not None and validator.startswith('"')
        return validator if strong and _ETAG.fullmatch(validator or "") else None

    async def _send_body(self, send: Send, blob: AsyncBlob, answer: Answer) -> None:
        await blob.seek(answer.start)
        end = float("inf") if answer.end is None else answer.end
        while blob.tell() < end:
            data = await blob.read1(-1 if answer.end is None else answer.end - blob.tell())
            if not data:
                break
            await self._send(send, data, more=True)

    async def _send(self, send: Send, data: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(self._write_timeout):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            reason = f"the client took nothing for {self._write_timeout:g} s"
            raise ConnectionAbortedError(reason) from None


async def _left(receive: Receive) -> None:
    """Wait until the client leaves; its request's body, if any, is not looked at."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _send_error(send: Send, status: int, headers: Mapping[str, str]) -> None:
    await _start(send, status, {"content-length": "0", "cache-control": "no-store", **headers})
    await send({"type": "http.response.body", "body": b""})


def _matches(condition: str | None, etag: str | None, *, weak: bool) -> bool:
    """Whether an `If-Match` or `If-None-Match` names `etag`; one that is not there does."""
    if condition is None or condition.strip() == "*":
        return True
    if etag is None:
        return False
    found = _ETAG.findall(condition)
    return etag in ([each.removeprefix("W/") for each in found] if weak else found)


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Start and end of the one range asked for; None for several or none, which get everything."""
    match = _ONE_RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return max(size - int(suffix), 0), size if int(suffix) else 0
    if last is not None and int(last) < int(first):
        return None
    return int(first), size if last is None else min(int(last) + 1, size)
