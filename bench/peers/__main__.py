"""shmstream's server beside its peers, and beside what Python users do: one command, one run.

    make bench-peers
    python -m bench.peers [--only NAME ...] [--peers NAME ...] [--rounds 3] [--resume]
                                     [--report] [--quick] [--docs FOLDER] [--dir FOLDER]
                                     [--congestion cubic]

Everything is measured on this machine, on the loopback, with an origin (upstream.py) and clients
(clients.py) of this package. Each peer is started fresh for each measurement (peer.py), and the
peers take turns, A B C A B C. The table has the median of each figure over the rounds. In a round
before the rounds that count, every client hashes every byte, and memory is measured. In a round
after them, `perf` tells what the CPU time is spent on (profile.py), if it is there.

All connections use `--congestion`, Linux's default. If the system's own congestion control is
another one, the four scenarios that stream are measured again with it, beside fewer peers. Only
root may choose the congestion control, which is put back at the end.

The results go to the folder of the documents: benchmarks.md, and beside it a folder with the charts
and the JSON of each group of scenarios, written while it is measured. After an interruption,
`--resume` goes on. `--report` only writes the page and the charts anew.

A peer that is not installed is left out, and the page says so. The page judges the goals. The exit
code does not: it is 1 only if something could not be measured. With `--quick` everything runs and
no figure means anything. Needs the dependency group `bench`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.crew import CrewFailed
from bench.peers import congestion, goals, page, pictures
from bench.peers.faults import faults
from bench.peers.results import Results
from bench.peers.run import PEERS, Present, Runner, look
from bench.peers.scenarios import FEW_PEERS, GROWING, GROWTH, SCENARIOS, STREAMED, Scenario
from bench.report import MIB, CheckFailed, machine, progress, table
from shmstream import sweep

_NAMES = [each.name for each in SCENARIOS] + [each.name for each in faults()] + [*GROWING, "faults"]
_FEWER_ROUNDS = 2  # of what has many measurements, and of what only completes the picture
_DOCS = Path(__file__).parent.parent.parent / "docs"


def main() -> int:
    """Measure, write the page; the exit code."""
    chosen = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is tidied up then, too
    results = Results(chosen.docs / "benchmarks")
    failures = 0 if chosen.report else _measure(chosen, results)
    report = results.report()
    rows = goals.judge(report)
    pictures.draw(report, chosen.docs / "benchmarks")
    page.write(report, rows, chosen.docs / "benchmarks.md")
    if chosen.docs == _DOCS:
        page.mention(report, _DOCS.parent / "README.md")
    print(table(report.machine, rows))
    return 1 if failures else 0


def _measure(chosen: argparse.Namespace, results: Results) -> int:
    """Measure what was chosen; how often that failed."""
    present = look(chosen.peers)
    for why in present.missing.values():
        progress(f"not here: {why}")
    began = time.monotonic()
    failures = 0
    own = congestion.current()
    again = [] if own == chosen.congestion else _streamed(chosen)
    try:
        with (
            congestion.congestion_control(chosen.congestion),
            _runner(chosen, results, present) as runner,
        ):
            _measure_all(chosen, runner)
            failures += runner.failures
        if again:
            with _runner(chosen, results, present) as runner:
                for scenario in again:
                    name = f"{scenario.name}-{own}"
                    runner.measure(name, [scenario], at_most=_FEWER_ROUNDS)
                failures += runner.failures
    except (CheckFailed, CrewFailed) as error:
        progress(f"failed: {error}")
        return 1
    finally:
        sweep()  # what killed processes have left
    progress(f"measured in {(time.monotonic() - began) / 60:.1f} minutes")
    return failures


@contextmanager
def _runner(chosen: argparse.Namespace, results: Results, present: Present) -> Iterator[Runner]:
    with (
        tempfile.TemporaryDirectory(prefix="shmstream-peers-", dir=chosen.dir) as folder,
        Runner(
            Path(folder), results, present, machine(Path(folder)),
            rounds=chosen.rounds, quick=chosen.quick, resume=chosen.resume,
        ) as runner,
    ):  # fmt: skip
        yield runner


def _measure_all(chosen: argparse.Namespace, runner: Runner) -> None:
    """All that was chosen, under the congestion control that was chosen."""
    wanted = chosen.only or _NAMES
    for scenario in SCENARIOS:
        if scenario.name in wanted:
            runner.measure(scenario.name, [scenario.quick() if chosen.quick else scenario])
    all_faults = faults(12 * MIB, 4) if chosen.quick else faults()
    some = [each for each in all_faults if {each.name, "faults"} & set(wanted)]
    if some:
        runner.suffer("faults", some)
    for name, grown in GROWING.items():
        if name in wanted:
            growth = GROWTH[:2] if chosen.quick else GROWTH
            runner.measure(name, [grown(count) for count in growth], at_most=_FEWER_ROUNDS)


def _streamed(chosen: argparse.Namespace) -> list[Scenario]:
    """Those of the chosen scenarios that stream, with fewer peers."""
    wanted = chosen.only or _NAMES
    those = [each for each in SCENARIOS if each.name in STREAMED and each.name in wanted]
    less = [
        replace(each, has_ways=False, beside=(), only=FEW_PEERS, is_profiled=False)
        for each in those
    ]
    return [each.quick() for each in less] if chosen.quick else less


def _arguments() -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=summary, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    peers = [each.name for each in PEERS]
    parser.add_argument("--only", nargs="+", choices=_NAMES, metavar="NAME", default=[],
                        help=f"scenarios and faults: {', '.join(_NAMES)}")  # fmt: skip
    parser.add_argument("--peers", nargs="+", choices=peers, metavar="NAME", default=peers,
                        help=f"which: {', '.join(peers)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="that count, of each (3)")
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where the page goes")
    parser.add_argument("--dir", type=Path, help="folder for blobs and caches (the temp folder)")
    parser.add_argument("--congestion", default="cubic", metavar="NAME",
                        help="TCP's congestion control (cubic)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="only try it out")
    chosen = parser.parse_args()
    chosen.rounds = (1 if chosen.quick else 3) if chosen.rounds is None else chosen.rounds
    if chosen.rounds < 1:
        parser.error("--rounds is positive")
    if chosen.quick and chosen.docs == _DOCS:
        parser.error("--quick measures nothing that belongs into these docs: say --docs")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
