"""`Undo`: what is undone if a block of code fails, as with `contextlib.ExitStack`.

An `ExitStack` wraps each function, and takes four calls for it. Here a function is noted, and an
`ExitStack` calls it only if there is something to undo. Several such blocks are in each beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self


class Undo:
    """Calls the noted functions at the end of its block, unless `pop_all` was called before."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def callback(self, step: Callable[..., object], *arguments: object) -> None:
        """Call `step` with these arguments at the end: the last one first, whatever fails."""
        self._steps.append((step, arguments))

    def pop_all(self) -> None:
        """Call none of the noted functions."""
        self._steps = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._steps:
            with ExitStack() as undoing:
                for step, arguments in self._steps:
                    undoing.callback(step, *arguments)
