"""A flight, and an attach, beside many files of other programs in /dev/shm, and beside none.

flight  `Store.fetch` of 4 KiB that are in memory already: what a flight costs apart from its source
attach  `InFlightCopier.attach` and `close`, to a live stream of this process
sweep   what a process does once a minute, before a flight: it lists /dev/shm; for comparison

The figure is CPU time of this process, which counts all of its threads; the notes have the time on
the clock. The sweep of once a minute is left out of the flights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from bench.flight.ways import settle
from bench.many.cost import Cost, cost_of
from bench.report import KIB, CheckFailed, Goal, Options, Row, progress
from shmstream import BlobStreamer, InFlightCopier, Store, sweep
from shmstream.stream import claims

_OTHERS = 50_000
_SHARED = Path("/dev/shm")


@contextmanager
def crowd(count: int) -> Iterator[None]:
    """So many files of another program in /dev/shm."""
    paths = [_SHARED / f"bench-many-{os.getpid()}-{number}" for number in range(count)]
    try:
        for path in paths:
            path.touch(0o600)
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def measure(options: Options) -> list[Row]:
    """A row for each kind of work."""
    others = 500 if options.quick else _OTHERS
    times = 20 if options.quick else 300
    works: dict[str, tuple[Callable[[Path, int], None], int, Goal | None]] = {
        "flight": (fly, times, Goal(1.1, at_least=False)),
        "attach": (attach, times * 5, Goal(1.1, at_least=False)),
        "sweep": (sweep_only, 20, None),
    }
    costs: dict[str, dict[int, list[Cost]]] = {name: {0: [], others: []} for name in works}
    interval, claims._SWEEP_INTERVAL = claims._SWEEP_INTERVAL, 1e9
    try:
        fly(options.folder / "warm-up", 20)
        for number in range(options.rounds):
            for count in (0, others) if number % 2 else (others, 0):
                progress(f"crowd of {count:,}, round {number + 1} of {options.rounds}")
                with crowd(count):
                    for name, (work, repeats, _) in works.items():
                        folder = options.folder / f"{name}-{number}-{count}"
                        costs[name][count].append(_cost(work, folder, repeats))
    finally:
        claims._SWEEP_INTERVAL = interval
    return [_row(name, goal, costs[name], others) for name, (_, _, goal) in works.items()]


def _row(name: str, goal: Goal | None, costs: dict[int, list[Cost]], others: int) -> Row:
    with_none, with_many = costs[0], costs[others]
    return Row.of_rounds(
        section="crowd",
        case=f"{name}, {others:,} files / none",
        unit="us",
        ours=[each.cpu for each in with_many],
        raw=[each.cpu for each in with_none],
        goal=goal,
        notes={
            "on the clock": median(each.clock for each in with_many),
            "on the clock, none": median(each.clock for each in with_none),
        },
    )


def _cost(work: Callable[[Path, int], None], folder: Path, repeats: int) -> Cost:
    cost = cost_of(partial(work, folder, repeats)) / repeats
    if folder.exists():
        settle(Store(folder))
        shutil.rmtree(folder)
    return cost


def fly(folder: Path, repeats: int) -> None:
    """So many flights, one after the other."""
    store = Store(folder, durable=False)
    for number in range(repeats):
        with store.open(f"key {number}", [bytes(4 * KIB)]) as blob:
            if len(blob.read()) != 4 * KIB:
                raise CheckFailed("a blob is not whole")
            blob.wait()


def attach(folder: Path, repeats: int) -> None:
    """So many visits to a live stream."""
    folder.mkdir()
    with BlobStreamer.create(folder / "blob", publish_interval=0) as streamer:
        streamer.append(bytes(4 * KIB))
        for _ in range(repeats):
            InFlightCopier.attach(streamer.name).close()


def sweep_only(_folder: Path, repeats: int) -> None:
    """So many sweeps, of nothing."""
    for _ in range(repeats):
        sweep()
