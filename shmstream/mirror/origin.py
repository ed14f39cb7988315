"""`Origin`: the server that a mirror mirrors; what it is asked, and whether it answers.

`OriginSource` is a file of it, or one that it names, as the source of a flight.

A client's fields go on to the origin, but for those that belong to the connection with the client,
and for what the mirror asks for itself: the whole content, not encoded. A redirect is followed
here, not by the client. If it leads to another server, only harmless fields go there
(`http_client`), so a token of the client reaches the origin only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from urllib3 import BaseHTTPResponse

from shmstream.errors import SourceError
from shmstream.mirror.freshness import Pairs
from shmstream.sources.base import Description, Feed, has_control_characters
from shmstream.sources.http import HTTPSource
from shmstream.sources.http_client import (
    Client,
    Patience,
    Reply,
    discard,
    parse,
)
from shmstream.upstreams import request_id
from shmstream.upstreams.counts import Counts
from shmstream.upstreams.health import Reach, is_refusal
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.questions import Bounds

T = TypeVar("T")

_CONNECT = 10.0  # s
_AGENT = "shmstream"
_VIA = "1.1 shmstream"
_OF_A_CONNECTION = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade",
))  # fmt: skip
_NOT_ASKED = _OF_A_CONNECTION | {
    "accept-encoding", "cache-control", "content-length", "expect", "forwarded", "host", "if-match",
    "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "pragma", "range",
    "x-host", "x-http-method", "x-http-method-override", "x-method-override", "x-original-host",
    "x-original-url", "x-request-id", "x-rewrite-url",
}  # fmt: skip
"""Of a client. The last ones have some servers answer another question than the URL asks. The id of
the request is sent in any case (`upstreams/request_id`)."""
_NOT_TOLD = _OF_A_CONNECTION | {"content-length", "alt-svc", "x-sendfile", "x-lighttpd-send-file"}
_OF_A_PROXY = "x-accel-"  # fields with which a server has nginx, in front, send a file of its own
_PERSONAL = frozenset(("authorization", "cookie"))
_OF_SECRETS = ("token", "api-key", "apikey", "jfrog-art-api", "secret", "password", "credential")


def is_personal(name: str) -> bool:
    """Whether a field of a request tells who asks; its name is in lower case."""
    plain = name.replace("_", "-")
    return plain in _PERSONAL or any(each in plain for each in _OF_SECRETS)


def may_be_told(name: str) -> bool:
    """Whether clients may get a field of an answer; its name is in lower case."""
    return name not in _NOT_TOLD and not name.startswith(_OF_A_PROXY)


def passed_on(request: Mapping[str, str]) -> dict[str, str]:
    """The fields of a client's request that the origin gets; names are in lower case."""
    named = _named(request.get("connection", ""))
    kept = {
        name: value
        for name, value in request.items()
        if name not in _NOT_ASKED and name not in named and not name.startswith("x-forwarded-")
        if not has_control_characters(value.replace("\t", " "))
    }
    via = f"{kept['via']}, {_VIA}" if "via" in kept else _VIA
    return {"user-agent": _AGENT, **kept, "via": via}


def head_of(response: BaseHTTPResponse) -> Pairs:
    """The fields of an answer that clients get, but for its length."""
    headers = response.headers
    named = _named(headers.get("connection", ""))
    fields = [(name.lower(), value) for name, value in headers.items()]
    return [(name, value) for name, value in _split(headers, fields)
            if may_be_told(name) and name not in named]  # fmt: skip


def _split(headers: Mapping[str, str], fields: Pairs) -> Pairs:
    """Each field once for each time that it was sent."""
    get = getattr(headers, "getlist", None)
    if get is None:
        return fields
    found: Pairs = []
    for name in dict.fromkeys(name for name, _ in fields):
        found += [(name, value) for value in get(name)]
    return found


def _named(connection: str) -> set[str]:
    return {each.strip().lower() for each in connection.split(",") if each.strip()}


@dataclass(frozen=True)
class Told:
    """An answer whose body was read: for questions with a short one.

    `length` is its Content-Length; `before` has the redirects that led to it.
    """

    status: int
    fields: Pairs
    body: bytes
    length: str | None = None
    before: tuple[BaseHTTPResponse, ...] = ()


