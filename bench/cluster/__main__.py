"""One pull for many hosts, measured in network namespaces; and what every failure does to it.

    python -m bench.cluster [--quick] [--nodes 8] [--processes 2] [--size MiB] [--rounds N]
                            [--only TEXT] [--docs FILE] [--seed N] [--log]

Nodes have links of 400 Mbit/s, the origin has one of 100. With `--docs`, the table is put into the
page, between its marks. Needs root, redis-server and iproute2. All processes share the processors
of this machine: with two of them, eight nodes of two processes each are as many as it bears.

The exit code is 1 if a reader got an error or a wrong byte that should not, else 0.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

from bench.cluster import model, scenarios
from bench.cluster.network import NoNetwork
from bench.cluster.scenarios import EVENTS, Cluster, Outcome, nothing, run
from bench.report import MIB, CheckFailed, progress

_BEGIN, _END = "<!-- the table of bench.cluster -->", "<!-- end of the table -->"


def main() -> int:
    """Measure, print the table; the exit code."""
    chosen = _arguments()
    size = (8 if chosen.quick else chosen.size) * MIB
    nodes = 4 if chosen.quick else chosen.nodes
    seed = random.randrange(1 << 30) if chosen.seed is None else chosen.seed
    chance = random.Random(seed)
    progress(f"seed {seed}; {nodes} nodes of {chosen.processes} processes, {size // MIB} MiB")
    found: list[list[Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-") as folder:
        try:
            with Cluster(
                Path(folder), nodes, chosen.processes, size, log=bool(chosen.log)
            ) as cluster:
                for name, event, together, fan in _plan(chosen.quick):
                    if chosen.only and not any(each in name for each in chosen.only):
                        continue
                    rounds = 1 if event is nothing else chosen.rounds
                    outcomes = []
                    for _ in range(rounds):
                        outcomes.append(
                            run(cluster, name, event, chance, together=together, fan=fan)
                        )
                        progress(str(outcomes[-1]))
                    found.append(outcomes)
                cluster.end()
                if chosen.log:
                    Path(chosen.log).write_bytes((Path(folder) / "log").read_bytes())
        except (CheckFailed, NoNetwork) as error:
            progress(f"failed: {error}")
            return 1
    text = table(found, size) + "\n\n" + model.table()
    print(text)
    if chosen.docs:
        page = chosen.docs.read_text(encoding="utf-8")
        before, rest = page.split(_BEGIN)
        after = rest.split(_END)[1]
        chosen.docs.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")
    return 0 if all(each.right == each.readers for some in found for each in some) else 1


def _plan(quick: bool) -> list[tuple[str, scenarios.Event, bool, int]]:
    whole = [
        ("each node for itself", nothing, False, 2),
        ("together, fan 1", nothing, True, 1),
        ("together, fan 2", nothing, True, 2),
        ("together, fan 4", nothing, True, 4),
    ]
    slow = ("9 s", "15 s", "25 s")
    return [each for each in whole if not (quick and "fan 4" in each[0])] + [
        (name, event, True, 2)
        for name, event in EVENTS.items()
        if not (quick and name.endswith(slow))
    ]


def table(found: list[list[Outcome]], size: int) -> str:
    """The outcomes as a table of Markdown."""
    limit = size * 8 / 100e6
    lines = [
        f"The limit of the origin's link is {limit:.1f} s.",
        "",
        "|  | readers right | GETs | bytes of the origin | all done | first byte | longest pause |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for some in found:
        right, readers = sum(e.right for e in some), sum(e.readers for e in some)
        gets = statistics.median(e.gets for e in some)
        factor = max(e.bytes for e in some)
        lines.append(
            f"| {some[0].name} | {right} of {readers} | {gets:g} | {factor:.2f}x "
            f"| {statistics.median(e.took for e in some):.1f} s "
            f"| {max(e.first for e in some) * 1000:.0f} ms | {max(e.pause for e in some):.2f} s |"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, metavar="MiB")
    parser.add_argument("--rounds", type=int, default=1, help="of each failure")
    parser.add_argument("--only", action="append", help="scenarios whose name has this text")
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--log", metavar="FILE", help="write the logs of all nodes there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
