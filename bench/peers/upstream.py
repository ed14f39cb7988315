"""The origin's program: an HTTP server, in a process of its own, that fails as it is told to.

    GET /<rate>/<name>    the file <name>, at <rate> bytes a second for each connection (0: as fast
                          as it can), with Date, Cache-Control, ETag and Content-Length; Range and
                          If-Range are honoured, connections are kept
    GET /<rate>/.../resolve/<revision>/<name>
                          a redirect to the above with the headers of the Hugging Face Hub, as it
                          gives them for a large file, whose name is its SHA-256

A thread for each connection, and `sendfile`: Python only paces, in steps of some milliseconds, so
that it is no bottleneck. Every request is a line in a log when it begins and another when it ends,
with the bytes that left.

What `Failing` says is done for real: to die is a SIGKILL of its own process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.utils import formatdate
from pathlib import Path

KIB = 1 << 10
_STEP = 0.008  # s between the pieces of a throttled connection ...
_LEAST = 64 * KIB  # ... which have so many bytes at least
_MOST = 4096 * KIB  # bytes of a piece of one that is not
_MAX_AGE = 3600  # s
_HEAD = 64 * KIB


@dataclass(frozen=True)
class Failing:
    """How the origin fails. Offsets are bytes of a blob; None: it does not.

    Attributes:
        dies_at: having sent so much of a blob, it is killed.
        short_at: the first answer that gets here ends, as if that were all.
        lies_at: the byte here is another one, in every answer.
    """

    dies_at: int | None = None
    short_at: int | None = None
    lies_at: int | None = None


@dataclass
class Line:
    """A request, as the log has it: twice, with `over` false and then true.

    `number` is its own, `port` is where the connection comes from, `start` and `sent` are bytes
    of the blob.
    """

    number: int
    port: int
    method: str
    path: str
    start: int = 0
    sent: int = 0
    over: bool = False


class _Upstream:
    def __init__(self, folder: Path, log: Path, failing: Failing) -> None:
        self._folder = folder
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._failing = failing
        self._lock = threading.Lock()  # guards what follows
        self._begun = time.monotonic_ns()  # no two programs of one log have a number in common
        self._active: dict[int, Line] = {}
        self._was_short = False

    def serve(self, port: int) -> None:
        """Accept connections for ever."""
        with socket.create_server(("127.0.0.1", port), backlog=1024) as listening:
            while True:
                connection, (_, asker) = listening.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(
                    target=self._converse, args=[connection, asker], daemon=True
                ).start()

    def _converse(self, connection: socket.socket, asker: int) -> None:
        received = b""
        with connection, suppress(ConnectionError):  # the client may leave
            while True:
                head, there, rest = received.partition(b"\r\n\r\n")
                if there:
                    received = rest
                    if not self._answer(connection, asker, head.decode("latin-1")):
                        return
                elif more := connection.recv(_HEAD):
                    received += more
                else:
                    return

    def _answer(self, connection: socket.socket, asker: int, head: str) -> bool:
        """Answer one request; whether the connection can be used for another."""
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ")
        fields = {name.lower(): value.strip()
                  for name, _, value in (line.partition(":") for line in lines)}  # fmt: skip
        with self._lock:
            self._begun += 1
            line = self._active[self._begun] = Line(self._begun, asker, method, path)
        self._note(line)
        try:
            return self._send(connection, line, fields)
        finally:
            with self._lock:
                del self._active[line.number]
            line.over = True
            self._note(line)

    def _send(self, connection: socket.socket, line: Line, fields: dict[str, str]) -> bool:
        rate, _, name = line.path.removeprefix("/").partition("/")
        try:
            file = os.open(self._folder / Path(name).name, os.O_RDONLY)
        except FileNotFoundError:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        try:
            size = os.fstat(file).st_size
            if "/resolve/" in name:
                port = fields["host"].rpartition(":")[2]
                connection.sendall(_as_the_hub(port, rate, Path(name).name, size))
                return True
            etag = f'"{name}"'
            span = _span(fields.get("range"), size)
            if fields.get("if-range", etag) != etag:
                span = None
            line.start, end = span or (0, size)
            about_range = f"Content-Range: bytes {line.start}-{end - 1}/{size}\r\n" if span else ""
            head = (
                f"HTTP/1.1 {'206 Partial Content' if span else '200 OK'}\r\n"
                f"Date: {formatdate(usegmt=True)}\r\n"
                "Server: upstream\r\n"
                f"Cache-Control: public, max-age={_MAX_AGE}\r\n"
                "Content-Type: application/octet-stream\r\n"
                "Accept-Ranges: bytes\r\n"
                f"ETag: {etag}\r\n"
                f"{about_range}"
                f"Content-Length: {end - line.start}\r\n\r\n"
            )
            connection.sendall(head.encode("latin-1"))
            return line.method == "HEAD" or self._send_body(connection, file, line, end, int(rate))
        finally:
            os.close(file)

    def _send_body(
        self, connection: socket.socket, file: int, line: Line, end: int, rate: int
    ) -> bool:
        failing = self._failing
        turns = [at for at in asdict(failing).values() if at is not None]
        most = max(int(rate * _STEP), _LEAST) if rate else _MOST
        began = time.monotonic()
        while (position := line.start + line.sent) < end:
            early = began + line.sent / rate - time.monotonic() if rate else 0.0
            if early > 0:
                time.sleep(early)
            if position == failing.dies_at:
                self._die()
            if position == failing.short_at and self._is_short_now():
                return False
            if position == failing.lies_at:
                line.sent += connection.send(bytes([os.pread(file, 1, position)[0] ^ 0xFF]))
                continue
            until = min([end, position + most, *(at for at in turns if at > position)])
            line.sent += os.sendfile(connection.fileno(), file, position, until - position)
        return True

    def _is_short_now(self) -> bool:
        with self._lock:
            was_short, self._was_short = self._was_short, True
            return not was_short

    def _die(self) -> None:
        with self._lock:
            for line in self._active.values():
                line.over = True
                self._note(line)
            os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, line: Line) -> None:
        os.write(self._log, (json.dumps(asdict(line)) + "\n").encode())


def _as_the_hub(port: str, rate: str, name: str, size: int) -> bytes:
    return (  # to another host, as the CDN of the Hub is
        "HTTP/1.1 302 Found\r\n"
        f"Location: http://localhost:{port}/{rate}/{name}\r\n"
        f"X-Repo-Commit: {name[:40]}\r\n"
        f'X-Linked-ETag: "{name}"\r\n'
        f"X-Linked-Size: {size}\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode("latin-1")


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """The start and end of `bytes=1-2` or `bytes=1-`; None for all of it."""
    if header is None:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1, size) if last else size


if __name__ == "__main__":
    _folder, _log, _port, _failing = sys.argv[1:]
    _Upstream(Path(_folder), Path(_log), Failing(**json.loads(_failing))).serve(int(_port))
