"""`InFlightResponse`: a blob over HTTP while it arrives, for any ASGI application.

    return InFlightResponse(store, key, source)           Starlette, FastAPI
    await InFlightResponse(store, key, source)(scope, receive, send)      any other

Status, range and headers are decided before anything is sent (`conditions`): from the request, and
from what the source says of the blob. Then the headers are sent at once, and the bytes as they
arrive (`reply`). After the headers only the body follows: if the flight fails, the connection ends
short of its Content-Length, so no client takes an error text for data.

The kernel sends the bytes straight from the file, if the server has the ASGI extension
`http.response.zerocopysend` (`protocol` gives it to uvicorn). With other servers the bytes are read
and handed on (`body`).

A client that leaves ends its own reading, never the flight. A client that takes nothing for
`write_timeout` seconds is cut; a client that takes a little now and then is not.

If the process that leads is stopped, the clients of the other processes get the rest from a
download of their process (`flight/beside`).

If there is no room for a flight, or for the rest of it, each client gets the missing bytes straight
from the source (`pass_through`), and notices nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from shmstream.arguments import seconds
from shmstream.asgi.messages import Message, Receive, Scope, Send, answer
from shmstream.asgi.reply import BlobReply
from shmstream.asgi.statuses import status_of
from shmstream.asgi.terms import Terms
from shmstream.errors import ShmstreamError

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.background import BackgroundTask

    from shmstream.flight.async_blob import AsyncBlob
    from shmstream.sources.base import Description
    from shmstream.sources.select import AnySource
    from shmstream.store import Store

try:  # FastAPI tells a response from data by its class
    from starlette.responses import Response as _Response
except ImportError:

    class _Response:  # type: ignore[no-redef]
        """Without Starlette, no framework asks for the class: an ASGI application is enough."""


def _always() -> bool:
    return True


__all__ = ["InFlightResponse", "Message", "Receive", "Scope", "Send"]


class InFlightResponse(_Response):
    """Sends the blob of `key`, complete or in flight, as `Store.aopen` gives it.

    GET and HEAD; 200, 206 for one range (also for bytes that have not arrived, if the size is
    known), 304, 412, 416, ETag, Last-Modified, If-Range, Content-Length as soon as the size is
    known and chunked coding until then.
    An error before the headers becomes an answer: 404, 502 (the source), 503 with Retry-After (this
    machine, or `max_flights`) or 504 (a stall). A subclass may answer in its own way (`refuse`).
    Other methods get 405. A HEAD begins no download, unless its source can tell nothing without
    one; nor does a condition that the digest decides.

    Args:
        store: where the blob is or will be.
        key: as for `Store.open`.
        source: as for `Store.open`.
        headers: sent with a 200, 206, 304, 412 or 416.
        media_type: the Content-Type; None for the one that the source says.
        filename: the name under which browsers save the body.
        last_modified: a `datetime`, seconds since 1970, or a date as HTTP has it; the answer to
            `If-Modified-Since` and the like. None: the Last-Modified of the source, if that is all
            that the source tells.
        wait_for: seconds to wait until another process begins to write or to download the blob;
            after that the source is asked, or it is a 404. See `Store.open`.
        linger: as for `Store.open`; False: the flight ends when its last client has left.
        x_accel: an internal location of an nginx in front that maps to the folder of the
            store, such as `/store/`: nginx sends complete blobs itself.
        x_sendfile: the same for Apache and lighttpd, by the header X-Sendfile.
        stall_timeout: seconds without a byte after which this process goes on without the leader,
            if that is another process, by a download of its own. If this process leads, or has no
            source, the client is cut.
        write_timeout: seconds in which the client must take some bytes.

    Raises:
        ValueError: `filename`, `last_modified`, `wait_for` or `x_accel` is not valid.
    """

    _repeatable: bool = False
    """Internal: whether equal requests of all clients get the same answer, and nothing else is to
    be done for them: no `authorise`, no count, no log, no background task. Then a worker of
    `shmstream serve` gives a small complete blob again without the application.
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
        write_timeout: float = 60.0,
    ) -> None:
        seconds("wait_for", wait_for)
        terms = Terms(
            key,
            headers=headers,
            media_type=media_type,
            filename=filename,
            last_modified=last_modified,
            x_accel=x_accel,
            x_sendfile=x_sendfile,
        )
        self._reply = partial(
            BlobReply,
            store,
            key,
            source,
            terms=terms,
            wait_for=wait_for,
            linger=linger,
            stall_timeout=stall_timeout,
            write_timeout=write_timeout,
            repeats=_always if self._repeatable else None,
        )
        self.background: BackgroundTask | None = None  # FastAPI may set it
        self.status_code: int = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in ("GET", "HEAD"):
            await answer(send, 405, {"allow": "GET, HEAD"})
        else:
            await self._answer(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = self._reply(authorise=self.authorise)
        try:
            await reply.send(scope, receive, send)
        except ShmstreamError as error:
            if reply.status is not None:
                raise  # the server closes the connection, short of what was promised
            self.status_code, headers, body = self.refuse(error)
            with suppress(ConnectionError):
                await answer(send, self.status_code, headers, body)
        finally:
            if reply.status is not None:
                self.status_code = reply.status

    def refuse(self, error: ShmstreamError) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request that fails before its headers."""
        status = status_of(error)
        headers = {"cache-control": "no-store"}
        if status == 503:
            headers["retry-after"] = "5"
        return status, headers, b""

    async def authorise(self, blob: AsyncBlob | Description) -> None:
        """For subclasses: called after the source has answered, before anything is sent.

        `blob` is the blob; without room for a flight it is what the source said of it.

        Raises:
            ShmstreamError: this client may not have the blob. `refuse` makes the answer.
        """
