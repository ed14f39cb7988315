"""A running `shmstream serve`, and blobs that its upstream has."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil

from bench.origin import Origin
from bench.report import CheckFailed
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
        """Those that serve."""
        return [each for each in self.processes()[1:] if serves(each.pid)]

    def wait_for(self, count: int, patience: float) -> list[psutil.Process]:
        """The workers that serve, once there are at least `count`; waits `patience` seconds.

        Raises:
            CheckFailed: there are fewer then.
        """
        deadline = time.monotonic() + patience
        while len(serving := self.workers()) < count:
            if time.monotonic() > deadline:
                raise CheckFailed(f"{len(serving)} of {count} workers serve")
            time.sleep(0.01)
        return serving


def serves(process: int) -> bool:
    """Whether that worker has told in its table that it makes progress."""
    with suppress(OSError, psutil.Error):  # it has just ended
        if not is_worker(psutil.Process(process)):
            return False
        for each in Path(f"/proc/{process}/fd").iterdir():
            if "shmstream-connections" not in str(each.readlink()):
                continue
            if (table := Table.attach(os.open(each, os.O_RDWR))) is not None:
                with closing(table):
                    return table.silence > 0  # 0: it never has
    return False


def publish(origin: Origin, name: str, size: int, repository: str) -> str:
    """Make a blob of the origin as a registry has it; its path."""
    digest = origin.make(name, size)
    blobs = origin.folder / "v2" / repository / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    (origin.folder / name).rename(blobs / f"sha256:{digest}")
    return f"/v2/{repository}/blobs/sha256:{digest}"
