"""Debian's docker-registry as an upstream: a server that we did not write.

    docker_registry.push("team/app", "v1", image(1, [1000]))
    docker_registry.requests("GET", "/blobs/")       what it was asked, from its access log
    docker_registry.stop(), docker_registry.start()  on the same port, with the same content

`run` starts one with other options: passwords, tokens, TLS. Each dies with the test, even a killed
one: that is asked of the kernel.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support import images
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.programs import program as program

_LINE = re.compile(r'\S+ \S+ \S+ \[[^]]*\] "(\S+) (\S+) HTTP/[\d.]+" (\d+) (\d+)')


@dataclass(frozen=True)
class Asked:
    """A line of the access log, written when a request is over."""

    method: str
    path: str
    status: int
    bytes: int  # of the body


class DockerRegistry:
    """A running docker-registry."""

    def __init__(
        self,
        program: str,
        prefix: Path,
        *,
        auth: dict[str, Any] | None = None,
        certificate: Path | None = None,
        middleware: dict[str, Any] | None = None,
    ) -> None:
        self._program = program
        self._storage = prefix / "storage"
        self._certificate = certificate
        # Bound, but not listening: it keeps the port for the registry, which may bind it as well.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        scheme, host = ("http", "127.0.0.1") if certificate is None else ("https", "localhost")
        self.host = f"{host}:{self.port}"
        self.url = f"{scheme}://{self.host}"
        prefix.mkdir(exist_ok=True)
        self._configuration = prefix / "config.yml"
        http: dict[str, Any] = {"addr": f"127.0.0.1:{self.port}"}
        if certificate is not None:
            http["tls"] = {"certificate": str(certificate), "key": str(certificate)}
        facts = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(self._storage)},
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if auth is not None:
            facts["auth"] = auth
        if middleware is not None:
            facts["middleware"] = middleware
        self._configuration.write_text(json.dumps(facts))  # JSON is YAML
        self._log = prefix / "access.log"
        self._errors = prefix / "error.log"
        self._seen = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Listen, on the port that it had before."""
        with self._log.open("ab") as out, self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", self._program, "serve", self._configuration],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )
        wait_until(lambda: self._listens() or self._has_ended())
        assert not self._has_ended(), self._errors.read_text()

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor ends anything."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def damage(self, digest: str) -> None:
        """Change a byte in the middle of a blob; the second call changes it back."""
        algorithm, _, name = digest.partition(":")
        folder = self._storage / "docker/registry/v2/blobs" / algorithm / name[:2] / name
        with (folder / "data").open("r+b") as file:
            middle = (folder / "data").stat().st_size // 2
            file.seek(middle)
            (byte,) = file.read(1)
            file.seek(middle)
            file.write(bytes([byte ^ 0xFF]))

    def push_blob(self, repository: str, data: bytes, auth: str | None = None) -> str:
        """Push bytes that belong to no image; their digest."""
        return images.push_blob(self.url, repository, data, auth)

    def push(
        self, repository: str, tag: str, what: images.Image, auth: str | None = None
    ) -> images.Image:
        """Push an image, and return it."""
        context = None
        if self._certificate is not None:
            context = ssl.create_default_context(cafile=str(self._certificate))
        images.push(self.url, repository, tag, what, auth, context)
        return what

    def requests(self, method: str = "", part: str = "") -> list[Asked]:
        """The requests since `reset` with that method, and that text in their paths."""
        lines = self._log.read_text().splitlines()[self._seen :]
        found = [match.groups() for line in lines if (match := _LINE.match(line))]
        asked = [Asked(each[0], each[1], int(each[2]), int(each[3])) for each in found]
        return [each for each in asked if method in ("", each.method) and part in each.path]

    def reset(self) -> None:
        """Forget the requests so far."""
        self._seen = len(self._log.read_text().splitlines())

    def close(self) -> None:
        self.stop()
        self._place.close()


Run: TypeAlias = Callable[..., DockerRegistry]


@pytest.fixture(scope="session")
def docker_registry_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    path = program("docker-registry", "docker-registry")
    registry = DockerRegistry(path, tmp_path_factory.mktemp("docker-registry"))
    yield registry
    registry.close()


@pytest.fixture
def docker_registry(
    docker_registry_process: DockerRegistry,
    direct: None,  # noqa: ARG001
) -> Iterator[DockerRegistry]:
    """A running docker-registry. Each test uses repositories of its own, because images stay."""
    docker_registry_process.reset()
    yield docker_registry_process
    if docker_registry_process._has_ended():
        docker_registry_process.start()


@pytest.fixture
def run_docker_registry(tmp_path: Path, direct: None) -> Iterator[Run]:  # noqa: ARG001
    """Start a docker-registry for this test alone."""
    path = program("docker-registry", "docker-registry")
    started: list[DockerRegistry] = []

    def run(**options: Any) -> DockerRegistry:
        prefix = tmp_path / f"docker-registry-{len(started)}"
        started.append(DockerRegistry(path, prefix, **options))
        return started[-1]

    yield run
    for registry in started:
        registry.close()
