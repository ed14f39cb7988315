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
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.crew import CrewFailed
from bench.flight import share, single, takeover
from bench.flight.charts import Pictures
from bench.origin import Origin
from bench.report import MIB, CheckFailed, Options, Row, as_json, machine, progress, table
from bench.server import NotServing
from shmstream import sweep

Measure = Callable[[Options, Origin, Pictures], list[Row]]
SECTIONS = ("share", "single", "open", "takeover")


def main() -> int:
    """Measure, print the table, write the JSON and the charts; the exit code."""
    chosen = _arguments()
    kills = chosen.kills or (2 if chosen.quick else 20)
    measures: dict[str, Measure] = {
        "share": share.measure,
        "single": single.measure,
        "open": single.measure_opening,
        "takeover": partial(takeover.measure, kills=kills),
    }
    rows = []
    pictures = Pictures()
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-", dir=chosen.dir) as folder:
        options = Options(Path(folder), chosen.size * MIB, chosen.rounds, chosen.quick, chosen.pin)
        facts = machine(options.folder)
        try:
            with Origin(options.folder / "origin") as origin:
                for section, measure in measures.items():
                    if section in (chosen.only or SECTIONS):
                        rows += measure(options, origin, pictures)
        except (CheckFailed, CrewFailed, NotServing) as error:
            progress(f"failed: {error}")
            return 1
        finally:
            sweep()  # after a failure, what a killed leader has left
    print(table(facts, rows))
    if chosen.json:
        chosen.json.write_text(as_json(facts, options, rows), encoding="utf-8")
    if chosen.charts:
        for path in pictures.draw(chosen.charts):
            progress(f"drawn: {path}")
    return 0


def _arguments() -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="draw PNGs there")
    parser.add_argument("--rounds", type=int, help="of each comparison (5)")
    parser.add_argument("--kills", type=int, help="of leaders (20)")
    parser.add_argument("--size", type=int, metavar="MiB", help="of the blob (256)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", default=[])
    parser.add_argument("--dir", type=Path, help="folder for the blobs (the temp folder)")
    parser.add_argument("--pin", action="store_true", help="tie each process to a processor")
    parser.add_argument("--quick", action="store_true", help="only try it out: 8 MiB, 1 round")
    chosen = parser.parse_args()
    chosen.size = (8 if chosen.quick else 256) if chosen.size is None else chosen.size
    chosen.rounds = (1 if chosen.quick else 5) if chosen.rounds is None else chosen.rounds
    if chosen.size < 1 or chosen.rounds < 1 or (chosen.kills is not None and chosen.kills < 1):
        parser.error("--size, --rounds and --kills are positive")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
