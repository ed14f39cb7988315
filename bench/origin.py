"""An origin that nobody here wrote: Debian's nginx, which serves a folder and counts what it sends.

    with Origin(folder) as origin:
        origin.make("blob", size)           random bytes; their SHA-256
        origin.folder / "blob"              ... or whatever is put there
        origin.url("blob", rate=1 << 26)    bytes a second for each connection; 0: as fast as it can
        origin.begin()                      from here on
        origin.requests()                   this was asked for, and so much was sent

The tests and the measurements of flights use it. All else downloads from the origin in
shmstream/sources/origin.py; nginx stands beside it for two reasons. It is cheaper than any server
in Python: one process, and `sendfile` from the page cache, so that a throttled origin takes next to
nothing of the processors on which a flight is measured. And it is not ours, so it shares no mistake
with our sources. It paces a connection in steps of a MiB, so at 64 MiB/s bytes come every 16 ms;
finely in steps of 64 KiB, which takes more of the processor.

It ends with its parent, even a killed one (server.py).
"""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bench import blobs, nginx
from bench.closing import Closing
from bench.report import CheckFailed
from bench.server import NotServing, Port, Server
from shmstream.sources.origin import RANGE

_HTTP = """
    default_type application/octet-stream;
    sendfile on;
    sendfile_max_chunk 1m;
    tcp_nopush on;
    keepalive_timeout 1h;
    keepalive_requests 1000000;
    log_format facts escape=json '{{"path": "$request_uri", "status": $status, '
        '"bytes": $body_bytes_sent, "range": "$http_range", "if_range": "$http_if_range", '
        '"connection": $connection}}';
    access_log {prefix}/access.log facts;
    server {{
        listen 127.0.0.1:{port};
        location / {{ root {prefix}/folder; }}
        location ~ ^/v2/.*/manifests/ {{
            root {prefix}/folder;
            default_type application/vnd.oci.image.manifest.v1+json;
        }}
        location ~ ^/finely/(?<rate>[0-9]+[km]?)/(?<file>.*)$ {{
            alias {prefix}/folder/$file;
            limit_rate $rate;
            sendfile_max_chunk 64k;
        }}
        location ~ ^/at/(?<rate>[0-9]+[km]?)/(?<file>.*)$ {{
            alias {prefix}/folder/$file;
            limit_rate $rate;
        }}
        location = /status {{ stub_status; access_log off; }}
    }}
"""
_PATIENCE = 60.0  # s


@dataclass(frozen=True)
class Request:
    """A request that is over, as the access log has it.

    Attributes:
        path: with the rate, if one was asked for.
        status: of HTTP.
        bytes: of the body, that left.
        range: the header `Range`, or nothing; likewise `if_range`.
        connection: its number.
    """

    path: str
    status: int
    bytes: int
    range: str
    if_range: str
    connection: int

    @property
    def start(self) -> int:
        """The byte of the blob that its client asked to begin with."""
        wanted = RANGE.fullmatch(self.range)
        return int(wanted[1]) if wanted else 0


class Origin(Closing):
    """A running nginx with all its files in `prefix`, a folder of its own that it makes."""

    def __init__(self, prefix: Path) -> None:
        """Raises:
        NotServing: nginx is not installed, or does not start.
        """
        self.folder = prefix / "folder"
        self.folder.mkdir(parents=True)
        self._log = prefix / "access.log"
        self._seen = 0
        self._port = Port()
        try:
            http = _HTTP.format(prefix=prefix, port=self._port.number)
            self._server = Server(nginx.command(prefix, http), self._port, prefix / "said")
        except NotServing:
            self._port.close()
            raise

    def make(self, name: str, size: int) -> str:
        """Make a blob of `size` random bytes; its SHA-256, in hex."""
        return blobs.make(self.folder / name, size)

    def url(self, name: str, rate: int | str = 0, *, finely: bool = False) -> str:
        """Where to get it, at `rate` bytes a second for each connection; 0: unthrottled.

        A rate may also be as nginx has it: "600k", "1m". `finely`: in small steps.
        """
        way = "finely" if finely else "at"
        return f"http://127.0.0.1:{self._port.number}/" + (f"{way}/{rate}/{name}" if rate else name)

    def begin(self) -> None:
        """Forget the requests up to now."""
        self._seen += len(self.requests())

    def over(self) -> list[Request]:
        """The requests since `begin` that are over, in the order in which they ended."""
        lines = self._log.read_text(encoding="utf-8").splitlines()[self._seen :]
        return [Request(**json.loads(line)) for line in lines]

    def requests(self) -> list[Request]:
        """As `over`, once nothing is being sent any more.

        A line is logged when its request is over. Where the client was killed, nginx notices that
        at its next write.

        Raises:
            CheckFailed: it is still sending.
        """
        deadline = time.monotonic() + _PATIENCE
        while self._is_sending():
            if time.monotonic() > deadline:
                raise CheckFailed("the origin is still sending")
            time.sleep(0.005)
        return self.over()

    def transfers(self) -> list[Request]:
        """As `requests`; each of them got bytes of a blob.

        Raises:
            CheckFailed: one was answered otherwise, or the origin is still sending.
        """
        requests = self.requests()
        for each in requests:
            if each.status not in (200, 206):
                raise CheckFailed(f"the origin answered {each.status}")
        return requests

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
