"""What there is to see of the demo's third act: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from shmstream.demo.screen import say

_REFRESH = 0.1  # s


@dataclass
class Row:
    """One of those whose progress is shown; `news` is what becomes a line of its own."""

    name: str
    total: int = 0
    completed: int = 0
    status: str = ""
    style: str = ""
    news: str = ""


class Board:
    """Shows rows while they change."""

    def __init__(self, console: Console, rows: list[Row], progress: Progress | None) -> None:
        """`progress`: None for lines."""
        self._console = console
        self._rows = rows
        self._progress = progress
        self._next = 0.0
        self._told = ["" for _ in rows]
        self._tasks = [] if progress is None else [progress.add_task(each.name, status="")
                                                   for each in rows]  # fmt: skip

    def update(self, *, final: bool = False) -> None:
        """Show what is new: bars ten times a second at most."""
        if self._progress is None:
            self._tell()
        elif final or time.monotonic() >= self._next:
            self._next = time.monotonic() + _REFRESH
            self._draw(self._progress)

    def _draw(self, progress: Progress) -> None:
        for task, row in zip(self._tasks, self._rows, strict=True):
            status = escape(row.status)
            status = f"[{row.style}]{status}[/]" if row.style else status
            progress.update(task, total=row.total or None, completed=row.completed, status=status)
        progress.refresh()

    def _tell(self) -> None:
        for index, row in enumerate(self._rows):
            if row.news != self._told[index]:
                self._told[index] = row.news
                say(self._console, f"         {row.name} {row.news}")


@contextmanager
def board(console: Console, rows: list[Row]) -> Iterator[Board]:
    """Show the rows until the end of the `with` block."""
    if not (console.file.isatty() and console.is_interactive):
        yield Board(console, rows, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=26),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        yield Board(console, rows, progress)
