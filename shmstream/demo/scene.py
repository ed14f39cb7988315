"""What there is to see of the demo at one moment: the blob, and each reader's part in it.

`fanout` and `takeover` keep it up to date, `screen` draws it. How far a reader is comes from its
slot in shared memory, for as long as it has one; what it made of the blob from its own reports.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from enum import Enum, auto

from shmstream.demo.parent import Reader
from shmstream.flight.flight import Role
from shmstream.stream.subscribers import Subscriber


class Phase(Enum):
    """Where a reader is in its part."""

    WAITING = auto()
    JOINING = auto()
    READING = auto()
    KILLED = auto()
    FINISHED = auto()
    FAILED = auto()


@dataclass
class Part:
    """A reader's part: joins when `joins_at` bytes are published, and is killed when it has read
    `dies_at` (None: it lives).
    """

    reader: Reader
    joins_at: int
    dies_at: int | None = None
    position: int = 0
    lag: int = 0
    killed: float | None = None
    """When it was killed, on the monotonic clock."""
    slot_free_after: float | None = None
    """Seconds from the kill until its slot was seen to be free."""
    role: Role | None = None
    """In a flight: what it is to it, as far as is known by now."""
    began_as: Role | None = None
    """In a flight: what it was to it first."""

    @property
    def joined_at(self) -> int | None:
        """Bytes that were published when it attached; None if it never did."""
        report = self.reader.report
        return report.joined_at if report is not None and self.reader.has_joined else None

    @property
    def phase(self) -> Phase:
        """Where it is in its part."""
        report = self.reader.report
        if self.killed is not None:
            return Phase.KILLED
        if report is not None and report.event == "finished":
            return Phase.FINISHED
        if self.reader.is_gone or (report is not None and report.event == "failed"):
            return Phase.FAILED
        if self.reader.has_joined:
            return Phase.READING
        return Phase.JOINING if self.reader.is_let_in else Phase.WAITING

    @property
    def took_over(self) -> bool:
        """Whether it leads a flight that it followed."""
        return self.began_as is Role.FOLLOWS and self.role is Role.LEADS

    def see(self, subscriber: Subscriber | None, now: float) -> None:
        """Note what its slot says; None when it has none (any more)."""
        if subscriber is not None:
            self.position, self.lag = subscriber.position, subscriber.lag
        elif self.killed is not None and self.slot_free_after is None:
            self.slot_free_after = now - self.killed
        elif self.phase is Phase.FINISHED:
            assert self.reader.report is not None
            self.position, self.lag = self.reader.report.count, 0
        if (report := self.reader.report) is not None and report.role:
            self.began_as = self.began_as or Role(report.role)
            if self.role is None or report.event == "finished":
                self.role = Role(report.role)  # later than what shared memory said


@dataclass
class Scene:
    """The blob and everybody who reads it; sizes in bytes."""

    size: int
    sha256: str
    parts: list[Part] = field(default_factory=list)
    published: int = 0
    is_flight: bool = False
    """Whether it is the second act: one of the parts leads, and no writer is beside them."""

    @property
    def giver(self) -> str:
        """What the bar of `published` is called."""
        return "published" if self.is_flight else "writer"

    @property
    def cast(self) -> str:
        """What each of the parts is called."""
        return "process" if self.is_flight else "reader"

    @property
    def moral(self) -> str:
        """What is to be learned."""
        pulled_once = "of a blob that was pulled once"
        return f"{pulled_once}, though its leader was killed" if self.is_flight else pulled_once

    def percent(self, count: int) -> int:
        """`count` bytes as a part of the blob."""
        return count * 100 // self.size

    def problem(self, part: Part) -> str:
        """What is wrong with how a reader ended; nothing if it ended as it should."""
        report = part.reader.report
        if part.phase is Phase.KILLED:
            code = part.reader.process.returncode
            return "" if code == -signal.SIGKILL else f"exit code {code}, not SIGKILL"
        if report is None or part.phase is not Phase.FINISHED:
            why = report.error if report is not None else ""
            return why or f"ended too early, with exit code {part.reader.process.returncode}"
        if (report.sha256, report.count) != (self.sha256, self.size):
            return f"WRONG: {report.count} bytes, SHA-256 {report.sha256[:12]}"
        return "" if report.state == "COMMITTED" else f"ended in state {report.state}"
