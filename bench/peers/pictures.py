"""What was measured, as pictures that are understood in five seconds.

peers.png   the three things that matter, for the README: cost, waiting, and what a fault does
cost.png    CPU for a GiB, in each of the scenarios that stream
wait.png    how long a client that joins waits for the first byte
faults.png  what became of the clients, of each peer in each fault
growth.png  CPU, memory and waiting, with the number of clients and of flights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.drawing import BAD, INK, OURS, PALE, THEIRS, prepare
from bench.peers.faults import Outcome, faults
from bench.peers.goals import GROWTH_OF, curve
from bench.peers.results import Figures, Report
from bench.peers.run import OURS as OUR_NAME
from bench.peers.run import PEERS
from bench.peers.scenarios import GROWTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {peer.name: peer.title for peer in PEERS}
_GOOD, _KNOWN = "#2b8a3e", "#e67700"
_STREAMED = {
    "staggered": "16 clients come one by one",
    "burst": "32 clients at once",
    "fast": "8 clients, a fast origin",
    "many": "64 blobs, 256 clients",
}


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw what was measured; the files."""
    prepare()
    drawn = {
        "peers.png": _draw_summary,
        "cost.png": _draw_cost,
        "wait.png": _draw_wait,
        "faults.png": _draw_faults,
        "growth.png": _draw_growth,
    }
    return [folder / name for name, how in drawn.items() if how(report, folder / name)]


def _draw_summary(report: Report, path: Path) -> bool:
    from matplotlib import pyplot

    if not {"staggered", "burst", "faults"} <= set(report.groups):
        return False
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), dpi=120)
    _bars(axes[0], _of(report, "staggered", lambda each: each.cpu_per_gib), "{:.2f} s")
    axes[0].set_title("CPU for a GiB served", fontsize=12)
    _bars(
        axes[1], _of(report, "burst", lambda each: (each.worst or 0) * 1e3), "{:,.0f} ms", log=True
    )
    axes[1].set_title("longest wait for the first byte", fontsize=12)
    outcomes = _outcomes(report, "dies-returns")
    total = max(each.right + each.suffering for each in outcomes.values())
    rights = {name: float(each.right) for name, each in outcomes.items()}
    _bars(axes[2], rights, f"{{:.0f}} of {total}")
    axes[2].set_title("clients that get it all when\nthe origin restarts halfway", fontsize=12)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    figure.suptitle("Many clients want one blob while it is still being downloaded", fontsize=13)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True


def _draw_cost(report: Report, path: Path) -> bool:
    names = [name for name in _STREAMED if name in report.groups]
    return _draw_panels(
        report, path, names, lambda each: each.cpu_per_gib, "{:.2f}",
        "CPU seconds for each GiB served: less is better",
    )  # fmt: skip


def _draw_wait(report: Report, path: Path) -> bool:
    names = [name for name in ("staggered", "burst") if name in report.groups]
    return _draw_panels(
        report, path, names, lambda each: (each.worst or 0) * 1e3, "{:,.0f} ms",
        "How long who joins waits for the first byte, at worst (logarithmic)", log=True,
    )  # fmt: skip


def _draw_panels(
    report: Report, path: Path, names: Sequence[str], value: Callable[[Figures], float], text: str,
    title: str, *, log: bool = False,
) -> bool:  # fmt: skip
    """A panel of bars for each scenario."""
    from matplotlib import pyplot

    if not names:
        return False
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(3 + 2.1 * len(names), 3.4), dpi=120, squeeze=False
    )
    for index, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        _bars(axis, _of(report, name, value), text, log=log)
        axis.set_title(_STREAMED[name], fontsize=11)
        if index:
            axis.set_yticklabels([])
    figure.suptitle(title, fontsize=13)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True


def _of(report: Report, name: str, value: Callable[[Figures], float]) -> dict[str, float | None]:
    """Each peer's value in a scenario; None where it was not measured."""
    there = {peer: report.figures(name, name, peer) for peer in _present(report)}
    return {peer: None if each is None else value(each) for peer, each in there.items()}


def _present(report: Report) -> list[str]:
    return [name for name in _TITLES if name in report.peers]


def _outcomes(report: Report, fault: str) -> dict[str, Outcome]:
    group = report.groups["faults"]
    there = {peer: group.outcome(fault, peer) for peer in _present(report)}
    return {peer: each for peer, each in there.items() if each is not None}


