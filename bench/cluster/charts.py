"""The chart: how long it took until all nodes had the blob, against the limit of the origin."""

from __future__ import annotations

from pathlib import Path

from bench.cluster.scenarios import WHOLE, Outcome
from bench.drawing import BAD, INK, OURS, THEIRS, prepare


def draw(found: list[list[Outcome]], limit: float, path: Path) -> bool:
    """Draw what was measured of `WHOLE` to `path`; False if that is nothing."""
    names = {each.name: each for each in WHOLE}
    shown = [some[0] for some in found if some[0].name in names]
    if not shown:
        return False
    prepare()
    from matplotlib import pyplot  # late, as in `drawing`

    figure, axes = pyplot.subplots(figsize=(8, 0.55 * len(shown) + 1.2), layout="constrained")
    labels = [each.name for each in shown]
    colours = [OURS if names[each.name].together else THEIRS for each in shown]
    bars = axes.barh(labels, [each.took for each in shown], color=colours, height=0.62)
    told = [f" {each.took:.1f} s, {each.gets} GET{'s' * (each.gets != 1)}" for each in shown]
    axes.bar_label(bars, told)
    axes.axvline(limit, color=BAD, linewidth=1)
    axes.text(limit, -0.75, f" the origin's link: {limit:.1f} s", color=BAD, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("seconds until all nodes have the blob", color=INK)
    axes.set_xlim(0, max(each.took for each in shown) * 1.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True
