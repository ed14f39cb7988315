"""shmstream: the server of blob_app.py, alone or behind nginx."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import shmstream
from bench.peers import nginx
from bench.peers.peer import WORKERS, Launch, Missing, Seat
from bench.server import Port

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Shmstream:
    """The server with its workers; with `is_behind` nginx serves what is complete."""

    name: str
    title: str
    settings: str
    keys: str = "sha256"
    is_behind: bool = False

    def version(self) -> str:
        """Of shmstream, and of nginx where that is in front."""
        try:
            import httptools  # noqa: F401
            import uvicorn  # noqa: F401
            import uvloop  # noqa: F401
        except ImportError as missing:
            raise Missing(f"{missing.name} is missing: pip install 'shmstream[serve]'") from missing
        ours = shmstream.__version__
        return f"{ours}, nginx {nginx.version()}" if self.is_behind else ours

    def launches(self, seat: Seat) -> list[Launch]:
        """The server; then nginx, where that is in front."""
        store = seat.mkdir("disk") / "store"
        if not self.is_behind:
            return [self._launch(seat, seat.port, store)]
        return [
            self._launch(seat, seat.spare, store),
            nginx.in_front(seat, seat.spare.number, store / "blobs" / self.keys),
        ]

    def _launch(self, seat: Seat, port: Port, store: Path) -> Launch:
        environment = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PEERS_PORT": str(port.number),
            "PEERS_ORIGIN": str(seat.origin),
            "PEERS_STORE": str(store),
            "PEERS_KEYS": self.keys,
            "PEERS_WORKERS": str(WORKERS),
        }
        disks = {str(store.parent): seat.room} if seat.is_small else {}
        return Launch([sys.executable, "-m", "bench.peers.blob_app"], port, environment, disks)


_COMMON = f"`InFlightResponse` on the server of `shmstream serve`, {WORKERS} workers"
ALONE = Shmstream("shmstream", "shmstream", f"{_COMMON}; keys are SHA-256, every blob is verified")
UNVERIFIED = Shmstream(
    "shmstream-name",
    "shmstream, unverified",
    f"{_COMMON}; keys are names, as proxies have, and nothing is hashed (`hash_named=False`)",
    "name",
)
BEHIND = Shmstream(
    "shmstream-nginx",
    "shmstream behind nginx",
    "the same, with nginx in front that serves complete blobs from the store (`try_files`)",
    is_behind=True,
)