def _bars(
    axis: Axes, values: dict[str, float | None] | dict[str, float], text: str, *, log: bool = False
) -> None:
    """A bar for each peer, ours in our colour, with the value beside it."""
    names = list(values)
    known = [value or 0.0 for value in values.values()]
    colours = [OURS if name == OUR_NAME else THEIRS for name in names]
    positions = range(len(names))
    axis.barh(positions, known, color=colours, height=0.7, log=log)
    axis.set_yticks(positions, [_TITLES[name] for name in names])
    axis.invert_yaxis()
    axis.set_xticks([])
    axis.minorticks_off()
    axis.tick_params(length=0)
    axis.spines["bottom"].set_visible(False)
    end = max(known, default=1.0)
    axis.set_xlim(1 if log else 0, end**1.5 if log else end * 1.45)
    for position, value in zip(positions, values.values(), strict=True):
        axis.text(
            (value or 0) * 1.15 + 1 if log else (value or 0) + end * 0.03,
            position,
            "not measured" if value is None else text.format(value),
            va="center",
            fontsize=10,
        )


def _draw_faults(report: Report, path: Path) -> bool:
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    if "faults" not in report.groups:
        return False
    peers = _present(report)
    suffered = [each for each in faults() if _outcomes(report, each.name)]
    figure, axis = pyplot.subplots(
        figsize=(3.6 + 1.35 * len(peers), 1 + 0.55 * len(suffered)), dpi=120
    )
    for row, fault in enumerate(suffered):
        for column, outcome in enumerate(_outcomes(report, fault.name).get(each) for each in peers):
            if outcome is not None:
                words = outcome.verdict.replace(", ", "\n")
                axis.add_patch(
                    Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, color=_colour(outcome))
                )
                axis.text(
                    column + 0.5, row + 0.5, words, ha="center", va="center", color="white",
                    fontsize=9, linespacing=1.1,
                )  # fmt: skip
    axis.set_xlim(0, len(peers))
    axis.set_ylim(len(suffered), 0)
    axis.set_xticks([each + 0.5 for each in range(len(peers))], [_TITLES[each] for each in peers])
    axis.set_yticks(
        [each + 0.5 for each in range(len(suffered))], [each.title for each in suffered]
    )
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title("What becomes of the clients when something goes wrong", fontsize=13, pad=12)
    axis.set_xlabel(
        "green: all have all of it   amber: who has not was told so   "
        "red: some have wrong bytes, or still wait after 15 s",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True


def _colour(outcome: Outcome) -> str:
    """Green: no client suffers. Amber: each client that does knows it. Red: some do not."""
    if outcome.wrong or outcome.hang:
        return BAD
    return _KNOWN if outcome.suffering else _GOOD


def _draw_growth(report: Report, path: Path) -> bool:
    from matplotlib import pyplot

    kinds = [kind for kind in ("clients", "flights") if kind in report.groups]
    if not kinds:
        return False
    figure, axes = pyplot.subplots(
        len(kinds), len(GROWTH_OF), figsize=(10, 2.9 * len(kinds)), dpi=120, squeeze=False
    )
    for line, kind in zip(axes, kinds, strict=True):
        for axis, (case, unit, value) in zip(line, GROWTH_OF, strict=True):
            for peer in _present(report):
                points = curve(report, kind, peer, value)
                if points:
                    counts, values = zip(*points, strict=True)
                    colour = OURS if peer == OUR_NAME else THEIRS
                    axis.plot(counts, values, color=colour, marker="o", markersize=4, linewidth=2)
                    axis.annotate(
                        _TITLES[peer], (counts[-1], values[-1]), (6, 0), va="center",
                        textcoords="offset points", color=colour, fontsize=9,
                    )  # fmt: skip
            axis.set_xscale("log", base=2)
            axis.set_xticks(GROWTH, [str(count) for count in GROWTH])
            axis.set_xlim(0.8, 400)
            axis.set_ylim(bottom=0)
            axis.set_title(f"{case}, {unit}", fontsize=11, color=INK)
            axis.set_xlabel(kind if kind == "clients" else "blobs in flight, 2 clients each")
            axis.grid(axis="y", color=PALE, linewidth=0.5)
    figure.suptitle("From 1 to 64", fontsize=13)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True
