"""The pages for operators: everything beside /v2/.

    /healthz    this process is alive: 200
    /readyz     it can serve: 200, or 503 with what is wrong; as JSON
    /metrics    for Prometheus, over all workers
    /           the status page (page.html)
    /events     what it shows: server-sent events, one snapshot a second; the first one has the
                history of the last ten minutes, too
    /admin/     for admins, if there are any: `catalogue`

A thread looks at disks and shared memory, one look at a time, and requests that come meanwhile get
the same answer. A disk that hangs makes this process unready, but blocks no event loop. Another
thread notes the sums for the history, every few seconds, also if nobody looks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

from shmstream.asgi.messages import Receive, Scope, Send, answer, finish, start
from shmstream.asgi.statuses import as_ours
from shmstream.errors import OutOfResources, ShmstreamError, escaped
from shmstream.registry.api.access import REALM, Access
from shmstream.registry.api.errors import Refusal
from shmstream.registry.ops.metrics import Metrics
from shmstream.registry.ops.status import Status
from shmstream.upstreams.singleflight import Together

T = TypeVar("T")

_log = logging.getLogger("shmstream")

_PATIENCE = 5.0  # s; a look at the disk that takes longer counts as failed
_SNAPSHOT_EVERY = 1.0  # s
_VIEWERS = 64  # requests for events that this worker answers at one time
_LONGEST_VIEW = 60.0  # s; then the page connects again, perhaps to another worker
_VIEWER_PATIENCE = 20.0  # s; a viewer that does not take an event in that time is cut
_ROUTES = {
    "/": "status",
    "/events": "events",
    "/healthz": "health",
    "/readyz": "ready",
    "/metrics": "metrics",
}
_PRIVATE = ("status", "events")
"""Routes that tell the names of images; the others tell numbers."""
_COMMON = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Operations:
    """An ASGI application for everything beside /v2/. For one event loop."""

    def __init__(
        self,
        status: Status,
        metrics: Metrics,
        upstream_problems: Callable[[], list[str]],
        access: Access | None = None,
    ) -> None:
        """`upstream_problems` returns the known problems of upstreams. It reads files.

        `access`: which clients may see what others pull; None: all. Then `status` does not tell the
        name of anything that an upstream gives to some clients only.
        """
        self._access = access
        self._status = status
        self._metrics = metrics
        self._upstream_problems = upstream_problems
        self._looker = Together(f"shmstream-look {status.folder}", threads=1)
        # Readiness waits for no other look.
        self._prober = Together(f"shmstream-probe {status.folder}", threads=1)
        self._noter = Together("shmstream-history", threads=1)
        self._noting: asyncio.Task[None] | None = None
        self._page, self._policy = _page()
        self._viewers = 0
        self._newest: asyncio.Task[_Event] | None = None
        self._due = 0.0  # the time for the next snapshot, on the loop's clock
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Begin to note the sums for the history. Call it in the event loop, once."""
        self._noting = asyncio.create_task(self._note())

    def stop(self) -> None:
        """End all event streams, because a server that stops waits for them. Idempotent."""
        self._stopping.set()

    def close(self) -> None:
        """Cancel all waiting for a look. Idempotent."""
        self.stop()
        tasks: list[asyncio.Task[Any] | None] = [self._newest, self._noting]
        for task in filter(None, tasks):
            task.cancel()
        self._noter.close()
        self._looker.close()
        self._prober.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = _ROUTES.get(scope["path"])
        scope["shmstream.route"] = route
        if route is None:
            await _answer(send, 404, "text/plain", b"not found\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, "text/plain", b"only GET and HEAD\n", {"allow": "GET, HEAD"})
        elif route in _PRIVATE and not await self._is_known(scope):
            await _answer(send, 401, "text/plain", b"who are you?\n", REALM)
        elif route == "status":
            headers = {"content-security-policy": self._policy}
            await _answer(send, 200, "text/html; charset=utf-8", self._page, headers)
        elif route == "health":
            await _answer(send, 200, "text/plain", b"alive\n")
        elif route == "ready":
            await self._tell_ready(send)
        elif route == "metrics":
            await self._tell_metrics(scope, send)
        else:
            await self._tell_events(scope, receive, send)

    async def _is_known(self, scope: Scope) -> bool:
        if self._access is None:
            return True
        try:
            scope["shmstream.user"] = name = await self._access.name_of(scope)
        except Refusal:
            return False
        return name is not None

    async def _look(self, what: Hashable, look: Callable[[], T]) -> T:
        """What `look` returns, called in the thread for looks.

        Raises:
            TimeoutError: it takes too long. The look goes on, and the next one waits for its end.
        """
        async with asyncio.timeout(_PATIENCE):
            return await self._looker.ask(what, look)

    async def _tell_ready(self, send: Send) -> None:
        upstreams: list[str] = []
        try:
            async with asyncio.timeout(_PATIENCE):
                problems, upstreams = await self._prober.ask("problems", self._problems)
        except TimeoutError:
            problems = [f"the store does not answer within {_PATIENCE:g} s"]
        except (ShmstreamError, OSError, MemoryError, RuntimeError) as error:
            if (lack := as_ours(error, "readiness")) is None:
                raise
            problems = [str(lack)]
        facts = {
            "ready": not problems,
            "problems": problems,
            "upstreams": upstreams,
        }
        body = json.dumps(facts).encode() + b"\n"
        headers = {"retry-after": "5"} if problems else None
        await _answer(send, 503 if problems else 200, "application/json", body, headers)

    def _problems(self) -> tuple[list[str], list[str]]:
        return self._status.problems(), self._upstream_problems()

    async def _tell_metrics(self, scope: Scope, send: Send) -> None:
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        try:
            seen = await self._look("gauges", self._status.gauges)
            render = partial(self._metrics.render, accept, seen)
            content_type, body = await self._look(("metrics", accept), render)
        except TimeoutError:
            headers = {"retry-after": "5"}
            await _answer(send, 503, "text/plain", b"the store does not answer\n", headers)
            return
        except (ShmstreamError, OSError, MemoryError, RuntimeError) as error:
            if (lack := as_ours(error, "the metrics")) is None:
                raise
            text = escaped(str(lack)).encode() + b"\n"
            await _answer(send, 503, "text/plain", text, {"retry-after": "5"})
            return
        await _answer(send, 200, content_type, body)

    # Events.

    async def _tell_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._viewers >= _VIEWERS or self._stopping.is_set():
            headers = {"retry-after": "10"}
            await _answer(send, 503, "text/plain", b"too many are watching\n", headers)
            return
        headers = {**_COMMON, "content-type": "text/event-stream", "x-accel-buffering": "no"}
        await start(send, 200, headers)
        if scope["method"] == "HEAD":
            await finish(send)
            return
        self._viewers += 1
        showing = asyncio.ensure_future(self._show(send))
        ends = [asyncio.ensure_future(_left(receive)), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(
                (showing, *ends), timeout=_LONGEST_VIEW, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self._viewers -= 1
            for task in (showing, *ends):
                task.cancel()
            await asyncio.wait((showing, *ends))
        if not showing.cancelled():
            showing.result()
        await finish(send)

    async def _show(self, send: Send) -> None:
        """Send one snapshot after another, until one cannot be sent in time."""
        await send({"type": "http.response.body", "body": b"retry: 1000\n\n", "more_body": True})
        is_first = True
        while True:
            event = await asyncio.shield(self._snapshot())
            if is_first and event.kind == "snapshot":
                event, is_first = await self._with_history(event), False
            body = event.to_bytes()
            try:
                async with asyncio.timeout(_VIEWER_PATIENCE):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except TimeoutError:
                return

    async def _with_history(self, event: _Event) -> _Event:
        """The snapshot with `history`; as it is, if that cannot be read now."""
        try:
            async with asyncio.timeout(_PATIENCE):
                past = await self._noter.ask("past", self._status.past)
        except (TimeoutError, MemoryError, OutOfResources):
            return event
        return _Event(event.kind, f'{{"history":{_json(past)},{event.data[1:]}')

    async def _note(self) -> None:
        """Note the sums in each period. A period in which that cannot be done has none."""
        while True:
            try:
                await self._noter.ask("note", self._status.note)
            except (ShmstreamError, OSError, MemoryError, RuntimeError) as error:
                # A RuntimeError of prometheus-client: it does not understand a file of counts.
                _log.debug("nothing is noted for the history: %s", error)
            await asyncio.sleep(self._status.history.pause())

    def _snapshot(self) -> asyncio.Task[_Event]:
        """The task that makes the next snapshot, which all viewers share."""
        if self._newest is None or self._newest.done():
            self._newest = asyncio.create_task(self._make_snapshot())
        return self._newest

    async def _make_snapshot(self) -> _Event:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._due - loop.time())
        self._due = loop.time() + _SNAPSHOT_EVERY
        try:
            snapshot = await self._look("snapshot", self._snapshot_now)
        except TimeoutError:
            return _Event.of("problem", {"problem": "the store does not answer"})
        except (ShmstreamError, OSError, MemoryError, RuntimeError) as error:
            if (lack := as_ours(error, "the status page")) is None:
                raise
            return _Event.of("problem", {"problem": escaped(str(lack))})
        return _Event.of("snapshot", snapshot)

    def _snapshot_now(self) -> dict[str, Any]:
        return {**self._status.snapshot(), "problems": self._upstream_problems()}


@dataclass(frozen=True)
class _Event:
    """A server-sent event."""

    kind: str
    data: str  # an object in JSON, with at least one member

    @classmethod
    def of(cls, kind: str, data: Mapping[str, Any]) -> _Event:
        return cls(kind, _json(data))

    def to_bytes(self) -> bytes:
        return f"event: {self.kind}\ndata: {self.data}\n\n".encode()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _page() -> tuple[bytes, str]:
    """The page, and a policy that allows only the style and the script in the page."""
    page = files("shmstream.registry.ops").joinpath("page.html").read_text(encoding="utf-8")
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return page.encode(), policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(
    send: Send,
    status: int,
    content_type: str,
    body: bytes,
    headers: Mapping[str, str] | None = None,
) -> None:
    told = {**_COMMON, "content-type": content_type, **(headers or {})}
    await answer(send, status, told, body)
