"""The program of the benches' origin, in a process of its own, which fails as it is told to.

    GET /<rate>/<name>    the file <name>, at <rate> bytes a second for each connection (0: as fast
                          as it can), with Date, Cache-Control, ETag and Content-Length; Range and
                          If-Range are honoured, connections are kept
    GET /<rate>/.../resolve/<revision>/<name>
                          a redirect to the above with the headers of the Hugging Face Hub, as it
                          gives them for a large file, whose name is its SHA-256

It is the origin of the demo and the tests (shmstream/sources/origin.py). Bodies go by `sendfile`:
Python only paces, in steps of some milliseconds, so that it is no bottleneck. Every request is a
line in a log when it begins and another when it ends, with the bytes that left.

What `Failing` says is done for real: to die is a SIGKILL of its own process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from itertools import count
from pathlib import Path

from shmstream.sources.origin import Fault, Request, Server

_MAX_AGE = 3600  # s


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


class _Upstream(Server):
    least = 64 << 10

    def __init__(self, folder: Path, log: Path, failing: Failing) -> None:
        super().__init__()
        self._folder = folder
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._failing = failing
        # No two programs of one log have a number in common.
        self._numbers = count(time.monotonic_ns())
        self._was_short = False

    def note(self, request: Request) -> None:
        """Log it; only those that are not over are kept."""
        if request.over:
            self.asked.remove(request)
        else:
            request.number = next(self._numbers)
        self._write(request)

    def _write(self, request: Request) -> None:
        os.write(self._log, (json.dumps(vars(request)) + "\n").encode())

    def answer(self, channel: socket.socket, request: Request) -> bool:
        """Answer with a file, or with a redirect to it."""
        rate, _, name = request.path.removeprefix("/").partition("/")
        try:
            file = os.open(self._folder / Path(name).name, os.O_RDONLY)
        except FileNotFoundError:
            self.send_head(channel, request, 404, {"Content-Length": 0})
            return True
        try:
            if "/resolve/" in name:
                told = _as_the_hub(request, rate, os.fstat(file).st_size)
                self.send_head(channel, request, 302, told)
                return True
            headers = {
                "Date": formatdate(usegmt=True),
                "Server": "upstream",
                "Cache-Control": f"public, max-age={_MAX_AGE}",
                "Content-Type": "application/octet-stream",
            }
            failing = self._failing
            faults: dict[int | None, Fault] = {
                failing.dies_at: self._die,
                failing.short_at: self._goes_on,
                failing.lies_at: partial(_lie, channel, request, file),
            }
            there = {at: fault for at, fault in faults.items() if at is not None}
            etag = f'"{name}"'
            return self.send_file(channel, request, file, etag, headers, int(rate), there)
        finally:
            os.close(file)

    def _goes_on(self) -> bool:
        """Whether an answer was short before this one."""
        with self.lock:
            was_short, self._was_short = self._was_short, True
            return was_short

    def _die(self) -> bool:
        with self.lock:
            for request in self.asked:
                request.over = True
                self._write(request)
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def _lie(channel: socket.socket, request: Request, file: int) -> bool:
    """Send another byte than the one that comes next."""
    [byte] = os.pread(file, 1, request.start + request.sent)
    request.sent += channel.send(bytes([byte ^ 0xFF]))
    return True


def _as_the_hub(request: Request, rate: str, size: int) -> dict[str, object]:
    port, name = request.headers["host"].rpartition(":")[2], Path(request.path).name
    return {
        "Location": f"http://localhost:{port}/{rate}/{name}",  # another host, as the Hub's CDN is
        "X-Repo-Commit": name[:40],
        "X-Linked-ETag": f'"{name}"',
        "X-Linked-Size": size,
        "Content-Length": 0,
    }


if __name__ == "__main__":
    _folder, _log, _port, _failing = sys.argv[1:]
    _listener = socket.create_server(("127.0.0.1", int(_port)), backlog=1024)
    _Upstream(Path(_folder), Path(_log), Failing(**json.loads(_failing))).accept(_listener)
    sys.exit("no connection can be accepted any more")
