"""`InFlightResponse` for WSGI: a blob over HTTP while it arrives, in Flask, Django and any other.

    InFlightResponse(store, key, source)(environ, start_response)       any WSGI application
    return for_flask(InFlightResponse(store, key, source))              a view of Flask
    return for_django(request, InFlightResponse(store, key, source))    a view of Django

It answers as the response of `shmstream.asgi` does: the same statuses, ranges, conditions and
headers (`asgi/terms`). The request's thread waits for the blob and hands on what has arrived, so a
slow client takes a thread: use threads (`gunicorn -k gthread`), or a web server in front.

The server itself sends a blob that is complete, if it has `wsgi.file_wrapper`; with gunicorn that
is `sendfile`. A range, and what is in flight, is read and handed on. If the flight fails after the
headers, the body raises: then the server closes the connection short of the Content-Length.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from shmstream.arguments import seconds
from shmstream.asgi.body import check_size
from shmstream.asgi.conditions import Answer
from shmstream.asgi.statuses import shortage, status_of
from shmstream.asgi.terms import Terms
from shmstream.errors import BlobNotFound, ShmstreamError
from shmstream.flight.flight import Role
from shmstream.sources.base import Description, describe
from shmstream.sources.select import as_sources

if TYPE_CHECKING:
    from datetime import datetime

    from django.http import HttpRequest, StreamingHttpResponse
    from flask import Response

    from shmstream.flight.blob import Blob
    from shmstream.flight.pass_through import Passage
    from shmstream.sources.select import AnySource
    from shmstream.store import Store

__all__ = ["InFlightResponse", "Prepared", "for_django", "for_flask"]

_PIECE = 1 << 17  # bytes; the most that is read and handed on at one time
_ASKED = (
    "range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since",
)  # fmt: skip


class StartResponse(Protocol):
    """What a WSGI server gives to an application."""

    def __call__(self, status: str, headers: list[tuple[str, str]], /) -> object:
        """Begin the response."""


@dataclass
class Prepared:
    """An answer that can be sent. Iterate over `body`, and close it in any case.

    `file` is the blob if it is complete and all of it is sent: a server may send its descriptor
    instead of the body.
    """

    status: int
    headers: dict[str, str]
    body: Body | Rest | list[bytes] = field(default_factory=list)
    file: Blob | None = None

    @property
    def line(self) -> str:
        """The status as WSGI has it: `200 OK`."""
        return f"{self.status} {HTTPStatus(self.status).phrase}"

    def wrapped(self, environ: Mapping[str, Any]) -> Iterable[bytes]:
        """The body; if the server can send files itself, the file in its wrapper."""
        wrapper = environ.get("wsgi.file_wrapper")
        if self.file is None or wrapper is None:
            return self.body
        wrapped: Iterable[bytes] = wrapper(self.file, _PIECE)
        return wrapped


class InFlightResponse:
    """A WSGI application that sends the blob of `key`, complete or in flight.

    Arguments, statuses and headers are those of `shmstream.asgi.InFlightResponse`; only how long a
    client may take is up to the server. Without room for a flight, or for its rest, the bytes come
    straight from the source (`Store.pass_through`).

    Raises:
        ValueError: `filename`, `last_modified`, `wait_for` or `x_accel` is not valid.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        source: AnySource | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        filename: str | None = None,
        last_modified: datetime | float | str | None = None,
        wait_for: float = 0.0,
        linger: bool = True,
        x_accel: str | None = None,
        x_sendfile: bool = False,
        stall_timeout: float | None = 60.0,
    ) -> None:
        self._terms = Terms(
            key,
            headers=headers,
            media_type=media_type,
            filename=filename,
            last_modified=last_modified,
            x_accel=x_accel,
            x_sendfile=x_sendfile,
        )
        self._store, self._key, self._source = store, key, source
        self._stall_timeout, self._linger, self._wait_for = (
            stall_timeout,
            linger,
            seconds("wait_for", wait_for),
        )

    def __call__(
        self, environ: Mapping[str, Any], start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer one request. Blocks until the source has given the first bytes."""
        prepared = self.prepare(environ)
        start_response(prepared.line, list(prepared.headers.items()))
        return prepared.wrapped(environ)

    def prepare(self, environ: Mapping[str, Any]) -> Prepared:
        """The answer to the request in `environ`, for a framework to send. Blocks as a call."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return Prepared(405, {"allow": "GET, HEAD", "content-length": "0"})
        try:
            return self._prepare(environ)
        except ShmstreamError as error:
            return self.refuse(error)
        except (OSError, MemoryError, RuntimeError) as error:
            if (lack := shortage(error, self._key)) is None:
                raise
            return self.refuse(lack)

    def _prepare(self, environ: Mapping[str, Any]) -> Prepared:
        names = {each: "HTTP_" + each.upper().replace("-", "_") for each in _ASKED}
        asked = {each: environ[name] for each, name in names.items() if name in environ}
        is_get = environ["REQUEST_METHOD"] == "GET"
        if not is_get:
            asked.pop("range", None)
        answer = self._terms.without_the_blob(asked)
        if answer is None and not is_get and (about := self._described()) is not None:
            answer = self._terms.answer(asked, about)
        if answer is not None:
            return Prepared(answer.status, answer.headers)
        needs_size = is_get and environ.get("SERVER_PROTOCOL") == "HTTP/1.0"
        try:
            return self._streamed(asked, is_get=is_get, needs_size=needs_size)
        except ShmstreamError as error:
            passage = self._instead(error)
        return self._passed(passage, asked, is_get=is_get, needs_size=needs_size)

    def _streamed(self, asked: Mapping[str, str], *, is_get: bool, needs_size: bool) -> Prepared:
        blob = self._open()
        with ExitStack() as closing:
            closing.callback(blob.close)
            answer = self._answer(blob, asked, needs_size=needs_size)
            prepared = Prepared(answer.status, answer.headers)
            if is_get and answer.status in (200, 206) and answer.end != 0:
                prepared.body = Body(blob, answer.start, answer.end, self._instead)
                if blob.role == Role.STORED and answer.status == 200:
                    prepared.file = blob
                closing.pop_all()
        return prepared

    def _instead(self, error: ShmstreamError) -> Passage:
        """A way to the blob without a flight. Raises `error` unless it means a lack of room."""
        timeout = self._stall_timeout
        return self._store.pass_through(self._key, self._source, error, stall_timeout=timeout)

    def _passed(
        self, passage: Passage, asked: Mapping[str, str], *, is_get: bool, needs_size: bool
    ) -> Prepared:
        with ExitStack() as closing:
            closing.enter_context(passage)
            about = passage.ask_now(for_part="range" in asked)
            if needs_size and about.size is None:
                return Prepared(503, {"retry-after": "5", "content-length": "0"})
            answer = self._terms.answer(asked, about)
            prepared = Prepared(answer.status, answer.headers)
            if is_get and answer.status in (200, 206) and answer.end != 0:
                # A client that asks for a range without an end may want less than that.
                start, end = answer.start, answer.end
                passage.give(start, end, about, first=start, in_pieces=answer.is_open)
                prepared.body = Rest(passage)
                closing.pop_all()
        return prepared

    def _described(self) -> Description | None:
        """What the source says of the blob, for a HEAD; None if only a download can tell."""
        if self._source is None or self._key in self._store:
            return None
        return describe(as_sources(self._source))

    def _open(self) -> Blob:
        try:
            return self._store.open(
                self._key,
                self._source,
                stall_timeout=self._stall_timeout,
                linger=self._linger,
                wait_for=self._wait_for,
            )
        except ShmstreamError:
            raise
        except ValueError as error:  # the key is not valid, so there is no such blob
            raise BlobNotFound(self._key, self._store.folder) from error

    def _answer(self, blob: Blob, asked: Mapping[str, str], *, needs_size: bool) -> Answer:
        if blob.size is None:
            blob.wait_past(0)
        if needs_size:  # a client of HTTP/1.0 knows no chunks
            blob.seek(0, os.SEEK_END)
        if blob.role == Role.STORED:
            folder = self._store.folder
            in_front = self._terms.handed_over(asked, blob, blob.path, folder)
            if in_front is not None:
                return in_front
        return self._terms.answer(asked, blob, blob.published)

    def refuse(self, error: ShmstreamError) -> Prepared:
        """The answer to a request that fails before its headers."""
        status = status_of(error)
        headers = {"cache-control": "no-store", "content-length": "0"}
        if status == 503:
            headers["retry-after"] = "5"
        return Prepared(status, headers)


class Body:
    """The bytes of a blob from `start` to before `end`, as they arrive; `end` None: to its end.

    The last byte is given only when the blob is complete: until then its flight may fail, and a
    body that has ended would tell the client that it did not.

    Iterating raises what reading a `Blob` raises.
    """

    def __init__(
        self,
        blob: Blob,
        start: int,
        end: int | None,
        instead: Callable[[ShmstreamError], Passage],
    ) -> None:
        """Owns `blob`. `instead` gives another way to the rest if there is no room for it."""
        blob.seek(start)
        self._blob, self._start, self._end = blob, start, end
        self._size = blob.size
        self._instead = instead
        self._rest: Rest | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._rest is None:
            try:
                return self._read()
            except ShmstreamError as error:
                self._rest = self._rest_after(error)
        return next(self._rest)

    def _rest_after(self, error: ShmstreamError) -> Rest:
        """What is left, straight from the source; raises `error` unless it means a lack of room."""
        blob = self._blob
        rest = Rest(self._instead(error))
        size = blob.size if self._size is None else self._size
        known = Description(size, blob.validator, blob.media_type)
        file = blob.view().fd if blob.position > self._start else -1
        rest.passage.give(blob.position, self._end, known, file, first=self._start)
        return rest

    def _read(self) -> bytes:
        position = self._blob.position
        if self._end is not None and position >= self._end:
            raise StopIteration
        data = self._blob.read1(min(self._there(position) - position, _PIECE))
        if not data:
            raise StopIteration
        return data

    def _there(self, position: int) -> int:
        """Wait for a byte past `position`; how far can be sent."""
        blob = self._blob
        there = blob.wait_past(position)
        check_size(blob, self._size)
        if self._end is not None:
            there = min(there, self._end)
        if there == blob.size and not blob.is_complete:
            if there - position > 1:
                return there - 1
            blob.wait_past(there)
            check_size(blob, self._size)
        return max(there, position)

    def close(self) -> None:
        """Leave the blob; its flight goes on. Idempotent."""
        if self._rest is not None:
            self._rest.close()
        self._blob.close()


class Rest:
    """The bytes that a passage gives; iterating raises what those of a `Passage` raises."""

    def __init__(self, passage: Passage) -> None:
        """Owns `passage`."""
        self.passage: Passage = passage
        self._is_closed = False
        self._given: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._given is None:
            self._given = iter(self.passage)
        return next(self._given)

    def close(self) -> None:
        """End the download of this client. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            with self.passage:
                pass


def for_flask(response: InFlightResponse) -> Response:
    """What a view of Flask returns for the request that it answers.

    A view may return the `InFlightResponse` itself, too; then Flask does not use the server's way
    to send files.
    """
    from flask import Response, request

    prepared = response.prepare(request.environ)
    return Response(
        prepared.wrapped(request.environ),
        prepared.status,
        prepared.headers,
        direct_passthrough=True,
    )


def for_django(request: HttpRequest, response: InFlightResponse) -> StreamingHttpResponse:
    """What a view of Django returns for `request`."""
    from django.http import StreamingHttpResponse

    prepared = response.prepare(request.META)
    made = StreamingHttpResponse(
        prepared.body, status=prepared.status, headers=prepared.headers, content_type=None
    )
    if prepared.file is not None:  # Django's handler gives it to `wsgi.file_wrapper`
        made.file_to_stream, made.block_size = prepared.file, _PIECE
    return made
