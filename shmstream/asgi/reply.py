"""`BlobReply`: answers one request with a blob, and raises what goes wrong to its caller.

    conditions that a digest answers     304 or 412, without the source and without the blob
    HEAD, and the blob is not here       the source is asked, and nothing is downloaded
    no room, as far as is known          the source itself, without a flight
    anything else                        the store or a flight; where there is no room for a
                                         flight, or not for its rest, the source itself. Likewise
                                         if the flight breaks, and `goes_past` says that another
                                         source than ours led it

`conditions` decides what is sent, `body` sends the bytes. Between the two, `authorise` may forbid
it. `response` answers errors with a status, the registry answers them in its own way.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from shmstream.asgi.body import Sending
from shmstream.asgi.conditions import Answer
from shmstream.asgi.leaving import Leaving
from shmstream.asgi.messages import BrokenOff, Ready, Receive, Scope, Send, finish, start
from shmstream.asgi.statuses import shortage
from shmstream.asgi.terms import Terms
from shmstream.errors import (
    BlobNotFound,
    ContentChanged,
    DigestMismatch,
    OutOfRoom,
    ShmstreamError,
    SizeMismatch,
    StreamBroken,
    WriterStalled,
)
from shmstream.flight.flight import Role
from shmstream.sources.base import Description, describe
from shmstream.sources.select import as_sources
from shmstream.system.threads import in_thread

if TYPE_CHECKING:
    from shmstream.flight.async_blob import AsyncBlob
    from shmstream.flight.pass_through import Passage
    from shmstream.sources.select import AnySource
    from shmstream.store import Store


_WRONG = (DigestMismatch, ContentChanged)  # the client has wrong bytes already


async def allow(_: AsyncBlob | Description) -> None:
    """Let everybody have the blob."""


@dataclass
class _Request:
    """The parts of a request that decide its answer."""

    headers: Mapping[str, str]
    is_get: bool
    needs_size: bool
    """A client of HTTP/1.0 knows no chunked coding."""

    @classmethod
    def of(cls, scope: Scope) -> _Request:
        """Headers of the same name become a list. Only a GET can ask for a range."""
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        is_get = scope["method"] == "GET"
        if not is_get:
            headers.pop("range", None)
        return cls(headers, is_get, is_get and scope.get("http_version") == "1.0")


class BlobReply:
    """The answer to one GET or HEAD request, with the blob of `key`.

    Args:
        store, key, source, stall_timeout, write_timeout, wait_for, linger: as for
            `InFlightResponse`.
        terms: how the answers look; by default made of `headers` and `media_type`.
        authorise: called with what is known of the blob, after the source has answered and before
            anything is sent. `send` raises what `authorise` raises; but after a `SizeMismatch` the
            blob comes from the source itself.
        expected: what is known of a blob that is not here; None if nothing is. Called with whether
            a part of it is wanted. Without it nothing is known before the source is asked.
        repeats: whether an equal request of any client may get the same complete blob, without this
            reply (`messages.SERVER`, `again`). It is asked each time, and must not wait. Without it
            none may.
        goes_past: whether the source itself is worth asking if the flight breaks or stalls. That is
            so if it was not asked yet, because the flight has another source.

    Attributes:
        status: the status that was sent; None as long as nothing was sent.
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
        wait_for: float = 0.0,
        linger: bool = True,
        terms: Terms | None = None,
        authorise: Callable[[AsyncBlob | Description], Awaitable[None]] = allow,
        goes_past: Callable[[], bool] = lambda: False,
        expected: Callable[[bool], Awaitable[Description | None]] | None = None,
        repeats: Callable[[], bool] | None = None,
    ) -> None:
        self._expected = expected
        self._repeats = repeats
        self._server: dict[str, Any] = {}  # what our own server says of the request
        self._store = store
        self._key = key
        self._source = source
        self._terms = terms or Terms(key, headers=headers, media_type=media_type)
        self._wait_for, self._linger = wait_for, linger
        self._stall_timeout = stall_timeout
        self._write_timeout = write_timeout
        self._authorise = authorise
        self._goes_past = goes_past
        self.status: int | None = None

    async def send_or_break_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`send`, for a caller that answers only if nothing was sent.

        Raises:
            ShmstreamError: nothing was sent.
            BrokenOff: the body ends short of its Content-Length.
        """
        try:
            await self.send(scope, receive, send)
        except ShmstreamError as error:
            if self.status is None:
                raise
            raise BrokenOff(str(error)) from error

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; once. Returns early when the client leaves.

        Raises:
            ShmstreamError: with `status` None nothing was sent, and the caller can answer; else
                the body ends short of its Content-Length, and the server must close the connection.
            OutOfResources: it is one of these; this machine lacks descriptors, threads or memory,
                or its disk is gone.
        """
        extensions = scope.get("extensions") or {}
        sending = Sending(send, self._write_timeout, extensions)
        self._server = sending.server
        self._server["is_blob"] = True
        try:
            with Leaving(receive, sending.server.get("when_lost")) as sending.task:
                await self._serve(_Request.of(scope), send, sending)
        except ConnectionError:
            pass
        except (OSError, MemoryError, RuntimeError) as error:
            if (lack := shortage(error, self._key)) is None:
                raise
            raise lack from error

    async def _serve(self, request: _Request, send: Send, sending: Sending) -> None:
        opened = self._open()
        answer = self._terms.without_the_blob(request.headers)
        if answer is None and not request.is_get and (about := await self._described()) is not None:
            answer = self._terms.answer(request.headers, about)
        if answer is not None:
            await self._begin(send, answer)
            await finish(send)
            return
        about = misfit = None
        if request.is_get and self._expected is not None:
            about = await self._expected("range" in request.headers)
            misfit = None if about is None else await self._misfit(about)
        if about is None or misfit is None:
            await self._stream(opened, request, send, sending)
        else:
            async with self._instead(misfit, anyway=False) as passage:
                give = partial(_pass, sending, passage, about)
                await self._reply(request, send, about, give)

    async def _begin(self, send: Send, answer: Answer) -> None:
        await start(send, answer.status, answer.headers)
        self.status = answer.status

    async def _stream(
        self, opened: AsyncBlob, request: _Request, send: Send, sending: Sending
    ) -> None:
        """Answer with the blob: from the store, from a flight, or without room from the source."""
        reply = partial(self._reply, request, send)
        is_known = False
        try:
            async with opened.at_once() as blob:
                if not blob.is_complete:
                    await blob.known()
                if request.needs_size:
                    await blob.seek(0, os.SEEK_END)
                is_known, sending.size = True, blob.size
                await reply(blob, partial(self._give, sending, blob))
        except ShmstreamError as error:
            is_other = isinstance(error, SizeMismatch) and self.status is None
            if is_known and not is_other:
                raise
            stalls = isinstance(error, WriterStalled) and self._goes_past()
            async with self._instead(error, anyway=is_other or stalls) as passage:
                about = await passage.ask(for_part="range" in request.headers)
                if request.needs_size and about.size is None:
                    raise error from None
                await reply(about, partial(_pass, sending, passage, about))

    async def _reply(
        self,
        request: _Request,
        send: Send,
        about: AsyncBlob | Description,
        give: Callable[[Answer], Awaitable[None]],
    ) -> None:
        """Send the head of the answer, and the body by `give` if there is one."""
        await self._authorise(about)
        answer = self._answer(request, about)
        if self._repeats is not None and answer.status == 200:
            self._let_repeat(about, self._repeats)
        await self._begin(send, answer)
        if request.is_get and answer.status in (200, 206) and answer.end != 0:
            await give(answer)
        else:
            await finish(send)

    def _let_repeat(self, about: AsyncBlob | Description, may: Callable[[], bool]) -> None:
        """Let the server answer equal requests itself, if it can, and the blob is complete."""
        if "again" not in self._server or isinstance(about, Description):
            return
        if (opens := about.again()) is not None:
            self._server["again"] = partial(_again, may, opens, about.published)

    async def _misfit(self, about: Description) -> OutOfRoom | None:
        """Why the store cannot keep such a blob; None if it can, as far as is known."""
        size = about.size
        if size is None:
            return None
        reason = await in_thread(lambda: self._store.misfit(self._key, size))
        return None if reason is None else OutOfRoom(self._key, 0, reason)

    async def _give(self, sending: Sending, blob: AsyncBlob, answer: Answer) -> None:
        """Send the body. The part that the flight has no room for comes from the source."""
        try:
            await sending.send(blob, answer.start, answer.end)
        except ShmstreamError as error:
            broke = isinstance(error, StreamBroken) and not isinstance(error, _WRONG)
            async with self._instead(error, anyway=broke and self._goes_past()) as passage:
                size = blob.size if sending.size is None else sending.size
                known = Description(size, blob.validator, blob.media_type)
                file = blob.descriptor if sending.position > answer.start else -1
                _pass_from(sending.position, passage, known, answer, file)
                await sending.pass_on(passage)

    def _instead(self, error: ShmstreamError, *, anyway: bool) -> Passage:
        """A way to the blob without a flight.

        Raises `error` unless it means a lack of room, or with `anyway`.
        """
        return self._store.pass_through(
            self._key,
            self._source,
            error,
            stall_timeout=self._stall_timeout,
            anyway=anyway,
        )

    def _open(self) -> AsyncBlob:
        """The blob, not entered yet.

        Raises:
            BlobNotFound: the key is not valid, so there is no such blob.
        """
        try:
            return self._store.aopen(
                self._key,
                self._source,
                stall_timeout=self._stall_timeout,
                linger=self._linger,
                wait_for=self._wait_for,
            )
        except ValueError as error:
            raise BlobNotFound(self._key, self._store.folder) from error

    async def _described(self) -> Description | None:
        """What the source says of the blob, for a HEAD; None if only a download can tell."""
        if self._key in self._store or self._source is None:
            return None
        sources = as_sources(self._source)
        return await in_thread(lambda: describe(sources))

    def _answer(self, request: _Request, about: AsyncBlob | Description) -> Answer:
        """What to send for this request, now that the blob or its description is known."""
        if isinstance(about, Description):
            return self._terms.answer(request.headers, about)
        if self._terms.hands_over and request.is_get and about.role == Role.STORED:
            folder = self._store.folder
            in_front = self._terms.handed_over(request.headers, about, about.path, folder)
            if in_front is not None:
                return in_front
        return self._terms.answer(request.headers, about, about.published)


def _again(
    may: Callable[[], bool], opens: Callable[[], int | None], size: int, _client: object
) -> Ready | None:
    """The blob that was sent, once more: an `Again`."""
    try:
        file = opens() if may() else None
    except (ShmstreamError, OSError, MemoryError):  # the reply meets it again, and tells it
        return None
    return None if file is None else Ready(file, size)


async def _pass(sending: Sending, passage: Passage, about: Description, answer: Answer) -> None:
    _pass_from(answer.start, passage, about, answer)
    await sending.pass_on(passage)


def _pass_from(
    position: int, passage: Passage, about: Description, answer: Answer, file: int = -1
) -> None:
    """Have the passage give what is left of the answer; `file` has what the client has already.

    A client that asks for a range without an end may want less than that.
    """
    passage.give(
        position,
        answer.end,
        about,
        file,
        first=answer.start,
        in_pieces=answer.is_open,
    )
