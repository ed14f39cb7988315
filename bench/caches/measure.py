"""What happens to the processes of one way: all begin together, one is killed, the origin lies."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.caches.readers import Readers, Trip
from bench.caches.ways import FAMILIES, Order
from bench.peers.origin import Blob, Origin
from bench.peers.upstream import Failing
from bench.report import MIB, CheckFailed
from bench.server import PATIENCE
from shmstream.sources.origin import Request

SCENARIOS = {"fsspec": ("together", "killed"), "fetchers": ("together", "killed", "lied")}
"""What happens to the ways of each family. Through fsspec no way is given a digest to verify."""


@dataclass(frozen=True)
class Run:
    """One way, once: the trips of all processes but the killed one, and what the origin gave.

    `left` is how many bytes the folder has on the disk at the end.
    """

    trips: list[Trip]
    sent: int
    gets: int
    left: int


@dataclass
class Runs:
    """All runs of one way."""

    together: list[Run] = field(default_factory=list)
    killed: list[Run] = field(default_factory=list)
    lied: list[Run] = field(default_factory=list)


class Measure:
    """The runs of one family of ways, all with the same blob."""

    def __init__(self, family: str, origin: Origin, blob: Blob, rate: int, count: int) -> None:
        self._family = family
        self._origin = origin
        self._blob = blob
        self._count = count
        self._rate = rate * MIB
        self._half = blob.size / self._rate / 2  # s

    def together(self, way: str, folder: Path) -> Run:
        """All processes begin at the same moment."""
        return self._run(way, folder, self._count, self._all_go)

    def lied(self, way: str, folder: Path) -> Run:
        """The same, while the origin gives one wrong byte in the middle."""
        self._origin.start(Failing(lies_at=self._blob.size // 2))
        try:
            return self.together(way, folder)
        finally:
            self._origin.start()

    def killed(self, way: str, folder: Path) -> Run:
        """The first process is killed halfway. When the others are done, one more reads it."""
        return self._run(way, folder, self._count + 1, self._one_is_killed)

    def _all_go(self, readers: Readers) -> list[Trip]:
        everyone = range(self._count)
        readers.go(everyone)
        return readers.trips(everyone)

    def _one_is_killed(self, readers: Readers) -> list[Trip]:
        first, *others, late = range(self._count + 1)
        readers.go([first])
        self._wait_for_a_get()
        time.sleep(self._half / 2)
        readers.go(others)
        time.sleep(self._half / 2)
        readers.kill(first)
        trips = readers.trips(others)
        readers.go([late])
        return trips + readers.trips([late])

    def _wait_for_a_get(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not any(_is_for_bytes(each) for each in self._origin.active()):
            if time.monotonic() > deadline:
                raise CheckFailed("the first process asks for nothing")
            time.sleep(0.005)

    def _run(self, way: str, folder: Path, count: int, act: Callable[[Readers], list[Trip]]) -> Run:
        folder.mkdir(0o700, parents=True)
        base = f"http://127.0.0.1:{self._origin.port}/{self._rate}"
        with FAMILIES[self._family][way].serve(folder, base) as served:
            order = Order(served, self._blob.name, folder)
            self._origin.begin()
            with Readers(count, self._family, way, order) as readers:
                trips = act(readers)
            gets = [each for each in self._origin.requests() if _is_for_bytes(each)]
            left = _taken(folder)
        shutil.rmtree(folder)
        return Run(trips, sum(each.sent for each in gets), len(gets), left)


def _is_for_bytes(request: Request) -> bool:
    return request.method == "GET" and "/resolve/" not in request.path


def _taken(folder: Path) -> int:
    """Bytes of the disk that the files of a folder take, each file once."""
    found = [each.lstat() for each in folder.rglob("*")]
    return sum({each.st_ino: each.st_blocks * 512 for each in found}.values())
