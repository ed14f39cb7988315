"""What was measured, kept in a file for each group of scenarios as soon as it is known.

So a run that was interrupted can be resumed, and a report can be made without measuring anything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.peers.faults import Outcome
from bench.peers.measure import Sample

Facts = dict[str, str]


@dataclass(frozen=True)
class Failure:
    """A peer that could not be measured in a scenario, and why."""

    scenario: str
    peer: str
    turn: int
    why: str


@dataclass
class Group:
    """Measurements that belong together.

    Attributes:
        name: of the file.
        machine: what was measured on, and when.
        peers: the title, version and settings of each that was there, by name.
        missing: what is not installed, and how to do so, by name.
        is_quick: whether nothing of it means anything.
        titles: of the scenarios or faults, by name.
        hashing: CPU seconds for the SHA-256 of a GiB, on this machine.
        samples, outcomes, failures: in the order in which they came.
    """

    name: str
    machine: Facts
    peers: dict[str, Facts]
    missing: Facts
    is_quick: bool
    titles: Facts
    hashing: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def has(self, scenario: str, peer: str, turn: int) -> bool:
        """Whether this was measured; a fault is, once."""
        return self.outcome(scenario, peer) is not None or any(
            (each.scenario, each.peer, each.turn) == (scenario, peer, turn) for each in self.samples
        )

    def outcome(self, fault: str, peer: str) -> Outcome | None:
        """What became of the clients of a peer in a fault."""
        found = [each for each in self.outcomes if (each.fault, each.peer) == (fault, peer)]
        return found[-1] if found else None

    def figures(self, scenario: str, peer: str) -> Figures | None:
        """Of a peer in a scenario; None if it was not measured."""
        samples = [each for each in self.samples if (each.scenario, each.peer) == (scenario, peer)]
        measured = [each for each in samples if each.turn > 0]
        return Figures(samples, measured) if measured else None

    def failure(self, scenario: str, peer: str) -> Failure | None:
        """Why it was not measured."""
        found = [each for each in self.failures if (each.scenario, each.peer) == (scenario, peer)]
        return found[-1] if found else None


@dataclass(frozen=True)
class Figures:
    """Medians over the measured rounds of one peer in one scenario. Times are seconds."""

    samples: list[Sample]
    measured: list[Sample]

    @property
    def cpu_per_gib(self) -> float:
        """CPU seconds for a GiB served."""
        return median(each.cpu_per_gib for each in self.measured)

    @property
    def cpu_per_thousand(self) -> float:
        """CPU seconds for 1,000 requests."""
        return median(each.cpu_per_thousand for each in self.measured)

    @property
    def cpu(self) -> float:
        """CPU seconds."""
        return median(each.cpu for each in self.measured)

    @property
    def wall(self) -> float:
        """From the first ask to the last byte."""
        return median(each.wall for each in self.measured)

    @property
    def first(self) -> float:
        """The first byte's time of the first client of a blob."""
        return median(each.first for each in self.measured)

    @property
    def late(self) -> float | None:
        """The same for the others."""
        lates = [each.late for each in self.measured if each.late is not None]
        return median(lates) if lates else None

    @property
    def worst(self) -> float | None:
        """The longest of these in a round."""
        worsts = [each.worst for each in self.measured if each.worst is not None]
        return median(worsts) if worsts else None

    @property
    def gets(self) -> float:
        """Requests to the origin."""
        return median(each.gets for each in self.measured)

    @property
    def sent(self) -> float:
        """Bytes that the origin sent."""
        return median(each.sent for each in self.measured)

    @property
    def shares(self) -> dict[str, float] | None:
        """The part of the CPU time that each kind of work took; None: it was not profiled."""
        return next((each.shares for each in self.samples if each.shares), None)

    @property
    def memory(self) -> int | None:
        """The most bytes that the peer had (PSS)."""
        return max((each.memory for each in self.samples if each.memory), default=None)


class Results:
    """The files, in `folder`, which is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, name: str) -> Group | None:
        """The group of that name, if it was measured."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        for key, kind in (("samples", Sample), ("outcomes", Outcome), ("failures", Failure)):
            told[key] = [kind(**each) for each in told[key]]
        return Group(**told)

    def save(self, group: Group) -> None:
        """Write a group; a reader gets the old group or the new one."""
        path = self._folder / f"{group.name}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(group), indent=1) + "\n", encoding="utf-8")
        new.replace(path)

    def report(self) -> Report:
        """All that was measured."""
        names = sorted(path.stem for path in self._folder.glob("*.json"))
        groups = [group for name in names if (group := self.load(name)) is not None]
        return Report({group.name: group for group in groups})


@dataclass(frozen=True)
class Report:
    """All groups, by name."""

    groups: dict[str, Group]

    @property
    def machine(self) -> Facts:
        """What the latest group was measured on."""
        return max((each.machine for each in self.groups.values()), key=lambda facts: facts["date"])

    @property
    def peers(self) -> dict[str, Facts]:
        """The title, version and settings of every peer that was measured, by name."""
        found: dict[str, Facts] = {}
        for group in self.groups.values():
            found |= group.peers
        return found

    @property
    def missing(self) -> Facts:
        """What was not installed, by name."""
        found: Facts = {}
        for group in self.groups.values():
            found |= group.missing
        return {name: why for name, why in found.items() if name not in self.peers}

    def figures(self, group: str, scenario: str, peer: str) -> Figures | None:
        """Of a peer in a scenario of a group; None if it was not measured."""
        there = self.groups.get(group)
        return None if there is None else there.figures(scenario, peer)
