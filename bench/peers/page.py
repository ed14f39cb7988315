"""docs/benchmarks.md: what was measured, as tables, with what people say to it (why.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.peers.faults import PATIENCE, Outcome, faults
from bench.peers.goals import GROWTH_OF, curve
from bench.peers.measure import PROCESSES
from bench.peers.peer import Peer
from bench.peers.profile import KINDS
from bench.peers.results import Figures, Group, Report
from bench.peers.run import BESIDE, OURS, PEERS
from bench.peers.scenarios import (
    FEW_PEERS,
    GROWING,
    GROWTH,
    SCENARIOS,
    STREAMED,
    Scenario,
)
from bench.peers.ways import WAYS
from bench.report import MIB, Row

_WHY = tomllib.loads((Path(__file__).parent / "why.toml").read_text(encoding="utf-8"))
_HEAD = """# Against the peers

<!-- Written by `make bench-peers`. What people say to the figures is in bench/peers/why.toml. -->

shmstream's server beside nginx, Varnish, Squid and Traffic Server, and beside what Python programs
do without a server. All figures are of one machine, and the end of the page tells when each part
was measured. Each program is started fresh for each measurement, and the programs take turns
(A B C A B C). The figures are medians over {rounds} rounds, and a ratio in the first table is the
median of the ratios of the rounds. The congestion control of TCP is {control}. `make bench-peers`
measures all of it again on any Debian machine
(`apt-get install nginx-light varnish squid trafficserver`).

**The figures are shares of this machine, so compare only within this page.** The clients, the
origin and the peer share its {cores} processors.
"""
_HOW = """
## How it is measured

- *CPU* is user and system time of all processes of the peer, also of those that ended, and never of
  the clients or the origin. Python programs without a server are their own clients, so their
  figures contain the reading.
- The *first byte* is the first byte of the body; its time counts from the request. The *first*
  client of a blob has to wait for the origin. A *late* client joins a download, or finds the blob
  complete.
- Every client is a plain socket that reads into 256 KiB; {processes} processes run all clients. In
  a round before the rounds that count, each client hashes (SHA-256) every byte that it gets. In the
  rounds that count, clients only count bytes.
- What the CPU time is spent on is told by one round more, in which `perf` looks 997 times a second
  at all processes of the peer (`apt-get install linux-perf`). Its shares are applied to the median.
  What the kernel does for a system call belongs to that call: to send on the loopback is also to
  deliver. *The program itself* is its own code, its interpreter and its libraries.
- *Memory* is the proportional set size of all processes of the peer, at its highest in that first
  round. A cache in files (shmstream, nginx, Traffic Server) lies in the kernel's page cache, which
  counts for no process; a cache in memory (Varnish, Squid) is in the figure.
- The origin is a program of ours: a thread for each connection, `sendfile`, paced in steps of 8 ms.
  It sends Date, Cache-Control, ETag and Content-Length, and serves Range.
- shmstream's keys are SHA-256, so it verifies every blob before a client has the whole of it. No
  peer does that. In the row *unverified* its keys are names, and it hashes nothing
  (`hash_named=False`). Like the peers, shmstream does not sync to the disk (`durable=False`).
"""


_QUICK = "**A quick run, to see whether it works: no figure here means anything.**\n"

_BEGIN = "<!-- peers: made by `make bench-peers` -->"
_END = "<!-- end of peers -->"

_PLAIN = {each.name for each in SCENARIOS} | {*GROWING, "faults"}
_WORK = "What the CPU time is spent on, in the same unit:\n"
Cells = Sequence[str]


def write(report: Report, rows: Sequence[Row], path: Path) -> None:
    """Write the page for what was measured; its charts are in a folder beside it."""
    samples = [each for group in report.groups.values() for each in group.samples]
    charts = path.with_suffix("")
    parts = [
        _HEAD.format(
            rounds=max((each.turn for each in samples), default=0),
            cores=report.machine["cores"],
            control=_control(report),
        ),
        _QUICK if any(group.is_quick for group in report.groups.values()) else "",
        *(f"- not measured, for it is not installed: {why}" for why in report.missing.values()),
        "## In short\n",
        _chart(charts / "peers.png", "cost, waiting, and what a fault does, for each peer"),
        _goals(rows),
        _chart(charts / "cost.png", "CPU for a GiB served, for each peer and scenario"),
        _chart(charts / "wait.png", "the longest wait for the first byte, for each peer"),
        *(
            _scenario(report.groups[each.name], each)
            for each in SCENARIOS
            if each.name in report.groups
        ),
        _faults(report.groups["faults"], charts) if "faults" in report.groups else "",
        _growth(report, charts),
        _controls(report),
        _HOW.format(processes=PROCESSES),
        _settings(report),
        _machine(report),
    ]
    path.write_text("\n".join(part for part in parts if part).rstrip() + "\n", encoding="utf-8")


def mention(report: Report, readme: Path) -> None:
    """Put the short table between the marks that the README has for it."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if end:
        text = f"{before}{begin}\n\n{_short(report)}\n{end}{after}"
        readme.write_text(text, encoding="utf-8")


