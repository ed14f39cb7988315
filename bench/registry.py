"""A running `shmstream serve`, and blobs that its upstream has."""

from __future__ import annotations

import os
import sys
from contextlib import closing, suppress
from pathlib import Path

import psutil

from bench.origin import Origin
from bench.server import Port, Server
from shmstream.registry.ops.processes import is_worker
from shmstream.registry.server.connections import Table


class Registry(Server):
    """A running `shmstream serve`. Its upstream is what `url` says."""

    def __init__(self, folder: Path, url: str, port: Port, *options: str) -> None:
        self.store = folder / "store"
        command = [sys.executable, "-m", "shmstream", "serve", "--no-access-log"]
        command += ["--listen", f"127.0.0.1:{port.number}", "--store", str(self.store)]
        command += ["--upstream", url.rstrip("/"), *options]
        super().__init__(command, port, folder / "said")

    def workers(self) -> list[psutil.Process]:
        """Those that serve: they have begun to tell in their table that they make progress."""
        return [each for each in self.processes()[1:] if serves(each.pid)]


def serves(process: int) -> bool:
    """Whether that worker has begun to serve."""
    folder = Path(f"/proc/{process}/fd")
    with suppress(OSError, psutil.Error):  # it has just ended
        for each in folder.iterdir() if is_worker(psutil.Process(process)) else ():
            if "shmstream-connections" in str(each.readlink()):
                table = Table.attach(os.open(each, os.O_RDWR))
                if table is not None:
                    with closing(table):
                        return table.has_begun
    return False


def publish(origin: Origin, name: str, size: int, repository: str) -> str:
    """Make a blob of the origin as a registry has it; its path."""
    digest = origin.make(name, size)
    blobs = origin.folder / "v2" / repository / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    (origin.folder / name).rename(blobs / f"sha256:{digest}")
    return f"/v2/{repository}/blobs/sha256:{digest}"
