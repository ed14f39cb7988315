"""`shmstream::` beside the caches of fsspec: processes of one host read one file.

    python -m bench.fsspec [--docs FILE] [--rounds 5] [--size 32] [--rate 16] [--processes 8]
                           [--quick]

The origin is a process of its own (bench/peers/upstream.py), which gives each connection `--rate`
MiB/s, has ETags and ranges, and counts what it sends. In each round each way is gone twice, with an
empty folder, in an order that alternates:

    together    all processes begin at the same moment
    killed      the first one begins; the others begin when it has a quarter of the file; when it
                has half of it, it is killed with SIGKILL. When the others are done, one more
                process reads the file

The figures are medians over the rounds; ratios are medians of the ratios of each round. What is
wrong is counted over all rounds. `--docs` writes the table into that page, between its marks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.command import Command, Count
from bench.fsspec.page import page, write
from bench.fsspec.ways import WAYS, Readers, Trip
from bench.peers.origin import Blob, Origin
from bench.report import MIB, CheckFailed, machine, progress
from bench.server import NotServing
from shmstream import sweep

COUNTS = {
    "rounds": Count(5, 1),
    "size": Count(32, 4, "of the file", "MiB"),
    "rate": Count(16, 8, "for each connection", "MiB/s"),
    "processes": Count(8, 3),
}


@dataclass(frozen=True)
class Run:
    """One way, once: the trips of all processes but the killed one, and what the origin gave."""

    trips: list[Trip]
    sent: int
    requests: int


@dataclass
class Figures:
    """All runs of one way."""

    together: list[Run] = field(default_factory=list)
    killed: list[Run] = field(default_factory=list)


def main() -> int:
    """Measure, print the table, write the page; the exit code."""
    chosen = _arguments()
    figures = {way: Figures() for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-", dir=chosen.dir) as folder:
        facts = machine(Path(folder))
        try:
            with Origin(Path(folder) / "origin") as origin:
                origin.start()
                blob = origin.make(chosen.size * MIB)
                for index in range(chosen.rounds):
                    for way in WAYS if index % 2 else reversed(WAYS):
                        progress(f"round {index + 1} of {chosen.rounds}: {way}")
                        place = Path(folder) / f"{way}-{index}"
                        measure = _Measure(origin, blob, chosen.rate, chosen.processes, way)
                        figures[way].together.append(measure.together(place / "together"))
                        figures[way].killed.append(measure.killed(place / "killed"))
        except (CheckFailed, NotServing) as error:
            progress(f"failed: {error}")
            return 1
        finally:
            sweep()
    wrong = [each for each in _trips(figures["shmstream"]) if not each.is_right]
    text = page(facts, vars(chosen), {way: _summary(figures, way) for way in WAYS})
    print(text)
    if chosen.docs is not None:
        write(chosen.docs, text)
    if wrong:
        progress(f"failed: a process of ours read something wrong: {wrong[0].error}")
    return 1 if wrong else 0


class _Measure:
    def __init__(self, origin: Origin, blob: Blob, rate: int, processes: int, way: str) -> None:
        self._origin = origin
        self._way = way
        self._url = f"http://127.0.0.1:{origin.port}{blob.path(rate * MIB)}"
        self._digest = blob.name
        self._count = processes
        self._half = blob.size / (rate * MIB) / 2

    def together(self, folder: Path) -> Run:
        folder.mkdir(0o700, parents=True)
        self._origin.begin()
        everyone = range(self._count)
        with Readers(self._count, self._way, self._url, folder, self._digest) as readers:
            readers.go(everyone)
            trips = readers.trips(everyone)
        return self._run(trips)

    def killed(self, folder: Path) -> Run:
        folder.mkdir(0o700, parents=True)
        self._origin.begin()
        others = range(1, self._count)
        with Readers(self._count, self._way, self._url, folder, self._digest) as readers:
            readers.go([0])
            time.sleep(self._half / 2)
            readers.go(others)
            time.sleep(self._half / 2)
            readers.kill(0)
            trips = readers.trips(others)
        with Readers(1, self._way, self._url, folder, self._digest) as readers:
            readers.go([0])
            trips += readers.trips([0])
        return self._run(trips)

    def _run(self, trips: list[Trip]) -> Run:
        gets = [each for each in self._origin.requests() if each.method == "GET"]
        return Run(trips, sum(each.sent for each in gets), len(gets))


def _trips(figures: Figures) -> list[Trip]:
    return [each for run in figures.together + figures.killed for each in run.trips]


def _summary(all_figures: dict[str, Figures], way: str) -> dict[str, float]:
    """What the table says of one way."""
    mine, ours = all_figures[way], all_figures["shmstream"]

    def first(run: Run) -> float:
        return median(each.first for each in run.trips)

    def last(run: Run) -> float:
        return max(each.last for each in run.trips)

    pairs = list(zip(mine.together, ours.together, strict=True))
    return {
        "sent": median(run.sent for run in mine.together),
        "requests": median(run.requests for run in mine.together),
        "first": median(map(first, mine.together)),
        "first ratio": median(first(run) / first(other) for run, other in pairs),
        "last": median(map(last, mine.together)),
        "last ratio": median(last(run) / last(other) for run, other in pairs),
        "right": sum(each.is_right for run in mine.together for each in run.trips),
        "of": sum(len(run.trips) for run in mine.together),
        "failed": sum(bool(each.error) for run in mine.together for each in run.trips),
        "killed sent": median(run.sent for run in mine.killed),
        "killed right": sum(each.is_right for run in mine.killed for each in run.trips),
        "killed of": sum(len(run.trips) for run in mine.killed),
        "killed failed": sum(bool(each.error) for run in mine.killed for each in run.trips),
    }


def _arguments() -> argparse.Namespace:
    command = Command(__doc__, COUNTS)
    told = "write the table into this page"
    command.parser.add_argument("--docs", type=Path, metavar="FILE", help=told)
    chosen = command.parse()
    if chosen.processes < 2:
        command.parser.error("--processes is at least 2")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