def _short(report: Report) -> str:
    """What matters most, a line for each peer."""
    head = ("", "CPU for a GiB served", "longest wait for the first byte", "512 MiB to 8 clients",
            "the origin restarts", "its process is killed", "a wrong byte")  # fmt: skip
    return _table(head, [_short_cells(report, peer) for peer in PEERS if peer.name in report.peers])


def _short_cells(report: Report, peer: Peer) -> list[str]:
    staggered, burst, fast = (
        report.figures(name, name, peer.name) for name in ("staggered", "burst", "fast")
    )
    group = report.groups.get("faults")
    fates = [
        group.outcome(fault, peer.name) if group is not None else None
        for fault in ("dies-returns", "killed", "lies")
    ]
    return [
        f"**{peer.title}**" if peer.name == OURS else peer.title,
        "" if staggered is None else f"{staggered.cpu_per_gib:.2f} s",
        "" if burst is None or burst.worst is None else f"{burst.worst * 1e3:,.0f} ms",
        "" if fast is None else f"{fast.wall:.1f} s",
        *("" if fate is None else fate.verdict for fate in fates),
    ]


def _chart(path: Path, words: str) -> str:
    return f"![{words}]({path.parent.name}/{path.name})\n" if path.exists() else ""


def _table(head: Cells, lines: Iterable[Cells], *, left: int = 1) -> str:
    """Markdown, with all but the first columns to the right."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def _goals(rows: Sequence[Row]) -> str:
    head = ("goal", "shmstream", "the other", "ratio", "bound", "")
    lines = [
        (
            f"{row.section}: {row.case}",
            f"{_number(row.ours)} {row.unit}",
            "" if row.raw is None else f"{_number(row.raw)} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.goal is None else str(row.goal),
            {True: "met", False: "**missed**", None: ""}[row.met],
        )
        for row in rows
    ]
    return _table(head, lines) if lines else ""


def _scenario(group: Group, scenario: Scenario) -> str:
    head = ("", "CPU", "until all have it", "first byte, first", "late, median", "late, worst",
            "origin: GETs", "MiB", "memory")  # fmt: skip
    proxies = [each for each in (*PEERS, *BESIDE) if each.name in group.peers]
    parts = [
        f"## {scenario.name.replace('-', ', ').capitalize()}\n",
        f"{group.titles[scenario.name]}. CPU is seconds for "
        f"{'1,000 requests' if scenario.is_of_requests else 'a GiB served'}.\n",
        _table(head, _lines(group, scenario, [(each.name, each.title) for each in proxies])),
    ]
    if scenario.has_ways:
        parts += [
            "Without a server, as many Python processes, which read it themselves:\n",
            _table(head, _lines(group, scenario, [(each.name, each.title) for each in WAYS])),
        ]
    parts.append(_work(group, scenario, proxies))
    return "\n".join(each for each in (*parts, _why("scenarios", scenario.name)) if each)


def _work(group: Group, scenario: Scenario, peers: Iterable[Peer]) -> str:
    """What the CPU time of each peer is spent on; empty if nobody looked."""
    lines = []
    for peer in peers:
        figures = group.figures(scenario.name, peer.name)
        if figures is not None and (shares := figures.shares):
            cost = figures.cpu_per_thousand if scenario.is_of_requests else figures.cpu_per_gib
            title = f"**{peer.title}**" if peer.name == OURS else peer.title
            cells = (f"{cost * shares[kind]:.3f}" for kind in KINDS)
            lines.append([title, f"{cost:.3f}", *cells])
    if not lines:
        return ""
    return f"{_WORK}\n{_table(('', 'CPU', *KINDS), lines)}"


def _lines(
    group: Group, scenario: Scenario, names: Iterable[tuple[str, str]]
) -> Iterable[list[str]]:
    for name, title in names:
        shown = f"**{title}**" if name == OURS else title
        figures = group.figures(scenario.name, name)
        failure = group.failure(scenario.name, name)
        if figures is not None:
            yield [shown, *_cells(figures, scenario)]
        elif failure is not None:
            yield [shown, f"failed: {failure.why}", *[""] * 7]


def _cells(figures: Figures, scenario: Scenario) -> Iterable[str]:
    of_requests = scenario.is_of_requests
    yield f"{figures.cpu_per_thousand if of_requests else figures.cpu_per_gib:.2f} s"
    yield f"{figures.wall:.2f} s"
    for seconds in (figures.first, figures.late, figures.worst):
        yield "" if seconds is None else f"{seconds * 1e3:,.0f} ms"
    yield f"{figures.gets:,.0f}"
    yield f"{figures.sent / MIB:,.0f}"
    yield "" if figures.memory is None else f"{figures.memory / MIB:,.0f} MiB"


def _faults(group: Group, charts: Path) -> str:
    head = ("", "right", "cut", "wrong", "hang", "refused", "more from the origin", "longest pause",
            "a later client")  # fmt: skip
    parts = [
        "## When something goes wrong\n",
        "8 clients, one each 0.1 s, want the same 32 MiB from an origin of 16 MiB/s. *right*: got "
        "all that it wanted, every byte verified. *cut*: got less, and the connection ended. "
        "*wrong*: got other bytes and takes them for right. *hang*: still waits after "
        f"{PATIENCE:.0f} s. *refused*: was told an error instead of the first byte. The pause is "
        "the longest that any of them waited for a byte.\n",
        _chart(charts / "faults.png", "what becomes of the clients, for each peer and fault"),
    ]
    for fault in faults():
        lines = [
            [f"**{peer.title}**" if peer.name == OURS else peer.title, *_fate(outcome)]
            for peer in PEERS
            if (outcome := group.outcome(fault.name, peer.name)) is not None
        ]
        lines += [
            [peer.title, f"failed: {failure.why}", *[""] * 7]
            for peer in PEERS
            if (failure := group.failure(fault.name, peer.name)) is not None
        ]
        if lines:
            parts += [f"### {fault.title}\n", _table(head, lines), _why("faults", fault.name)]
    return "\n".join(part for part in parts if part)


def _fate(outcome: Outcome) -> Iterable[str]:
    yield str(outcome.right or "")
    own = f" (the killed process had {outcome.own} of them)" if outcome.own else ""
    yield f"{outcome.cut or ''}{own}"
    for count in (outcome.wrong, outcome.hang, outcome.refused):
        yield str(count or "")
    yield f"{outcome.extra / MIB:,.1f} MiB" if outcome.extra else ""
    yield f"{outcome.pause:.1f} s{f'; {outcome.note}' if outcome.note else ''}"
    yield outcome.afterwards


def _growth(report: Report, charts: Path) -> str:
    parts = []
    for kind in GROWING:
        group = report.groups.get(kind)
        if group is None:
            continue
        parts += ["", *(f"- {title}" for title in list(group.titles.values())[-1:]), ""]
        for case, unit, value in GROWTH_OF:
            head = [f"{case}, {unit}", *(str(count) for count in GROWTH)]
            lines = []
            for peer in PEERS:
                points = dict(curve(report, kind, peer.name, value))
                if points:
                    cells = [_number(points[count]) if count in points else "" for count in GROWTH]
                    lines.append([peer.title, *cells])
            parts.append(_table(head, lines))
        parts.append(_work(group, GROWING[kind](GROWTH[-1]), PEERS))
        parts.append(_why("growth", kind))
    if not parts:
        return ""
    chart = _chart(charts / "growth.png", "CPU, memory and waiting, from 1 to 64")
    return "\n".join(["## From 1 to 64\n", chart, *parts])


def _control(report: Report) -> str:
    """The congestion control that the groups of scenarios had, by their own names."""
    known = {group.machine["tcp"] for name, group in report.groups.items() if name in _PLAIN}
    return " or ".join(sorted(known)) or report.machine["tcp"]


def _controls(report: Report) -> str:
    """What the system's own congestion control changes, where it is another one."""
    again = {
        name: [group for each, group in report.groups.items() if each.startswith(f"{name}-")]
        for name in STREAMED
        if name in report.groups
    }
    lines = [
        [f"{name}, {group.machine['tcp']}", *_ratios(group, name)]
        for name, others in again.items()
        if others
        for group in (report.groups[name], *others)
    ]
    if not lines:
        return ""
    head = (
        "CPU for a GiB served, and congestion control",
        "shmstream",
        "of nginx, slice",
        "of Varnish",
    )
    return "\n".join(
        ["## Another congestion control\n", _WHY["controls"]["all"], _table(head, lines)]
    )


def _ratios(group: Group, scenario: str) -> Iterable[str]:
    ours, *others = (group.figures(scenario, peer) for peer in FEW_PEERS)
    if ours is None:
        return
    yield f"{ours.cpu_per_gib:.2f} s"
    for other in others:
        yield "" if other is None else f"{ours.cpu_per_gib / other.cpu_per_gib:.2f}"


def _settings(report: Report) -> str:
    lines = [(facts["title"], facts["version"], facts["settings"])
             for facts in report.peers.values()]  # fmt: skip
    return "## Settings\n\n" + _table(("peer", "version", "settings"), lines, left=3)


def _machine(report: Report) -> str:
    lines = [(f"{name}", value) for name, value in report.machine.items()]
    dates = {name: group.machine["date"] for name, group in report.groups.items()}
    told = ", ".join(f"{name} {date}" for name, date in sorted(dates.items(), key=lambda at: at[1]))
    return f"## The machine\n\n{_table(('', ''), lines, left=2)}\nBegun: {told}.\n"


def _why(kind: str, name: str) -> str:
    return _WHY[kind].get(name, "").strip() + "\n" if name in _WHY[kind] else ""


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
