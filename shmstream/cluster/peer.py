"""Asking a peer for the rest of a blob: a feed as that of any source, or why there is none.

What a peer answers, and what follows (`part` decides):

    200, 206      a feed: the peer has bytes for us now
    404           it does not have the blob (any more)                 GONE
    425           it waits for them as we do                           WAITING
    503           it gives to too many peers already                   BUSY
    403           it does not know us: another secret, another clock   REFUSED_US
    no answer     in time: stopped, cut off, or busy                   SILENT
    no TLS        one of us does not trust the other's certificate     UNTRUSTED
    no connection                                                      DEAD

A peer that breaks off in the middle raises `AskAgain`, which is no failure of the source.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from shmstream.cluster.signing import sign
from shmstream.errors import FailureKind, SourceError
from shmstream.sources.base import AskAgain, Feed, checked
from shmstream.system.process import PerProcess

if TYPE_CHECKING:
    import ssl

    import urllib3
    from typing_extensions import Buffer

CONNECT = 1.0
"""Seconds to connect to a peer."""
READ = 2.0
"""Seconds without a byte after which a peer is left, and asked again."""
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[\w.-]+):\d{1,5}", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", re.ASCII)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)


class Trouble(StrEnum):
    """Why a peer gives nothing."""

    GONE = "it does not have the blob"
    WAITING = "it has no more bytes yet"
    BUSY = "it gives to too many peers already"
    REFUSED_US = "it refuses us: are the secret and the clocks the same?"
    UNTRUSTED = "TLS with it fails"
    SILENT = "it does not answer"
    DEAD = "it cannot be reached"


_STATUSES = {
    403: Trouble.REFUSED_US, 404: Trouble.GONE, 416: Trouble.GONE, 425: Trouble.WAITING,
    503: Trouble.BUSY,
}  # fmt: skip


class NoPeer(Exception):
    """A peer gives nothing now."""

    def __init__(self, trouble: Trouble, why: str = "") -> None:
        super().__init__(f"{trouble}: {why}" if why else str(trouble))
        self.trouble: Trouble = trouble


def require() -> None:
    """Import what asking needs.

    Raises:
        ImportError: urllib3 is not installed.
    """
    importlib.import_module("shmstream.sources.http_body")
    importlib.import_module("shmstream.sources.http_client")


@dataclass(frozen=True)
class Asker:
    """Asks peers in the name of this node: `me` is its address, or empty.

    `context` is for TLS; None for none.
    """

    me: str
    secret: bytes
    context: ssl.SSLContext | None = None

    def ask(self, peer: str, key: str, offset: int, *, whole: bool = False) -> Feed:
        """The bytes of `key` from `offset` on. Blocks for some seconds at most.

        Raises:
            NoPeer: it gives nothing now.
        """
        from shmstream.sources.http_body import Body
        from shmstream.sources.http_client import Client, Patience, discard, parse, root_of

        if not _ADDRESS.fullmatch(peer):
            raise NoPeer(Trouble.DEAD)  # another program writes to the directory
        path = f"/blobs/{key}"
        scheme = "http" if self.context is None else "https"
        name = f"peer {peer}"
        client = Client(name, Patience(CONNECT, READ, READ), _pool(self.context))
        wanted = {"range": f"bytes={offset}-"} if offset else {}
        if whole:
            wanted["shmstream-want"] = "complete"
        headers = sign(self.secret, "GET", path, self.me, peer, wanted)
        try:
            reply = client.ask("GET", parse(f"{scheme}://{peer}{path}"), headers, offset=offset)
        except SourceError as error:
            if self.context is not None and has_tls_failed(cause := root_of(error)):
                raise NoPeer(Trouble.UNTRUSTED, str(cause)) from error
            is_dead = error.kind is FailureKind.UNREACHABLE
            raise NoPeer(Trouble.DEAD if is_dead else Trouble.SILENT) from error
        response = reply.response
        told = response.headers
        size = _size(response.status, told.get("content-range"), told.get("content-length"), offset)
        if size is None:
            discard(response)
            raise NoPeer(_STATUSES.get(response.status, Trouble.DEAD))
        broke = partial(_broke, name)
        body = Body(response, offset, READ, broke)
        data: Iterator[Buffer] = checked(iter(body), offset, size, broke)
        by_kernel = body if body.length == size - offset else None
        validator = told.get("shmstream-validator")
        return Feed(data, offset, size, validator, told.get("content-type"), body.close, by_kernel)


def has_tls_failed(error: BaseException) -> bool:
    """Whether the two sides do not agree on TLS; a connection that has ended is another thing."""
    import ssl

    has_ended = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(error, ssl.SSLError) and not has_ended


def _size(status: int, span: str | None, length: str | None, offset: int) -> int | None:
    """The size of the blob, if the answer has the bytes from `offset` on."""
    if status == 200 and not offset and length is not None and _LENGTH.fullmatch(length):
        return int(length)
    found = _CONTENT_RANGE.fullmatch(span or "")
    if status != 206 or found is None or int(found[1]) != offset:
        return None
    return int(found[2])


def _broke(name: str, error: Exception, offset: int) -> AskAgain:
    return AskAgain(name, offset, str(error) or type(error).__name__)


_pools: PerProcess[dict[int, tuple[ssl.SSLContext | None, urllib3.PoolManager]]] = PerProcess(dict)


def _pool(context: ssl.SSLContext | None) -> urllib3.PoolManager:
    """Connections to peers: no proxy is between them, and none is kept."""
    import urllib3

    with _pools.lock:
        pools = _pools.value
        if id(context) not in pools:
            made = urllib3.PoolManager(num_pools=4, maxsize=1, ssl_context=context)
            pools[id(context)] = (context, made)
        return pools[id(context)][1]
