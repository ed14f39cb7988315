"""The origin of the demo: a small registry in a process of its own, on this host only.

It serves an OCI image layout, a folder, at a given rate, with ranges, to any client of registries,
and counts what it sends. Of the first answer with the largest blob it never sends the last quarter,
but waits for its client to end: that client is to be killed in the middle, however fast all goes.
"""

from __future__ import annotations

import hashlib
import json
import re
import select
import socket
import tarfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

from shmstream.demo.pace import paced
from shmstream.demo.process import Child, DemoFailed

NAME = "demo/sample"
TAG = "latest"

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_PATH = re.compile(rf"/v2/{NAME}/(manifests|blobs)/(latest|sha256:[0-9a-f]{{64}})")
_SEND_BUFFER = 64 * 1024  # bytes


@dataclass
class Request:
    """One request: its path, the byte that it began at, and how many bytes it was sent."""

    path: str
    offset: int
    sent: int = 0


class Origin(Child):
    """The parent's hand on the server, which listens at `address`."""

    def __init__(self, folder: Path, rate: float) -> None:
        """Serve the layout in `folder` at `rate` bytes a second; 0 is without limit."""
        super().__init__(_main, folder, rate)
        self.address: str = f"http://127.0.0.1:{self.hear()}"

    def requests(self) -> list[Request]:
        """The requests for blobs so far.

        Raises:
            DemoFailed: the origin has ended.
        """
        self.tell("requests")
        heard: list[Request] | None = self.hear()
        if heard is None:
            raise DemoFailed("the origin has ended")
        return heard


# The image.


@dataclass(frozen=True)
class Image:
    """What is in the folder: the digest of the manifest; the sizes of the blobs, by digest."""

    manifest: str
    blobs: dict[str, int]

    @property
    def size(self) -> int:
        """Of all blobs."""
        return sum(self.blobs.values())

    @property
    def largest(self) -> str:
        """The digest of the largest blob."""
        return max(self.blobs, key=lambda digest: self.blobs[digest])


def make_image(folder: Path, layers: list[Path]) -> Image:
    """Write an image of these tars to `folder`, which is made."""
    shelf = folder / "blobs" / "sha256"
    shelf.mkdir(parents=True)
    entries = [link_blob(shelf, "application/vnd.oci.image.layer.v1.tar", tar) for tar in layers]
    ids = [each["digest"] for each in entries]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}
    described = _put(shelf, "application/vnd.oci.image.config.v1+json", config)
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": entries}
    digest = str(_put(shelf, _MANIFEST, manifest)["digest"])
    (folder / TAG).write_text(digest)
    blobs = {str(each["digest"]): int(str(each["size"])) for each in [described, *entries]}
    return Image(digest, blobs)


def link_blob(shelf: Path, media_type: str, file: Path) -> dict[str, object]:
    """Have `file` on the shelf by its digest; its descriptor."""
    with file.open("rb") as content:
        hexadecimal = hashlib.file_digest(content, "sha256").hexdigest()
    (shelf / hexadecimal).symlink_to(file.absolute())
    size = file.stat().st_size
    return {"mediaType": media_type, "digest": f"sha256:{hexadecimal}", "size": size}


def _put(shelf: Path, media_type: str, content: object) -> dict[str, object]:
    data = json.dumps(content).encode()
    hexadecimal = hashlib.sha256(data).hexdigest()
    (shelf / hexadecimal).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{hexadecimal}", "size": len(data)}


def wrap(file: Path, tar: Path) -> Path:
    """A tar with that file in it."""
    with tarfile.open(tar, "w") as archive:
        archive.add(file, file.name)
    return tar


# In the child.


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.rate = rate
        self.lock = threading.Lock()  # guards `heard`
        self.heard: list[Request] = []

    def note(self, request: Request) -> bool:
        """Note a request; whether it is the first for that path."""
        with self.lock:
            is_first = all(each.path != request.path for each in self.heard)
            self.heard.append(request)
            return is_first


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        # What lies in the kernel counts as sent: let it be little.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        super().setup()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._say(200, b"{}")
            return
        found = _PATH.fullmatch(self.path)
        digest = found[2] if found else ""
        if digest == TAG:
            digest = (self.server.folder / TAG).read_text()
        file = self.server.folder / "blobs" / "sha256" / digest[7:]
        if found is None or not file.is_file():
            self._say(404, b'{"errors":[{"code":"NOT_FOUND","message":"it is not here"}]}')
            return
        media_type = _MANIFEST if found[1] == "manifests" else "application/octet-stream"
        headers = {"Docker-Content-Digest": digest, "Content-Type": media_type}
        if self.command == "HEAD":
            self._say(200, b"", headers | {"Content-Length": str(file.stat().st_size)})
        else:
            self._give(file, headers | {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (told | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _give(self, file: Path, headers: dict[str, str]) -> None:
        """Send a file from where the client wants it."""
        size = file.stat().st_size
        offset = min(int((self.headers.get("range") or "bytes=0-")[6:].partition("-")[0]), size)
        request = Request(self.path, offset)
        largest = max(file.parent.iterdir(), key=lambda each: each.stat().st_size)
        holds = self.server.note(request) and file == largest
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
        headers["Content-Length"] = str(size - offset)
        try:
            self._say(206 if offset else 200, b"", headers)
            self._send(file, request, size * 3 // 4 if holds else size)
            if holds:
                select.select([self.connection], [], [])  # until the client has ended
                self.close_connection = True
        except OSError:  # the client has ended earlier
            self.close_connection = True

    def _send(self, path: Path, request: Request, end: int) -> None:
        with path.open("rb") as file:
            file.seek(request.offset)
            for data in paced(
                lambda most: file.read(min(most, end - file.tell())), self.server.rate
            ):
                self.wfile.write(data)
                request.sent += len(data)

    def log_message(self, *_: object) -> None:
        """Say nothing: the demo does."""


def _main(pipe: Connection, folder: Path, rate: float) -> None:
    with _Server(folder, rate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pipe.send(server.server_port)
        while pipe.recv():
            pipe.send([each for each in server.heard if "/blobs/" in each.path])
