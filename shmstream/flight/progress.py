"""`Progress` tells how far a blob is; `Bar` shows it, for `progress=True`, by tqdm or else by rich.

A bar is called with a `Progress` as any other listener, for one blob or for several. It shows all
bytes together, and is closed with the blob.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, Union

from shmstream.errors import escaped
from shmstream.flight.flight import Role
from shmstream.stream.spelling import is_spelled

_WIDTH = 28  # columns of a terminal
REPORT = 0.1
"""Seconds; progress is reported at most that often."""


@dataclass(frozen=True)
class Progress:
    """How far a blob is: `published` bytes can be read, of `size` (None while unknown).

    `role` is the part of this process in its flight.
    """

    key: str
    published: int
    size: int | None
    role: Role


Listener: TypeAlias = Union["Callable[[Progress], None]", bool, None]
"""What `progress=` takes: a function, True for a bar, False or None for nothing."""


class _Drawn(Protocol):
    """What draws a bar."""

    def show(self, text: str, done: int, total: int | None) -> None:
        """Draw it anew."""

    def close(self) -> None:
        """Leave the bar as it is."""


def listener(progress: Listener) -> Callable[[Progress], None] | None:
    """The function to call with each `Progress`; None if nobody listens.

    Raises:
        ImportError: a bar is wanted, and neither tqdm nor rich is installed.
        TypeError: `progress` is neither a function nor a bool.
    """
    if progress is None or progress is False:
        return None
    if progress is True:
        return Bar()
    if not callable(progress):
        raise TypeError(f"progress is a function, or True for a bar, not {progress!r}")
    return progress


class Bar:
    """A bar for all blobs that it is told of. One thread at a time may call it.

    Raises:
        ImportError: neither tqdm nor rich is installed.
    """

    def __init__(self) -> None:
        self._drawn = _drawn()
        self._seen: dict[str, Progress] = {}

    def __call__(self, progress: Progress) -> None:
        """Show how far the blobs are."""
        self._seen[progress.key] = progress
        sizes = [each.size for each in self._seen.values()]
        total = None if None in sizes else sum(each or 0 for each in sizes)
        done = sum(each.published for each in self._seen.values())
        name = f"{len(sizes)} blobs" if len(sizes) > 1 else short(escaped(progress.key))
        self._drawn.show(name, done, total)

    def close(self) -> None:
        """Leave the bar as it is. Idempotent."""
        self._drawn.close()


def short(key: str) -> str:
    """A short name that tells blobs apart: the end of a URL, or the beginning of a digest."""
    if is_spelled(key):
        return key[: key.index(":") + 13]
    name = key.partition("?")[0].rstrip("/").rpartition("/")[2] or key
    return name if len(name) <= _WIDTH else name[: _WIDTH - 3] + "..."


def _drawn() -> _Drawn:
    try:
        return _ByTqdm()
    except ImportError:
        pass
    try:
        return _ByRich()
    except ImportError:
        raise ImportError("progress=True needs tqdm or rich: pip install tqdm") from None


class _ByTqdm:
    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(unit="B", unit_scale=True, unit_divisor=1024)

    def show(self, text: str, done: int, total: int | None) -> None:
        bar = self._bar
        if bar.disable:  # by TQDM_DISABLE; such a bar has no text
            return
        if bar.desc != f"{text}: ":
            bar.set_description(text, refresh=False)
        if total is not None and total != bar.total:
            began = bar.start_t
            bar.reset(total)  # in no other way does the widget of a notebook learn its length
            bar.start_t = began
            bar.n = bar.last_print_n = done
            bar.refresh()
        bar.total = total
        bar.update(done - bar.n)

    def close(self) -> None:
        self._bar.refresh()
        self._bar.close()


class _ByRich:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._progress.start()
        self._task = self._progress.add_task("", total=None)

    def show(self, text: str, done: int, total: int | None) -> None:
        self._progress.update(self._task, description=text, completed=done, total=total)

    def close(self) -> None:
        self._progress.stop()
