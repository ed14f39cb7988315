"""What `python -m bench.flight` measured, as pictures that are understood at a glance.

share.png      the bytes that each of the processes has, over time, in three ways
takeover.png   how long followers paused when their leader was killed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.drawing import BAD, INK, OURS, THEIRS, prepare

_MIB = 1 << 20
_BOUND = 25  # ms
_BIN = 1  # ms
_WAYS = {
    "ours": ("shmstream", OURS),
    "lock": ("file lock: one downloads, all wait", THEIRS),
    "link": ("each process for itself", THEIRS),
}

Curve = list[tuple[float, int]]


@dataclass
class Pictures:
    """What the charts show, gathered while measuring.

    `share` has a curve (seconds, bytes) for each process of each way, `sent` what the origin sent,
    `rate` how fast, in bytes; `pauses` are milliseconds, of every follower in so many `kills`.
    """

    share: dict[str, list[Curve]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    rate: int = 0
    kills: int = 0
    pauses: list[float] = field(default_factory=list)

    def draw(self, folder: Path) -> list[Path]:
        """Draw what was measured; the files. Needs matplotlib."""
        prepare()
        folder.mkdir(parents=True, exist_ok=True)
        drawn = []
        if self.share:
            drawn.append(self._draw_share(folder / "share.png"))
        if self.pauses:
            drawn.append(self._draw_takeover(folder / "takeover.png"))
        return drawn

    def _draw_share(self, path: Path) -> Path:
        from matplotlib import pyplot

        size = max(count for _, count in self.share["ours"][0]) / _MIB
        many = len(self.share["ours"])
        end = 2.7 * max(curve[-1][0] for curve in self.share["lock"])
        figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.7), sharey=True, dpi=120)
        for axis, (way, (title, colour)) in zip(axes, _WAYS.items(), strict=True):
            curves = self.share[way]
            for curve in curves:
                times = [0.0, curve[0][0], *(when for when, _ in curve)]
                counts = [0.0, 0.0, *(count / _MIB for _, count in curve)]
                if times[-1] < end:
                    times.append(end)
                    counts.append(size)
                axis.plot(times, counts, color=colour, linewidth=2, alpha=0.6)
            first = max(curve[0][0] for curve in curves)
            last = max(curve[-1][0] for curve in curves)
            is_cut = last > end
            axis.text(
                0.06 if is_cut else 0.98,
                0.94 if is_cut else 0.05,
                f"first byte after {_seconds(first)}\n"
                f"last byte after {_seconds(last)}\n"
                f"origin sends {self.sent[way] / _MIB:,.0f} MiB",
                transform=axis.transAxes,
                ha="left" if is_cut else "right",
                va="top" if is_cut else "bottom",
                linespacing=1.4,
                fontsize=10.5,
            )
            if is_cut:
                here = max(count for when, count in curves[0] if when <= end) / _MIB
                axis.annotate(
                    f"… until {last:.0f} s",
                    (end, here),
                    (-4, 14),
                    textcoords="offset points",
                    ha="right",
                    color=colour,
                )
            axis.set_title(title, fontsize=12, color=colour if way == "ours" else INK)
            axis.set_xlim(0, end)
            axis.set_ylim(0, size * 1.04)
            axis.set_xlabel("seconds")
        axes[0].set_ylabel("MiB that a process has")
        figure.suptitle(
            f"{many} processes of one host want the same {size:,.0f} MiB, "
            f"over a link of {self.rate / _MIB:,.0f} MiB/s",
            fontsize=13,
        )
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)
        return path

    def _draw_takeover(self, path: Path) -> Path:
        from matplotlib import pyplot

        figure, axis = pyplot.subplots(figsize=(8, 3.2), dpi=120)
        end = max(_BOUND, *self.pauses) * 1.1
        bins = [_BIN * index for index in range(int(end / _BIN) + 2)]
        axis.hist(self.pauses, bins=bins, color=OURS)
        axis.axvline(_BOUND, color=BAD, linewidth=1.5, linestyle="--")
        axis.text(
            _BOUND - 0.5,
            0.96,
            f"goal: under {_BOUND} ms",
            color=BAD,
            ha="right",
            va="top",
            transform=axis.get_xaxis_transform(),
        )
        axis.set_xlim(0, end)
        axis.set_xlabel("milliseconds without bytes after the kill: each follower's longest pause")
        axis.set_ylabel("followers")
        axis.set_title(
            f"The leader is killed, {self.kills} times: how long its followers wait", fontsize=13
        )
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)
        return path


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 0.1 else f"{value:.1f} s"
