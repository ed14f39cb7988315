"""What a measurement reports: rows against goals, as a table and as JSON, beside the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import psutil

import shmstream

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class CheckFailed(Exception):
    """What was measured is not what it claims to be: bytes are missing or wrong."""


@dataclass(frozen=True)
class Options:
    """How to measure: `size` in bytes, `folder` where blobs are made and removed again."""

    folder: Path
    size: int
    rounds: int
    quick: bool
    pin: bool


@dataclass(frozen=True)
class Goal:
    """A bound on a row's `figure`, its ratio or its own value."""

    bound: float
    at_least: bool
    of_ratio: bool = True

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"

    def is_met(self, figure: float) -> bool:
        """Whether `figure` is within the bound."""
        return figure >= self.bound if self.at_least else figure <= self.bound


@dataclass(frozen=True)
class Row:
    """One figure: medians over the rounds, and the median of the rounds' own ratios.

    `ratios` has one entry a round, each of an adjacent pair of measurements; `notes` has what helps
    to explain the figure.
    """

    section: str
    case: str
    unit: str
    ours: float
    raw: float | None = None
    ratios: list[float] = field(default_factory=list)
    goal: Goal | None = None
    notes: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_rounds(
        cls,
        section: str,
        case: str,
        unit: str,
        ours: Sequence[float],
        raw: Sequence[float],
        *,
        goal: Goal | None = None,
        notes: dict[str, float] | None = None,
    ) -> Row:
        """The row of two figures that each round has."""
        ratios = [a / b for a, b in zip(ours, raw, strict=True)]
        return cls(section, case, unit, median(ours), median(raw), ratios, goal, notes or {})

    @property
    def ratio(self) -> float | None:
        """The median over the rounds."""
        return median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where none is set."""
        if self.goal is None:
            return None
        figure = self.ratio if self.goal.of_ratio else self.ours
        return figure is not None and self.goal.is_met(figure)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all values lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def progress(text: str) -> None:
    """Show progress on standard error; only the table goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def busy_seconds() -> float:
    """What all processors have done since the machine started, also for other machines (steal)."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def machine(folder: Path) -> dict[str, str]:
    """What was measured on, and what was measured."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / GIB:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "tcp": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text("utf-8").strip(),
        "temp folder": _file_system(folder),
        "load before": load,
        "shmstream": f"{shmstream.__version__} {_revision()}",
    }


def _file_system(folder: Path) -> str:
    resolved = folder.resolve()
    mounts = {
        Path(each.mountpoint): f"{each.fstype} on {each.device}"
        for each in psutil.disk_partitions(all=True)
    }
    for parent in (resolved, *resolved.parents):
        if parent in mounts:
            return mounts[parent]
    return "unknown"


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(shmstream.__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "(no git)"
    return done.stdout.strip()


def table(facts: dict[str, str], rows: list[Row]) -> str:
    """Both as plain text."""
    lines = [f"{name + ':':<13}{value}" for name, value in facts.items()]
    head = ("section", "case", "ours", "raw", "unit", "ratio", "rounds", "goal", "met")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(each[column]) for each in cells) for column in range(len(head))]
    to_right = {2, 3, 5}
    for each in cells:
        padded = [
            text.rjust(width) if column in to_right else text.ljust(width)
            for column, (text, width) in enumerate(zip(each, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
        if each is head:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def page(facts: dict[str, str], options: Options, rows: list[Row]) -> str:
    """The rows as a table of a page, and where they are from."""
    lines = ["| | figure | beside | ratio (of the rounds) | goal |"]
    lines.append("| --- | ---: | ---: | --- | --- |")
    for row in rows:
        section, case, ours, raw, unit, ratio, spread, goal, met = _cells(row)
        beside = f"{raw} {unit}" if raw else ""
        of_rounds = f"{float(ratio):.2f} ({spread.replace('..', ' to ')})" if ratio else ""
        judged = goal.replace("<=", "at most").replace(">=", "at least")
        judged += ": **missed**" if met == "NO" else ""
        cells = (f"{section}: {case}", f"{ours} {unit}", beside, of_rounds, judged)
        lines.append("| " + " | ".join(cells) + " |")
    quick = " A quick run: its figures mean nothing." if options.quick else ""
    return "\n".join(lines) + (
        f"\n\nMedians of {options.rounds} rounds.{quick} {facts['date'][:10]}, "
        f"{facts['processor']}, {facts['cores']} cores, {facts['kernel']}, {facts['python']}, "
        f"{facts['tcp']}, load before {facts['load before']}, shmstream {facts['shmstream']}."
    )


def _cells(row: Row) -> tuple[str, ...]:
    spread = f"{min(row.ratios):.2f}..{max(row.ratios):.2f}" if row.ratios else ""
    return (
        row.section,
        row.case,
        _figure(row.ours),
        "" if row.raw is None else _figure(row.raw),
        row.unit,
        "" if row.ratio is None else f"{row.ratio:.3f}",
        spread,
        "" if row.goal is None else str(row.goal),
        {True: "yes", False: "NO", None: ""}[row.met],
    )


def _figure(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def as_json(facts: dict[str, str], options: Options, rows: list[Row]) -> str:
    """All of it, with the ratio of every round."""
    settings = {
        "size": options.size,
        "rounds": options.rounds,
        "quick": options.quick,
        "pin": options.pin,
    }
    figures = [
        {**asdict(row), "goal": row.goal and str(row.goal), "ratio": row.ratio, "met": row.met}
        for row in rows
    ]
    return json.dumps({"machine": facts, "settings": settings, "rows": figures}, indent=2) + "\n"
