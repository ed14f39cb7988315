"""Many processes want one blob at the same moment: ours against what people do today.

The ways are those of `ways.py`. The clock begins when the first process does, and the last
process's last byte ends it; it has the blob then, verified if it is `ours`. Raw is `plain`, one
process alone with the same origin. Unthrottled, SHA-256 (0.15 s for 256 MiB where this was written)
takes a processor longer than the whole plain download does, so there like stands beside like:
`named` beside `plain`, which verify nothing, and `ours` beside `hashed`.

Two readings of "an origin at 64 MiB/s": one that gives so much to each connection, which is kind to
`each`, and one whose link has no more than that, so that N connections get an Nth each. With one
connection, as in the other ways, they are the same. The second takes N times as long, and its time
is the throttle's, so it is measured once.

Before the clock ever runs, every way is gone once with every process hashing all that it reads.

Fresh memory is dear in a virtual machine that gives back to its host what has lain free for a while
(see throughput.py): the files of one measurement are removed only as the gate of the next one that
writes files opens, which takes their pages over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.crew import Crew, Gate
from bench.flight import ways
from bench.flight.charts import Pictures
from bench.flight.ways import Order, Trip
from bench.origin import Origin
from bench.report import MIB, CheckFailed, Goal, Options, Row, progress, quantile

Way = Callable[[Order, Gate], Trip]
_TIMES = 3  # as many rounds where nothing is throttled: they are short, and differ more
_BEHIND = 0.01  # s; how late a follower may have its first bytes


@dataclass(frozen=True)
class Outing:
    """One measurement: all trips of one way, and what they cost the origin."""

    trips: list[Trip]
    sent: int
    origin_cpu: float

    @property
    def began(self) -> float:
        """When the first process asked."""
        return min(trip.began for trip in self.trips)

    @property
    def took(self) -> float:
        """Seconds until the last process had its last byte."""
        return max(trip.last for trip in self.trips) - self.began

    @property
    def first_bytes(self) -> list[float]:
        """Seconds that each process waited for its first bytes."""
        return [trip.first - trip.began for trip in self.trips]

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes but the origin."""
        return sum(trip.cpu for trip in self.trips)

    @property
    def behind(self) -> float:
        """Seconds until the slowest follower had bytes, once it asked and the leader had some.

        Raises:
            CheckFailed: nobody led, or nobody followed.
        """
        arrived = [trip.arrived for trip in self.trips if trip.arrived is not None]
        followers = [trip for trip in self.trips if trip.role != "leads"]
        if not arrived or not followers:
            raise CheckFailed("there was no leader, or no follower")
        return max(trip.first - max(min(arrived), trip.began) for trip in followers)


class Outings:
    """Sends processes for the blob of one origin."""

    def __init__(self, crew: Crew, origin: Origin, folder: Path, size: int, digest: str) -> None:
        self._crew = crew
        self._origin = origin
        self._folder = folder
        self._size = size
        self._key = f"sha256:{digest}"
        self._done = 0
        self._left: list[Path] = []

    def go(
        self, way: Way, count: int, *, rate: int = 0, apart: float = 0.0, verify: bool = False
    ) -> Outing:
        """`count` processes go that way, each `apart` seconds after the one before.

        Raises:
            CheckFailed: not every process has every byte.
        """
        self._done += 1
        folder = ways.prepare(self._folder, f"outing-{self._done}")
        url = self._origin.url("blob", rate)
        orders = [
            Order(url, self._key, str(folder), index * apart, verify) for index in range(count)
        ]
        self._origin.begin()
        cpu = self._origin.cpu()
        before = None if way is ways.each else self.tidy
        trips = self._crew.run([partial(way, order) for order in orders], before)
        self._left.append(folder)
        if any(trip.count != self._size for trip in trips):
            raise CheckFailed("a process did not get all bytes")
        sent = sum(request.bytes for request in self._origin.transfers())
        if sent % self._size or (way is not ways.each and sent != self._size):
            raise CheckFailed(f"the origin sent {sent} bytes for a blob of {self._size}")
        return Outing(trips, sent, self._origin.cpu() - cpu)

    def tidy(self) -> None:
        """Remove what was left of the time before."""
        for folder in self._left:
            shutil.rmtree(folder)
        self._left.clear()


def measure(options: Options, origin: Origin, pictures: Pictures) -> list[Row]:
    """Rows for each rate and number of processes."""
    many = 4 if options.quick else 8
    rate = 32 * MIB if options.quick else 64 * MIB
    folder = ways.prepare(options.folder, "share")
    rows = []
    with Crew(many, pin=options.pin) as crew:
        outings = Outings(crew, origin, folder, options.size, origin.make("blob", options.size))
        for way in (ways.ours, ways.named, ways.lock, ways.each, ways.plain):
            progress(f"share, verifying {way.__name__}")
            outings.go(way, 1 if way is ways.plain else many, verify=True)
        rows += _throttled(options, outings, many, rate, pictures)
        for count in (many, 2):
            rows += _unthrottled(options, outings, count)
        outings.tidy()
    return rows


