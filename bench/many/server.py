"""The server with many flights at once, and with many clients of one flight.

flights  50, 200, 500 and 1,000 blobs of 256 KiB, each wanted by two clients, all at once, from an
         origin that gives each 128 KiB/s, so that all are in flight together: the server's CPU
         for each flight, beside that with 50, and the time to the first byte of the first client
         of each blob
clients  2,000 clients at once of one blob: whether each gets every byte, and the server's memory
         for each client, beside one client

The server is that of bench.peers with 2 workers, started fresh for each measurement, and so are
origin and clients (bench/peers). Before the rounds that count, there is one in which each client
hashes every byte. In that one the memory is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.crew import Crew
from bench.peers import ours
from bench.peers.measure import PROCESSES, Sample, Stage, measure
from bench.peers.origin import Origin
from bench.peers.scenarios import Scenario
from bench.report import KIB, MIB, Goal, Options, Row, progress

_FLIGHTS = (50, 200, 500, 1000)
_CLIENTS = 2000
_QUICK = 20  # times as few
_AS_FEW = Goal(1.2, at_least=False)
_FIRST_BYTE = {500: Goal(300, at_least=False, of_ratio=False)}  # ms
_A_CLIENT = Goal(40, at_least=False, of_ratio=False)  # KiB


def flights(options: Options) -> list[Row]:
    """Rows for each number of flights."""
    counts = [each // _QUICK if options.quick else each for each in _FLIGHTS]
    few, *more = counts
    with _stage(options.folder / "flights") as stage:
        samples = _go(options, stage, {count: _flights(count) for count in counts})
    rows = []
    for count in more:
        case = f"CPU a flight, {count:,} at once / {few:,}"
        cpu = {each: [one.cpu / each * 1e3 for one in samples[each]] for each in (count, few)}
        row = Row.of_rounds("flights", case, "ms", cpu[count], cpu[few], goal=_AS_FEW)
        rows.append(row)
    for usual, count in zip(_FLIGHTS, counts, strict=True):
        case = f"first byte, the median, {count:,} at once / {few:,}"
        first = {each: [one.first * 1e3 for one in samples[each]] for each in (count, few)}
        goal = _FIRST_BYTE.get(usual)
        rows.append(Row.of_rounds("flights", case, "ms", first[count], first[few], goal=goal))
    return rows


def clients(options: Options) -> list[Row]:
    """Rows for many clients of one flight."""
    count = _CLIENTS // _QUICK if options.quick else _CLIENTS
    with _stage(options.folder / "clients") as stage:
        scenarios = {each: _clients(each) for each in (1, count)}
        alone, many = (
            _once(stage, scenario, turn=0).memory or 0 for scenario in scenarios.values()
        )
        samples = _go(options, stage, scenarios)
    each = (many - alone) / (count - 1) / KIB
    cpu = [one.cpu / count * 1e3 for one in samples[count]]
    worst = [(one.worst or 0.0) * 1e3 for one in samples[count]]
    first = [one.first * 1e3 for one in samples[1]]
    return [
        Row("clients", f"memory of each of {count:,} clients", "KiB", each, goal=_A_CLIENT),
        Row.of_rounds(
            "clients", f"CPU of each of {count:,} / of one", "ms", cpu,
            [one.cpu * 1e3 for one in samples[1]],
        ),
        Row.of_rounds("clients", f"worst first byte of {count:,} / of one", "ms", worst, first),
    ]  # fmt: skip


def _flights(count: int) -> Scenario:
    return Scenario(f"flights-{count}", "", size=256 * KIB, rate=128 * KIB, blobs=count, clients=2)


def _clients(count: int) -> Scenario:
    return Scenario(f"clients-{count}", "", size=2 * MIB, rate=MIB, clients=count)


@contextmanager
def _stage(folder: Path) -> Iterator[Stage]:
    folder.mkdir()
    with Crew(PROCESSES) as crew, Origin(folder / "origin") as origin:
        origin.start()
        yield Stage(folder, origin, crew)


def _go(options: Options, stage: Stage, scenarios: dict[int, Scenario]) -> dict[int, list[Sample]]:
    """The samples of each round, of each number, in an order that alternates."""
    samples: dict[int, list[Sample]] = {count: [] for count in scenarios}
    for number in range(options.rounds):
        for count in list(scenarios)[:: 1 if number % 2 else -1]:
            progress(f"{scenarios[count].name}, round {number + 1} of {options.rounds}")
            samples[count].append(_once(stage, scenarios[count], turn=number + 1))
    return samples


def _once(stage: Stage, scenario: Scenario, turn: int) -> Sample:
    """With new blobs. Turn 0 hashes, and looks at the memory."""
    blobs = [stage.origin.make(scenario.size) for _ in range(scenario.blobs)]
    try:
        return measure(stage, ours.ALONE, scenario, blobs, turn)
    finally:
        for blob in blobs:
            stage.origin.remove(blob)
