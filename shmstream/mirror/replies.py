"""`Replies`: how what was found is sent to a client.

    a blob            from the store or from its flight, with ranges and conditions (`asgi/reply`)
    a few bytes       from the note that has them
    not kept          piece by piece from the origin's answer, to this client alone

Nothing is read ahead for a slow client of the last kind, and a process has a limit for them: each
one needs a thread while it waits for the origin.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from urllib3 import BaseHTTPResponse

from shmstream.asgi.body import Sending
from shmstream.asgi.headers import read_date
from shmstream.asgi.leaving import Leaving
from shmstream.asgi.messages import SERVER, BrokenOff, Receive, Scope, Send, answer, finish, start
from shmstream.asgi.reply import BlobReply
from shmstream.asgi.terms import Terms
from shmstream.errors import ShmstreamError, SourceError, TooManyFlights
from shmstream.mirror.cache import Found
from shmstream.mirror.entry import Entry
from shmstream.mirror.freshness import Pairs
from shmstream.mirror.origin import Origin, head_of
from shmstream.sources.base import checked
from shmstream.sources.http_body import Body
from shmstream.store import Store
from shmstream.system.threads import in_thread

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from shmstream.sources.base import Source

_WRITE = 60.0  # s; a client that takes nothing for so long is cut
_THREADS = ("shmstream-mirror-pass", 1024)  # never reached: the limit of clients is lower
_OURS = frozenset(("accept-ranges", "age", "content-type", "last-modified"))
_BODILESS = (204, 304)


def request_of(scope: Scope) -> dict[str, str]:
    """The fields of a request; fields of the same name become a list."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def pairs_of(scope: Scope) -> Pairs:
    """The fields of a request, in order."""
    return [
        (name.decode("latin-1").lower(), value.decode("latin-1"))
        for name, value in scope["headers"]
    ]


def promised(scope: Scope) -> str:
    """The ETag of the answer whose beginning another process has sent; empty if there is none."""
    told: str = (scope.get("extensions") or {}).get(SERVER, {}).get("promised", "")
    return told


def joined(fields: Pairs, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """The fields as `asgi/messages` takes them."""
    found: dict[str, str] = {}
    for name, value in fields:
        if name not in without:
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


class Replies:
    """Sends answers of one mirror. For one event loop."""

    def __init__(self, store: Store, origin: Origin, stall: float, most: int) -> None:
        """`stall`: seconds after which a client without a byte is given up. `most`: clients at one
        time that get an answer which is not kept.
        """
        self._store = store
        self._origin = origin
        self._stall = stall
        self._most = most
        self._passing = 0

    async def found(self, scope: Scope, receive: Receive, send: Send, found: Found) -> None:
        """Send what was found.

        Raises:
            ShmstreamError: nothing was sent.
            BrokenOff: the body ends short.
        """
        scope["shmstream.cache"] = found.how
        if found.entry is None:
            await self._pass(scope, receive, send, found)
        elif found.entry.key:
            source = None if scope["method"] == "HEAD" and found.how != "miss" else found.source
            await self.blob(scope, receive, send, found.entry.key, source, _terms(found))
        else:
            entry = found.entry
            headers = joined(entry.fields, frozenset(("age",))) | _told(found, entry)
            if entry.status in _BODILESS:
                await start(send, entry.status, headers)
                await finish(send)
                return
            is_head = scope["method"] == "HEAD"
            await answer(send, entry.status, headers, entry.data(), is_head=is_head)

    async def blob(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        key: str,
        source: Source | None,
        terms: Terms,
    ) -> None:
        """Send the blob of `key`; raises as `found`."""
        reply = BlobReply(self._store, key, source, stall_timeout=self._stall, terms=terms)
        await reply.send_or_break_off(scope, receive, send)

    async def read(self, found: Found, limit: int) -> bytes:
        """The whole body of what was found.

        Raises:
            ShmstreamError: it does not come, or is longer than `limit` bytes.
        """
        if found.reply is not None:
            return await in_thread(partial(self._origin.read_body, found.reply, limit), _THREADS)
        entry = found.entry
        assert entry is not None
        if not entry.key:
            return entry.data()
        opened = self._store.aopen(entry.key, found.source, stall_timeout=self._stall)
        async with opened as blob:
            data = await blob.read(limit + 1)
        if len(data) > limit:
            raise SourceError(self._origin.name, 0, f"its answer is longer than {limit} bytes")
        return data

    async def _pass(self, scope: Scope, receive: Receive, send: Send, found: Found) -> None:
        assert found.reply is not None
        response = found.reply.response
        fields = [
            *head_of(response),
            ("cache-status", f"shmstream; fwd=miss; detail={found.detail}"),
        ]
        length = response.headers.get("content-length", "")
        size = int(length) if length.isdecimal() and response.status not in _BODILESS else None
        if size is not None:
            fields.append(("content-length", length))
        if self._passing >= self._most:
            raise TooManyFlights(scope["path"][:300], self._most)
        self._passing += 1
        try:
            await self._stream(scope, receive, send, response, fields, size)
        finally:
            self._passing -= 1

    async def _stream(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        response: BaseHTTPResponse,
        fields: Pairs,
        size: int | None,
    ) -> None:
        explain = self._origin.client.explain
        body = Body(response, 0, self._origin.bounds.silence, explain)
        extensions = scope.get("extensions") or {}
        try:
            with (
                Leaving(receive, extensions.get(SERVER, {}).get("when_lost")),
                suppress(ConnectionError),
            ):
                await start(send, response.status, fields)
                if scope["method"] == "HEAD" or response.status in _BODILESS:
                    await finish(send)
                    return
                pieces = self._pieces(checked(iter(body), 0, size, explain))
                await Sending(send, _WRITE, extensions).pass_on(pieces)
        except ShmstreamError as error:
            raise BrokenOff(str(error)) from error
        finally:
            body.close()

    async def _pieces(self, data: Iterator[Buffer]) -> AsyncIterator[bytes]:
        while (piece := await in_thread(lambda: next(data, None), _THREADS)) is not None:
            self._origin.received(len(memoryview(piece)))
            yield bytes(piece)


def _told(found: Found, entry: Entry) -> dict[str, str]:
    """What the mirror itself says of an answer."""
    told = {"age": f"{int(entry.age)}"} if found.how != "miss" or entry.age >= 1 else {}
    ttl = f"; ttl={round(entry.left)}"
    what = {"flight": "fwd=miss; collapsed", "miss": "fwd=miss; stored"}.get(found.how, f"hit{ttl}")
    detail = f"; detail={found.detail}" if found.detail else ""
    if found.how == "stale":
        told["warning"] = '110 - "Response is Stale"'
    return told | {"cache-status": f"shmstream; {what}{detail}"}


def _terms(found: Found) -> Terms:
    entry = found.entry
    assert entry is not None
    headers = joined(entry.fields, _OURS) | _told(found, entry)
    modified = read_date(entry.first("last-modified"))
    media_type = entry.first("content-type")
    return Terms(entry.key, headers=headers, media_type=media_type, last_modified=modified)
