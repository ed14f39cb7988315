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
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from shmstream.sources.origin import Request, Server, reset_on_close
from tests.support import registries
from tests.support.images import Image, digest_of
from tests.support.interpreters import PATIENCE, wait_until

Asked = Request
_REASON = "As Scripted"


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


class Quirks(Server):
    """The server. One script at a time. With `tls`, it speaks TLS as localhost."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.script: Script = nothing
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = listener.getsockname()[1]
        self.url = (
            f"http://127.0.0.1:{self.port}" if tls is None else f"https://localhost:{self.port}"
        )
        self.start(listener)

    def requests(self, part: str = "", method: str | None = None) -> list[Asked]:
        """The requests so far whose path has `part` in it."""
        return [each for each in list(self.asked)
                if part in each.path and method in (None, each.method)]  # fmt: skip

    def reset(self) -> None:
        """Forget the script and all requests; end every connection."""
        self.script = nothing
        self.cut_and_wait()
        self.asked.clear()

    def close(self) -> None:
        self.stop()
        self.reset()

    def answer(self, channel: socket.socket, request: Asked) -> bool:
        reply = self.script(request)
        if reply.resets:
            reset_on_close(channel)
            return False
        if reply.pieces is not None:
            for piece in reply.pieces:
                channel.sendall(piece)
            return not reply.closes
        channel.sendall(reply.before + reply.head())
        if request.method != "HEAD":
            channel.sendall(reply.body[: reply.cut])
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
    status, part, told = asked.part(len(whole.body), asked.headers.get("if-range"))
    if status == 200:
        return whole
    headers = told if status == 416 else {**whole.headers, **told}
    return Reply(status, headers, whole.body[part.start : part.stop])


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
