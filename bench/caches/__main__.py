"""Ways in which a host gets one file for all its processes, side by side in one run.

    python -m bench.caches FAMILY [--docs FILE] [--ways NAME ...] [--rounds 5] [--size 64]
                                  [--rate 16] [--processes 8] [--quick]

    fsspec      `shmstream::` beside the caches of fsspec
    fetchers    `Store.open` beside huggingface_hub, pooch and aria2c; and huggingface_hub through
                the mirror of `shmstream serve`

The origin is a process of its own (bench/peers/upstream.py), which gives each connection `--rate`
MiB/s, has ETags and ranges, and counts what it sends. It also answers as the Hub does. In each
round each way is gone two or three times, with an empty folder, in an order that alternates:

    together    all processes begin at the same moment
    killed      the first one begins; the others begin when it has a quarter of the file; when it
                has half of it, it is killed with SIGKILL. When the others are done, one more
                process reads the file
    lied        of fetchers, which may verify: all begin together, and one byte is wrong

The figures are medians over the rounds; ratios are medians of the ratios of each round. What is
wrong is counted over all rounds. `--docs` writes the table into that page, between its marks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.caches.measure import SCENARIOS, Measure, Run, Runs
from bench.caches.page import page
from bench.caches.ways import ENVIRONMENT, FAMILIES, Way
from bench.command import Command, Count
from bench.page import write
from bench.peers.origin import Origin
from bench.report import MIB, CheckFailed, machine, progress
from bench.server import NotServing
from shmstream import sweep

COUNTS = {
    "rounds": Count(5, 1),
    "size": Count(64, 4, "of the file", "MiB"),
    "rate": Count(16, 8, "for each connection", "MiB/s"),
    "processes": Count(8, 3),
}


def main() -> int:
    """Measure, print the table, write the page; the exit code."""
    chosen = _arguments()
    ways = {name: each for name, each in FAMILIES[chosen.family].items() if name in chosen.ways}
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-", dir=chosen.dir) as folder:
        os.environ.update(ENVIRONMENT, HF_HOME=folder)
        facts = machine(Path(folder))
        try:
            figures = _measured(Path(folder), chosen, ways)
        except (CheckFailed, NotServing) as error:
            progress(f"failed: {error}")
            return 1
        finally:
            sweep()
    text = page(facts, vars(chosen), chosen.family, figures)
    print(text)
    if chosen.docs is not None:
        write(chosen.docs, f"bench.caches {chosen.family}", text)
    return _judged(figures["shmstream"])


def _measured(folder: Path, chosen: argparse.Namespace, ways: Mapping[str, Way]) -> dict[str, Runs]:
    figures = {way: Runs() for way in ways}
    for each in ways.values():
        each.look()
    with Origin(folder / "origin") as origin:
        origin.start()
        blob = origin.make(chosen.size * MIB)
        measure = Measure(chosen.family, origin, blob, chosen.rate, chosen.processes)
        for index in range(chosen.rounds):
            for way in ways if index % 2 else reversed(list(ways)):
                progress(f"round {index + 1} of {chosen.rounds}: {way}")
                for scenario in SCENARIOS[chosen.family]:
                    run = getattr(measure, scenario)(way, folder / f"{way}-{index}-{scenario}")
                    getattr(figures[way], scenario).append(run)
                    _tell_errors(scenario, run)
    return figures


def _tell_errors(scenario: str, run: Run) -> None:
    for error in {each.error[:500] for each in run.trips if each.error}:
        progress(f"{scenario}: {error}")


def _judged(ours: Runs) -> int:
    """The exit code: 1 if a process of ours read something wrong, or nothing."""
    trips = [each for run in ours.together + ours.killed for each in run.trips]
    failed = [each for each in trips if not each.is_right]
    failed += [each for run in ours.lied for each in run.trips if each.is_wrong]
    for each in failed:
        progress(f"failed: a process of ours read something wrong: {each.error}")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    command = Command(__doc__, COUNTS)
    command.parser.add_argument("family", choices=[*FAMILIES])
    told = "write the table into this page"
    command.parser.add_argument("--docs", type=Path, metavar="FILE", help=told)
    told = "only these; shmstream is always among them"
    command.parser.add_argument("--ways", nargs="+", metavar="NAME", help=told)
    chosen = command.parse()
    if chosen.processes < 2:
        command.parser.error("--processes is at least 2")
    known = [*FAMILIES[chosen.family]]
    if unknown := [each for each in chosen.ways or [] if each not in known]:
        command.parser.error(f"{', '.join(unknown)}: no way of {chosen.family}, which has {known}")
    chosen.ways = {"shmstream", *(chosen.ways or known)}
    return chosen


if __name__ == "__main__":
    sys.exit(main())
