"""What the kinds of mirrors have in common: the address of a request, and a plain mirror of HTTP.

`Plain` is the kind `http`: anything behind a URL. The other kinds know more of what they mirror,
and are plain for all that they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar
from urllib.parse import unquote

from shmstream.asgi.messages import Receive, Scope, Send, answer, finish, start
from shmstream.errors import ShmstreamError
from shmstream.mirror.cache import Asked, Cache, Found
from shmstream.mirror.freshness import Wish
from shmstream.mirror.origin import Told, passed_on
from shmstream.mirror.replies import Replies, pairs_of, promised, request_of
from shmstream.mirror.settings import Mirror
from shmstream.sources.http_client import origin_of, parse
from shmstream.system.threads import in_thread
from shmstream.upstreams.singleflight import Together

T = TypeVar("T")

_SEPARATOR = re.compile(r"[/\\]")
_MOST_CODINGS = 4  # times that a path is decoded: some servers decode more than once
_LONGEST = 8192  # characters
_SOON_READ = 1 << 14  # bytes that are understood in less than a millisecond
_READERS = ("shmstream-mirror-read", 2)  # threads: they compete for one interpreter


@dataclass(eq=False)
class Refused(ShmstreamError):
    """A request that no origin is asked for."""

    status: int
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass
class Rooms:
    """What one mirror has: its settings, what is kept, and how that is sent."""

    mirror: Mirror
    cache: Cache
    replies: Replies
    together: Together

    def close(self) -> None:
        """Cancel all questions. Idempotent."""
        self.cache.close()
        self.together.close()


class Kind(Protocol):
    """A mirror of one kind, as an ASGI application for the paths under its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises what goes wrong before anything is sent."""


def rest_of(scope: Scope, mirror: Mirror) -> str:
    """The path of a request behind that of the mirror, as the client wrote it.

    Raises:
        Refused: it could lead out of what is mirrored.
    """
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if isinstance(raw, bytes) else scope["path"]
    plain = path.partition("?")[0]
    rest = plain.removeprefix(mirror.path)
    # The mirror was found by the decoded path: `/hf%2Fx` is below `/hf` there, and not here.
    if not plain.startswith(mirror.path) or (rest and not rest.startswith("/")):
        raise Refused(400, "the path of a mirror is written as it is, without escapes")
    if len(rest) > _LONGEST or not rest.isascii() or _leads_up(rest):
        raise Refused(400, "a path has no '.' or '..' in it, and 8,192 characters at most")
    try:
        is_there = origin_of(parse(mirror.url + rest, is_exact=True)) == origin_of(
            parse(mirror.url)
        )
    except ValueError:
        is_there = False
    if not is_there:
        raise Refused(400, "such a path leads to another server")
    return rest


def _leads_up(rest: str) -> bool:
    """Whether a part of a path is `.` or `..`, for any server, however it reads the path."""
    for _ in range(_MOST_CODINGS):
        if any(each.partition(";")[0] in (".", "..") for each in _SEPARATOR.split(rest)):
            return True
        before, rest = rest, unquote(rest, "latin-1")
        if rest == before:
            return False
    return True


def query_of(scope: Scope) -> str:
    """The query of a request, with its question mark; empty if there is none."""
    query = scope.get("query_string", b"").decode("latin-1")
    return f"?{query}" if query else ""


class Plain:
    """The kind `http`."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._mirror = rooms.mirror
        self._cache = rooms.cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "this mirror gives, and takes nothing: GET and HEAD")
        rest = rest_of(scope, self._mirror)
        await self.give(scope, receive, send, self.asked(scope, rest, request_of(scope)))

    def asked(
        self, scope: Scope, rest: str, request: Mapping[str, str], wish: Wish | None = None
    ) -> Asked:
        """What a request asks the origin for, at this path."""
        return Asked(
            f"{self._mirror.url}{rest}{query_of(scope)}",
            request,
            Wish.of(pairs_of(scope)) if wish is None else wish,
            is_immutable=self._cache.is_immutable(rest),
            believed=self._mirror.believed,
            promised=promised(scope),
        )

    async def give(self, scope: Scope, receive: Receive, send: Send, asked: Asked) -> None:
        """Answer with what is kept, or with what the origin says."""
        if scope["method"] == "HEAD":
            found = self._cache.kept(asked)
            if found is None:
                await self._tell(scope, send, asked)
                return
        else:
            found = await self._cache.find(asked)
        await self.send(scope, receive, send, found)

    async def send(self, scope: Scope, receive: Receive, send: Send, found: Found) -> None:
        """Send what was found, and let go of it."""
        try:
            await self._rooms.replies.found(scope, receive, send, found)
        finally:
            found.close()

    async def _tell(self, scope: Scope, send: Send, asked: Asked) -> None:
        """Answer a HEAD as the origin does. Nothing is kept, and nothing downloaded."""
        scope["shmstream.cache"] = "miss"
        told = await self.told("HEAD", asked.url, passed_on(asked.request))
        fields = [*told.fields, ("cache-status", "shmstream; fwd=method")]
        if told.length is not None and told.length.isdecimal():
            fields.append(("content-length", told.length))
        await start(send, told.status, fields)
        await finish(send)

    async def told(
        self, method: str, url: str, headers: Mapping[str, str], *, stays: bool = False
    ) -> Told:
        """A short answer of the origin; those that ask the same just now share it."""
        origin = self._cache.origin
        ask = partial(origin.read, method, url, headers, _LONGEST, stays=stays)
        return await self._rooms.together.ask((method, url, *sorted(headers.items()), stays), ask)


async def aside(data: bytes, call: Callable[[], T]) -> T:
    """What `call` makes of `data`: in a thread, unless that is done in no time."""
    return call() if len(data) <= _SOON_READ else await in_thread(call, _READERS)


async def say(send: Send, status: int, text: str, headers: Mapping[str, str] = {}) -> None:
    """Answer with a line of text."""
    told = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **headers}
    await answer(send, status, told, f"{text}\n".encode())
