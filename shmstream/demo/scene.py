"""What there is to see of the first two acts at one moment: the blob, and each reader's part in it.

`fanout` and `takeover` keep it up to date, `screen` shows it. How far a reader is comes from its
slot in shared memory, for as long as it has one; what it made of the blob from its own reports.
"""

from __future__ import annotations

import hashlib
import signal
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from rich.console import Console

from shmstream.demo.reader import Reader
from shmstream.demo.screen import Fact, Outcome, Row, conclude
from shmstream.flight.flight import Role
from shmstream.stream.subscribers import Subscriber
from shmstream.units import amount


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
    joins_at: int = 0
    dies_at: int | None = None
    position: int = 0
    lag: int = 0
    killed: float | None = None
    """When it was killed, on the monotonic clock."""
    slot_free_after: float | None = None
    """Seconds from the kill until its slot was seen to be free."""
    role: Role | None = None
    """In a flight: its role, as far as is known by now."""
    began_as: Role | None = None
    """In a flight: its first role."""

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
        report = self.reader.report
        if subscriber is not None:
            self.position, self.lag = subscriber.position, subscriber.lag
        elif self.killed is not None and self.slot_free_after is None:
            self.slot_free_after = now - self.killed
        elif self.phase is Phase.FINISHED:
            assert report is not None
            self.position, self.lag = report.count, 0
        if report is not None and report.role:
            self.began_as = self.began_as or Role(report.role)
            if self.role is None or report.event == "finished":
                self.role = Role(report.role)  # later than what shared memory said


@dataclass
class Scene:
    """The blob and everybody who reads it; sizes in bytes.

    `is_flight`: it is the second act, where one of the processes leads, and no writer is beside.
    """

    size: int
    sha256: str
    parts: list[Part] = field(default_factory=list)
    published: int = 0
    is_flight: bool = False
    rows: list[Row] = field(default_factory=list)
    """The bars: of the blob, and of each part."""

    @property
    def chunk_size(self) -> int:
        """Such that a small blob flows, too."""
        return max(min(self.size // 100, 65536), 1)

    def begin(self, parts: list[Part]) -> None:
        """Have these parts, and a row for each."""
        self.parts = parts
        cast = "process" if self.is_flight else "reader"
        self.rows = [Row("published" if self.is_flight else "writer", self.size)]
        self.rows += [Row(f"{cast} {part.reader.number}", self.size) for part in parts]
        self._seen: list[object] = [None for _ in parts]

    def update_rows(self) -> None:
        """Have the rows show what the scene is now."""
        blob, *rows = self.rows
        blob.completed = self.published
        blob.status = f"{amount(self.published)} of {amount(self.size)}"
        if tenth := self.percent(self.published) // 10:
            news = f"{tenth * 10:>3} %  {amount(self.published)}, lag: {self._lags()}"
            if not blob.news.startswith(f"{tenth * 10:>3} %"):
                blob.news = news
        for index, (part, row) in enumerate(zip(self.parts, rows, strict=True)):
            row.completed, row.status = part.position, self._status(part)
            row.style = "green" if part.phase is Phase.FINISHED else ""
            row.style = "red" if part.phase is Phase.KILLED else row.style
            seen = (part.phase, part.role if part.phase is Phase.READING else None)
            if seen != self._seen[index] and part.phase not in (Phase.WAITING, Phase.JOINING):
                row.news = f"{row.name} {row.status}"
            self._seen[index] = seen

    def _lags(self) -> str:
        lags = [
            f"{row.name} {amount(part.lag)}"
            for part, row in zip(self.parts, self.rows[1:], strict=True)
            if part.phase is Phase.READING and part.lag
        ]
        return ", ".join(lags) or "none"

    def _status(self, part: Part) -> str:
        report = part.reader.report
        if part.phase is Phase.WAITING:
            return f"joins at {self.percent(part.joins_at)} %"
        if part.phase is Phase.JOINING or report is None or not part.reader.has_joined:
            return self.problem(part) if part.phase is Phase.FAILED else "joining"
        if part.phase is Phase.READING:
            if part.took_over:
                return f"took over, and leads, lag {amount(part.lag)}"
            what = part.role or f"joined at {self.percent(report.joined_at)} %"
            return f"{what}, lag {amount(part.lag)}"
        if part.phase is Phase.KILLED:
            leader = "the leader, " if part.role is Role.LEADS else ""
            return f"{leader}killed with SIGKILL at {amount(part.position)}"
        return self.problem(part) or "complete, SHA-256 ok"

    def percent(self, count: int) -> int:
        """`count` bytes as a part of the blob."""
        return count * 100 // self.size

    def problem(self, part: Part) -> str:
        """What is wrong with how a reader ended; nothing if it ended as it should."""
        report, code = part.reader.report, part.reader.process.exitcode
        if part.phase is Phase.KILLED:
            return "" if code == -signal.SIGKILL else f"exit code {code}, not SIGKILL"
        if report is None or part.phase is not Phase.FINISHED:
            why = report.error if report is not None else ""
            return why or f"ended too early, with exit code {code}"
        if (report.sha256, report.count) != (self.sha256, self.size):
            return f"WRONG: {report.count} bytes, SHA-256 {report.sha256[:12]}"
        return "" if report.state == "COMMITTED" else f"ended in state {report.state}"

    def conclude(self, console: Console, facts: list[Fact]) -> bool:
        """Tell how it ended; whether that is as it should be."""
        moral = "of a blob that was pulled once"
        moral += ", though its leader was killed" if self.is_flight else ""
        middle = "longest pause" if self.is_flight else "joined at"
        return conclude(console, middle, [self._outcome(part) for part in self.parts], facts, moral)

    def _outcome(self, part: Part) -> Outcome:
        report, killed = part.reader.report, part.killed is not None
        shown = ""
        if report is not None and self.is_flight:
            shown = f"{report.pause * 1000:.0f} ms" if report.pause else ""
        elif report is not None and part.reader.has_joined:
            shown = f"{self.percent(report.joined_at)} %"
        found = "killed, as planned" if killed else "SHA-256 ok"
        return Outcome(
            f"{'process' if self.is_flight else 'reader'} {part.reader.number}",
            shown,
            None if report is None else report.first_byte,
            part.position,
            found + (", took over" if part.took_over and not killed else ""),
            self.problem(part),
            killed,
        )

    def of_file(self, path: Path) -> Fact:
        """Whether the committed file is the blob."""
        good = sha256_of(path) == self.sha256
        found = "has the right SHA-256" if good else "HAS THE WRONG SHA-256"
        return Fact("file", f"the committed file, {amount(path.stat().st_size)}, {found}", good)


def sha256_of(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
