"""`Mirrors`: all mirrors of `shmstream serve`, as one ASGI application; and what an error says.

The path of a request tells which mirror it is for. Errors become a line of text with a status:

    404    as for any blob that is not there
    405    a method that a mirror does not have
    502    the origin cannot be reached, or broke off
    503    this machine, or a limit of the store; with Retry-After
    504    the origin does not answer in time; or only what is kept was wanted, and there is nothing

What the origin itself refuses is passed on as it is, and is no error here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

from shmstream.asgi.messages import Message, Receive, Scope, Send
from shmstream.asgi.statuses import as_ours, status_of, status_of_source
from shmstream.errors import ShmstreamError, SourceError, SourceFailed, escaped
from shmstream.mirror.cache import Cache, NotKept
from shmstream.mirror.huggingface import Hub
from shmstream.mirror.kind import Kind, Plain, Refused, Rooms, say
from shmstream.mirror.origin import Origin
from shmstream.mirror.pypi import Index
from shmstream.mirror.replies import Replies
from shmstream.mirror.settings import Mirror
from shmstream.store import Store
from shmstream.upstreams.counts import Counts
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.probes import Probes
from shmstream.upstreams.questions import Bounds
from shmstream.upstreams.singleflight import Together

_KINDS: dict[str, type[Plain]] = {"http": Plain, "huggingface": Hub, "pypi": Index}
_SOON = "5"  # s; Retry-After

_log = logging.getLogger("shmstream")


class Mirrors:
    """The mirrors of one process. For one event loop.

    Raises:
        OSError: the store's folder cannot be written to.
    """

    def __init__(
        self,
        mirrors: Iterable[Mirror],
        store: Store,
        bounds: Bounds,
        *,
        stall: float = 70.0,
        most: int = 64,
        counts: Counts | None = None,
    ) -> None:
        """`bounds`: how long origins may take; `stall` and `most` as for `Replies`.

        `counts` is told of origins by the paths of their mirrors.
        """
        self._probes = Probes()
        self._origins: list[Origin] = []
        self._rooms: dict[str, Rooms] = {}
        self._kinds: dict[str, Kind] = {}
        for mirror in mirrors:
            reached = Notes(store.folder, "reach")
            origin = Origin(mirror.url, mirror.path, bounds, reached, counts, mirror.connections)
            self._origins.append(origin)
            cache = Cache(mirror, origin, store)
            replies = Replies(store, origin, stall, most)
            rooms = Rooms(mirror, cache, replies, Together(f"shmstream-head {mirror.path}"))
            self._rooms[mirror.path] = rooms
            self._kinds[mirror.path] = _KINDS[mirror.kind](rooms)

    def find(self, path: str) -> str | None:
        """The path of the mirror that a request for `path` is for; None if it is for none."""
        while path:
            if path in self._kinds:
                return path
            path = path.rpartition("/")[0]
        return None

    def problems(self) -> list[str]:
        """What is wrong with origins; see `Probes.problems`."""
        return self._probes.problems(self._origins)

    def origins_that_are_well(self) -> dict[str, bool]:
        """By path, whether an origin answers. Reads files, and asks again as `problems`."""
        self.problems()
        return {each.path: each.reach.problem is None for each in self._origins}

    def close(self) -> None:
        """Cancel all questions to origins. Flights go on. Idempotent."""
        for each in self._rooms.values():
            each.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, for which `find` has a mirror.

        Sets in the scope `shmstream.route`, the kind; `shmstream.upstream`, the mirror's path; and
        `shmstream.cache`.
        """
        path = self.find(scope["path"])
        assert path is not None
        scope["shmstream.route"] = self._rooms[path].mirror.kind
        scope["shmstream.upstream"] = path
        try:
            await self._kinds[path](scope, receive, partial(_send_safely, send))
        except (ShmstreamError, OSError, MemoryError, RuntimeError) as raised:
            if (error := as_ours(raised, scope["path"][:300])) is None:
                raise
            await _refuse(scope, send, error)


async def _send_safely(send: Send, message: Message) -> None:
    """Send a message of an answer; a browser that shows a page of the origin runs nothing of it.

    All mirrors, and the page of this server, are of one origin for a browser.
    """
    if message["type"] == "http.response.start":
        headers = list(message.get("headers", ()))
        named = {name.lower(): value for name, value in headers}
        plain = named.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if any(each in plain for each in (b"html", b"xml", b"svg")) or not plain:
            headers.append((b"content-security-policy", b"sandbox"))
        if b"x-content-type-options" not in named:
            headers.append((b"x-content-type-options", b"nosniff"))
        message = {**message, "headers": headers}
    await send(message)


async def _refuse(scope: Scope, send: Send, error: ShmstreamError) -> None:
    status, text = _meaning(error)
    headers = {}
    if status == 405:
        headers["allow"] = "GET, HEAD"
    elif status in (429, 503):
        headers["retry-after"] = _SOON
    if status >= 500 and not isinstance(error, NotKept):
        _log.warning("%s %s: %s", scope["method"], scope["path"][:300], error)
    await say(send, status, escaped(text), headers)


def _meaning(error: ShmstreamError) -> tuple[int, str]:
    if isinstance(error, Refused):
        return error.status, error.message
    if isinstance(error, NotKept):
        return 504, str(error)
    if isinstance(error, SourceError | SourceFailed):
        status = status_of_source(error)
        if status == 504:
            return status, "the origin does not answer in time"
        if error.status is None:
            return status, "the origin cannot be reached, or breaks off"
        return status, f"the origin answers {error.status}"
    status = status_of(error)
    told = {404: "not known here", 502: "the origin gives other bytes than it should",
            503: "this mirror is busy", 504: "nothing comes from the origin any more"}  # fmt: skip
    return status, told.get(status, "this mirror is not in order")
