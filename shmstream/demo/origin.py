"""Where the demo downloads from: an HTTP server in threads of this process, on this host only.

It serves a few files at a given rate, knows ranges, and notes what it is asked. Of the largest file
its first answer never has the last quarter: it waits there for the client to end. That client is to
be killed in the middle, however fast everything goes.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from shmstream.demo.stage import digest_of, paced
from shmstream.system.signals import undisturbed


class Page:
    """A file to serve, and what the headers of an answer say of it."""

    def __init__(self, file: Path, media_type: str = "application/octet-stream") -> None:
        self.file = file
        self.media_type = media_type
        self.size: int = file.stat().st_size
        self.digest: str = digest_of(file)


class Origin(ThreadingHTTPServer):
    """Serves `pages`, by their paths, at `rate` bytes a second; a rate of 0 has no limit."""

    def __init__(self, undo: ExitStack, pages: Mapping[str, Page], rate: float) -> None:
        """Begin to serve; `undo` ends it."""
        self.pages = pages
        self.rate = rate
        self.requests: list[_Answer] = []  # to every GET so far, in turn
        self.largest: str = max(pages, key=lambda path: pages[path].size)
        with undisturbed():  # its threads inherit this: signals are for the main thread
            super().__init__(("127.0.0.1", 0), _Answer)
            undo.callback(self.server_close)
            # Bytes in the kernel's buffers count as sent, so these buffers are small.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()
            undo.callback(self.shutdown)
        self.url: str = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    """Answers one request with a page, from the byte `offset` on; it has `sent` so many bytes."""

    protocol_version = "HTTP/1.1"
    server: Origin
    offset: int
    sent: int = 0

    def do_GET(self) -> None:
        if (page := self.server.pages.get(self.path)) is None:
            self.send_error(404)
            return
        wanted = self.headers.get("range") or "bytes=0-"
        self.offset = offset = min(int(wanted.removeprefix("bytes=").partition("-")[0]), page.size)
        self.send_response(206 if offset else 200)
        if offset:
            self.send_header("Content-Range", f"bytes {offset}-{page.size - 1}/{page.size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(page.size - offset))
        self.send_header("Content-Type", page.media_type)
        self.send_header("Docker-Content-Digest", page.digest)
        self.send_header("ETag", f'"{page.digest}"')
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            self._send(page)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, page: Page) -> None:
        self.server.requests.append(self)
        is_first = self is next(each for each in self.server.requests if each.path == self.path)
        is_held = is_first and self.path == self.server.largest
        end = page.size * 3 // 4 if is_held else page.size
        with suppress(OSError), page.file.open("rb") as file:  # the client may end earlier
            file.seek(self.offset)
            for data in paced(file, end, self.server.rate, time.sleep):
                self.wfile.write(data)
                self.sent += len(data)
            if is_held:
                select.select([self.connection], [], [])  # until the client has ended

    def log_message(self, *_: object) -> None:
        pass  # the demo shows its own lines
