"""The table of `bench.caches` as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from bench.caches.measure import Run, Runs
from bench.caches.ways import FAMILIES
from bench.report import MIB


def page(
    facts: Mapping[str, str], chosen: Mapping[str, Any], family: str, figures: Mapping[str, Runs]
) -> str:
    """The table, with the machine and the date under it."""
    ours = next(iter(figures.values()))
    rows = [list(_cells(runs, ours, chosen["size"])) for runs in figures.values()]
    heads = " | ".join(head for head, _ in rows[0])
    lines = [f"| through | {heads} |", "| --- " + "| ---: " * len(rows[0]) + "|"]
    for way, row in zip(figures, rows, strict=True):
        cells = " | ".join(cell for _, cell in row)
        lines.append(f"| {FAMILIES[family][way].title} | {cells} |")
    quick = " A quick run: its figures mean nothing." if chosen["quick"] else ""
    lines += [
        "",
        f"{chosen['processes']} processes, a file of {chosen['size']} MiB, {chosen['rate']} MiB/s "
        f"for each connection; medians of {chosen['rounds']} rounds, interleaved.{quick} "
        f"{facts['date'][:10]}, {facts['processor']}, {facts['cores']} cores, "
        f"Python {facts['python'].split()[-1]}, {facts['tcp']}, "
        f"load before {facts['load before']}, shmstream {facts['shmstream']}.",
    ]
    return "\n".join(lines)


def _cells(runs: Runs, ours: Runs, size: int) -> Iterator[tuple[str, str]]:
    """The head and the text of each cell of a row."""
    yield "the origin sent", _sent(runs.together, size)
    yield "GETs", f"{median(run.gets for run in runs.together):.0f}"
    yield "first row", _seconds(runs, ours, lambda run: median(each.first for each in run.trips))
    yield "last byte", _seconds(runs, ours, lambda run: max(each.last for each in run.trips))
    yield "right", _right(runs.together)
    yield "after a kill: the origin sent", _sent(runs.killed, size)
    yield "right", _right(runs.killed)
    yield "on the disk", f"{median(run.left for run in runs.killed) / MIB:.0f} MiB"
    if runs.lied:
        trips = [each for run in runs.lied for each in run.trips]
        wrong = sum(each.is_wrong for each in trips)
        yield "a wrong byte of the origin is handed on", f"{wrong} of {len(trips)}"


def _sent(runs: Sequence[Run], size: int) -> str:
    sent = median(run.sent for run in runs) / MIB
    return f"{sent:.0f} MiB ({sent / size:.1f} x)"


def _seconds(runs: Runs, ours: Runs, of: Callable[[Run], float]) -> str:
    """The median over the rounds, and the median of the ratios of each round."""
    value = median(map(of, runs.together))
    pairs = zip(runs.together, ours.together, strict=True)
    ratio = median(of(run) / of(other) for run, other in pairs)
    return f"{value:.2f} s" + ("" if runs is ours else f" ({ratio:.1f} x)")


def _right(runs: Sequence[Run]) -> str:
    trips = [each for run in runs for each in run.trips]
    right = sum(each.is_right for each in trips)
    wrong = sum(each.is_wrong for each in trips)
    failed = len(trips) - right - wrong
    told = [f"{count} {what}" for count, what in ((wrong, "wrong"), (failed, "failed")) if count]
    return f"{right} of {len(trips)}" + (f" ({', '.join(told)})" if told else "")
