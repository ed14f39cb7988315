"""The readers as the demo sees them: it starts them, lets them in, hears them and kills some.

What a reader does comes from its own reports. How far it is comes from its slot in shared memory,
for as long as it has one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait

from shmstream import Role, State, Subscriber
from shmstream.demo.child import Child, DemoFailed
from shmstream.demo.reading import Orders, Report, Reporter, work
from shmstream.units import amount


@dataclass(frozen=True)
class Part:
    """What all readers of an act have to do."""

    kind: str  # the name of each: reader, process or client
    read: Callable[[Reporter], None]
    orders: Orders
    size: int  # how many bytes each reader has to get
    digests: tuple[str, ...]  # of everything that each reader has to get, in turn
    column: str = "longest pause"  # what the summary shows of each; or "joined at"
    last_joins: float = 0.0  # the last joins when this part of all is published, 0 to 1


class Reader(Child):
    """One reader: a child that plays a part."""

    def __init__(self, undo: ExitStack, part: Part, number: int, joins_at: float) -> None:
        """Start the reader. It joins when `joins_at` of all is published, between 0 and 1."""
        super().__init__(undo, partial(work, part.read))
        self.part = part
        self.number = number
        self.name: str = f"{part.kind} {number}"
        self.joins_at = joins_at
        self.is_let_in: bool = False
        self.report: Report = Report()  # the latest one
        self.position: int = 0
        self.lag: int | None = None  # bytes; None while its slot has not been seen
        self.killed: float | None = None  # on the monotonic clock
        self.told: str = ""  # what it does, if the demo knows more than the reports

    @property
    def has_joined(self) -> bool:
        """Whether the reader has reported that it is attached."""
        return self.report.event in ("joined", "finished")

    @property
    def is_reading(self) -> bool:
        """Whether the reader has joined, and has neither finished nor ended."""
        return self.report.event == "joined" and self.exit_code is None

    @property
    def joined_at(self) -> str:
        """How much was published when the reader attached; empty if it never attached."""
        return f"{self.report.joined_at * 100 // self.part.size} %" if self.has_joined else ""

    @property
    def doing(self) -> str:
        """What the reader does, or how it ended; empty while it is about to join."""
        report = self.report
        if self.killed is not None:
            who = "the leader, " if report.role is Role.LEADS else ""
            return f"{who}killed with SIGKILL at {amount(self.position)}"
        if self.is_reading:
            cut = f", was cut at {amount(report.cuts[-1])}" if report.cuts else ""
            return (self.told or report.doing or f"joined at {self.joined_at}") + cut
        if report.event in ("starting", "ready") and self.exit_code is None:
            return f"joins at {self.joins_at * 100:.0f} %" if self.joins_at else ""
        return self.problem or f"complete, {self.outcome}"

    @property
    def outcome(self) -> str:
        """How the reader ended, when that is as it should be."""
        if self.killed is not None:
            return "killed, as planned"
        count, report = len(self.part.digests), self.report
        outcome = "SHA-256 ok" if count == 1 else f"{count} digests ok"
        outcome += ", took over" if report.took_over else ""
        return outcome + (", was cut" if report.cuts else "")

    @property
    def problem(self) -> str:
        """What is wrong with how the reader ended; empty if nothing is wrong."""
        report, code = self.report, self.exit_code
        if self.killed is not None:
            return "" if code == -signal.SIGKILL else f"exit code {code}, not SIGKILL"
        if report.event != "finished":
            return report.error or f"ended too early, with exit code {code}"
        if (report.position, report.digests) != (self.part.size, self.part.digests):
            return f"WRONG: {report.position} bytes, {', '.join(report.digests)}"
        if report.state not in (None, State.COMMITTED):
            return f"ended in state {report.state.name}"
        return ""

    def hear(self) -> None:
        """Wait for the next report of the reader, or for its end, and note it."""
        if isinstance(report := self.receive(), Report):
            self.report = report
            self.position = max(self.position, report.position)

    def kill(self) -> None:
        """Kill it with SIGKILL, wait until it has ended, and note what it had sent before."""
        super().kill()
        self.killed = time.monotonic()
        while self.exit_code is None:
            self.hear()


class Readers(list[Reader]):
    """All readers of an act, in turn."""

    def __init__(self, undo: ExitStack, part: Part, count: int) -> None:
        """Start `count` readers and wait until each is ready; `undo` ends them.

        Raises:
            DemoFailed: a reader ended instead.
        """
        step = part.last_joins / max(count - 1, 1)
        super().__init__(Reader(undo, part, each + 1, each * step) for each in range(count))
        self.listen_until(lambda: all(each.report.event == "ready" for each in self))

    @property
    def longest_pause(self) -> str:
        """How long the survivors had to wait for bytes, at most."""
        longest = max((each.report.pause for each in self if each.killed is None), default=0.0)
        return f"{longest * 1000:.0f} ms"

    def let_in(self, published: int) -> None:
        """Give the orders to every reader whose time has come."""
        for reader in self:
            if not reader.is_let_in and published >= reader.joins_at * reader.part.size:
                reader.is_let_in = True
                reader.send(reader.part.orders)

    def see(self, subscribers: Iterable[Subscriber]) -> None:
        """Note how far each reader is that has a slot."""
        for slot in subscribers:  # a reader that joins anew has two slots for an instant
            for reader in [each for each in self if each.pid == slot.identity.pid]:
                reader.position, reader.lag = max(reader.position, slot.position), slot.lag

    def listen(self, patience: float | None = None) -> None:
        """Note reports; wait for the first one `patience` seconds at most (None: for ever)."""
        heard = wait([each.pipe for each in self if each.exit_code is None], patience)
        for reader in self:
            if reader.pipe in heard:
                reader.hear()

    def listen_until(self, condition: Callable[[], bool]) -> None:
        """Note reports until `condition` holds.

        Raises:
            DemoFailed: a reader has ended before, without having finished.
        """
        while not condition():
            for reader in self:
                if reader.exit_code is not None and reader.report.event != "finished":
                    raise DemoFailed(f"{reader.name} failed: {reader.problem}")
            self.listen()
