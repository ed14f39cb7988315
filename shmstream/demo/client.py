"""A client of the demo's third act: a thread that pulls an image as containerd and the like do.

It asks for the manifest of a tag, then for each blob that it names, and verifies every digest. When
a connection is cut it asks for the rest of the blob, with `Range`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlsplit

_ATTEMPTS = 100  # in a row, without a byte
_PAUSE = 0.05  # s
_BUFFER = 64 * 1024  # bytes
_PATIENCE = 30.0  # s


class Client(threading.Thread):
    """Pulls `name:tag` from the registry at `url`, once it is started."""

    def __init__(self, number: int, url: str, name: str, tag: str) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self.number = number
        self._host = urlsplit(url).netloc
        self._path = f"/v2/{name}"
        self._tag = tag
        self._socket: socket.socket | None = None
        self._response: HTTPResponse | None = None
        self._stopped = False
        self.total = 0
        """Bytes of all blobs; 0 until the manifest is here."""
        self.position = 0
        """Bytes that it has."""
        self.doing = "waits"
        self.first_byte: float | None = None
        """Seconds from its start to the first byte of a blob."""
        self.pause = 0.0
        """Seconds: the longest that it waited for more."""
        self.cuts: list[int] = []
        """Where it was when its connection was cut."""
        self.verified = 0
        """Blobs, and the manifest, whose digest was right."""
        self.error = ""
        self._began = self._last = 0.0

    def run(self) -> None:
        """Pull it."""
        self._began = self._last = time.monotonic()
        try:
            self._pull()
        except (OSError, HTTPException, ValueError) as error:
            if not self._stopped:
                self.error = f"{type(error).__name__}: {error}"

    def stop(self) -> None:
        """End in the middle, if it has not ended."""
        self._stopped = True
        if (connection := self._socket) is not None:
            with suppress(OSError):  # it has been closed
                connection.shutdown(socket.SHUT_RDWR)

    def _pull(self) -> None:
        self.doing = "asks for the manifest"
        response = self._ask(f"{self._path}/manifests/{self._tag}", 0)
        data = response.read()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if response.getheader("docker-content-digest") != digest:
            raise ValueError("the manifest has another digest")
        self.verified = 1
        manifest = json.loads(data)
        blobs = [manifest["config"], *manifest["layers"]]
        self.total = sum(each["size"] for each in blobs)
        for number, blob in enumerate(blobs):
            self.doing = f"layer {number} of {len(blobs) - 1}" if number else "configuration"
            self._fetch(blob["digest"], blob["size"])
            self.verified += 1
        self.doing = "complete"

    def _fetch(self, digest: str, size: int) -> None:
        hashed, position, failures = hashlib.sha256(), 0, 0
        while position < size:
            try:
                response = self._ask(f"{self._path}/blobs/{digest}", position)
                while data := response.read1(_BUFFER):
                    hashed.update(data)
                    position += len(data)
                    failures = 0
                    self._note(len(data))
                if position < size:
                    raise ConnectionError("it was cut")
            except (OSError, HTTPException):
                failures += 1
                if self._stopped or failures > _ATTEMPTS:
                    raise
                if failures == 1:
                    self.cuts.append(self.position)
                time.sleep(_PAUSE)
        if f"sha256:{hashed.hexdigest()}" != digest:
            raise ValueError(f"wrong bytes: {digest} is sha256:{hashed.hexdigest()}")

    def _note(self, count: int) -> None:
        now = time.monotonic()
        if self.first_byte is None:
            self.first_byte = now - self._began
        else:
            self.pause = max(self.pause, now - self._last)
        self._last = now
        self.position += count

    def _ask(self, path: str, offset: int) -> HTTPResponse:
        self._let_go()
        connection = HTTPConnection(self._host, timeout=_PATIENCE)
        connection.connect()
        self._socket = connection.sock
        headers = {"Accept": "application/vnd.oci.image.manifest.v1+json", "Connection": "close"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            connection.request("GET", path, headers=headers)
            self._response = response = connection.getresponse()
        finally:
            connection.close()  # the response has what it needs
        if response.status not in (200, 206):
            raise ConnectionError(f"{path} was answered with {response.status}")
        return response

    def _let_go(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def close(self) -> None:
        """End it, and let go of its connection."""
        self.stop()
        if self.ident is not None:
            self.join()
        self._let_go()
