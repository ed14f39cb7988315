"""The goals, judged: rows with our figure, that of whom we compare ourselves with, and a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from statistics import linear_regression

from bench.peers.faults import faults
from bench.peers.measure import Sample
from bench.peers.results import Figures, Report
from bench.peers.run import OURS
from bench.peers.scenarios import GROWTH, STREAMED
from bench.report import MIB, Goal, Row

STREAMING = ("nginx-slice", "varnish", "squid", "ats")
"""Peers that give bytes to clients that join before the whole blob is there ..."""

BYTEWISE = ("varnish", "squid", "ats")
"""... and before a whole slice is."""

_LOCK = "nginx-lock"
_RAW = "raw"
_FLOOR = "floor"
_UNVERIFIED = "shmstream-name"
_BEHIND = "shmstream-nginx"
_YARDSTICK = "varnish"

Value = Callable[[Sample], float]


def judge(report: Report) -> list[Row]:
    """A row for each goal that was measured, ours and theirs."""
    return [
        *_costs(report),
        *_waits(report),
        *_wall(report),
        *_hits(report),
        *_small(report),
        *_faults(report),
        *_growth(report),
    ]


def _costs(report: Report) -> Iterable[Row]:
    for scenario in STREAMED:
        best, bytewise = (
            _best(report, scenario, peers, lambda figures: figures.cpu_per_gib)
            for peers in (STREAMING, BYTEWISE)
        )
        cost = "CPU per GiB served"
        for peer in dict.fromkeys((bytewise, best)):
            yield from _row(report, scenario, cost, "s", _cpu, peer, None)
        goal = Goal(0.9, at_least=False)
        unverified, less = f"{cost}, unverified", f"{cost}, less its SHA-256"
        yield from _row(report, scenario, unverified, "s", _cpu, best, goal, _UNVERIFIED)
        group = report.groups.get(scenario)
        if group is not None and group.hashing:
            value = partial(_cpu_less_hashing, hashing=group.hashing)
            yield from _row(report, scenario, less, "s", _cpu, best, goal, ours_value=value)
        yield from _row(report, scenario, cost, "s", _cpu, _RAW, Goal(1.25, at_least=False))


def _cpu(each: Sample) -> float:
    return each.cpu_per_gib


def _cpu_less_hashing(each: Sample, hashing: float) -> float:
    """Less the price of one SHA-256 of each byte from the origin, which no other peer pays."""
    return each.cpu_per_gib - hashing * each.sent / each.served


def _waits(report: Report) -> Iterable[Row]:
    for scenario, bound in {"staggered": 1.0, "burst": 1.5}.items():
        yield from _row(
            report, scenario, "longest wait of a client that joins", "ms",
            lambda each: (each.worst or 0.0) * 1e3, _YARDSTICK, Goal(bound, at_least=False),
        )  # fmt: skip


def _wall(report: Report) -> Iterable[Row]:
    yield from _row(
        report, "fast", "until all have everything", "s", lambda each: each.wall,
        _best(report, "fast", (*STREAMING, _LOCK), lambda figures: figures.wall),
        Goal(0.9, at_least=False),
    )  # fmt: skip


def _hits(report: Report) -> Iterable[Row]:
    for scenario in ("hits", "hits-small"):
        for ours, bound in ((_BEHIND, 1.2), (OURS, 2.0)):
            for case, unit, value in _HITS:
                yield from _row(
                    report, scenario, f"{case}{' (nginx in front)' if ours == _BEHIND else ''}",
                    unit, value, _LOCK, Goal(bound, at_least=False), ours=ours,
                )  # fmt: skip


_HITS: tuple[tuple[str, str, Value], ...] = (
    ("CPU", "s", lambda each: each.cpu),
    ("until all have everything", "s", lambda each: each.wall),
)


def _small(report: Report) -> Iterable[Row]:
    for peer, goal in ((_FLOOR, Goal(1.5, at_least=False)), (_LOCK, None)):
        yield from _row(report, "small", "CPU", "s", lambda each: each.cpu, peer, goal)


def _faults(report: Report) -> Iterable[Row]:
    group = report.groups.get("faults")
    for fault in faults():
        outcome = group.outcome(fault.name, OURS) if group is not None else None
        if group is None or outcome is None or not fault.can_give:
            continue
        others = [group.outcome(fault.name, peer) for peer in (*STREAMING, _LOCK)]
        yield Row(
            section="faults",
            case=f"{fault.title}: clients without it",
            unit="clients",
            ours=outcome.suffering,
            raw=min((each.suffering for each in others if each is not None), default=None),
            goal=Goal(0, at_least=False, of_ratio=False),
        )


def _growth(report: Report) -> Iterable[Row]:
    for kind in ("clients", "flights"):
        for case, unit, value in GROWTH_OF:
            ours, theirs = (curve(report, kind, peer, value) for peer in (OURS, _YARDSTICK))
            if len(ours) > 1 and len(theirs) > 1:
                bound = _slope(theirs)
                yield Row(
                    section=kind,
                    case=f"{case}, of each more (against {_YARDSTICK})",
                    unit=unit,
                    ours=_slope(ours),
                    raw=bound,
                    goal=Goal(bound, at_least=False, of_ratio=False),
                )


Measure = Callable[[Figures], float]
GROWTH_OF: tuple[tuple[str, str, Measure], ...] = (
    ("CPU", "ms", lambda figures: figures.cpu * 1e3),
    ("memory", "MiB", lambda figures: (figures.memory or 0) / MIB),
    ("longest wait", "ms", lambda figures: max(figures.first, figures.worst or 0.0) * 1e3),
)
"""What grows with the number of clients and flights: its name, its unit, and it."""


def curve(report: Report, kind: str, peer: str, value: Measure) -> list[tuple[int, float]]:
    """A peer's value for each number of clients or flights that was measured."""
    points = [(count, report.figures(kind, f"{kind}-{count}", peer)) for count in GROWTH]
    return [(count, value(figures)) for count, figures in points if figures is not None]


def _slope(points: list[tuple[int, float]]) -> float:
    return linear_regression(*zip(*points, strict=True)).slope


def _best(report: Report, scenario: str, peers: Iterable[str], value: Measure) -> str | None:
    """The peer of least value."""
    there = {peer: report.figures(scenario, scenario, peer) for peer in peers}
    known = {peer: value(figures) for peer, figures in there.items() if figures is not None}
    return min(known, key=lambda peer: known[peer], default=None)


def _row(
    report: Report, scenario: str, case: str, unit: str, value: Value, peer: str | None,
    goal: Goal | None, ours: str = OURS, ours_value: Value | None = None,
) -> Iterable[Row]:  # fmt: skip
    """A row of the rounds that both were measured in; none if there is no such round.

    `ours_value` is our figure, if it is not the same as the peer's.
    """
    mine = report.figures(scenario, scenario, ours)
    theirs = None if peer is None else report.figures(scenario, scenario, peer)
    if mine is None or theirs is None:
        return
    pairs = [
        ((ours_value or value)(one), value(other))
        for one in mine.measured
        for other in theirs.measured
        if one.turn == other.turn
    ]
    if pairs:
        yield Row.of_rounds(
            section=scenario,
            case=f"{case} (against {peer})",
            unit=unit,
            ours=[one for one, _ in pairs],
            raw=[other for _, other in pairs],
            goal=goal,
        )
