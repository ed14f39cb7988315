"""An upstream that answers as a script tells it to: what real registries do, and others do not.

    quirks.script = plain(image(1, [1000]))          a registry without quirks, with this image
    quirks.script = lambda asked: Reply(403) if asked.method == "HEAD" else there(asked)
    quirks.asked                                     what it was asked so far

A script is a function from a request (`Asked`) to an answer (`Reply`). It is called in a thread for
each connection, in the test's own process, so it can be any function of the test. Connections are
kept open between requests, as real servers do.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support import registries
from tests.support.images import Image, digest_of
from tests.support.interpreters import PATIENCE, wait_until

_REASON = "As Scripted"


@dataclass(frozen=True)
class Asked:
    """A request; names of headers are in lower case, and `path` has the query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int  # counts the connections, so that kept ones show

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass(frozen=True)
class Reply:
    """An answer. Without a Content-Length or Transfer-Encoding, the length of `body` is told."""

    status: int = 200
    headers: Mapping[str, str | list[str] | None] = field(default_factory=dict)  # None: none
    body: bytes = b""
    before: bytes = b""  # is sent before the head
    version: str = "HTTP/1.1"
    pieces: Iterable[bytes] | None = None  # all that is sent, head and body, piece by piece
    resets: bool = False  # RST instead of an answer
    cut: int | None = None  # FIN after so many bytes of the body
    closes: bool = False  # FIN after the answer

    def but(self, **headers: str | list[str] | None) -> Reply:
        """The same with other headers; "_" in a name means "-"."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in self.headers.items() if name not in named}
        return replace(self, headers={**kept, **named})

    def head(self) -> bytes:
        """The head as it is sent."""
        told = {name.lower() for name in self.headers}
        lines = [f"{self.version} {self.status} {_REASON}"]
        for name, value in self.headers.items():
            values = value if isinstance(value, list) else [value]
            lines += [f"{name}: {each}" for each in values if each is not None]
        if not told & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


Script = Callable[[Asked], Reply]


class Quirks:
    """The server. One script at a time. With `tls`, it speaks TLS as localhost."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.script: Script = nothing
        self.asked: list[Asked] = []
        self._lock = threading.Lock()  # guards all below
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._count = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = (
            f"http://127.0.0.1:{self.port}" if tls is None else f"https://localhost:{self.port}"
        )
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def requests(self, part: str = "", method: str | None = None) -> list[Asked]:
        """The requests so far whose path has `part` in it."""
        return [each for each in list(self.asked)
                if part in each.path and method in (None, each.method)]  # fmt: skip

    def reset(self) -> None:
        """Forget the script and all requests; end every connection."""
        self.script = nothing
        with self._lock:
            ending = dict(self._connections)
        for connection, thread in ending.items():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()
        self.asked.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.reset()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._count += 1
                thread = threading.Thread(target=self._converse, args=(connection, self._count))
                self._connections[connection] = thread
                thread.start()

    def _converse(self, accepted: socket.socket, number: int) -> None:
        connection = accepted
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(accepted, server_side=True)
                with self._lock:
                    self._connections[connection] = self._connections.pop(accepted)
            with connection, connection.makefile("rb") as incoming:
                while (asked := _read(incoming, number)) is not None:
                    self.asked.append(asked)
                    if not _send(connection, asked, self.script(asked)):
                        return
        except OSError:
            pass  # the client has gone
        finally:
            accepted.close()
            with self._lock:
                del self._connections[connection]


def _read(incoming: BinaryIO, number: int) -> Asked | None:
    line = incoming.readline().decode("latin-1").split()
    if len(line) != 3:
        return None
    headers = {}
    while (told := incoming.readline()) not in (b"\r\n", b""):
        name, _, value = told.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = incoming.read(int(headers.get("content-length", "0")))
    return Asked(line[0], line[1], headers, body, number)


