"""The origin of the demo's second act: an HTTP server in a process of its own, on this host only.

It serves one file at a given rate, knows ranges and ETags, and counts what it sends. Of its first
answer it never sends the last quarter but waits for the client to end: that one is to be killed in
the middle, however fast everything goes. (The third act's is made of the same: upstream.py.)

    parent                                 python -m shmstream.demo.origin FILE RATE
                  <--- port, a line ---    ready
    an empty line ------------------->
                  <--- the requests ---    where each began, and how many bytes it was sent
    the end of standard input ------->     ends
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shmstream.demo.parent import ROOT, DemoFailed
from shmstream.system.signals import undisturbed

_PIECE = 32 * 1024  # bytes, at most
_PIECES_A_SECOND = 100  # at least


@dataclass
class Request:
    """One request: the byte that it began at, how many it was sent, and of what."""

    offset: int
    sent: int = 0
    path: str = "/blob"


class Origin:
    """The parent's hand on the server, which ends with the `with` block."""

    module = "shmstream.demo.origin"

    def __init__(self, what: Path, rate: float) -> None:
        """`rate` in bytes a second; 0 is without limit."""
        with undisturbed():
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(what.absolute()), str(rate)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        self.address = ""

    @property
    def url(self) -> str:
        """Where the blob is."""
        return f"{self.address}/blob"

    def requests(self) -> list[Request]:
        """What it was asked so far."""
        return [Request(**each) for each in self._ask()]

    def _ask(self) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        heard: list[dict[str, Any]] = json.loads(self._hear())
        return heard

    def _hear(self) -> bytes:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise DemoFailed("the origin has ended")
        return line

    def __enter__(self) -> Self:
        try:
            self.address = f"http://127.0.0.1:{int(self._hear())}"
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as ending:
            ending.callback(self._process.wait)
            ending.callback(self._process.kill)
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                ending.callback(pipe.close)


# The server's side.


class Server(ThreadingHTTPServer):
    """Serves `what` at `rate`, and notes what it is asked."""

    daemon_threads = True

    def __init__(self, answer: type[Answer], what: Path, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), answer)
        self.what = what
        self.rate = rate
        self.lock = threading.Lock()  # guards `heard`
        self.heard: list[Request] = []

    def note(self, request: Request) -> bool:
        """Note a request; whether it is the first for that path."""
        with self.lock:
            is_first = all(each.path != request.path for each in self.heard)
            self.heard.append(request)
            return is_first

    def run(self) -> None:
        """Serve until standard input ends, telling what was asked whenever it is to."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        print(self.server_port, flush=True)  # noqa: T201
        while sys.stdin.readline():
            print(json.dumps([asdict(each) for each in self.heard]), flush=True)  # noqa: T201
        os._exit(0)  # whatever its threads are doing


class Answer(BaseHTTPRequestHandler):
    """Answers with the file that the server has."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Begin a connection."""
        # What lies in the kernel is counted as sent: let it be little.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _PIECE)
        super().setup()

    def do_GET(self) -> None:
        """Answer."""
        self.answer()

    def answer(self) -> None:
        """Send the file from where the client wants it."""
        self.give(self.server.what, "/blob", {"ETag": '"the demo"'}, holds=True)

    def give(self, file: Path, path: str, headers: dict[str, str], *, holds: bool) -> None:
        """Send a file from where the client wants it; `holds` the last quarter of the first."""
        size = file.stat().st_size
        offset = min(int((self.headers.get("range") or "bytes=0-")[6:].partition("-")[0]), size)
        request = Request(offset, path=path)
        holds &= self.server.note(request)
        self.send_response(206 if offset else 200)
        if offset:
            self.send_header("Content-Range", f"bytes {offset}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - offset))
        self.send_header("Accept-Ranges", "bytes")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self._send(file, request, size * 3 // 4 if holds else size)
            if holds:
                select.select([self.connection], [], [])  # until the client has ended
                self.close_connection = True
        except OSError:  # it has ended earlier
            self.close_connection = True

    def _send(self, path: Path, request: Request, end: int) -> None:
        rate, began = self.server.rate, time.monotonic()
        piece = min(_PIECE, int(rate / _PIECES_A_SECOND) + 1) if rate else _PIECE
        with path.open("rb") as file:
            file.seek(request.offset)
            while (count := min(piece, end - file.tell())) > 0:
                data = file.read(count)
                if rate:
                    due = began + (request.sent + len(data)) / rate
                    time.sleep(min(max(due - time.monotonic(), 0.0), threading.TIMEOUT_MAX))
                self.wfile.write(data)
                request.sent += len(data)

    def log_message(self, *_: object) -> None:
        """Say nothing: the demo does."""


def main() -> None:
    """Be the origin of the file and the rate that the arguments say, until standard input ends."""
    with Server(Answer, Path(sys.argv[1]), float(sys.argv[2])) as server:
        server.run()


if __name__ == "__main__":
    main()
