"""How every chart looks: its colours, and matplotlib without a screen."""

from __future__ import annotations

INK, PALE = "#1f2933", "#c9d1d9"
OURS, THEIRS, BAD = "#0b7285", "#868e96", "#c2255c"


def prepare() -> None:
    """Have matplotlib draw files, in our style."""
    import matplotlib as mpl  # late: crews must not load it

    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "font.size": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": PALE,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