class Origin:
    """The server behind one mirror. Any thread may use it; every method blocks."""

    def __init__(
        self,
        url: str,
        path: str,
        bounds: Bounds,
        notes: Notes | None = None,
        counts: Counts | None = None,
        connections: int | None = None,
    ) -> None:
        """`path` is how clients call it, and its label in `counts`.

        `notes`: where all workers note whether it answers. `connections`: how many one file may
        come over; None: as the store says.
        """
        self.name: str = url
        self.path: str = path
        self._counts = counts or Counts()
        self.bounds: Bounds = bounds
        self.connections: int | None = connections
        self.reach: Reach = Reach(url, path, notes)
        patience = Patience(_CONNECT, bounds.first_byte, bounds.silence)
        self.client: Client = Client(url, patience, named_by=parse(url))

    def __repr__(self) -> str:
        return f"<Origin {self.name}>"

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        stays: bool = False,
    ) -> Reply:
        """The answer, whatever its status is, when its head is there. Close it, or read it.

        `stays`: it may be a redirect to another server.

        Raises:
            SourceError: there is none.
        """
        self.reach.check()
        began, path = time.monotonic(), self._path_of(url)
        try:
            asked, headers = parse(url, is_exact=True), {**headers, **request_id.told()}
            reply = self.client.ask(method, asked, headers, body=body, stays=stays)
            self._require_status(reply)
        except SourceError as error:
            self.reach.failed(error, began, path)
            self._counts.asked(self.path, "failed")
            raise
        self._counts.asked(self.path, _outcome(reply.response.status))
        if (failure := self._failure_of(reply)) is not None:
            self.reach.failed(failure, began, path)
        else:
            self.reach.answered()
        return reply

    def _path_of(self, url: str) -> str | None:
        """What is behind the origin's own URL, without the query; None if it is at another host."""
        behind = url.removeprefix(self.name).partition("?")[0]
        return None if behind.partition("/")[0] else behind

    def _require_status(self, reply: Reply) -> None:
        """Raises `SourceError`: the answer has a number that is no status."""
        if not 200 <= (status := reply.response.status) <= 599:
            discard(reply.response)
            raise self.client.failed(0, f"it answered {status}, which is no status")

    def _failure_of(self, reply: Reply) -> SourceError | None:
        """What is wrong with the origin, if that is an answer of an origin that fails."""
        if (status := reply.response.status) < 500:
            return None
        return SourceError(self.name, 0, f"it answered {status}", status=status)

    def read(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        limit: int,
        body: bytes | None = None,
        *,
        stays: bool = False,
    ) -> Told:
        """The whole answer, with a body of at most `limit` bytes.

        Raises:
            SourceError: there is none, or its body is longer.
        """
        reply = self.ask(method, url, headers, body, stays=stays)
        try:
            data = b"" if method == "HEAD" else self.read_body(reply, limit)
            length = reply.response.headers.get("content-length")
            return Told(reply.response.status, head_of(reply.response), data, length, reply.before)
        finally:
            discard(reply.response)

    def read_body(self, reply: Reply, limit: int) -> bytes:
        """The body of an answer, if it has at most `limit` bytes.

        Raises:
            SourceError: it does not come, or is longer.
        """
        data = self.client.read(reply, limit)
        self.received(len(data))
        return data

    def received(self, count: int) -> None:
        """Count bytes that came from here, and belong to no flight."""
        self._counts.received(self.path, count)

    def gives(self, key: str) -> None:
        """The bytes of the flight of `key` come from here now."""
        self._counts.comes_from(key, self.path)

    def counted(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises: it asks for a file."""
        try:
            found = call()
        except SourceError as error:
            self._counts.asked(self.path, "refused" if is_refusal(error) else "failed")
            raise
        self._counts.asked(self.path, "answered")
        return found

    def probe(self) -> None:
        """Ask again for what has failed; without credentials of a client."""
        began, path = time.monotonic(), self.reach.failed_path
        try:
            failure = self._knock("HEAD", path or "")
            if failure is not None:
                failure = self._knock("GET", path or "")
            # A 5xx for one thing does not mean that the origin fails altogether.
            is_of_one = failure is not None and bool(path) and self._knock("HEAD", "") is None
        except SourceError as error:
            failure, is_of_one = error, False
        if failure is not None:
            self.reach.failed(failure, began, path, is_probe=True, lasts=not is_of_one)
        else:
            self.reach.answered()

    def _knock(self, method: str, path: str) -> SourceError | None:
        """Ask, and read nothing of the body; how the origin fails, if it answers with a 5xx.

        Raises:
            SourceError: it does not answer.
        """
        headers = {"user-agent": _AGENT} | ({} if method == "HEAD" else {"range": "bytes=0-0"})
        reply = self.client.ask(method, parse(self.name + path, is_exact=True), headers)
        self._require_status(reply)
        discard(reply.response)
        return self._failure_of(reply)


class OriginSource(HTTPSource):
    """A file at the origin, or where it says that the file is; see `Source`."""

    def __init__(
        self,
        origin: Origin,
        key: str,
        url: str,
        headers: Mapping[str, str],
        digest: str | None = None,
    ) -> None:
        """`key`: of the flight that it is for. `headers` go with each question."""
        super().__init__(
            url,
            headers=headers,
            timeout=(_CONNECT, origin.bounds.silence),
            first_byte=origin.bounds.first_byte,
            digest=digest,
            netrc=False,
            connections=origin.connections,
            named_by=origin.name,
        )
        self._headers |= request_id.told()  # which is no part of its identity
        self._origin = origin
        self._key = key

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Begin at `offset`; see `Source.open`."""
        feed = self._origin.counted(partial(super().open, offset, validator))
        self._origin.gives(self._key)
        return feed

    def open_part(self, offset: int, end: int, validator: str | None = None) -> Feed:
        """`open` for the bytes before `end` alone."""
        feed = self._origin.counted(partial(super().open_part, offset, end, validator))
        self._origin.gives(self._key)
        return feed

    def describe(self) -> Description:
        """What a HEAD tells."""
        return self._origin.counted(super().describe)


def _outcome(status: int) -> str:
    """What an answer with that status counts as."""
    if status < 400:
        return "answered"
    return "failed" if status == 429 or status >= 500 else "refused"
