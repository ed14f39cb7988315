"""`Origin`: the server that a mirror mirrors; what it is asked, and whether it answers.

A client's fields go on to the origin, but for those that belong to the connection with the client,
and for what the mirror asks for itself: the whole content, not encoded. A redirect is followed
here, not by the client. If it leads to another server, only harmless fields go there
(`http_client`), so a token of the client reaches the origin only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from urllib3 import BaseHTTPResponse

from shmstream.errors import SourceError
from shmstream.mirror.freshness import Pairs
from shmstream.sources.base import has_control_characters
from shmstream.sources.http_client import (
    Client,
    Patience,
    Reply,
    discard,
    parse,
)
from shmstream.upstreams.health import Reach
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.questions import Bounds

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
    "x-original-url", "x-rewrite-url",
}  # fmt: skip
"""Of a client; the last ones have some servers answer another question than the URL asks."""
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

    def __init__(self, url: str, path: str, bounds: Bounds, notes: Notes | None = None) -> None:
        """`path` is how clients call it. `notes`: where all workers note whether it answers."""
        self.name: str = url
        self.bounds: Bounds = bounds
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
        began = time.monotonic()
        try:
            asked = parse(url, is_exact=True)
            reply = self.client.ask(method, asked, headers, body=body, stays=stays)
        except SourceError as error:
            self.reach.failed(error, began)
            raise
        if not 200 <= reply.response.status <= 599:
            discard(reply.response)
            raise self.client.failed(0, f"it answered {reply.response.status}, which is no status")
        if reply.response.status >= 500:
            status, reason = reply.response.status, f"it answered {reply.response.status}"
            self.reach.failed(SourceError(self.name, 0, reason, status=status), began)
        else:
            self.reach.answered()
        return reply

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
            data = b"" if method == "HEAD" else self.client.read(reply, limit)
            length = reply.response.headers.get("content-length")
            return Told(reply.response.status, head_of(reply.response), data, length, reply.before)
        finally:
            discard(reply.response)

    def probe(self) -> None:
        """Ask whether it answers."""
        try:
            discard(self.ask("HEAD", self.name, {"user-agent": _AGENT}).response)
        except SourceError:
            pass  # it is noted
