"""What shmstream costs: one writer and many readers, measured against the raw limit in one run.

    python -m bench.stream [--json FILE] [--rounds 9] [--size MiB] [--only SECTION ...] [--quick]

Every figure of ours stands beside its raw limit: the same work by as many processes of the same
kind, without any coordination. The claim is the ratio of the two. They are measured next to each
other, in an order that alternates, and the ratio is the median over the rounds, so a machine that
is busy with other work slows both. The sections, with their files and raw limits:

    throughput  throughput.py   bytes through one writer and 1, 4, 8 readers; plain write and preadv
    wake-up     wakeup.py       publish until a reader has the bytes; a semaphore ping
    publish     crowd.py        one publish to 1,000 waiting subscribers; 1,000 `sem_post`
    memory      memory.py       a reader's peak for 16 MiB and for 4 GiB; no raw, a bound of 2 MiB
    attach      joining.py      joining and leaving a live stream; the bare system calls, a bound

The table says whether each goal is met. The exit code does not: it is 0 unless a check of
correctness fails, which is 1. With `--quick` everything is tried and nothing is meant: small blobs,
few samples, under a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.crew import CrewFailed
from bench.report import MIB, CheckFailed, Options, as_json, machine, progress, table
from bench.stream import crowd, joining, memory, throughput, wakeup
from shmstream import sweep

SECTIONS = {
    "throughput": throughput.measure,
    "wake-up": wakeup.measure,
    "publish": crowd.measure,
    "memory": memory.measure,
    "attach": joining.measure,
}


def main() -> int:
    """Measure, print the table, write the JSON; the exit code."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--rounds", type=int, help="of each pair of measurements (9)")
    parser.add_argument("--size", type=int, metavar="MiB", help="of the blob (1024)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", default=[])
    parser.add_argument("--dir", type=Path, help="folder for the blobs (the temp folder)")
    parser.add_argument("--pin", action="store_true", help="tie each process to a processor")
    parser.add_argument("--quick", action="store_true", help="only try it out: 64 MiB, 2 rounds")
    chosen = parser.parse_args()
    size = chosen.size or (64 if chosen.quick else 1024)
    rounds = chosen.rounds or (2 if chosen.quick else 9)
    if size < 1 or rounds < 1:
        parser.error("--size and --rounds are positive")

    rows = []
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-", dir=chosen.dir) as folder:
        options = Options(Path(folder), size * MIB, rounds, chosen.quick, chosen.pin)
        facts = machine(options.folder)
        try:
            for section, measure in SECTIONS.items():
                if section in (chosen.only or SECTIONS):
                    rows += measure(options)
        except (CheckFailed, CrewFailed) as error:
            progress(f"failed: {error}")
            return 1
        finally:
            sweep()  # after a failure, what a killed writer has left
    print(table(facts, rows))
    if chosen.json:
        chosen.json.write_text(as_json(facts, options, rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
