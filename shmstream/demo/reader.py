"""One reader of the demo, in an interpreter of its own: `python -m shmstream.demo.reader`.

It loads, and waits until its parent lets it in, so that it joins at the very moment that the demo
wants and not when an interpreter happens to have started. Then it attaches to the stream, or opens
the blob of a store; reads it to the end, hashes what it reads, and writes it to a file or to
standard output if told so:

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
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from shmstream.errors import ShmstreamError
from shmstream.flight.blob import Blob
from shmstream.store import Store
from shmstream.stream.control_block import State
from shmstream.stream.reader import InFlightCopier

STANDARD_OUTPUT = "-"

_BUFFER = 64 * 1024  # bytes; a piece of this size stays in the processor's cache


@dataclass(frozen=True)
class Orders:
    """What a reader does: copy the stream `name` to `out` (a path or `STANDARD_OUTPUT`), or only
    hash it, and read at most `stop_at` bytes, then wait to be killed.

    With `store`, a folder, `name` is the key of a blob, and it is had from `url` in chunks of
    `chunk_size`.
    """

    name: str
    out: str | None = None
    stop_at: int | None = None
    store: str | None = None
    url: str | None = None
    chunk_size: int = 65536


@dataclass(frozen=True)
class Report:
    """One line of a reader to its parent, and what a demo knows of a reader by then."""

    event: str
    joined_at: int = 0
    """Bytes that were published when it attached."""
    first_byte: float | None = None
    """Seconds from before `attach` until it had the first bytes."""
    pause: float = 0.0
    """Seconds: the longest that it waited for more."""
    role: str = ""
    """What it is to a flight, by then."""
    count: int = 0
    sha256: str = ""
    state: str = ""
    error: str = ""


Tell = Callable[[Report], None]


def main() -> None:
    """Be a reader; the only argument is the descriptor of the reports' pipe."""
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
    logging.getLogger("shmstream").addHandler(logging.NullHandler())  # what happens, we report
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as reports:

        def tell(report: Report) -> None:
            reports.write(json.dumps(asdict(report)) + "\n")

        tell(Report("ready"))
        if not (line := sys.stdin.readline()):
            return
        try:
            orders = Orders(**json.loads(line))
            if orders.store is not None:  # then its writer is no sign that the parent lives
                threading.Thread(target=_end_with_parent, daemon=True).start()
            _read(orders, tell)
        except (ShmstreamError, OSError) as error:
            tell(Report("failed", error=f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _open(orders: Orders) -> InFlightCopier | Blob:
    if orders.store is None:
        return InFlightCopier.attach(orders.name)
    store = Store(orders.store, chunk_size=orders.chunk_size, durable=False)
    return store.open(orders.name, orders.url)


def _read(orders: Orders, tell: Tell) -> None:
    began = time.monotonic()
    first_byte = None
    last = pause = 0.0
    digest = hashlib.sha256()
    with _open(orders) as blob, _writing_to(orders.out) as write:
        joined_at = blob.published
        tell(Report("joined", joined_at, role=_role(blob)))
        limit = _BUFFER
        while True:
            if orders.stop_at is not None:
                limit = min(_BUFFER, orders.stop_at - blob.position)
            if not (data := blob.read1(limit)):
                break
            now = time.monotonic()
            if first_byte is None:
                first_byte, last = now - began, now
                tell(Report("reading", joined_at, first_byte, role=_role(blob)))
            pause, last = max(pause, now - last), now
            digest.update(data)
            write(data)
        if orders.stop_at is not None:
            sys.stdin.read()
        else:
            if isinstance(blob, Blob):
                blob.wait()  # if we lead, until the leader has cleared up
            # A blob of a store ends only where it is complete; a stream's state tells.
            state = blob.state.name if isinstance(blob, InFlightCopier) else State.COMMITTED.name
            role, count, sha256 = _role(blob), blob.position, digest.hexdigest()
            tell(Report("finished", joined_at, first_byte, pause, role, count, sha256, state))


def _role(blob: InFlightCopier | Blob) -> str:
    return blob.role if isinstance(blob, Blob) else ""


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
