"""The observer: wraps the application, and counts and logs every response.

Also those that the server makes without the application (`messages.SERVER`, `again`): each of them
has an entry and counts of its own, with the facts of the first response to that request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import unquote

from shmstream.asgi.messages import (
    SERVER,
    ZERO_COPY,
    Again,
    BrokenOff,
    Message,
    Ready,
    Receive,
    Scope,
    Send,
    answer,
)
from shmstream.asgi.statuses import shortage
from shmstream.registry.ops.access_log import AccessLog, Entry
from shmstream.registry.ops.metrics import Metrics
from shmstream.registry.ops.names import Names
from shmstream.upstreams import request_id

App = Callable[[Scope, Receive, Send], Awaitable[None]]

_COUNTED_AT_ONCE = 1 << 20  # bytes; a long body is counted in steps while it is sent
_CLIENT_LEFT = 499  # as nginx: the client left before there was a status
_SOON = "5"  # s; the Retry-After if this machine lacks something
_NAMESPACE = re.compile(rb"(?:^|&)ns=([^&]{1,256})")

_log = logging.getLogger("shmstream")


class Response:
    """One response while it is sent. Its `send` wraps the server's."""

    __slots__ = (
        "_length", "_metrics", "_name", "_names", "_observe", "_scope", "_send", "_uncounted",
        "began", "complete", "has_body", "sent", "status", "ttfb",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        send: Send,
        metrics: Metrics,
        names: Names,
        name: str | None = None,
        observe: Callable[[Again], Again] = lambda again: again,
    ) -> None:
        """`name`: the id of the request, which the client gets.

        `observe`: makes an `Again` whose responses are observed, too.
        """
        self._name = name
        self._observe = observe
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._names = names
        self._uncounted = 0
        self._length: int | None = None  # of the body, as the head says
        self.has_body: bool = scope["method"] != "HEAD"
        self.began: float = time.perf_counter()
        self.status: int = 0
        self.sent: int = 0
        self.ttfb: float | None = None
        self.complete: bool = False

    async def send(self, message: Message) -> None:
        """Note a message, and pass it to the server."""
        kind = message["type"]
        if kind == "http.response.body":
            count = len(message.get("body", b""))
            if self.ttfb is None and count:
                self.ttfb = time.perf_counter() - self.began
            await self._send(message)
            self._note(count, more=message.get("more_body", False))
        elif kind == ZERO_COPY:
            if self.ttfb is None:
                self.ttfb = time.perf_counter() - self.began
            await self._send(message)
            self._note(_count(message), more=message.get("more_body", False))
        else:
            if kind == "http.response.start":
                self._begin(message["status"], _length(message))
                if self._name is not None:
                    told = (request_id.HEADER.encode(), self._name.encode())
                    message = {**message, "headers": [*message.get("headers", ()), told]}
                server = (self._scope.get("extensions") or {}).get(SERVER, {})
                if (again := server.get("again")) is not None:
                    server["again"] = self._observe(again)
            await self._send(message)

    def _begin(self, status: int, length: int | None) -> None:
        """Note what the head of the response says; `length` is that of the body."""
        self.status, self._length = status, length
        if status < 300 and (named := self._scope.get("shmstream.named")):
            self._names.note(*named)

    def note_all(self, count: int) -> None:
        """Note that the server has sent a whole response, with so many bytes."""
        self._begin(200, count)
        self._note(count, more=False)

    def _note(self, count: int, *, more: bool) -> None:
        if count and self.has_body:
            self.sent += count
            self._uncounted += count
            if self._uncounted >= _COUNTED_AT_ONCE:
                self.count()
        # A client that has the whole body may hang up before it is told that this is the end.
        if not more or (self.has_body and self.sent == self._length):
            self.complete = True

    def count(self) -> None:
        """Add the bytes that were sent since the last call to the metrics."""
        if self._uncounted:
            route, upstream = _labels(self._scope)
            self._metrics.served(route, upstream, self._uncounted)
            self._uncounted = 0


def _length(message: Message) -> int | None:
    """The length of the body, as the head of a response says; None if it does not."""
    told = dict(message.get("headers", ())).get(b"content-length", b"")
    return int(told) if told.isdigit() else None


def _count(message: Message) -> int:
    """The bytes that a zero-copy message sends."""
    count: int | None = message.get("count")
    if count is not None:
        return count
    file = message["file"]
    fd = file if isinstance(file, int) else file.fileno()
    offset = message.get("offset")
    return os.fstat(fd).st_size - (os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset)


