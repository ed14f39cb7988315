"""What 1,000 and 10,000 nodes would see, on paper.

A tree of fan f has depth d = log_f(n). Its bytes flow through all levels at the same time, so the
last node is done when the narrowest link has passed all bytes, and d hops later. The narrowest link
is the origin's, or a node's, which sends each byte f times. A node for itself shares the origin's
link with all others.
"""

from __future__ import annotations

import math

_BLOB = 1 << 30  # bytes
_ORIGIN, _LINK = 1e9, 10e9  # bit/s
_FIRST_HOP, _LAST_HOP = 0.005, 0.02  # s; what a hop costs at the beginning, and at the end
_CALLS = 3  # of the directory, for each node and blob


def together(nodes: int, fan: int) -> float:
    """Seconds until all nodes have the blob."""
    depth = math.ceil(math.log(nodes * (fan - 1) + 1, fan)) if fan > 1 else nodes
    rate = min(_ORIGIN, _LINK / fan)
    return _BLOB * 8 / rate + depth * (_FIRST_HOP + _LAST_HOP)


def alone(nodes: int) -> float:
    """Seconds until all nodes have it, each for itself."""
    return nodes * _BLOB * 8 / _ORIGIN


def table() -> str:
    """As a table of Markdown."""
    lines = [
        "On paper, for 1 GiB, an origin of 1 Gbit/s, nodes of 10 Gbit/s, and fan 2:",
        "",
        "| nodes | together | calls of the directory | each for itself |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for nodes in (100, 1_000, 10_000):
        hours = alone(nodes) / 3600
        lines.append(
            f"| {nodes:,} | {together(nodes, 2):.1f} s | {nodes * _CALLS:,} | {hours:.1f} h |"
        )
    return "\n".join(lines)
