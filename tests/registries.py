"""Our registry, run by uvicorn with several workers, and the clients that pull from it.

ours = run_registry(upstream.url, workers=4)       its settings by name
ours.get("/v2/team/app/manifests/v1")              any request, one connection each
skopeo("team/app:v1", ours.host, folder)           a real client, which verifies what it gets
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest

from shmstream import Store
from shmstream.registry.settings import SETTINGS_VARIABLE, Settings, Upstream
from tests.docker_registry import DockerRegistry, program
from tests.interpreters import PATIENCE, wait_until
from tests.origin import Origin

_DIRECT = {f"{scheme}_proxy": "" for scheme in ("http", "https", "all", "no")}


@dataclass(frozen=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of the error that it is."""
        assert self.headers["content-type"] == "application/json"
        (error,) = json.loads(self.body)["errors"]
        assert error["message"]
        return str(error["code"])


class Registry:
    """`create_app` on uvicorn."""

    def __init__(self, settings: Settings, log: Path, environment: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.store = Store(settings.store)
        self._log = log
        command = [sys.executable, "-X", "dev", "-m", "uvicorn", "--factory"]
        command += ["shmstream.registry:create_app", "--workers", str(settings.workers)]
        command += ["--port", str(self.port), "--no-access-log"]
        command += ["--timeout-graceful-shutdown", "2"]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment, SETTINGS_VARIABLE: settings.to_json()},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return self.get("/v2/").status == 200
        except OSError:
            return False

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text()

    def workers(self) -> list[int]:
        """The processes that serve."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child.pid)
        return found

    def connections(self) -> int:
        """How many its workers have with clients."""
        found = [psutil.Process(pid).net_connections("tcp") for pid in self.workers()]
        return sum(
            each.laddr.port == self.port and bool(each.raddr) for some in found for each in some
        )

    def open(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """A request whose answer is to be read, and its connection closed, by the caller."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        return connection, connection.getresponse()

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection, response = self.open(path, method, **headers)
        try:
            told = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, told, response.read())
        finally:
            connection.close()

    def head(self, path: str, **headers: str) -> Answer:
        return self.get(path, "HEAD", **headers)

    def raw(self, request: bytes) -> bytes:
        """Whatever comes back for those bytes."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(request)
            answer = b""
            while more := connection.recv(65536):
                answer += more
            return answer

    def close(self) -> None:
        workers = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            for worker in workers:  # after a test that failed
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            self.process.wait(PATIENCE)


Run: TypeAlias = Callable[..., Registry]


@pytest.fixture
def run_registry(folder: str, tmp_path: Path, direct: None) -> Iterator[Run]:  # noqa: ARG001
    """Start ours with one upstream, or with several by namespace; all have the same store."""
    started: list[Registry] = []

    def run(
        upstream: str | dict[str | None, str],
        environment: dict[str, str] | None = None,
        **settings: Any,
    ) -> Registry:
        named = upstream if isinstance(upstream, dict) else {None: upstream}
        upstreams = tuple(Upstream(namespace, url) for namespace, url in named.items())
        log = tmp_path / f"registry-{len(started)}.log"
        told = Settings(upstreams, folder, **{"workers": 2, **settings})
        started.append(Registry(told, log, environment or {}))
        return started[-1]

    yield run
    for registry in started:
        registry.close()
        registry.store.gc()


@pytest.fixture(scope="session")
def ours_process(
    docker_registry_process: DockerRegistry,
    origin_process: Origin,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Registry]:
    prefix = tmp_path_factory.mktemp("registry")
    upstreams = (
        Upstream(None, docker_registry_process.url),
        Upstream("fault.test", origin_process.url("")),
    )
    settings = Settings(upstreams, str(prefix / "store"), workers=2)
    registry = Registry(settings, prefix / "log", _DIRECT)
    yield registry
    registry.close()
    assert registry.store.check() == []


@pytest.fixture
def ours(
    ours_process: Registry,
    docker_registry: DockerRegistry,  # noqa: ARG001
    origin: Origin,  # noqa: ARG001
) -> Iterator[Registry]:
    """Ours, in front of the docker-registry; the fault origin is its upstream fault.test.

    It goes on from test to test, so each test has repositories and bytes of its own.
    """
    yield ours_process
    wait_until(lambda: not ours_process.store.flights())
    ours_process.store.gc()


# Clients.


def skopeo(name: str, host: str, to: Path, *options: str) -> subprocess.Popen[str]:
    """Copy an image out of a registry, into a folder, verifying every digest."""
    command = [program("skopeo", "skopeo"), "--insecure-policy", "copy", "--src-tls-verify=false"]
    return subprocess.Popen(
        [*command, *options, f"docker://{host}/{name}", f"dir:{to}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def succeeds(client: subprocess.Popen[str]) -> None:
    """Wait for it to end, and see that it succeeded."""
    _, errors = client.communicate(timeout=PATIENCE)
    assert client.returncode == 0, errors


def has_image(folder: Path, digests: list[str]) -> bool:
    """Whether skopeo's folder has all of them."""
    return all((folder / digest.partition(":")[2]).is_file() for digest in digests)
