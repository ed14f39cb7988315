"""Our registry, run by `shmstream serve`, and the clients that pull from it.

ours = run_registry(upstream.url, workers=4)       its settings by name
ours.get("/v2/team/app/manifests/v1")              any request, one connection each
skopeo("team/app:v1", ours.host, folder)           a real client, which verifies what it gets
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

from shmstream import Store
from tests.support.docker_registry import DockerRegistry
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.programs import Client, begin, program
from tests.support.serving import Serving

HASTY = "import tests.support.hasty\n"
"""For a `sitecustomize.py`: the server's pauses between tries are short."""
DIRECT = {f"{scheme}_proxy": "" for scheme in ("http", "https", "all", "no")}


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
    """A running `shmstream serve` (`Serving`), and requests to it."""

    def __init__(
        self,
        folder: Path,
        store: str,
        upstreams: dict[str | None, str],
        environment: dict[str, str],
        **settings: object,
    ) -> None:
        """`settings` by their names in a TOML file."""
        folder.mkdir(exist_ok=True)
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        for namespace, url in upstreams.items():
            lines += ["[[upstream]]", f'url = "{url}"']
            lines += [f'namespace = "{namespace}"'] if namespace else []
        (folder / "serve.toml").write_text("\n".join(lines))
        options = ["--config", str(folder / "serve.toml"), "--store", store]
        if "workers" in settings:
            options += ["--workers", str(settings["workers"])]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            self.serving = Serving(folder, *options, upstream="")
        self.port = self.serving.port
        self.host = f"{self.serving.host}:{self.port}"
        self.store = Store(store)
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            return self.get("/v2/").status == 200
        except OSError:
            return False

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return self.serving.workers()

    def connections(self) -> int:
        """How many connections with clients its workers have."""
        found = [psutil.Process(pid).net_connections("tcp") for pid in self.workers()]
        ours = [each for some in found for each in some if each.laddr.port == self.port]
        return sum(bool(each.raddr) for each in ours)

    def open(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """Send a request. The caller reads the response, and closes the connection."""
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
        """Send these bytes; all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(request)
            answer = b""
            while more := connection.recv(65536):
                answer += more
            return answer

    def close(self) -> None:
        self.serving.close()
        assert "Traceback" not in self.serving.log, self.serving.log


Run: TypeAlias = Callable[..., Registry]


@pytest.fixture
def run_registry(folder: str, tmp_path: Path, direct: None) -> Iterator[Run]:  # noqa: ARG001
    """Start registries of ours, each with one upstream or several by namespace, on one store."""
    started: list[Registry] = []

    def run(
        upstream: str | dict[str | None, str],
        environment: dict[str, str] | None = None,
        **settings: object,
    ) -> Registry:
        named: dict[str | None, str]
        named = {None: upstream} if isinstance(upstream, str) else upstream
        prefix = tmp_path / f"registry-{len(started)}"
        started.append(Registry(prefix, folder, named, environment or {}, **settings))
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
    (prefix / "sitecustomize.py").write_text(HASTY)
    upstreams = {None: docker_registry_process.url, "fault.test": origin_process.url("")}
    registry = Registry(prefix, str(prefix / "store"), upstreams, DIRECT)
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

    One process serves all tests, so each test uses repositories and bytes of its own.
    """
    yield ours_process
    wait_until(lambda: not ours_process.store.flights())
    ours_process.store.gc()


# Clients.


def skopeo(name: str, host: str, to: Path, *options: str) -> Client:
    """Copy an image out of a registry, into a folder, verifying every digest."""
    command = [program("skopeo", "skopeo"), "--insecure-policy", "copy", "--src-tls-verify=false"]
    return begin([*command, *options, f"docker://{host}/{name}", f"dir:{to}"])


def crane(name: str, host: str, to: Path) -> Client:
    """Pull an image into a folder that is an OCI image layout."""
    command = [program("crane", "crane", newer=True), "pull", "--insecure", "--format", "oci"]
    return begin([*command, "--platform", "linux/amd64", f"{host}/{name}", to], HOME=str(to))


def oras(name: str, host: str, to: Path) -> Client:
    """Get the files of an artifact, into a folder."""
    command = [program("oras", "oras", newer=True), "pull", "--plain-http", f"{host}/{name}"]
    return begin([*command, "--output", to], HOME=str(to))


_ORAS = """
import sys
from oras.client import OrasClient
OrasClient(insecure=True).pull(sys.argv[1], outdir=sys.argv[2])
"""


def oras_of_python(name: str, host: str, to: Path) -> Client:
    """Get the files of an artifact, into a folder, with PyPI's oras."""
    to.mkdir()
    return begin([sys.executable, "-c", _ORAS, f"{host}/{name}", to], HOME=str(to))


class Podman:
    """podman with a storage of its own in `folder`, whose path is short."""

    def __init__(self, folder: str) -> None:
        folders = ["--root", f"{folder}/root", "--runroot", f"{folder}/run"]
        folders += ["--tmpdir", f"{folder}/tmp"]
        self._command = [program("podman", "podman"), *folders, "--storage-driver", "vfs"]
        settings = Path(folder, "containers.conf")
        settings.write_text('[engine]\nlock_type = "file"\n')  # else it leaves shared memory
        self._environment = {
            "HOME": folder,
            "XDG_RUNTIME_DIR": f"{folder}/xdg",
            "CONTAINERS_CONF": str(settings),
        }
        works = self.run("info")
        if works.returncode and os.environ.get("SHMSTREAM_REQUIRE_REAL") != "1":
            pytest.skip(f"podman does not run here: {works.stderr}")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **self._environment},
            timeout=PATIENCE,
            check=False,
        )

    def pull(self, name: str) -> str:
        """Pull an image; the digest of its configuration."""
        done = self.run(*self._pull(name))
        assert done.returncode == 0, done.stderr
        return f"sha256:{done.stdout.strip()}"

    def pulling(self, name: str) -> Client:
        """Begin to pull an image."""
        return begin([*self._command, *self._pull(name)], **self._environment)

    def layers(self, name: str) -> list[str]:
        """The digests of the unpacked layers of an image that it has."""
        done = self.run("image", "inspect", "--format", "{{json .RootFS.Layers}}", name)
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found

    def _pull(self, name: str) -> list[str]:
        return ["pull", "--tls-verify=false", "--arch", "amd64", name]


def succeeds(client: Client) -> None:
    """Wait for the end of a client, and check that it succeeded."""
    _, errors = client.communicate(timeout=PATIENCE)
    assert client.returncode == 0, errors


def has_image(folder: Path, digests: list[str]) -> bool:
    """Whether skopeo's folder has all these digests."""
    return all((folder / digest.partition(":")[2]).is_file() for digest in digests)
