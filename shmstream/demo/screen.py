"""How the demo looks: live bars on a terminal, plain lines elsewhere, and a summary on both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from shmstream.units import amount

_REFRESH = 0.1  # s


class Update(Protocol):
    """Shows the rows of a board as they are now."""

    def __call__(self, *, final: bool = False) -> None:
        """With `final`, also if they were shown a moment ago."""


@dataclass
class Row:
    """A bar: `completed` of `total` bytes. `news` becomes a line where there are no bars."""

    name: str
    total: int = 0
    completed: int = 0
    status: str = ""
    style: str = ""
    news: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one process, or client, ended: its line in the table; without a `problem`, well."""

    name: str
    pause_or_joined: str
    first_byte: float | None
    read: int
    found: str
    problem: str = ""
    was_killed: bool = False


@dataclass(frozen=True)
class Fact:
    """A line of the summary: what it is about, what was found, whether that is as it should be."""

    subject: str
    found: str
    good: bool = True


def say(console: Console, text: str = "", style: str = "") -> None:
    """Print one line as it is: no markup, no wrapping, and `?` for what cannot be shown."""
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(Text(text, style), soft_wrap=True)


def introduce(console: Console, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Say what there will be to see."""
    say(console, title, "bold")
    for subject, told in facts:
        say(console, f"{subject:<10}{told}", "bold cyan" if subject == "watch it" else "")
    say(console)


def pace(rate: float) -> str:
    """A rate in bytes a second for people; 0 is none."""
    return f"at {amount(rate)}/s" if rate else "as fast as it goes"


@contextmanager
def board(console: Console, rows: Sequence[Row]) -> Iterator[Update]:
    """Show the rows until the end of the `with` block; it gives what is called for each change."""
    if not (console.file.isatty() and console.is_interactive):
        told = ["" for _ in rows]

        def tell(*, final: bool = False) -> None:  # noqa: ARG001
            for index, row in enumerate(rows):
                if row.news != told[index]:
                    told[index] = row.news
                    say(console, f"         {row.news}")

        yield tell
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=26),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        tasks = [progress.add_task(row.name, status="") for row in rows]
        following = 0.0

        def draw(*, final: bool = False) -> None:
            nonlocal following
            if time.monotonic() < following and not final:
                return
            following = time.monotonic() + _REFRESH
            for task, row in zip(tasks, rows, strict=True):
                status = escape(row.status)
                status = f"[{row.style}]{status}[/]" if row.style else status
                total = row.total or None
                progress.update(task, total=total, completed=row.completed, status=status)
            progress.refresh()

        yield draw


def conclude(
    console: Console, middle: str, outcomes: Sequence[Outcome], facts: Sequence[Fact], moral: str
) -> bool:
    """Tell how it ended; whether that is as it should be. `middle` heads the second column."""
    cast = outcomes[0].name.partition(" ")[0]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in (cast, middle, "first bytes after", "read"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome")
    for each in outcomes:
        style = "red" if each.problem else "yellow" if each.was_killed else "green"
        first = "" if each.first_byte is None else f"{each.first_byte * 1000:.1f} ms"
        number = each.name.partition(" ")[2]
        found = Text(each.problem or each.found, style)
        table.add_row(number, each.pause_or_joined, first, amount(each.read), found)
    say(console)
    console.print(table)
    say(console)
    for fact in facts:
        say(console, f"{fact.subject:<11}{fact.found}", "" if fact.good else "red")
    say(console)
    wrong = [each.name for each in outcomes if each.problem]
    wrong += [fact.subject for fact in facts if not fact.good]
    if wrong:
        say(console, f"NOT as it should be: {', '.join(wrong)}.", "bold red")
    else:
        say(console, f"{_survivors(cast, outcomes)} every byte {moral}.", "bold green")
    return not wrong


def _survivors(cast: str, outcomes: Sequence[Outcome]) -> str:
    count = sum(not each.was_killed for each in outcomes)
    if count == len(outcomes) and cast != "client":
        return f"The {cast} has" if count == 1 else f"All {count} {cast}s have"
    noun = cast if count == len(outcomes) else "survivor"
    return {1: f"The {noun} has", 2: f"Both {noun}s have"}.get(count, f"All {count} {noun}s have")


def of_remains(remains: list[str]) -> Fact:
    """What is left over, which should be nothing."""
    nothing = "nothing of this stream in /dev/shm, and no partial file"
    return Fact("left over", ", ".join(remains) or nothing, not remains)
