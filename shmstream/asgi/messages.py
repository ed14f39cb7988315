"""ASGI messages: their types, the two extensions that we use, and how a short answer is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from shmstream.asgi.remembering import remembered

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ZERO_COPY = "http.response.zerocopysend"
"""The extension, and the type of its messages: the server sends a span of a file by the kernel."""

SERVER = "shmstream.server"
"""The extension that only our `Protocol` has. It holds, for one request:

last        the type of the last message that reached the server
is_blob     whether the response is a blob; set by `BlobReply`
taken       a function: bytes that the client's machine has acknowledged, but for a constant
when_lost   a function: takes a callback for the end of the connection, and returns a function
            that withdraws it; absent if the request has a body
jump        a function: bytes of the body, from its beginning, that the client has already, and
            that are to be left out; only after another process has sent them. Call it after the
            head was sent; without the call the server leaves them out itself
promised    the ETag of the response whose beginning was sent before the application was asked
again       None if the server can answer a request with the same bytes, of any client, without the
            application; else absent. `BlobReply` sets it to an `Again` before the head of a
            complete blob, if its caller allows it, and the server calls that from then on. A
            middleware that has to do something for each response, such as counting, replaces it by
            its own one, which calls the former one
"""


@dataclass(slots=True)
class Ready:
    """A blob that can be sent at once: all `count` bytes of `file`, which the receiver closes."""

    file: int
    count: int
    sent: Callable[[], object] | None = None
    """Called if the whole response was sent so; else the application is asked for it."""


Again = Callable[[tuple[str, int | None] | None], Ready | None]
"""Gives once more what a response has sent; the head is the same. Its argument is the address of
the client.

It does not wait. It gives None if the application has to be asked: the blob is gone, or is another.
"""


class BrokenOff(Exception):
    """A response ends short of its Content-Length. The server must close the connection."""


async def start(
    send: Send, status: int, headers: Mapping[str, str] | Iterable[tuple[str, str]]
) -> None:
    """Send the head of a response; pairs may have a name several times."""
    if isinstance(headers, dict | Mapping):  # `Mapping` alone is slow
        headers = headers.items()
    pairs = [_encoded(name, value) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


@remembered
def _encoded(name: str, value: str) -> tuple[bytes, bytes]:
    """A header in bytes; most of those of a response are those of others, too."""
    return name.encode("latin-1"), value.encode("latin-1")


async def finish(send: Send, body: bytes = b"") -> None:
    """Send the last part of a body, or the end of an answer without a body."""
    await send({"type": "http.response.body", "body": body})


async def answer(
    send: Send,
    status: int,
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    is_head: bool = False,
) -> None:
    """Send a whole response with its Content-Length; the body is left out if `is_head`."""
    await start(send, status, {"content-length": str(len(body)), **headers})
    await finish(send, b"" if is_head else body)