def _send(connection: socket.socket, asked: Asked, reply: Reply) -> bool:
    """Answer; whether the connection goes on."""
    if reply.resets:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    if reply.pieces is not None:
        for piece in reply.pieces:
            connection.sendall(piece)
        return not reply.closes
    connection.sendall(reply.before + reply.head())
    if asked.method != "HEAD":
        connection.sendall(reply.body[: reply.cut])
    return not reply.closes and reply.cut is None


# Scripts.


def nothing(_: Asked) -> Reply:
    """There is nothing."""
    return Reply(404, {"Content-Type": "text/plain"}, b"404 page not found\n")


def plain(*images: Image, tag: str = "v1", blobs: Iterable[bytes] = ()) -> Script:
    """A registry without quirks that has these images in each repository; `tag` is the first."""
    by_digest = {digest_of(data): data for each in images for data in each.blobs}
    by_digest |= {digest_of(data): data for data in blobs}
    manifests = {each.digest: each for each in images}
    if images:
        manifests[tag] = images[0]

    def script(asked: Asked) -> Reply:
        if asked.path == "/v2/":
            return Reply(200, {"Content-Type": "application/json"}, b"{}")
        kind, _, reference = asked.path.partition("?")[0].rpartition("/")
        kind = kind.rpartition("/")[2]
        if kind == "manifests" and reference in manifests:
            found = manifests[reference]
            told = {"Content-Type": found.media_type, "Docker-Content-Digest": found.digest}
            return Reply(200, told, found.manifest)
        if kind == "blobs" and reference in by_digest:
            told = {"Content-Type": "application/octet-stream"}
            told["Docker-Content-Digest"] = reference
            return ranged(asked, Reply(200, told, by_digest[reference]))
        if kind == "tags":
            body = json.dumps({"name": "x", "tags": [tag]}).encode()
            return Reply(200, {"Content-Type": "application/json"}, body)
        return nothing(asked)

    return script


def ranged(asked: Asked, whole: Reply) -> Reply:
    """The part of `whole` that the request asks for."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
    if wanted is None:
        return whole
    first, size = int(wanted[1]), len(whole.body)
    last = min(int(wanted[2] or size - 1), size - 1)
    if first > last:
        return Reply(416, {"Content-Range": f"bytes */{size}"})
    told = {**whole.headers, "Content-Range": f"bytes {first}-{last}/{size}"}
    return Reply(206, told, whole.body[first : last + 1])


# Fixtures.


@pytest.fixture(scope="session")
def quirks_process() -> Iterator[Quirks]:
    server = Quirks()
    yield server
    server.close()


@pytest.fixture
def quirks(quirks_process: Quirks, direct: None) -> Iterator[Quirks]:  # noqa: ARG001
    """An upstream without a script yet."""
    yield quirks_process
    quirks_process.reset()


@pytest.fixture(scope="session")
def through_process(
    quirks_process: Quirks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[registries.Registry]:
    prefix = tmp_path_factory.mktemp("through")
    (prefix / "sitecustomize.py").write_text(registries.HASTY)
    ours = registries.Registry(
        prefix,
        str(prefix / "store"),
        {None: quirks_process.url},
        registries.DIRECT,
        workers=1,
        tag_ttl="0s",
    )
    yield ours
    ours.close()
    assert ours.store.check() == []


@pytest.fixture
def through(
    through_process: registries.Registry,
    quirks: Quirks,  # noqa: ARG001
) -> Iterator[registries.Registry]:
    """Ours, in front of `quirks`, with one worker; it asks for the meaning of a tag each time.

    One process serves all tests, so each test uses repositories and bytes of its own.
    """
    yield through_process
    wait_until(lambda: not through_process.store.flights())
    through_process.store.gc()


def copied(name: str, host: str, to: Path) -> str | None:
    """What skopeo says when it cannot copy an image; None if it can."""
    client = registries.skopeo(name, host, to)
    _, errors = client.communicate(timeout=PATIENCE)
    return errors if client.returncode else None
