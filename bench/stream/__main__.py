"""What shmstream costs: one writer and many readers, measured against the raw limit in one run.

    python -m bench.stream [--json FILE] [--docs PAGE] [--rounds 9] [--size MiB]
                           [--only SECTION ...] [--quick]

Every figure of ours stands beside its raw limit: the same work by as many processes of the same
kind, without any coordination. The claim is the ratio of the two. They are measured next to each
other, in an order that alternates, and the ratio is the median over the rounds, so a machine that
is busy with other work slows both. The sections, with their files and raw limits:

    throughput  throughput.py   bytes through one writer and 1, 4, 8 readers; plain write and preadv
    wake-up     wakeup.py       publish until a reader has the bytes; a semaphore ping, and the same
                                in C (in_c.c)
    publish     crowd.py        one publish to 1,000 waiting subscribers; 1,000 `sem_post`, and the
                                same in C
    calls       calls.py        calls of functions in one wake-up; no raw, a bound
    memory      memory.py       a reader's peak for 16 MiB and for 4 GiB; no raw, a bound of 2 MiB
    attach      joining.py      joining and leaving a live stream; the bare system calls, a bound

The table says whether each goal is met. The exit code does not: it is 0 unless a check of
correctness fails, which is 1. With `--quick` everything is tried and nothing is meant: small blobs,
few samples, under a minute.
"""

from __future__ import annotations

import sys

from bench.command import Command, Count, run
from bench.stream import calls, crowd, joining, memory, throughput, wakeup

SECTIONS = {
    "throughput": throughput.measure,
    "wake-up": wakeup.measure,
    "calls": calls.measure,
    "publish": crowd.measure,
    "memory": memory.measure,
    "attach": joining.measure,
}
COUNTS = {
    "rounds": Count(9, 2, "of each pair of measurements"),
    "size": Count(1024, 64, "of the blob", "MiB"),
}


def main() -> int:
    """Measure, print the table, write the JSON; the exit code."""
    command = Command(__doc__, COUNTS)
    command.has_sections(SECTIONS, can_pin=True)
    return run("bench.stream", command.parse(), lambda _options, _stack: SECTIONS)


if __name__ == "__main__":
    sys.exit(main())
