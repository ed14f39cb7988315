"""How the demo looks: live bars on a terminal, plain lines elsewhere, and a summary on both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress
from rich.table import Table
from rich.text import Text

from shmstream.demo.readers import Reader, Readers
from shmstream.units import amount

_REFRESH = 0.1  # s


def say(console: Console, text: str = "", style: str = "") -> None:
    """Print one line as it is: no markup, no wrapping, and `?` for what cannot be shown."""
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(Text(text, style), soft_wrap=True)


class Board:
    """Shows how much is published, and how far each reader is, while that changes."""

    def __init__(self, undo: ExitStack, console: Console, giver: str, readers: Readers) -> None:
        """Begin to show; `undo` ends it. `giver` is the name of what the readers read from."""
        bars = Progress(
            "{task.description}",
            BarColumn(bar_width=26),
            "{task.percentage:>3.0f} %",
            "{task.fields[status]}",
            console=console,
            auto_refresh=False,
            disable=not (console.file.isatty() and console.is_interactive),
        )
        self._progress = undo.enter_context(bars)
        self._giver = giver
        self._readers = readers
        self._size = readers[0].part.size
        names = [giver, *(each.name for each in readers)]
        self._tasks = [bars.add_task(each, total=self._size, status="") for each in names]
        self._next = 0.0
        self._tenth = 0
        self._told: dict[str, str] = {}

    def show(self, published: int, note: str = "", *, final: bool = False) -> None:
        """Show what is new: bars only ten times a second. `note` is about the giver."""
        if self._progress.disable:
            self._print(published, note)
        elif final or time.monotonic() >= self._next:
            self._next = time.monotonic() + _REFRESH
            self._draw(published, note)

    def _draw(self, published: int, note: str) -> None:
        status = f"{amount(published)} of {amount(self._size)}" + (f", {note}" if note else "")
        rows = [(published, status, "none")]
        for reader in self._readers:
            has_slot = reader.is_reading and reader.lag is not None
            lag = f", lag {amount(reader.lag or 0)}" if has_slot else ""
            style = "red" if reader.killed or reader.problem else "green"
            style = "none" if reader.exit_code is None else style
            rows.append((reader.position, reader.doing + lag, style))
        for task, (position, status, style) in zip(self._tasks, rows, strict=True):
            status = f"[{style}]{escape(status)}[/]"
            self._progress.update(task, completed=position, status=status)
        self._progress.refresh()

    def _print(self, published: int, note: str) -> None:
        if (tenth := published * 10 // self._size) > self._tenth:
            self._tenth = tenth
            behind = [each for each in self._readers if each.is_reading and each.lag]
            lags = ", ".join(f"{each.name} {amount(each.lag or 0)}" for each in behind)
            has_slots = any(each.lag is not None for each in self._readers)
            told = amount(published) + (f", lag: {lags or 'none'}" if has_slots else "")
            say(self._progress.console, f"{tenth * 10:>5} %  {told}")
        news = {self._giver: note} | {each.name: each.doing for each in self._readers}
        for name, told in news.items():
            if told != self._told.setdefault(name, ""):
                self._told[name] = told
                say(self._progress.console, f"         {name} {told}")


# The summary.


@dataclass(frozen=True)
class Fact:
    """A line of the summary: what it is about, what was found, whether that is as it should be."""

    subject: str
    found: str
    good: bool = True


def conclude(console: Console, readers: Sequence[Reader], facts: list[Fact], moral: str) -> bool:
    """Print the summary, and what it proves: `moral`. Returns whether all is as it should be."""
    say(console)
    console.print(_table(readers))
    say(console)
    for fact in facts:
        say(console, f"{fact.subject:<11}{fact.found}", "" if fact.good else "red")
    wrong = [each.name for each in readers if each.problem]
    wrong += [fact.subject for fact in facts if not fact.good]
    if wrong:
        say(console, f"\nNOT as it should be: {', '.join(wrong)}.", "bold red")
        return False
    count = sum(each.killed is None for each in readers)
    noun = "survivor" if count < len(readers) else readers[0].part.kind
    few = {1: f"The {noun} has", 2: f"Both {noun}s have"}
    survivors = few.get(count, f"All {count} {noun}s have")
    say(console, f"\n{survivors} every byte {moral}.", "bold green")
    return True


def _table(readers: Sequence[Reader]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    part = readers[0].part
    for heading in (part.kind, part.column, "first bytes after", "read"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome")
    for reader in readers:
        report, style = reader.report, "yellow" if reader.killed else "green"
        pause = f"{report.pause * 1000:.0f} ms"
        table.add_row(
            str(reader.number),
            reader.joined_at if part.column == "joined at" else pause,
            "" if report.first_byte is None else f"{report.first_byte * 1000:.1f} ms",
            amount(reader.position),
            Text(reader.problem or reader.outcome, "red" if reader.problem else style),
        )
    return table
