"""A client of the demo's third act: a thread that pulls an image as containerd and the like do.

It asks for the manifest of a tag, then for each blob that the manifest names, and verifies every
digest. When a connection is cut it asks for the rest of the blob, with `Range`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlsplit

_ATTEMPTS = 100  # in a row, without a byte
_PAUSE = 0.05  # s
_BUFFER = 64 * 1024  # bytes
_PATIENCE = 30.0  # s


class Client(threading.Thread):
    """Pulls `name:tag` from the registry at `url`, once it is started.

    `position` is the number of bytes of blobs that it has; `first_byte` the seconds from its start
    to the first of them; `pause` the longest time, in seconds, that it waited for more; `cuts` the
    positions at which its connection was cut; `verified` the number of right digests.
    """

    def __init__(self, number: int, url: str, name: str, tag: str) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self._host = urlsplit(url).netloc
        self._path, self._tag = f"/v2/{name}", tag
        self._socket: socket.socket | None = None
        self._stopped = False
        self.position: int = 0
        self.doing: str = "waits"
        self.first_byte: float | None = None
        self.pause: float = 0.0
        self.cuts: list[int] = []
        self.verified: int = 0
        self.error: str = ""
        self._began = self._last = 0.0

    def run(self) -> None:
        """Pull it."""
        self._began = self._last = time.monotonic()
        try:
            self._pull()
        except (OSError, HTTPException, ValueError) as error:
            if not self._stopped:
                self.error = f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End it in the middle, if it has not ended, and wait for that."""
        self._stopped = True
        if (connection := self._socket) is not None:
            with suppress(OSError):  # it has been closed
                connection.shutdown(socket.SHUT_RDWR)
        if self.ident is not None:
            self.join()

    def _pull(self) -> None:
        self.doing = "asks for the manifest"
        with closing(self._ask(f"{self._path}/manifests/{self._tag}", 0)) as response:
            data, digest = response.read(), response.getheader("docker-content-digest")
        if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise ValueError("the manifest has another digest")
        self.verified = 1
        manifest = json.loads(data)
        blobs = [manifest["config"], *manifest["layers"]]
        for number, blob in enumerate(blobs):
            self.doing = f"layer {number} of {len(blobs) - 1}" if number else "configuration"
            self._fetch(blob["digest"], blob["size"])
            self.verified += 1
        self.doing = "complete"

    def _fetch(self, digest: str, size: int) -> None:
        hashed, end, failures = hashlib.sha256(), self.position + size, 0
        while self.position < end:
            try:
                offset = size - (end - self.position)
                with closing(self._ask(f"{self._path}/blobs/{digest}", offset)) as response:
                    while data := response.read1(_BUFFER):
                        hashed.update(data)
                        failures = 0
                        self._note(len(data))
                if self.position < end:
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
        connection = HTTPConnection(self._host, timeout=_PATIENCE)
        headers = {"Accept": "application/vnd.oci.image.manifest.v1+json", "Connection": "close"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with closing(connection):  # the response has what it needs
            connection.connect()
            self._socket = connection.sock
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
        if response.status not in (200, 206):
            response.close()
            raise ConnectionError(f"{path} was answered with {response.status}")
        return response
