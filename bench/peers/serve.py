"""The server alone: three scenarios beside Varnish and Traffic Server, and where its time goes.

    python -m bench.peers.serve [--rounds 3] [--quick] [--profile FOLDER]

The scenarios `staggered`, `burst` and `fast` of bench/peers, measured as there, beside the peers
that stream to clients that join and cost the least. A peer that is not installed is left out. All
peers and all scenarios are `make bench-peers`.

With `--profile` each scenario is run once more under py-spy (`pip install py-spy`), which writes a
flame graph of the workers there, `<scenario>.svg`, and costs time of its own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from bench.crew import Crew, CrewFailed
from bench.peers import goals, ours
from bench.peers.measure import PROCESSES, Stage, measure
from bench.peers.origin import Origin
from bench.peers.results import Results
from bench.peers.run import Runner, look
from bench.peers.scenarios import SCENARIOS, Scenario
from bench.report import CheckFailed, machine, progress, table
from bench.server import NotServing
from shmstream import sweep

_SCENARIOS = ("staggered", "burst", "fast")
_PATIENCE = 30.0  # s; for the server to be there, and for the profiler to be done
_PEERS = (ours.ALONE.name, "varnish", "ats")


def main() -> int:
    """Measure, print the table, draw the flame graphs; the exit code."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="that count, of each (3)")
    parser.add_argument("--quick", action="store_true", help="only try it out")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="draw flame graphs there")
    chosen = parser.parse_args()
    if chosen.profile is not None and shutil.which("py-spy") is None:
        parser.error("--profile needs py-spy: pip install py-spy")
    scenarios = [each for each in SCENARIOS if each.name in _SCENARIOS]
    if chosen.quick:
        scenarios = [each.quick() for each in scenarios]
    try:
        with tempfile.TemporaryDirectory(prefix="shmstream-serve-bench-") as folder:
            Path(folder).chmod(0o755)  # some peers insist on being somebody else
            failures = _measure(Path(folder), scenarios, chosen.rounds, quick=chosen.quick)
            if chosen.profile is not None:
                chosen.profile.mkdir(parents=True, exist_ok=True)
                _profile(Path(folder), scenarios, chosen.profile)
    except (CheckFailed, CrewFailed, NotServing) as error:
        progress(f"failed: {error}")
        return 1
    finally:
        sweep()  # what killed processes have left
    return 1 if failures else 0


def _measure(folder: Path, scenarios: Sequence[Scenario], rounds: int, *, quick: bool) -> int:
    """Print the goals that these scenarios have; how often something could not be measured."""
    present = look(_PEERS)
    for why in present.missing.values():
        progress(f"not here: {why}")
    results = Results(folder / "results")
    place = folder / "measured"
    place.mkdir()
    with Runner(
        place, results, present, machine(place), rounds=rounds, quick=quick, resume=False
    ) as runner:
        for scenario in scenarios:
            runner.measure(scenario.name, [replace(scenario, has_ways=False, beside=())])
    report = results.report()
    print(table(report.machine, goals.judge(report)))
    return runner.failures


def _profile(folder: Path, scenarios: Sequence[Scenario], pictures: Path) -> None:
    place = folder / "profiled"
    place.mkdir()
    with Crew(PROCESSES) as crew, Origin(place / "origin") as origin:
        origin.start()
        stage = Stage(place, origin, crew)
        for scenario in scenarios:
            blobs = [origin.make(scenario.size) for _ in range(scenario.blobs)]
            picture = (pictures / f"{scenario.name}.svg").resolve()
            watching = threading.Thread(target=_watch, args=(picture,))
            watching.start()
            measure(stage, ours.ALONE, scenario, blobs, 1)
            watching.join()
            progress(f"{scenario.name}: {picture}")


def _watch(picture: Path) -> None:
    """Profile the server that is about to start, from then on to its end."""
    deadline = time.monotonic() + _PATIENCE
    while not (servers := [each.pid for each in psutil.Process().children() if _serves(each)]):
        if time.monotonic() > deadline:
            raise CheckFailed("there is no server to profile")
        time.sleep(0.05)
    profiler = ["py-spy", "record", "--pid", str(servers[0]), "--subprocesses", "--nonblocking"]
    subprocess.run(
        [*profiler, "--rate", "250", "--duration", str(int(_PATIENCE)), "--output", picture],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=2 * _PATIENCE,
    )  # fmt: skip


def _serves(process: psutil.Process) -> bool:
    """Whether it is the server, with its workers."""
    try:
        return "bench.peers.blob_app" in process.cmdline() and len(process.children()) > 1
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
