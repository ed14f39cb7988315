"""The origin of the measurements: Debian's nginx, in a process of its own, counting what it sends.

    with Origin(folder) as origin:
        origin.serve("blob", size)          random bytes; their SHA-256
        origin.url("blob", rate=1 << 26)    bytes a second for each connection; 0: as fast as it can
        origin.begin()                      from here on
        origin.requests()                   this was asked for, and so much was sent

nginx because nobody here wrote it, and because it is cheap: one process, and `sendfile` from the
page cache, so that a throttled origin costs next to nothing. It paces a connection in steps of a
MiB, so at 64 MiB/s bytes come every 16 ms.

It ends with its parent, even a killed one (server.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bench.closing import Closing
from bench.report import MIB, CheckFailed
from bench.server import NotServing, Port, Server, find_program

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
    sendfile on;
    sendfile_max_chunk 1m;
    tcp_nopush on;
    keepalive_timeout 1h;
    keepalive_requests 1000000;
    log_format facts escape=json
        '{{"status": $status, "range": "$http_range", "sent": $body_bytes_sent}}';
    access_log {prefix}/access.log facts;
    server {{
        listen 127.0.0.1:{port};
        location / {{ root {prefix}/folder; }}
        location ~ ^/at/(?<rate>[0-9]+)/(?<file>.*)$ {{
            alias {prefix}/folder/$file;
            limit_rate $rate;
        }}
        location = /status {{ stub_status; access_log off; }}
    }}
}}
"""
_PATIENCE = 10.0  # s


class NoOrigin(Exception):
    """There is no nginx here, or it does not start."""


@dataclass(frozen=True)
class Request:
    """One request: where it began to read, and bytes of the body that left, in bytes."""

    start: int
    sent: int


class Origin(Closing):
    """A running nginx with all its files in `prefix`, a folder of its own that it makes."""

    def __init__(self, prefix: Path) -> None:
        """Raises:
        NoOrigin: nginx is not installed, or does not start.
        """
        program = find_program("nginx")
        if program is None:
            raise NoOrigin("the origin is nginx, which is not here: apt-get install nginx-light")
        self._folder = prefix / "folder"
        self._folder.mkdir(parents=True)
        self._log = prefix / "access.log"
        self._seen = 0
        self._port = Port()
        configuration = prefix / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(prefix=prefix, port=self._port.number), encoding="utf-8"
        )
        errors = prefix / "error.log"
        command = [program, "-p", str(prefix), "-c", str(configuration), "-e", str(errors)]
        try:
            self._server = Server(command, self._port, errors)
        except NotServing as error:
            self._port.close()
            raise NoOrigin(str(error)) from None

    def serve(self, name: str, size: int) -> str:
        """Make a blob of `size` random bytes; its SHA-256, in hex."""
        running = hashlib.sha256()
        with (self._folder / name).open("wb") as file:
            for start in range(0, size, MIB):
                piece = os.urandom(min(MIB, size - start))
                running.update(piece)
                file.write(piece)
        return running.hexdigest()

    def url(self, name: str, rate: int = 0) -> str:
        """Where to get it, at `rate` bytes a second for each connection; 0: unthrottled."""
        return f"http://127.0.0.1:{self._port.number}/" + (f"at/{rate}/{name}" if rate else name)

    def begin(self) -> None:
        """Forget the requests up to now."""
        self._seen += len(self.requests())

    def requests(self) -> list[Request]:
        """What it was asked for since `begin`, in the order in which it came to its end.

        Waits until nothing is being sent any more: a line is logged when its request is over,
        which for a client that was killed nginx notices at its next write.

        Raises:
            CheckFailed: it is still sending.
        """
        deadline = time.monotonic() + _PATIENCE
        while self._is_sending():
            if time.monotonic() > deadline:
                raise CheckFailed("the origin is still sending")
            time.sleep(0.005)
        lines = self._log.read_text(encoding="utf-8").splitlines()[self._seen :]
        return [_request(json.loads(line)) for line in lines]

    def _is_sending(self) -> bool:
        with urllib.request.urlopen(self.url("status")) as answer:
            words = answer.read().decode().split()
        return int(words[words.index("Writing:") + 1]) > 1  # one is the answer itself

    def cpu(self) -> float:
        """CPU seconds that it has used."""
        return self._server.cpu()

    def close(self) -> None:
        """End it. Idempotent."""
        self._server.close()
        self._port.close()


def _request(line: dict[str, str | int]) -> Request:
    if line["status"] not in (200, 206):
        raise CheckFailed(f"the origin answered {line['status']}")
    asked = str(line["range"]).removeprefix("bytes=").partition("-")[0]
    return Request(int(asked or 0), int(line["sent"]))
