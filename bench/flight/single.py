"""One process alone: downloading a blob, and opening one that is complete.

single  `Store.fetch` with a digest, against what people type: `curl URL | tee FILE | sha256sum`.
        Both receive, write and hash every byte; neither syncs anything to the disk. How fast that
        sha256sum is depends on who built it: Debian's uses no instructions made for it, and is
        most of what the pipe takes. So there is a second pair with `openssl dgst -sha256`, which
        hashes as fast as ours, being the same library. A third has the store as it is by default,
        durable, against the first pipe followed by `sync FILE`.
        Neither start-up is on the clock: ours is one call in a warm interpreter, and from the time
        of the pipe, all four programs from `bash` on, that of a pipe for an empty blob is taken.
open    `Store.open` of a blob that is there, against `open(path, "rb")` of the same file, by turns;
        closing is not on the clock.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench.crew import Crew, Gate
from bench.flight.charts import Pictures
from bench.flight.ways import prepare, settle
from bench.origin import Origin
from bench.report import CheckFailed, Goal, Options, Row, progress
from shmstream import Store

_PIPE = 'set -o pipefail; curl -sS "$1" | tee "$2" | '
_PAIRS = {  # case -> whether ours is durable, the script, the goal
    "fetch / curl, tee, sha256sum": (False, _PIPE + "sha256sum", 1.1),
    "fetch / curl, tee, openssl dgst": (False, _PIPE + "openssl dgst -sha256 -r", None),
    "fetch, durable / sha256sum, then sync": (True, _PIPE + 'sha256sum && sync "$2"', None),
}


def measure(options: Options, origin: Origin, _pictures: Pictures) -> list[Row]:
    """A row for each pair."""
    folder = prepare(options.folder, "single")
    key, nothing = (
        f"sha256:{origin.make(name, size)}" for name, size in (("blob", options.size), ("no", 0))
    )
    url, empty = origin.url("blob"), origin.url("no")
    left: list[Path] = []

    def tidy() -> None:
        for path in left:  # its memory is what the next one writes to, see share.py
            shutil.rmtree(path)
        left.clear()

    def fetch(where: Path, *, durable: bool) -> float:
        (took,) = crew.run([partial(fetch_all, str(where), key, url, durable)], tidy)
        return took

    def pipe(where: Path, *, script: str) -> float:
        tidy()
        return run_pipe(script, url, where / "blob", key)

    rows = []
    with Crew(1, pin=options.pin) as crew:
        for number, (case, (durable, script, bound)) in enumerate(_PAIRS.items()):
            start = median(run_pipe(script, empty, folder / "nothing", nothing) for _ in range(5))
            steps: dict[str, Callable[[Path], float]] = {
                "ours": partial(fetch, durable=durable),
                "raw": partial(pipe, script=script),
            }
            ours, raw = [], []
            for index in range(-1, options.rounds):  # the first is not measured
                progress(f"single, {case}, round {index + 1} of {options.rounds}")
                took = {}
                for name in steps if index % 2 else reversed(steps):
                    where = prepare(folder, f"{name}-{number}-{index}")
                    took[name] = steps[name](where)
                    left.append(where)
                if index >= 0:
                    ours.append(took["ours"])
                    raw.append(took["raw"] - start)
            row = Row.of_rounds(
                section="single",
                case=case,
                unit="s",
                ours=ours,
                raw=raw,
                goal=None if bound is None else Goal(bound, at_least=False),
                notes={"start of the pipe, ms": start * 1e3},
            )
            rows.append(row)
    tidy()
    return rows


def fetch_all(folder: str, key: str, url: str, durable: bool, gate: Gate) -> float:
    """Seconds of one `fetch`."""
    store = Store(folder, durable=durable, connections=1)  # as the pipe has it
    gate()
    began = time.monotonic()
    store.fetch(key, url)
    took = time.monotonic() - began
    settle(store)
    return took


def run_pipe(script: str, url: str, path: Path, key: str) -> float:
    """Seconds of the pipe, all of it.

    Raises:
        CheckFailed: it did not get the blob.
    """
    command = ["bash", "-c", script, "bash", url, str(path)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode or f"sha256:{done.stdout[:64]}" != key:
        raise CheckFailed(f"the pipe failed: {done.stdout} {done.stderr}")
    return took


def measure_opening(options: Options, _origin: Origin, _pictures: Pictures) -> list[Row]:
    """One row: how much more it is, in microseconds."""
    progress("open")
    samples = 200 if options.quick else 2000
    store = Store(prepare(options.folder, "open"), durable=False)
    path = store.fetch("a blob", [bytes(1 << 16)])
    settle(store)
    more, ours, raw = [], [], []
    for _ in range(options.rounds):
        pairs = [_open_both(store, path) for _ in range(samples)]
        ours.append(median(a for a, _ in pairs))
        raw.append(median(b for _, b in pairs))
        more.append(median(a - b for a, b in pairs))
    row = Row(
        section="open",
        case="opening a complete blob: more than open()",
        unit="us",
        ours=median(more),
        goal=Goal(50, at_least=False, of_ratio=False),
        notes={"Store.open": median(ours), "open()": median(raw)},
    )
    return [row]


def _open_both(store: Store, path: str) -> tuple[float, float]:
    """Microseconds of ours and of raw."""
    began = time.perf_counter_ns()
    blob = store.open("a blob")
    between = time.perf_counter_ns()
    file = open(path, "rb")  # noqa: PTH123, SIM115  this is what is measured
    ended = time.perf_counter_ns()
    file.close()
    blob.close()
    return (between - began) / 1e3, (ended - between) / 1e3