def _throttled(
    options: Options, outings: Outings, many: int, rate: int, pictures: Pictures
) -> list[Row]:
    apart = 0.5 * options.size / rate / many
    gone: dict[str, list[Outing]] = {"plain": [], "ours": [], "lock": [], "each": [], "late": []}
    for index in range(options.rounds):
        progress(f"share, throttled, round {index + 1} of {options.rounds}")
        steps: list[tuple[str, Callable[[], Outing]]] = [
            ("plain", lambda: outings.go(ways.plain, 1, rate=rate)),
            ("ours", lambda: outings.go(ways.ours, many, rate=rate)),
            ("lock", lambda: outings.go(ways.lock, many, rate=rate)),
            ("each", lambda: outings.go(ways.each, many, rate=rate)),
            ("late", lambda: outings.go(ways.ours, many, rate=rate, apart=apart)),
        ]
        for name, step in steps if index % 2 else reversed(steps):
            gone[name].append(step())
    progress("share, throttled, each for itself on one link")
    gone["link"] = [outings.go(ways.each, many, rate=rate // many)]
    for name in ("ours", "lock", "link"):
        last = gone[name][-1]
        pictures.share[name] = [
            [(when - last.began, count) for when, count in trip.curve] for trip in last.trips
        ]
    pictures.rate = rate
    pictures.sent = {name: gone[name][-1].sent for name in pictures.share}
    case = f"{many} processes, {rate // MIB} MiB/s"
    return [
        *_rows(case, gone["ours"], gone["plain"], Goal(1.02, at_least=False)),
        _behind(f"{case}, all at once: first bytes behind the leader's", gone["ours"]),
        _behind(
            f"{case}, one each {apart:.2g} s: first bytes of processes that come late", gone["late"]
        ),
        *_rows(f"{case}, file lock", gone["lock"], gone["plain"]),
        *_rows(f"{case} a connection, each for itself", gone["each"], gone["plain"]),
        *_rows(f"{case} in all, each for itself (once)", gone["link"], gone["plain"][-1:]),
    ]


def _unthrottled(options: Options, outings: Outings, count: int) -> list[Row]:
    ways_there: dict[str, tuple[Way, int]] = {  # like beside like, which find memory alike
        "plain": (ways.plain, 1),
        "named": (ways.named, count),
        "ours": (ways.ours, count),
        "hashed": (ways.hashed, 1),
        "lock": (ways.lock, count),
        "each": (ways.each, count),
    }
    gone: dict[str, list[Outing]] = {name: [] for name in ways_there}
    rounds = options.rounds * (1 if options.quick else _TIMES)
    for index in range(rounds):
        progress(f"share, {count} unthrottled, round {index + 1} of {rounds}")
        steps = list(ways_there.items())
        for name, (way, processes) in steps if index % 2 else reversed(steps):
            gone[name].append(outings.go(way, processes))
    case = f"{count} processes, unthrottled"
    goal = Goal(1.25, at_least=False) if count == 2 else None
    return [
        *_rows(f"{case}, nobody verifies", gone["named"], gone["plain"], goal),
        *_rows(f"{case}, both verify", gone["ours"], gone["hashed"]),
        *_rows(f"{case}, only ours verifies", gone["ours"], gone["plain"]),
        _behind(f"{case}: first bytes behind the leader's", gone["ours"]),
        *_rows(f"{case}, file lock", gone["lock"], gone["plain"]),
        *_rows(f"{case}, each for itself", gone["each"], gone["plain"]),
    ]


def _rows(
    case: str, those: list[Outing], plain: list[Outing], goal: Goal | None = None
) -> list[Row]:
    """Until the last byte, and the CPU; with how long the first byte took beside it."""
    firsts = [each for outing in those for each in outing.first_bytes]
    return [
        Row.of_rounds(
            section="share",
            case=f"{case}: last byte",
            unit="s",
            ours=[outing.took for outing in those],
            raw=[outing.took for outing in plain],
            goal=goal,
            notes={
                "first byte, median ms": median(firsts) * 1e3,
                "first byte, worst ms": max(firsts) * 1e3,
                "origin MiB": median(outing.sent for outing in those) / MIB,
            },
        ),
        Row.of_rounds(
            section="share",
            case=f"{case}: CPU",
            unit="s",
            ours=[outing.cpu for outing in those],
            raw=[outing.cpu for outing in plain],
            notes={"origin's own": median(outing.origin_cpu for outing in those)},
        ),
    ]


def _behind(case: str, those: list[Outing]) -> Row:
    behind = [outing.behind * 1e3 for outing in those]
    return Row(
        section="share",
        case=case,
        unit="ms",
        ours=max(behind),
        goal=Goal(_BEHIND * 1e3, at_least=False, of_ratio=False),
        notes={"median of rounds": median(behind), "p90": quantile(behind, 0.9)},
    )
