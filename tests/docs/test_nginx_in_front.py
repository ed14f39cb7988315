"""docs/operations.md as it is: its nginx, its systemd unit, its settings, its metrics."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path

import pytest

from bench import nginx
from bench.server import Port, Server
from shmstream import Store
from shmstream.registry.settings import Settings
from tests.support.docker_registry import program
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.nginx import needed
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.serving import Serve, Serving
from tests.support.stores import digest
from tools import generate

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
WITH_AUTHORISATION, WITHOUT = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
MIB = 1 << 20
SIZE = 3 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
BLOB = f"/v2/team/app/blobs/{KEY}"


class Front:
    """The nginx of the page, in front of `serving`, with the paths and ports of the test."""

    def __init__(self, servers: str, serving: Serving, certificate: Path, prefix: Path) -> None:
        prefix.mkdir()
        self._port = Port()
        for theirs, mine in [
            ("127.0.0.1:5000", f"{serving.host}:{serving.port}"),
            ("listen 443", f"listen 127.0.0.1:{self._port.number}"),
            ("/var/cache/shmstream", str(serving.store)),
            ("/etc/ssl/registry.pem", str(certificate)),
            ("/etc/ssl/registry.key", str(certificate)),
        ]:
            assert theirs in servers
            servers = servers.replace(theirs, mine)
        self._trusted = ssl.create_default_context(cafile=str(certificate))
        command = nginx.command(prefix, f"access_log off;\n{servers}")
        self._server = Server(command, self._port, prefix / "said")

    def open(self, path: str, **headers: str) -> tuple[HTTPSConnection, HTTPResponse]:
        connection = HTTPSConnection(
            "localhost", self._port.number, context=self._trusted, timeout=PATIENCE
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=named)
        return connection, connection.getresponse()

    def get(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body, headers."""
        connection, response = self.open(path, **headers)
        body = response.read()
        connection.close()
        told = {name.lower(): value for name, value in response.getheaders()}
        return response.status, body, told

    def close(self) -> None:
        self._server.close()
        self._port.close()


Put = Callable[[str, Serving], Front]


@pytest.fixture
def front(tls_certificate: Path, tmp_path: Path) -> Iterator[Put]:
    needed()
    started: list[Front] = []

    def put(servers: str, serving: Serving) -> Front:
        started.append(Front(servers, serving, tls_certificate, tmp_path / "nginx"))
        return started[-1]

    yield put
    for each in started:
        each.close()


@pytest.fixture
def upstream(origin: Origin) -> str:
    origin.serve(BLOB, seed=1, size=SIZE, stall_after=MIB)
    return origin.url("").rstrip("/")


def pull(front: Front, serving: Serving, origin: Origin) -> None:
    """Through both, while it arrives, and until it is complete."""
    connection, response = front.open(BLOB)
    assert response.status == 200
    assert response.getheader("content-length") == str(SIZE)
    assert response.getheader("docker-content-digest") == KEY
    assert response.read(1000) == DATA[:1000], "before the last byte has left the upstream"
    assert KEY not in Store(serving.store)
    origin.release()
    assert response.read() == DATA[1000:]
    connection.close()
    wait_until(lambda: KEY in Store(serving.store))


def test_nginx_sends_what_shmstream_lets_it(
    serve: Serve, front: Put, origin: Origin, upstream: str
) -> None:
    serving = serve("--x-accel-redirect", "/store-of-shmstream/", upstream=upstream)
    in_front = front(WITH_AUTHORISATION, serving)
    pull(in_front, serving, origin)
    for headers, status, part in [
        ({}, 200, DATA),
        ({"Range": "bytes=100-199"}, 206, DATA[100:200]),
        ({"Range": "bytes=-5"}, 206, DATA[-5:]),
        ({"Range": f"bytes={SIZE}-"}, 416, None),
        ({"If_None_Match": f'"{KEY}"'}, 304, b""),
    ]:
        got, body, told = in_front.get(BLOB, **headers)
        assert got == status
        assert part is None or body == part
        if status < 300:
            assert told["docker-content-digest"] == KEY
            assert told["etag"] == f'"{KEY}"'
            assert told["content-type"] == "application/octet-stream"
    lines = serving.accesses(lambda lines: len(lines) == 6)
    sent = sorted(each["bytes"] for each in lines)  # each worker has its own time
    assert sent == [0, 0, 0, 0, 0, SIZE]
    assert {each["client"] for each in lines} == {"127.0.0.1"}

    # For another repository the upstream is asked, and clients cannot look into the store.
    assert in_front.get(BLOB.replace("team/app", "other/app"))[0] == 404
    origin.serve(BLOB.replace("team/app", "third/app"), seed=1, size=SIZE)
    assert in_front.get(BLOB.replace("team/app", "third/app"))[1] == DATA
    assert in_front.get(f"/store-of-shmstream/blobs/{KEY.replace(':', '/')}")[0] == 404
    for path in ("/", "/metrics", "/readyz", "/events"):
        assert in_front.get(path)[0] == 404
    assert in_front.get("/v2/")[0] == 200


def test_an_open_mirror(serve: Serve, front: Put, origin: Origin, upstream: str) -> None:
    serving = serve(upstream=upstream)
    in_front = front(WITHOUT, serving)
    pull(in_front, serving, origin)
    serving.accesses(lambda lines: len(lines) == 1)
    assert in_front.get(BLOB)[:2] == (200, DATA)
    assert in_front.get(BLOB.replace("team", "any"), Range="bytes=5-9")[:2] == (206, DATA[5:10])
    told = in_front.get(BLOB)[2]
    assert (told["docker-content-digest"], told["etag"]) == (KEY, f'"{KEY}"')
    part = {"Range": "bytes=5-9", "If_Range": f'"{KEY}"'}
    assert in_front.get(BLOB, **part)[:2] == (206, DATA[5:10]), "as it was begun from shmstream"
    assert in_front.get(BLOB, **{**part, "If_Range": '"x"'})[0] == 200
    assert in_front.get("/v2/")[0] == 200
    _, last = serving.accesses(lambda lines: len(lines) == 2)
    assert last["path"] == "/v2/", "shmstream did not even know of the others"
    assert in_front.get("/metrics")[0] == 404


# The rest of the page.


def test_the_systemd_unit(tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    [unit] = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "shmstream.service"
    here = shutil.which("true")
    path.write_text(unit.replace("/opt/shmstream/bin/shmstream serve", f"{here} serve"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(path)],
        env={**os.environ, "SYSTEMD_LOG_TARGET": "console"},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    about = [line for line in done.stderr.splitlines() if "shmstream" in line]
    assert (done.returncode, about) == (0, [])
    assert "serve --config /etc/shmstream.toml" in unit


def test_the_settings_are_told(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "settings.toml"
    path.write_text(example)
    assert len(Settings.from_file(str(path)).upstreams) == 2
    table = PAGE[PAGE.index("| setting |") : PAGE.index("Passwords have no place")]
    told = set(
        re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines() if line))
    )
    names = {"upstreams": "upstream", "mirrors": "mirror"}
    assert told == {names.get(each.name, each.name) for each in fields(Settings)}


def test_the_metrics_are_told() -> None:
    assert generate.operations() == PAGE, "run `make docs`"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (DOCS / target).exists(), target
