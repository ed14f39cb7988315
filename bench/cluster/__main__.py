"""One pull for many hosts, measured in network namespaces; and what every failure does to it.

    python -m bench.cluster [--quick] [--nodes 8] [--processes 2] [--size MiB] [--rounds N]
                            [--only TEXT] [--docs FILE] [--charts FOLDER] [--json FILE] [--seed N]
                            [--log FILE]

Nodes have links of 400 Mbit/s, the origin has one of 100. `--rounds` is for the scenarios in which
something is killed at a random moment. With `--docs`, the table is put into the page, between its
marks, and the chart beside it. Needs root, redis-server, nginx and iproute2. All processes share
the processors of this machine: with two of them, eight nodes of two processes each are as many as
it bears.

The exit code is 1 if a reader got an error or a wrong byte that should not, else 0.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.cluster import charts, decisions, model
from bench.cluster.network import NoNetwork
from bench.cluster.scenarios import SCENARIOS, Cluster, Outcome, Scenario, limit, run
from bench.report import MIB, CheckFailed, progress

_BEGIN, _END = "<!-- the table of bench.cluster -->", "<!-- end of the table -->"
_CHART = "cluster-times.svg"


def main() -> int:
    """Measure, print the table; the exit code."""
    chosen = _arguments()
    seed = random.randrange(1 << 30) if chosen.seed is None else chosen.seed
    size, nodes = chosen.size * MIB, chosen.nodes
    progress(f"seed {seed}; {nodes} nodes of {chosen.processes} processes, {chosen.size} MiB")
    try:
        found = _measure(chosen, random.Random(seed))
    except (CheckFailed, NoNetwork) as error:
        progress(f"failed: {error}")
        return 1
    text = "\n\n".join((table(found, size), decisions.tell(), model.table()))
    print(text)
    if chosen.json:
        facts = [[asdict(each) for each in some] for some in found]
        chosen.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    folder = chosen.charts or (chosen.docs.parent if chosen.docs else None)
    drawn = folder is not None and charts.draw(found, limit(size), folder / _CHART)
    if chosen.docs:
        page = chosen.docs.read_text(encoding="utf-8")
        before, rest = page.split(_BEGIN)
        after = rest.split(_END)[1]
        picture = f"![How long it took until all nodes had the blob]({_CHART})\n\n" if drawn else ""
        chosen.docs.write_text(
            f"{before}{_BEGIN}\n\n{picture}{text}\n\n{_END}{after}", encoding="utf-8"
        )
    return 0 if all(each.is_good for some in found for each in some) else 1


def _measure(chosen: argparse.Namespace, chance: random.Random) -> list[list[Outcome]]:
    plan = [each for each in SCENARIOS if _is_wanted(each, chosen)]
    most = max([chosen.nodes, *(each.nodes for each in plan)])
    found: list[list[Outcome]] = []
    with (
        tempfile.TemporaryDirectory(prefix="shmstream-bench-") as folder,
        Cluster(Path(folder), most, log=bool(chosen.log)) as cluster,
    ):
        for scenario in plan:
            outcomes: list[Outcome] = []
            for _ in range(chosen.rounds if scenario.repeats else 1):
                size, processes = chosen.size * MIB, chosen.processes
                outcomes.append(run(cluster, scenario, chance, chosen.nodes, processes, size))
                progress(str(outcomes[-1]))
            found.append(outcomes)
        cluster.end()
        if chosen.log:
            Path(chosen.log).write_bytes((Path(folder) / "log").read_bytes())
    return found


def _is_wanted(scenario: Scenario, chosen: argparse.Namespace) -> bool:
    if chosen.only:
        return any(each in scenario.name for each in chosen.only)
    is_long = scenario.name.endswith((" s", "apart", "alone", "good")) or scenario.nodes > 8
    return not (chosen.quick and is_long)


def table(found: list[list[Outcome]], size: int) -> str:
    """The outcomes as a table of Markdown."""
    lines = [
        f"{size // MIB} MiB take {limit(size):.1f} s on the origin's link, at least. *Cut* are "
        "readers that got an error, also if they tried again; *calls* are those of the directory, "
        "for each node and blob.",
        "",
        "|  | right | cut | GETs | bytes of the origin | all done | of the limit | first byte "
        "| longest pause | calls |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for some in found:
        right, readers = sum(e.right for e in some), sum(e.readers for e in some)
        took, calls = statistics.median(e.took for e in some), [e.calls for e in some]
        rounds = f", {len(some)} times" if len(some) > 1 else ""
        was_held = some[0].hop is not None  # then the times say how long that was
        times = (
            f"{took:.1f} s",
            f"{took / some[0].limit:.2f}x",
            f"{max(e.first for e in some) * 1000:.0f} ms",
        )
        known = [each for each in calls if each is not None]
        cells = (
            f"{some[0].name}{rounds}",
            f"{right} of {readers}",
            f"{sum(e.cut for e in some)}",
            f"{statistics.median(e.gets for e in some):g}",
            f"{max(e.bytes for e in some):.2f}x",
            *(("", "", "") if was_held else times),
            f"{max(e.pause for e in some):.2f} s",
            f"{statistics.median(known):.1f}" if known else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    hops = [each.hop for some in found for each in some if each.hop is not None]
    if hops:
        first, end = (statistics.median(each) * 1000 for each in zip(*hops, strict=True))
        lines += ["", f"A hop of the chain costs {first:.0f} ms at the beginning, and {end:.0f} ms "
                      "at the end."]  # fmt: skip
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 nodes, 8 MiB, no long scenarios")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size", type=int, metavar="MiB")
    parser.add_argument("--rounds", type=int, default=1, help="of each kill")
    parser.add_argument("--only", action="append", help="scenarios whose name has this text")
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--charts", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--log", metavar="FILE", help="write the logs of all nodes there")
    chosen = parser.parse_args()
    chosen.nodes = chosen.nodes or (4 if chosen.quick else 8)
    chosen.size = chosen.size or (8 if chosen.quick else 64)
    return chosen


if __name__ == "__main__":
    sys.exit(main())
