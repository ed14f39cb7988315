"""The floor in Python (floor_app.py) as a peer: what of a small blob's cost is any server's."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from bench.peers.ours import ROOT
from bench.peers.peer import WORKERS, Launch, Seat


@dataclass(frozen=True)
class Floor:
    """uvicorn with an application that does only what must be done for a small blob."""

    name: str = "floor"
    title: str = "floor in Python"
    settings: str = (
        f"uvicorn, uvloop, urllib3 in a thread, SHA-256, a file, a rename, {WORKERS} workers; "
        "no sharing, no promises"
    )

    def version(self) -> str:
        """Of uvicorn, which runs it."""
        import uvicorn

        return f"uvicorn {uvicorn.__version__}"

    def launches(self, seat: Seat) -> list[Launch]:
        """Its one program."""
        command = [
            sys.executable, "-m", "uvicorn", "bench.peers.floor_app:app",
            "--port", str(seat.port.number), "--workers", str(WORKERS),
            "--lifespan", "off", "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip
        environment = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PEERS_ORIGIN": str(seat.origin),
            "PEERS_STORE": str(seat.mkdir("disk")),
        }
        return [Launch(command, seat.port, environment)]


FLOOR = Floor()
