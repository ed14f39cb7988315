"""nginx: as a cache whose lock makes joiners wait, as one of slices, and in front of shmstream."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench import nginx
from bench.peers.peer import WORKERS, Launch, Seat, answer_of, installed, is_root

_MAIN = """
{user}
worker_processes {workers};
worker_rlimit_nofile 16384;
"""
_HTTP = """
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    keepalive_timeout 1h;
    keepalive_requests 1000000;
    {cache}
    upstream behind {{ server 127.0.0.1:{behind}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        {locations}
    }}
"""
_CACHE = (
    "proxy_cache_path {folder}/cache keys_zone=blobs:10m max_size=4g inactive=1h use_temp_path=off;"
)
_LOCK = """
        location / {
            proxy_pass http://behind;
            proxy_cache blobs;
            proxy_cache_valid 200 206 1h;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
            %s
        }
"""
_SLICE = """slice 1m;
            proxy_cache_key $uri$slice_range;
            proxy_set_header Range $slice_range;"""


def version() -> str:
    """As nginx says it."""
    return answer_of(installed("nginx", nginx.PACKAGE), "-v").strip().rpartition("/")[2]


def launch(seat: Seat, *, behind: int, locations: str, cache: str = "") -> Launch:
    """Nginx with this configuration; `behind` is the port of whom it asks."""
    installed("nginx", nginx.PACKAGE)
    seat.mkdir("temp")
    main = _MAIN.format(user="user root;" if is_root() else "", workers=WORKERS)
    http = _HTTP.format(port=seat.port.number, behind=behind, locations=locations, cache=cache)
    return Launch(nginx.command(seat.folder, http, main=main, connections=4096), seat.port)


@dataclass(frozen=True)
class Nginx:
    """nginx as a cache, with a lock for each blob or for each slice of one."""

    name: str
    title: str
    is_sliced: bool
    settings: str

    def version(self) -> str:
        """As nginx says it."""
        return version()

    def launches(self, seat: Seat) -> list[Launch]:
        """One program with its workers."""
        started = launch(
            seat,
            behind=seat.origin,
            locations=_LOCK % (_SLICE if self.is_sliced else ""),
            cache=_CACHE.format(folder=seat.folder),
        )
        cache = str(seat.mkdir("cache"))
        disks = {cache: seat.room} if seat.is_small else {}
        return [Launch(started.command, started.port, disks=disks)]


_COMMON = (
    "`proxy_cache_lock on`, `proxy_cache_lock_timeout 1h`, `proxy_cache_lock_age 1h`, "
    f"`proxy_cache_valid 200 206 1h`, `use_temp_path=off`, `sendfile on`, {WORKERS} workers"
)
LOCK = Nginx("nginx-lock", "nginx, lock", False, _COMMON)
SLICE = Nginx(
    "nginx-slice",
    "nginx, slice",
    True,
    f"{_COMMON}; `slice 1m`, `proxy_cache_key $uri$slice_range`, `Range $slice_range` upstream",
)


def in_front(seat: Seat, behind: int, blobs: Path) -> Launch:
    """Nginx that serves what is complete in a store's folder itself, and asks for the rest."""
    locations = f"""
        location ~ ^/[0-9]+/(?<digest>[0-9a-f]+)$ {{
            root {blobs};
            try_files /$digest @shmstream;
        }}
        location @shmstream {{
            proxy_pass http://behind;
            proxy_buffering off;
        }}
    """
    return launch(seat, behind=behind, locations=locations)
