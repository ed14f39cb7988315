"""How the demo looks: live bars on a terminal, plain lines elsewhere, and a summary on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress
from rich.table import Table
from rich.text import Text

from shmstream.demo.readers import Reader, Readers
from shmstream.system.signals import undisturbed
from shmstream.units import amount

_BAR = ("{task.description}", BarColumn(26), "{task.percentage:>3.0f} %", "{task.fields[status]}")
TICK = 0.02  # s; from one look at what happens to the next


def say(console: Console, text: str = "", style: str = "") -> None:
    """Print one line as it is: no markup, no wrapping, and `?` for what cannot be shown."""
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(Text(text, style), soft_wrap=True)


class Board:
    """Shows how much is published, and how far each reader is, while an act is played."""

    def __init__(self, undo: ExitStack, console: Console, giver: str, readers: Readers) -> None:
        """Begin to show; `undo` ends it. `giver` is the name of what the readers read from."""
        has_terminal = console.file.isatty() and console.is_interactive
        self._progress = Progress(*_BAR, console=console, disable=not has_terminal)
        with undisturbed():  # the thread that draws inherits this: signals are for the main thread
            undo.enter_context(self._progress)
        self._giver = giver
        self._readers = readers
        self._size = readers[0].part.size
        for name in (giver, *(each.name for each in readers)):
            self._progress.add_task(name, total=self._size, status="")
        self._tenth = 0
        self._told: dict[str, str] = {}

    def play(self, look: Callable[[], tuple[int, str]]) -> None:
        """Take turns until every reader has ended."""
        while any(each.exit_code is None for each in self._readers):
            self.turn(look)
        self.turn(look)

    def turn(self, look: Callable[[], tuple[int, str]], patience: float = TICK) -> None:
        """Wait for reports for `patience` seconds at most; then look, let readers in, and show.

        `look` returns how many bytes the giver has published, and a note about the giver.
        """
        self._readers.listen(patience)
        published, note = look()
        self._readers.let_in(published)
        show = self._print if self._progress.disable else self._draw
        show(published, note)

    def _draw(self, published: int, note: str) -> None:
        status = f"{amount(published)} of {amount(self._size)}" + (f", {note}" if note else "")
        rows = [(published, status, "none")]
        for reader in self._readers:
            has_slot = reader.is_reading and reader.lag is not None
            lag = f", lag {amount(reader.lag or 0)}" if has_slot else ""
            style = "red" if reader.killed or reader.problem else "green"
            style = "none" if reader.exit_code is None else style
            rows.append((reader.position, reader.doing + lag, style))
        for task, (position, status, style) in zip(self._progress.task_ids, rows, strict=True):
            self._progress.update(task, completed=position, status=f"[{style}]{escape(status)}[/]")

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
        table.add_row(
            str(reader.number),
            reader.joined_at if part.column == "joined at" else f"{report.pause * 1000:.0f} ms",
            "" if report.first_byte is None else f"{report.first_byte * 1000:.1f} ms",
            amount(reader.position),
            Text(reader.problem or reader.outcome, "red" if reader.problem else style),
        )
    return table
