"""`shmstream serve` as an operator runs it: its process, its workers, its log, its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.commands import ROOT, begin
from tests.support.interpreters import PATIENCE, wait_until


class Answer:
    """A response that was read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.body = response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}


class Serving:
    """A running `shmstream serve`."""

    def __init__(self, folder: Path, *options: str, upstream: str = "http://127.0.0.1:1") -> None:
        self.folder = folder
        self.store = folder / "store"
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self._log = (folder / "serve.err").open("w+")
        self._access = (folder / "serve.out").open("w+")
        command = ["serve", "--listen", "127.0.0.1:0"]
        command += ["--store", str(self.store), "--workers", "2", "--grace", "0s"]
        if upstream:
            command += ["--upstream", upstream]
        self.process = begin(
            *command,
            *options,
            cwd=folder,
            environment={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{folder}",
                "PYTHONWARNINGS": "error",
                "TMPDIR": str(self.temporary),
            },
            files=[self._access.fileno(), self._log.fileno()],
        )
        self.tls: ssl.SSLContext | None = None
        # All workers so far, to check that each one ends: another process may get its pid then.
        self._seen: set[psutil.Process] = set()
        wait_until(lambda: self._address is not None or self.process.poll() is not None)
        assert self._address is not None, self.log
        self.host, self.port = self._address
        wait_until(lambda: len(self.workers()) > 0)

    @property
    def _address(self) -> tuple[str, int] | None:
        found = re.search(r" at https?://(\[[^]]+\]|[^:]+):(\d+) with", self.log)
        return (found[1].strip("[]"), int(found[2])) if found else None

    @property
    def log(self) -> str:
        """The log so far."""
        return Path(self._log.name).read_text()

    def accesses(self, until: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The lines of the access log, as soon as `until` holds for them.

        A thread of each worker writes its lines, a moment after the answers.
        """
        lines: list[dict[str, Any]] = []

        def look() -> bool:
            whole, _, _ = Path(self._access.name).read_text().rpartition("\n")
            lines[:] = map(json.loads, whole.splitlines())
            return until(lines)

        try:
            wait_until(look)
        except AssertionError as error:
            error.add_note(f"the access log: {lines}")
            raise
        return lines

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        found = psutil.Process(self.process.pid).children()
        self._seen.update(found)
        return [each.pid for each in found]

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection(
                "localhost", self.port, context=self.tls, timeout=PATIENCE
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)

    def open(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The connection, and the response up to its body."""
        connection = self.connect()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers={**named, "Connection": "close"})
        return connection, connection.getresponse()

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """One request on a connection of its own, which either worker may get."""
        connection, response = self.open(path, method, **headers)
        try:
            return Answer(response)
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with those labels."""
        text = self.ask("/metrics").body.decode()
        samples = (each for family in text_string_to_metric_families(text)
                   for each in family.samples if each.name == name)  # fmt: skip
        return sum(each.value for each in samples if labels.items() <= each.labels.items())

    def wait_for_metric(self, value: float, name: str, **labels: str) -> None:
        """Wait until a metric has that value: workers count a moment after their answers."""
        try:
            wait_until(lambda: self.metric(name, **labels) == value)
        except AssertionError as error:
            error.add_note(f"{name} {labels}: {self.metric(name, **labels)}, not {value}")
            raise

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(PATIENCE)
        assert "Traceback" not in self.log, self.log
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit code."""
        self.workers()
        self.process.send_signal(number)
        return self.finish()

    def stop_and_read(self) -> str:
        """Stop it; its whole log and access log, to which nothing is added any more."""
        assert self.stop() == 0
        return self.log + Path(self._access.name).read_text()

    def is_gone(self) -> bool:
        """Whether its parent process and all workers have ended."""
        return self.process.poll() is not None and not any(map(_is_alive, self._seen))

    def close(self) -> None:
        try:
            if self.process.poll() is None:
                self.workers()
                self.process.terminate()
                self.process.wait(PATIENCE)
            wait_until(self.is_gone)
        finally:
            self.process.kill()
            for each in filter(_is_alive, self._seen):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            self.process.wait(PATIENCE)
            self._log.close()
            self._access.close()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Serve = Callable[..., Serving]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start `shmstream serve`; at the end of the test it ends, and must leave nothing behind."""
    started: list[Serving] = []

    def start_serving(*options: str, upstream: str = "http://127.0.0.1:1") -> Serving:
        started.append(Serving(tmp_path, *options, upstream=upstream))
        return started[-1]

    yield start_serving
    for each in started:
        each.close()
        assert "Traceback" not in each.log, each.log
    if started:
        assert list((tmp_path / "temporary").iterdir()) == []
