"""`InC`: the same wake-ups and crowds in C (in_c.c), to see what is the machine's and what is ours.

It is compiled where it is measured. Without a compiler there is none of it, and the progress says
so.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.report import CheckFailed, progress

_SOURCE = Path(__file__).with_suffix(".c")


class InC:
    """The program, compiled into `folder`."""

    def __init__(self, folder: Path, compiler: str) -> None:
        """Raises:
        CheckFailed: it cannot be compiled.
        """
        self._folder = folder
        self._program = folder / "in_c"
        _run(compiler, "-O2", "-pthread", "-o", str(self._program), str(_SOURCE))

    def wake(self, samples: int, processors: Sequence[int] = ()) -> tuple[list[float], list[float]]:
        """Microseconds of so many pings, and of as many of the least that also bring bytes."""
        path = self._folder / "pieces"
        pinged, least = self._figures("wake", samples, path, *processors)
        path.unlink()
        return [each / 1e3 for each in pinged], [each / 1e3 for each in least]

    def crowd(self, waiters: int, samples: int, *, reading: bool) -> list[tuple[int, int]]:
        """The ns by the clock and of processor time that each of the samples took to post."""
        path = self._folder / "byte"
        path.write_bytes(b"x")
        clock, cpu = self._figures("crowd", waiters, samples, *([path] if reading else []))
        path.unlink()
        return list(zip(clock, cpu, strict=True))

    def _figures(self, *arguments: object) -> list[list[int]]:
        told = _run(str(self._program), *map(str, arguments))
        return [[int(each) for each in line.split()] for line in told.splitlines()]


def find(folder: Path) -> InC | None:
    """The program, if this machine has a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        progress("no C compiler here: nothing is measured in C (apt-get install gcc)")
        return None
    return InC(folder, compiler)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout
