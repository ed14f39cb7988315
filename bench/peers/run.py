"""Measuring: scenario by scenario, in each of them the peers in turn, A B C A B C."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.closing import Closing
from bench.crew import Crew
from bench.peers import nginx, ours, ways
from bench.peers.faults import Fault, Outcome, suffer
from bench.peers.floor import FLOOR
from bench.peers.measure import HASHED, PROCESSES, PROFILED, Sample, Stage, measure
from bench.peers.origin import Origin
from bench.peers.peer import Missing, Peer
from bench.peers.profile import is_possible
from bench.peers.raw import RAW
from bench.peers.results import Facts, Failure, Group, Results
from bench.peers.scenarios import Scenario
from bench.peers.squid import Squid
from bench.peers.trafficserver import TrafficServer
from bench.peers.varnish import Varnish
from bench.report import GIB, KIB, CheckFailed, progress
from bench.server import NotServing

PEERS: tuple[Peer, ...] = (
    ours.ALONE,
    nginx.LOCK,
    nginx.SLICE,
    Varnish(),
    Squid(),
    TrafficServer(),
)
BESIDE: tuple[Peer, ...] = (ours.UNVERIFIED, ours.BEHIND, RAW, FLOOR)
"""Measured only in the scenarios that name them, and only with shmstream itself."""

OURS = ours.ALONE.name


@dataclass(frozen=True)
class Present:
    """What is installed of the peers that were chosen: those, their versions, and what is not."""

    peers: tuple[Peer, ...]
    facts: dict[str, Facts]
    missing: Facts


def look(names: Sequence[str]) -> Present:
    """Look for the peers of these names."""
    present: list[Peer] = []
    facts: dict[str, Facts] = {}
    missing: Facts = {}
    beside = BESIDE if OURS in names else ()
    for peer in (*(each for each in PEERS if each.name in names), *beside):
        try:
            version = peer.version()
        except Missing as error:
            missing[peer.name] = str(error)
            continue
        present.append(peer)
        facts[peer.name] = {"title": peer.title, "version": version, "settings": peer.settings}
    return Present(tuple(present), facts, missing)


def _price_of_hashing() -> float:
    """CPU seconds for the SHA-256 of a GiB, in pieces as large as shmstream's."""
    piece = bytes(256 * KIB)
    prices: list[float] = []
    for _ in range(9):
        running = hashlib.sha256()
        began = time.thread_time()
        for _ in range(128):
            running.update(piece)
        prices.append((time.thread_time() - began) / (128 * len(piece)) * GIB)
    return median(prices)


class Runner(Closing):
    """Measures, and keeps what came of it. Use it as a context manager, in an empty folder."""

    def __init__(
        self, folder: Path, results: Results, present: Present, machine: Facts, *,
        rounds: int, quick: bool, resume: bool,
    ) -> None:  # fmt: skip
        self._results = results
        self._present = present
        self._machine = machine
        self._rounds = rounds
        self._quick = quick
        self._resume = resume
        self._hashing = _price_of_hashing()
        self._stack = ExitStack()
        folder.chmod(0o755)  # some peers insist on being somebody else
        with self._stack as stack:
            self._crew = stack.enter_context(Crew(PROCESSES))
            self._origin = stack.enter_context(Origin(folder / "origin"))
            self._origin.start()
            self._stage = Stage(folder, self._origin, self._crew)
            self._stack = stack.pop_all()
        self.failures = 0

    def measure(self, name: str, scenarios: Sequence[Scenario], at_most: int | None = None) -> None:
        """Measure scenarios that belong together, in `at_most` so many rounds that count."""
        rounds = self._rounds if at_most is None else min(self._rounds, at_most)
        group = self._begin(name, {each.name: each.title for each in scenarios})
        for scenario in scenarios:
            blobs = [self._origin.make(scenario.size) for _ in range(scenario.blobs)]
            peers = [each for each in self._present.peers if self._is_for(each, scenario)]
            gone = ways.WAYS if scenario.has_ways and ours.ALONE in peers else ()
            with ExitStack() as stack:
                crew = stack.enter_context(Crew(scenario.clients)) if gone else self._crew
                for turn in (HASHED, *range(1, rounds + 1), *self._more(scenario)):
                    for peer in peers:
                        job = partial(measure, self._stage, peer, scenario, blobs, turn)
                        self._keep(group, scenario.name, peer.name, turn, job)
                    for way in gone if turn != PROFILED else ():
                        job = partial(ways.go, self._stage, crew, way, scenario, blobs[0], turn)
                        self._keep(group, scenario.name, way.name, turn, job)
            for blob in blobs:
                self._origin.remove(blob)

    def suffer(self, name: str, faults: Sequence[Fault]) -> None:
        """Have things go wrong with all peers. What is known of other faults and peers stays."""
        before = self._results.load(name)
        group = self._begin(name, {each.name: each.title for each in faults})
        if before is not None and not self._resume:
            again = {(fault.name, peer.name) for fault in faults for peer in self._present.peers}
            group.outcomes += [
                each for each in before.outcomes if (each.fault, each.peer) not in again
            ]
            group.titles = before.titles | group.titles
            group.peers = before.peers | group.peers
        for fault in faults:
            for peer in self._present.peers:
                if peer not in BESIDE:
                    job = partial(suffer, self._stage, peer, fault)
                    self._keep(group, fault.name, peer.name, 1, job)

    def _more(self, scenario: Scenario) -> Sequence[int]:
        """Rounds beside those that count."""
        return [PROFILED] if scenario.is_profiled and is_possible() else []

    def _is_for(self, peer: Peer, scenario: Scenario) -> bool:
        if scenario.only:
            return peer.name in scenario.only
        return peer not in BESIDE or peer.name in scenario.beside

    def _begin(self, name: str, titles: Facts) -> Group:
        """The group as it was, to go on with it, or a new one."""
        present = self._present
        there = self._results.load(name) if self._resume else None
        if there is not None:
            there.failures.clear()  # they are tried again
            there.titles |= titles
            there.peers |= present.facts
            return there
        facts, missing = present.facts, present.missing
        return Group(name, self._machine, facts, missing, self._quick, titles, self._hashing)

    def _keep(
        self, group: Group, scenario: str, peer: str, turn: int, job: Callable[[], Sample | Outcome]
    ) -> None:
        """Do it, unless that was done before, and keep what comes of it."""
        if group.has(scenario, peer, turn):
            return
        began = time.monotonic()
        try:
            match job():
                case Sample() as sample:
                    group.samples.append(sample)
                case Outcome() as outcome:
                    group.outcomes.append(outcome)
        except (CheckFailed, NotServing) as error:
            self.failures += 1
            group.failures.append(Failure(scenario, peer, turn, str(error)))
            progress(f"{scenario}, {peer}, failed: {error}")
        self._results.save(group)
        progress(f"{scenario}, round {turn}, {peer}: {time.monotonic() - began:.1f} s")

    def close(self) -> None:
        """End the origin and the clients. Idempotent."""
        self._stack.close()
