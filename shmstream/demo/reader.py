"""The readers of the first two acts, each an interpreter of its own, and the parent's hand on them.

A reader loads, and waits until the parent lets it in, so that it joins at the very moment that the
demo wants and not when an interpreter happens to have started. Then it attaches to the stream, or
opens the blob of a store; it reads the blob to the end, hashes it, and writes it where it is told:

    reader                                            parent
    ready     ----------------------------------->
              <-----------------------------------    lets it in, with orders
    joined, reading ----------------------------->
    finished, or failed ------------------------->
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from shmstream.demo.process import Child, DemoFailed
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

    With `store`, a folder, `name` is the key of a blob, which is had from `url` in chunks of
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
    """What the demo knows of a reader by then.

    `joined_at` is the number of bytes that were published when it attached; `first_byte` the
    seconds until it had the first bytes; `pause` the longest time, in seconds, that it waited for
    more; `role` its role in a flight.
    """

    event: str
    joined_at: int = 0
    first_byte: float | None = None
    pause: float = 0.0
    role: str = ""
    count: int = 0
    sha256: str = ""
    state: str = ""
    error: str = ""


class Reader(Child):
    """An interpreter that reads one blob. `report` is its last one, None before the first."""

    def __init__(self, number: int) -> None:
        super().__init__(_main)
        self.number = number
        self.report: Report | None = None
        self.is_let_in: bool = False

    @property
    def has_joined(self) -> bool:
        """Whether it has told that it is attached."""
        return self.report is not None and self.report.event in ("joined", "reading", "finished")

    def let_in(self, orders: Orders) -> None:
        """Send it to the blob, now."""
        self.is_let_in = True
        self.tell(orders)

    def result(self) -> Report:
        """What it made of the blob, once it is gone.

        Raises:
            DemoFailed: it did not get to the end.
        """
        if self.report is None or self.report.event != "finished":
            why = self.report.error if self.report is not None else ""
            why = why or f"exit code {self.process.exitcode}"
            raise DemoFailed(f"reader {self.number} ended too early: {why}")
        return self.report


class Readers:
    """All readers of an act; leaving it as a context manager ends them."""

    def __init__(self) -> None:
        self._all: list[Reader] = []

    def start(self, count: int) -> list[Reader]:
        """Start so many, numbered from 1, and wait until each is ready to be let in.

        Raises:
            DemoFailed: one ended instead.
        """
        for number in range(1, count + 1):
            self._all.append(Reader(number))
        self.listen_until(lambda: all(reader.report for reader in self._all))
        return self._all

    def listen(self, patience: float | None = None) -> None:
        """Take in reports, waiting for the first for `patience` seconds (None: until it comes)."""
        running = [reader for reader in self._all if not reader.is_gone]
        ready = wait([reader.pipe for reader in running], patience)
        for reader in running:
            if reader.pipe in ready:
                reader.report = reader.hear() or reader.report

    def listen_until(self, condition: Callable[[], bool]) -> None:
        """Take in reports until `condition` holds.

        Raises:
            DemoFailed: it does not, and a reader has ended that should have made it true.
        """
        while not condition():
            for reader in self._all:
                if reader.is_gone:
                    reader.result()
            self.listen()

    @property
    def are_gone(self) -> bool:
        """Whether every reader has ended."""
        return all(reader.is_gone for reader in self._all)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for reader in self._all:
            reader.close()


# In the child.


def _main(pipe: Connection) -> None:
    logging.getLogger("shmstream").addHandler(logging.NullHandler())  # a reader reports by itself
    pipe.send(Report("ready"))
    try:
        orders: Orders = pipe.recv()
    except EOFError:
        return
    try:
        with _open(orders) as blob, _writing_to(orders.out) as write:
            _read(blob, orders, write, pipe)
    except (ShmstreamError, OSError) as error:
        pipe.send(Report("failed", error=f"{type(error).__name__}: {error}"))


def _open(orders: Orders) -> InFlightCopier | Blob:
    if orders.store is None:
        return InFlightCopier.attach(orders.name)
    store = Store(orders.store, chunk_size=orders.chunk_size, durable=False)
    return store.open(orders.name, orders.url)


def _read(
    blob: InFlightCopier | Blob, orders: Orders, write: Callable[[bytes], object], pipe: Connection
) -> None:
    began = last = time.monotonic()
    digest = hashlib.sha256()
    report = Report("joined", blob.published, role=_role(blob))
    pipe.send(report)
    limit = _BUFFER
    while True:
        if orders.stop_at is not None:
            limit = min(_BUFFER, orders.stop_at - blob.position)
        if not (data := blob.read1(limit)):
            break
        now = time.monotonic()
        if report.first_byte is None:
            report = replace(report, event="reading", first_byte=now - began, role=_role(blob))
            pipe.send(report)
        else:
            report = replace(report, pause=max(report.pause, now - last))
        last = now
        digest.update(data)
        write(data)
    if orders.stop_at is not None:
        time.sleep(3600)  # it is to be killed here
    if isinstance(blob, Blob):
        blob.wait()  # if this process leads, until the leader has cleared up
    # A blob of a store ends only where it is complete; a stream's state tells.
    state = blob.state if isinstance(blob, InFlightCopier) else State.COMMITTED
    report = replace(report, event="finished", role=_role(blob), state=state.name)
    pipe.send(replace(report, count=blob.position, sha256=digest.hexdigest()))


def _role(blob: InFlightCopier | Blob) -> str:
    return blob.role if isinstance(blob, Blob) else ""


@contextmanager
def _writing_to(out: str | None) -> Iterator[Callable[[bytes], object]]:
    """What writes to `out` so that everybody sees it at once."""
    if out is None:
        yield len
        return
    target = sys.stdout.fileno() if out == STANDARD_OUTPUT else out
    with open(target, "wb", buffering=0, closefd=out != STANDARD_OUTPUT) as file:
        yield file.write
