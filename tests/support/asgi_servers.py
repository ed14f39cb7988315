"""ASGI servers for tests: real ones, each with two worker processes."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from bench.server import Port
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin

COMMANDS = {
    "uvicorn": (
        "uvicorn --port {port} --workers 2 --no-access-log --timeout-graceful-shutdown 2"
        " --timeout-worker-healthcheck 30"  # else it kills workers of a busy machine
    ),
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} --workers 2 --graceful-timeout 2",
    "granian": "granian --port {port} --workers 2 --interface asgi --workers-kill-timeout 2",
}


class Server:
    """A server of two worker processes, by default uvicorn."""

    def __init__(
        self,
        folder: str,
        origin: Origin,
        log: Path,
        *options: str,
        app: str = "tests.support.app:app",
        server: str = "uvicorn",
        response: dict[str, Any] | None = None,
        store: dict[str, Any] | None = None,
        within: tuple[str, ...] = (),
    ) -> None:
        """Further arguments for each `InFlightResponse`, for the `Store`; a command before all."""
        self._place = Port()
        self.port = self._place.number
        command = [sys.executable, "-m", *COMMANDS[server].format(port=self.port).split()]
        self.log = log.open("w+")
        self.process = subprocess.Popen(
            [*within, *command, *options, app],
            env={
                **os.environ,
                "TEST_STORE": folder,
                "TEST_ORIGIN": origin.url(""),
                "TEST_OPTIONS": json.dumps(response or {}),
                "TEST_STORE_OPTIONS": json.dumps(store or {}),
                "TEST_READY": f"{log}.ready",
            },
            stdout=self.log,
            stderr=self.log,
        )
        self._file = Path(folder[1:]) if folder.startswith("@") else None
        self._unread = 0
        self._ready = Path(f"{log}.ready")
        wait_until(self._answers)
        wait_until(lambda: sum(map(self._is_ready, self.processes())) == 2)

    @classmethod
    def for_many(cls, place: Path, origin: Origin, *options: str) -> Server:
        """A server for many tests, one after the other, each with a store of its own (`use`)."""
        (place / "store").write_text(str(place / "none"))
        return cls(f"@{place / 'store'}", origin, place / "log", *options)

    def use(self, folder: str) -> None:
        """Serve what is in this store from now on."""
        assert self._file is not None
        self._unread = Path(self.log.name).stat().st_size
        self._file.write_text(folder)

    @property
    def said(self) -> str:
        """Its log, since `use`."""
        with open(self.log.name, encoding="utf-8") as log:
            log.seek(self._unread)
            return log.read()

    def processes(self) -> list[psutil.Process]:
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def descriptors(self) -> int:
        """How many descriptors its processes have open."""
        return sum(each.num_fds() for each in self.processes())

    def connections(self) -> int:
        """How many clients are connected."""
        found = [each for process in self.processes() for each in process.net_connections("tcp")]
        return sum(each.status == psutil.CONN_ESTABLISHED for each in found)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read()
        try:
            return bool(self.request("GET", "/blob/absent").status == 404)
        except OSError:
            return False

    def open(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, headers=headers or {})
        return connection, connection.getresponse()

    def request(self, method: str, path: str, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection, response = self.open(method, path, named)
        body = response.read()
        connection.close()
        response.body = body  # type: ignore[attr-defined]
        return response

    def close(self) -> None:
        workers = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)  # it may wait for an answer of a worker that was killed
        finally:
            self.process.kill()
            for worker in workers:  # after a test that failed
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            self.process.wait(PATIENCE)
            self.log.close()
            self._place.close()

    def _is_ready(self, process: psutil.Process) -> bool:
        """Whether the process has imported the application, which opens the store, and loops."""
        folder = Path(f"/proc/{process.pid}/fd")
        try:
            imported = str(process.pid) in self._ready.read_text().split()
            return imported and any("eventpoll" in os.readlink(each) for each in folder.iterdir())
        except FileNotFoundError:  # it is closing a descriptor just now, or nothing is imported yet
            return False
