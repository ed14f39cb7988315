"""What `fetch` shows while it waits: its role, how far the blob is, the rate and the time left.

On a terminal it shows a bar, whose thread looks at the blob ten times a second. Elsewhere it prints
one line at the end. With --quiet it shows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, Task, TextColumn
from rich.text import Text

from shmstream.cli.formatting import left, per_second
from shmstream.cli.printing import PEOPLE, say
from shmstream.errors import escaped
from shmstream.flight.blob import Blob
from shmstream.flight.progress import short
from shmstream.units import amount


@contextmanager
def telling(blob: Blob, name: str, *, copying: bool, bar: bool, quiet: bool) -> Iterator[None]:
    """Inside, show how far `blob` is: bytes copied if `copying`, else bytes published."""
    began = time.monotonic()
    if quiet:
        yield
        return
    if bar:
        with _Bar(blob, name, copying=copying):
            yield
        return
    yield
    seconds = time.monotonic() - began
    size = blob.size or 0
    took = f" in {seconds:.1f} s, {per_second(size / max(seconds, 1e-3))}" if seconds > 0.1 else ""
    say(f"{name}: {blob.role}, {amount(size)}{took}")


class _Bar(Progress):
    """The progress bar of one blob; it asks the blob itself how far it is."""

    def __init__(self, blob: Blob, name: str, *, copying: bool) -> None:
        self._blob = blob
        self._copying = copying
        super().__init__(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[role]}", style="bold", markup=False),
            BarColumn(bar_width=None),
            _Amounts(),
            console=PEOPLE,
            expand=True,
            redirect_stdout=False,  # standard output is for results
        )
        role = str(blob.role)
        self.add_task(short(escaped(name)), total=blob.size, completed=self._done(), role=role)

    def _done(self) -> int:
        return self._blob.position if self._copying else self._blob.published

    def get_renderables(self) -> Iterable[RenderableType]:
        self._look()
        yield from super().get_renderables()

    def _look(self) -> None:
        """Ask the blob how far it is; the thread that draws calls this."""
        if not self.tasks or self._blob.closed:
            return
        try:
            done, size, role = self._done(), self._blob.size, str(self._blob.role)
        except (
            ValueError,
            OSError,
        ):  # the blob changes its leader at this moment: ask again next time
            return
        self.update(self.tasks[0].id, completed=done, total=size, role=role)


class _Amounts(TextColumn):
    """`12.0 MiB of 32.0 MiB  6.1 MiB/s  0:04 left`."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        told, when = amount(task.completed), ""
        if task.finished:
            when = f"in {left(task.finished_time)}"
        elif task.total is not None:
            told += f" of {amount(task.total)}"
            when = f"{left(task.time_remaining)} left" if task.speed else ""
        shown = [told, per_second(task.speed), when]
        return Text("  ".join(each for each in shown if each))
