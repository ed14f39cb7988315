"""One reader of the demo, in an interpreter of its own: `python -m shmstream.demo.reader`.

It loads, and waits until its parent lets it in, so that it joins at the very moment that the demo
wants and not when an interpreter happens to have started. Then it attaches to the stream, reads it
to the end, hashes what it reads, and writes it to a file or to standard output if told so:

    reader                                            parent
    ready     --- a line on the reports' pipe --->
              <-- the orders, a line on stdin ----    lets it in
    joined, reading ----------------------------->
    finished, or failed ------------------------->

When standard input or the reports' pipe ends, the parent has gone, and so does the reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from shmstream.copier import InFlightCopier
from shmstream.errors import ShmstreamError

STANDARD_OUTPUT = "-"

_BUFFER = 64 * 1024  # bytes; a piece of this size stays in the processor's cache


@dataclass(frozen=True)
class Orders:
    """What a reader does: copy the stream `name` to `out` (a path or `STANDARD_OUTPUT`), or only
    hash it, and read at most `stop_at` bytes, then wait to be killed.
    """

    name: str
    out: str | None = None
    stop_at: int | None = None


@dataclass(frozen=True)
class Report:
    """One line of a reader to its parent, and what a demo knows of a reader by then."""

    event: str
    joined_at: int = 0
    """Bytes that were published when it attached."""
    first_byte: float | None = None
    """Seconds from before `attach` until it had the first bytes."""
    count: int = 0
    sha256: str = ""
    state: str = ""
    error: str = ""


Tell = Callable[[Report], None]


def main() -> None:
    """Be a reader; the only argument is the descriptor of the reports' pipe."""
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as reports:

        def tell(report: Report) -> None:
            reports.write(json.dumps(asdict(report)) + "\n")

        tell(Report("ready"))
        if not (line := sys.stdin.readline()):
            return
        try:
            _read(Orders(**json.loads(line)), tell)
        except (ShmstreamError, OSError) as error:
            tell(Report("failed", error=f"{type(error).__name__}: {error}"))


def _read(orders: Orders, tell: Tell) -> None:
    began = time.monotonic()
    first_byte = None
    digest = hashlib.sha256()
    with InFlightCopier.attach(orders.name) as copier, _writing_to(orders.out) as write:
        joined_at = copier.published
        tell(Report("joined", joined_at))
        limit = _BUFFER
        while True:
            if orders.stop_at is not None:
                limit = min(_BUFFER, orders.stop_at - copier.position)
            if not (data := copier.read1(limit)):
                break
            if first_byte is None:
                first_byte = time.monotonic() - began
                tell(Report("reading", joined_at, first_byte))
            digest.update(data)
            write(data)
        if orders.stop_at is not None:
            sys.stdin.read()
        else:
            state, count = copier.state.name, copier.position
            tell(Report("finished", joined_at, first_byte, count, digest.hexdigest(), state))


@contextmanager
def _writing_to(out: str | None) -> Iterator[Callable[[bytes], object]]:
    """How to write to `out` so that everybody sees it at once."""
    if out is None:
        yield len
        return
    target = sys.stdout.fileno() if out == STANDARD_OUTPUT else out
    with open(target, "wb", closefd=out != STANDARD_OUTPUT) as file:

        def write(data: bytes) -> None:
            file.write(data)
            file.flush()

        yield write


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # nobody is left to report to
        os._exit(1)
