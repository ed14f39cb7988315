"""Debian's nginx as an origin that nobody here wrote: the folder that a test fills, over HTTP/1.1.

One per session, on a free port of 127.0.0.1, all its files in a folder of its own:

    nginx.folder / "blob"           what it serves
    nginx.url("blob")               at full speed
    nginx.url("blob", rate="1m")    at most so many bytes a second
    nginx.requests()                the lines of its access log

It dies with the test, even a killed one: that is asked of the kernel.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.interpreters import PATIENCE, wait_until

_CONFIGURATION = """
daemon off;
master_process off;  # one process, so one to die with us
pid {prefix}/pid;
error_log {prefix}/error.log;
events {{}}
http {{
    client_body_temp_path {prefix}/temp;
    proxy_temp_path {prefix}/temp;
    fastcgi_temp_path {prefix}/temp;
    uwsgi_temp_path {prefix}/temp;
    scgi_temp_path {prefix}/temp;
    default_type application/octet-stream;
    log_format facts escape=json '{{"path": "$request_uri", "status": $status, '
        '"bytes": $body_bytes_sent, "range": "$http_range", "if_range": "$http_if_range", '
        '"connection": $connection}}';
    access_log {prefix}/access.log facts;
    server {{
        listen 127.0.0.1:{port};
        location / {{ root {prefix}/folder; }}
        location ~ ^/at/(?<rate>[0-9]+[km]?)/(?<file>.*)$ {{
            alias {prefix}/folder/$file;
            limit_rate $rate;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Served:
    """A line of the access log, written when a request is over."""

    path: str
    status: int
    bytes: int  # of the body
    range: str
    if_range: str
    connection: int


class Nginx:
    """A running nginx."""

    def __init__(self, program: str, prefix: Path) -> None:
        self.folder = prefix / "folder"
        self.folder.mkdir()
        self._log = prefix / "access.log"
        self._seen = 0
        # Bound, but not listening: it keeps the port for nginx, which may bind it as well.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        configuration = prefix / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(prefix=prefix, port=self.port))
        errors = prefix / "error.log"
        options = ["-p", str(prefix), "-c", str(configuration), "-e", str(errors)]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", program, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self._listens() or self._process.poll() is not None)
        assert self._process.poll() is None, errors.read_text()

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def url(self, name: str, rate: str | None = None) -> str:
        return f"http://127.0.0.1:{self.port}/" + (f"at/{rate}/{name}" if rate else name)

    def requests(self) -> list[Served]:
        """What it has served since the test began."""
        lines = self._log.read_text().splitlines()[self._seen :]
        return [Served(**json.loads(line)) for line in lines]

    def wait(self, count: int) -> list[Served]:
        """Wait until it has served so many requests: a client is done a little earlier."""
        wait_until(lambda: len(self.requests()) >= count)
        return self.requests()

    def reset(self) -> None:
        """An empty folder, and nothing served."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self._seen += len(self.requests())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._place.close()


@pytest.fixture(scope="session")
def nginx_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
            pytest.fail("nginx is not installed: apt-get install nginx-light")
        pytest.skip("nginx is not installed")
    server = Nginx(program, tmp_path_factory.mktemp("nginx"))
    yield server
    server.close()


@pytest.fixture
def nginx(nginx_process: Nginx, direct: None) -> Nginx:  # noqa: ARG001
    """nginx with an empty folder."""
    nginx_process.reset()
    return nginx_process
