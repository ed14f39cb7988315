"""What a flight gives: one blob to many processes of a host, against what people do today.

    python -m bench.flight [--json FILE] [--charts FOLDER] [--rounds 5] [--kills 20] [--quick]
                           [--only SECTION ...] [--size MiB] [--dir FOLDER] [--pin]

Every figure of ours stands beside the same work done in another way in the same run, in an order
that alternates, and the ratio is the median over the rounds. The sections:

    share     share.py     8 processes, one blob: a file lock, each for itself, one download
    single    single.py    `Store.fetch`; `curl | tee | sha256sum`
    open      single.py    opening a complete blob; `open()`
    takeover  takeover.py  the leader is killed: how long do its followers wait?

The origin is nginx in a process of its own (origin.py), the other processes are interpreters that
were started before (crew.py). All of them share the processors of this machine, and the kernel
places them. With a throttle, no process needs more than a tenth of a processor, and the throttle
decides the time. Without, the process with most work decides the time, and the others compete with
it where there are fewer processors than processes. With two processors, the origin and a plain
download have one each; everything that a way does beyond that, hashing or reading, slows both.

The table says whether each goal is met. The exit code does not: it is 0 unless a check of
correctness fails, which is 1. With `--quick` everything is tried and nothing is meant. Needs the
dependency group `bench`, nginx and curl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.command import Command, Count, Measure, run
from bench.flight import share, single, takeover
from bench.flight.charts import Pictures
from bench.origin import Origin
from bench.report import Options, Row, progress

SECTIONS = ("share", "single", "open", "takeover")
COUNTS = {
    "rounds": Count(5, 1, "of each comparison"),
    "kills": Count(20, 2, "of leaders"),
    "size": Count(256, 8, "of the blob", "MiB"),
}


def main() -> int:
    """Measure, print the table, write the JSON and the charts; the exit code."""
    command = Command(__doc__, COUNTS)
    command.has_sections(SECTIONS, can_pin=True)
    told = "draw PNGs there"
    command.parser.add_argument("--charts", type=Path, metavar="FOLDER", help=told)
    chosen, pictures = command.parse(), Pictures()
    failed = run("bench.flight", chosen, partial(_prepare, chosen, pictures))
    if chosen.charts and not failed:
        for path in pictures.draw(chosen.charts):
            progress(f"drawn: {path}")
    return failed


def _prepare(
    chosen: argparse.Namespace, pictures: Pictures, options: Options, stack: ExitStack
) -> Mapping[str, Measure]:
    origin = stack.enter_context(Origin(options.folder / "origin"))
    measures: dict[str, Callable[[Options, Origin, Pictures], list[Row]]] = {
        "share": share.measure,
        "single": single.measure,
        "open": single.measure_opening,
        "takeover": partial(takeover.measure, kills=chosen.kills),
    }

    def here(measure: Callable[[Options, Origin, Pictures], list[Row]]) -> Measure:
        return lambda options: measure(options, origin, pictures)

    return {name: here(each) for name, each in measures.items()}


if __name__ == "__main__":
    sys.exit(main())