class Observer:
    """Counts and logs the responses of an application."""

    def __init__(self, metrics: Metrics, names: Names, log: AccessLog | None) -> None:
        self._metrics = metrics
        self._names = names
        self._log = log
        self.is_stopping = False
        """True while the server stops: a CancelledError then means that the grace period ended."""

    async def observe(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Have `app` answer one request.

        A body that breaks off is logged, and the server closes its connection, short of the
        Content-Length. If this machine lacks something, that is a 503 and one line in the log.
        """
        headers = dict(scope["headers"])
        name, is_given = request_id.begin(headers.get(request_id.HEADER.encode()))
        scope["shmstream.request_id"] = name
        response = self._response(scope, send, name if is_given else None)
        try:
            await app(scope, receive, response.send)
        except BrokenOff as error:
            _log.warning("%s %r was cut: %s", scope["method"], scope["path"], error)
        except asyncio.CancelledError:
            if not self.is_stopping:
                raise
            await self._cut(scope, response)
        except Exception as error:
            if (lack := shortage(error, scope["path"][:300])) is None:
                response.status = response.status or 500  # the server's answer
                raise
            _log.error("%s %s", scope["method"], lack)
            if not response.status:
                await answer(
                    response.send, 503, {"retry-after": _SOON, "cache-control": "no-store"}
                )
        finally:
            self._conclude(scope, response)

    def _response(self, scope: Scope, send: Send, name: str | None) -> Response:
        is_given = name is not None
        observe = partial(self._observed, scope, is_given=is_given)
        return Response(scope, send, self._metrics, self._names, name, observe)

    def _observed(self, scope: Scope, again: Again, *, is_given: bool) -> Again:
        """The same `again`; what is sent so is counted and logged as a response to `scope` is."""
        facts = {name: each for name, each in scope.items() if name != "extensions"}
        return partial(self._again, facts, again, is_given)

    def _again(
        self, facts: Scope, again: Again, is_given: bool, client: tuple[str, int | None] | None
    ) -> Ready | None:
        scope = {**facts, "client": client}
        response = Response(scope, _nowhere, self._metrics, self._names)
        if (ready := again(client)) is None:
            return None
        if not is_given:
            scope["shmstream.request_id"] = request_id.new()
        response.ttfb = time.perf_counter() - response.began
        ready.sent = partial(self._has_sent, scope, response, ready.count)
        return ready

    def _has_sent(self, scope: Scope, response: Response, count: int) -> None:
        response.note_all(count)
        self._conclude(scope, response)

    async def _cut(self, scope: Scope, response: Response) -> None:
        """End a response after the grace period, so that the server logs no error for it."""
        if response.status:
            _log.info("%s %r was cut: the server stops", scope["method"], scope["path"])
            return
        await answer(response.send, 503, {"retry-after": "1"})

    def _conclude(self, scope: Scope, response: Response) -> None:
        duration = time.perf_counter() - response.began
        (route, upstream), cache = _labels(scope), scope.get("shmstream.cache")
        method, status = scope["method"], response.status or _CLIENT_LEFT
        ttfb = response.ttfb if response.ttfb is not None else duration
        response.count()
        self._metrics.answered(route, upstream, method, status, cache, ttfb)
        if self._log is not None:
            headers = dict(scope["headers"])
            client = scope.get("client")
            entry = Entry(
                ended=time.time(),
                client=client[0] if client else None,
                method=method,
                path=scope["path"],
                namespace=_namespace(scope["query_string"]),
                wanted_range=_text(headers.get(b"range")),
                user_agent=_text(headers.get(b"user-agent")),
                status=status,
                sent=response.sent,
                complete=response.complete,
                duration=duration,
                ttfb=response.ttfb,
                route=route,
                cache=cache,
                user=scope.get("shmstream.user"),
                request_id=scope.get("shmstream.request_id"),
            )
            self._log.add(entry)


async def _nowhere(_: Message) -> None:
    """The `send` of a response that the server sends itself."""


def _labels(scope: Scope) -> tuple[str | None, str]:
    """The route and the upstream of a request, as the metrics have them."""
    return scope.get("shmstream.route"), scope.get("shmstream.upstream", "")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _namespace(query: bytes) -> str | None:
    """The `ns` of a query. Nothing else of a query is logged: it may be a secret."""
    found = _NAMESPACE.search(query)
    return unquote(found[1].decode("latin-1")) if found else None
