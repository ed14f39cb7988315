"""The origin, seen from here: makes blobs, starts its program (upstream.py), reads its log.

with Origin(folder) as origin:
    blob = origin.make(size)        random bytes; its name is its SHA-256
    origin.start(Failing(...))      again, to fail in such a way
    origin.begin()                  from here on
    origin.requests()               this was asked for, and so much was sent
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import blobs
from bench.closing import Closing
from bench.peers.upstream import Failing
from bench.report import MIB, CheckFailed
from bench.server import PATIENCE, Port, Server
from shmstream.sources.origin import Request


@dataclass(frozen=True)
class Blob:
    """A file of the origin, `size` in bytes. Its name is the SHA-256 of its bytes, in hex."""

    name: str
    size: int

    def path(self, rate: int = 0) -> str:
        """The path to ask for, of the origin or of a server before it."""
        return f"/{rate}/{self.name}"


class Origin(Closing):
    """A server with all its files in `folder`, which it makes."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._files.mkdir(parents=True)
        self._log = folder / "log"
        self._said = folder / "said"
        self._port = Port()
        self.port = self._port.number
        self._server: Server | None = None

    def make(self, size: int) -> Blob:
        """Make a blob of random bytes."""
        path = self._files / "new"
        name = blobs.make(path, size)
        path.rename(self._files / name)
        return Blob(name, size)

    def remove(self, blob: Blob) -> None:
        """Forget it."""
        (self._files / blob.name).unlink()

    def digest(self, blob: Blob, start: int, count: int) -> str:
        """The SHA-256 of a span of a blob, in hex."""
        running = hashlib.sha256()
        with (self._files / blob.name).open("rb") as file:
            file.seek(start)
            while data := file.read(min(MIB, count)):
                running.update(data)
                count -= len(data)
        return running.hexdigest()

    def start(self, failing: Failing | None = None) -> None:
        """Start the program, or start it anew, at the same port; nothing is logged yet.

        Raises:
            NotServing: it does not start.
        """
        if self._server is not None:
            self._server.close()
        told = json.dumps(asdict(failing or Failing()))
        program = [sys.executable, "-m", Failing.__module__]
        command = [*program, self._files, self._log, self.port, told]
        self._server = Server([str(each) for each in command], self._port, self._said)

    @property
    def is_running(self) -> bool:
        """Whether it has not been killed."""
        return self._server is not None and self._server.is_running

    def begin(self) -> None:
        """Forget the requests up to now."""
        os.truncate(self._log, 0)

    def requests(self) -> list[Request]:
        """What it was asked for since `begin`, in the order in which it came to its end.

        Waits until nothing is being sent any more, which for a client that has left it notices at
        its next write.

        Raises:
            CheckFailed: it is still sending.
        """
        deadline = time.monotonic() + PATIENCE
        while active := self.active():
            if time.monotonic() > deadline:
                raise CheckFailed(f"the origin is still sending {active}")
            time.sleep(0.01)
        return [line for line in self._lines() if line.over]

    def active(self) -> list[Request]:
        """What is being sent."""
        if not self.is_running:
            return []
        lines = self._lines()
        over = {line.number for line in lines if line.over}
        return [line for line in lines if line.number not in over]

    def _lines(self) -> list[Request]:
        with self._log.open(encoding="utf-8") as file:
            written = file.read().rpartition("\n")[0].splitlines()
        return [Request(**json.loads(each)) for each in written]

    def cpu(self) -> float:
        """CPU seconds that its program has used since it was started."""
        return 0.0 if self._server is None else self._server.cpu()

    def close(self) -> None:
        """End it. Idempotent."""
        if self._server is not None:
            self._server.close()
        self._port.close()
