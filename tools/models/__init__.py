"""The protocol as models for spin, which tries every order of steps: run `make model`.

stream.pml     the life of one stream: publish, wait, subscribe, unsubscribe, take over, commit,
               abort, hand over, reap; the assertions cite the invariants I1 to I8
connections.pml
               the connections of `shmstream serve`: accept, answer, hand over, adopt, close;
               the assertions cite the rules K1 to K3
__init__       runs spin on a model, within bounds
bounds         the bounds of the whole check and of the suite's, and the deliberate bugs
__main__       checks all of it, and prints how many states there are
counts.md      what it printed last, for docs/protocol.md
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STREAM = Path(__file__).with_name("stream.pml")
CONNECTIONS = Path(__file__).with_name("connections.pml")
PROGRAMS = ("spin", "gcc")
_DEPTH = 1_000_000  # steps; the longest run of a model has some thousands
_LAST_STEPS = 40  # of a run that breaks an assertion, so many are shown


@dataclass(frozen=True)
class Outcome:
    """What spin found. `error` is None if no state breaks an assertion, and no process is stuck."""

    states: int
    depth: int
    megabytes: float
    seconds: float
    error: str | None
    trail: str


def missing() -> list[str]:
    """The programs that this machine lacks to check a model."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def check(
    model: Path, bounds: Mapping[str, int], folder: Path, *, bug: str = "", megabytes: int
) -> Outcome:
    """Try every order of steps of a model, in files in the empty `folder`.

    `bounds` are macros of the model, and `bug` is one that breaks it. The search is exhaustive: it
    keeps every state, in at most so many `megabytes`.

    Raises:
        RuntimeError: spin could not look at all states, as when they need more memory.
        subprocess.CalledProcessError: spin or the compiler refuses the model.
    """
    macros = [f"-D{name}={value}" for name, value in bounds.items()] + [f"-D{bug}"] * bool(bug)
    shutil.copy(model, folder)
    _run(folder, "spin", "-a", *macros, model.name)
    # A bug is looked for in the shortest runs first, with a program that takes less to compile.
    options = ["-DBFS"] if bug else []
    options += ["-DSAFETY", "-DCOLLAPSE", "-DNOFAIR", "-DVECTORSZ=1024", f"-DMEMLIM={megabytes}"]
    _run(folder, "gcc", "-w", *options, "-o", "pan", "pan.c")
    said = _run(folder, "./pan", "-w20", *([] if bug else [f"-m{_DEPTH}"]))
    broken = re.search(r"^pan:\d+: (.*)", said, re.MULTILINE)
    if broken is None and ("Warning" in said or "max search depth" in said):
        raise RuntimeError(f"spin has not looked at all states:\n{said}")
    trail = ""
    if broken is not None:
        steps = _run(folder, "spin", "-t", "-p", "-g", "-l", *macros, model.name).splitlines()
        trail = "\n".join([each for each in steps if "proc" in each][-_LAST_STEPS:])
    return Outcome(
        states=int(_number(r"(\d+) states, stored", said)),
        depth=int(_number(r"depth reached (\d+)", said)),
        megabytes=_number(r"([\d.]+)\s+total actual memory usage", said),
        seconds=_number(r"elapsed time ([\d.e+]+) seconds", said),
        error=broken and broken[1],
        trail=trail,
    )


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"spin does not tell {pattern!r}:\n{text}")
    return float(found[1])


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout
