"""How the demo looks: live bars on a terminal, plain lines elsewhere, and a summary on both."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from shmstream.demo.scene import Part, Phase, Scene
from shmstream.flight.flight import Role
from shmstream.units import amount

_REFRESH = 0.1  # s


@dataclass(frozen=True)
class Fact:
    """A line of the summary: what it is about, what was found, whether that is as it should be."""

    subject: str
    found: str
    good: bool = True


class View(Protocol):
    """Shows a scene while it changes."""

    def update(self, *, final: bool = False) -> None:
        """Show what is new, if it is time to."""


def say(console: Console, text: str = "", style: str = "") -> None:
    """Print one line as it is: no markup, no wrapping, and `?` for what cannot be shown."""
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(Text(text, style), soft_wrap=True)


def introduce(console: Console, scene: Scene, what: str) -> None:
    """Say what it is about."""
    say(console, "shmstream demo: pull once, stream to everyone on the host", "bold")
    say(console, f"blob      {amount(scene.size)}, {what}")
    say(console)


def introduce_stream(console: Console, name: str, rate: float, count: int) -> None:
    """Say what there will be to see in the first act."""
    readers = "1 interpreter" if count == 1 else f"{count} interpreters, one after another"
    say(console, "Readers come and go", "bold")
    say(console, f"stream    {name}, one writer {pace(rate)}")
    say(console, f"readers   {readers}" + ("; one of them is killed" if count > 1 else ""))
    say(console)


def introduce_flight(console: Console, url: str, rate: float, count: int) -> None:
    """Say what there will be to see in the second act."""
    say(console, "The leader is killed", "bold")
    say(console, f"origin    {url}, {pace(rate)}")
    say(console, f"flight    {count} interpreters call store.open(key, url); one of them downloads")
    say(console)


def pace(rate: float) -> str:
    """A rate in bytes a second for people; 0 is none."""
    return f"at {amount(rate)}/s" if rate else "as fast as it goes"


@contextmanager
def view(console: Console, scene: Scene) -> Iterator[View]:
    """Show the scene until the end of the `with` block."""
    if not (console.file.isatty() and console.is_interactive):
        yield _Lines(console, scene)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=26),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        yield _Bars(progress, scene)


class _Bars:
    """A bar for the writer and one for each reader."""

    def __init__(self, progress: Progress, scene: Scene) -> None:
        self._progress = progress
        self._scene = scene
        self._next = 0.0
        self._writer = progress.add_task(scene.giver, total=scene.size, status="")
        self._readers = [
            progress.add_task(f"{scene.cast} {part.reader.number}", total=scene.size, status="")
            for part in scene.parts
        ]

    def update(self, *, final: bool = False) -> None:
        """Draw it anew, ten times a second at most."""
        if time.monotonic() < self._next and not final:
            return
        self._next = time.monotonic() + _REFRESH
        scene = self._scene
        status = f"{amount(scene.published)} of {amount(scene.size)}"
        self._progress.update(self._writer, completed=scene.published, status=status)
        for task, part in zip(self._readers, scene.parts, strict=True):
            status = _status(scene, part)
            style = "red" if "killed" in status else "green" if part.phase is Phase.FINISHED else ""
            status = f"[{style}]{escape(status)}[/]" if style else escape(status)
            self._progress.update(task, completed=part.position, status=status)
        self._progress.refresh()


class _Lines:
    """A line when a reader comes or goes, and at each tenth of the blob."""

    def __init__(self, console: Console, scene: Scene) -> None:
        self._console = console
        self._scene = scene
        self._seen: list[object] = [Phase.WAITING for _ in scene.parts]
        self._tenth = 0

    def update(self, *, final: bool = False) -> None:  # noqa: ARG002
        """Print what has changed."""
        scene = self._scene
        tenth = scene.percent(scene.published) // 10
        if tenth > self._tenth:
            self._tenth = tenth
            lags = [
                f"{scene.cast} {part.reader.number} {amount(part.lag)}"
                for part in scene.parts
                if part.phase is Phase.READING and part.lag
            ]
            lag = ", ".join(lags) or "none"
            say(self._console, f"{tenth * 10:>5} %  {amount(scene.published)}, lag: {lag}")
        for index, part in enumerate(scene.parts):
            seen = (part.phase, part.role) if part.phase is Phase.READING else part.phase
            if seen != self._seen[index] and part.phase not in (Phase.WAITING, Phase.JOINING):
                who = f"{scene.cast} {part.reader.number}"
                say(self._console, f"         {who} {_status(scene, part)}")
            self._seen[index] = seen


def _status(scene: Scene, part: Part) -> str:
    if part.phase is Phase.WAITING:
        return f"joins at {scene.percent(part.joins_at)} %"
    if part.phase is Phase.JOINING or part.joined_at is None:
        return "joining"
    joined = f"joined at {scene.percent(part.joined_at)} %"
    if part.phase is Phase.READING:
        if part.took_over:
            return f"took over, and leads, lag {amount(part.lag)}"
        return f"{part.role or joined}, lag {amount(part.lag)}"
    if part.phase is Phase.KILLED:
        who = "the leader, " if part.role is Role.LEADS else ""
        return f"{who}killed with SIGKILL at {amount(part.position)}"
    return scene.problem(part) or "complete, SHA-256 ok"


def of_writer(scene: Scene, elapsed: float, rate: float) -> Fact:
    """How fast it was."""
    reached = scene.size / elapsed
    asked = f"{reached * 100 / rate:.0f} % of the rate asked for" if rate else "no limit was set"
    text = f"{amount(scene.size)} in {elapsed:.1f} s, that is {amount(reached)}/s; {asked}"
    return Fact("writer", text)


def of_kill(part: Part) -> Fact | None:
    """What became of the slot of a reader that was killed; None for the others."""
    if part.killed is None:
        return None
    if part.slot_free_after is None:
        slot = "the stream was complete before the writer came to look after its slot"
    else:
        slot = f"its slot was free again within {part.slot_free_after * 1000:.0f} ms"
    return Fact("kill", f"reader {part.reader.number} at {amount(part.position)}; {slot}")


def of_pause(scene: Scene) -> Fact:
    """How long the survivors had to wait."""
    reports = [part.reader.report for part in scene.parts if part.killed is None]
    pauses = [report.pause for report in reports if report is not None]
    return Fact("pause", f"{max(pauses, default=0) * 1000:.0f} ms, the longest of any survivor")


def of_file(scene: Scene, path: Path) -> Fact:
    """Whether the committed file is the blob."""
    good = sha256_of(path) == scene.sha256
    found = "has the right SHA-256" if good else "HAS THE WRONG SHA-256"
    return Fact("file", f"the committed file, {amount(path.stat().st_size)}, {found}", good)


def of_remains(remains: list[str]) -> Fact:
    """What is left over, which should be nothing."""
    nothing = "nothing of this stream in /dev/shm, and no partial file"
    return Fact("left over", ", ".join(remains) or nothing, not remains)


def sha256_of(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def conclude(console: Console, scene: Scene, facts: list[Fact]) -> bool:
    """Tell how it ended; whether that is as it should be."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    middle = "longest pause" if scene.is_flight else "joined at"
    for heading in (scene.cast, middle, "first bytes after", "read"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome")
    problems = [scene.problem(part) for part in scene.parts]
    for part, problem in zip(scene.parts, problems, strict=True):
        style = "red" if problem else "yellow" if part.phase is Phase.KILLED else "green"
        table.add_row(
            str(part.reader.number),
            _pause(part) if scene.is_flight else _joined(scene, part),
            _first_byte(part),
            amount(part.position),
            Text(problem or _outcome(part), style),
        )
    say(console)
    console.print(table)
    say(console)
    for fact in facts:
        say(console, f"{fact.subject:<11}{fact.found}", "" if fact.good else "red")
    say(console)
    wrong = [f"{scene.cast} {number}" for number, problem in enumerate(problems, 1) if problem]
    wrong += [fact.subject for fact in facts if not fact.good]
    survivors = sum(part.killed is None for part in scene.parts)
    if wrong:
        say(console, f"NOT as it should be: {', '.join(wrong)}.", "bold red")
    else:
        each = {1: "The survivor has", 2: "Both survivors have"}
        who = each.get(survivors, f"All {survivors} survivors have")
        who = "The reader has" if len(scene.parts) == 1 else who
        say(console, f"{who} every byte {scene.moral}.", "bold green")
    return not wrong


def _outcome(part: Part) -> str:
    if part.phase is Phase.KILLED:
        return "killed, as planned"
    return "SHA-256 ok, took over" if part.took_over else "SHA-256 ok"


def _joined(scene: Scene, part: Part) -> str:
    return "" if part.joined_at is None else f"{scene.percent(part.joined_at)} %"


def _first_byte(part: Part) -> str:
    report = part.reader.report
    if report is None or report.first_byte is None:
        return ""
    return f"{report.first_byte * 1000:.1f} ms"


def _pause(part: Part) -> str:
    report = part.reader.report
    return "" if report is None or not report.pause else f"{report.pause * 1000:.0f} ms"
