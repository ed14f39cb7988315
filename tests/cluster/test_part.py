"""How often a node that waits asks the directory: on a clock that the test turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest

from shmstream.cluster import part as module
from shmstream.cluster.directory import Decision, Verdict
from shmstream.cluster.part import PATIENCE, Part
from shmstream.cluster.peer import NoPeer, Trouble
from shmstream.errors import FailureKind, SourceError
from shmstream.registry.settings import Settings
from shmstream.sources.base import AskAgain
from shmstream.sources.http import HTTPSource
from tests.support.stores import digest

KEY = digest(1, 10)
MOST = 20
"""Calls in the time for which a node waits."""


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Company:
    """A node whose directory and peers always answer the same."""

    def __init__(self, clock: Clock, decision: Decision, trouble: Trouble, takes: float) -> None:
        self._clock = clock
        self._decision = decision
        self.trouble = trouble
        self._takes = takes
        self.calls: list[float] = []
        self.asked = 0
        self.accused: list[str] = []
        self.avoided: set[str] = set()
        self.directory = self.leases = self.asker = self

    def use(self) -> None:
        pass

    def release(self, _part: Part) -> None:
        pass

    def moved(self) -> None:
        pass

    def began(self, _part: Part) -> None:
        pass

    def decide(self, *_: Any, avoid: list[str], refused: list[str], **__: Any) -> Decision:
        self.calls.append(self._clock.now)
        self.accused += refused
        self.avoided |= set(avoid)
        if self._decision.peers and set(self._decision.peers) <= set(avoid):
            return Decision(Verdict.WAIT, (), self._decision.leader)
        return self._decision

    def ask(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        self._clock.sleep(self._takes)
        raise NoPeer(self.trouble)


class Upstream:
    name = "the upstream"

    def open(self, *_: Any) -> Any:
        raise EOFError  # this far nobody should wait


@pytest.mark.parametrize(
    ("trouble", "takes"),
    [
        (Trouble.WAITING, 1.0),  # it waits as we do: each question takes a second
        (Trouble.BUSY, 0.001),
        (Trouble.SILENT, 2.0),
        (Trouble.REFUSED_US, 0.001),
    ],
)
@pytest.mark.parametrize("peers", [("a:1",), ("+a:1", "+b:1", "+c:1"), ()])
def test_a_node_that_waits_asks_more_and_more_rarely(
    monkeypatch: pytest.MonkeyPatch, trouble: Trouble, takes: float, peers: tuple[str, ...]
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    verdict = Verdict.PEERS if peers else Verdict.WAIT
    company = Company(clock, Decision(verdict, peers, "leader:1"), trouble, takes)
    part = Part(company, KEY, "me:1")  # type: ignore[arg-type]
    began, give_up = clock.now, _gives_up(part)
    while not give_up():
        assert clock.now - began < PATIENCE + 20
    assert clock.now - began > PATIENCE
    assert len(company.calls) <= MOST
    assert company.asked <= 700  # three peers, twice a second


def test_nodes_wait_longer_than_a_leader_of_serve_for_its_upstream() -> None:
    """Else each of them would ask an upstream that is gone, and be told later than the leader."""
    connect, head = signature(HTTPSource).parameters["timeout"].default
    assert Settings.outage + connect + head <= PATIENCE


def test_a_parent_that_dies_while_we_wait_is_left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    company = Company(clock, Decision(Verdict.PEERS, ("a:1",), "a:1"), Trouble.WAITING, 0.1)
    give_up = _gives_up(Part(company, KEY, "me:1"))  # type: ignore[arg-type]
    while company.asked < 3:
        assert not give_up()
    assert len(company.calls) == 1
    company.trouble = Trouble.DEAD
    assert not give_up()
    assert not give_up()
    assert len(company.calls) == 2
    assert company.accused == ["a:1"]


def test_a_guest_waits_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never asks its own node, and a client waits for it."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    company = Company(clock, Decision(Verdict.PEERS, ("a:1",), "a:1"), Trouble.WAITING, 0.1)
    give_up, began = _gives_up(Part(company, KEY, "", besides="me:1")), clock.now  # type: ignore[arg-type]
    while not give_up():
        pass
    assert 3 < clock.now - began < 5
    assert company.avoided >= {"+me:1"}


@pytest.mark.parametrize(("reached", "tries"), [(False, 1), (True, 0)])
def test_a_failure_of_the_upstream_is_believed(
    monkeypatch: pytest.MonkeyPatch, reached: bool, tries: int
) -> None:
    """If the leader could never reach it, a node tries once: that may be the leader's trouble."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    why = json.dumps(
        {"kind": "unreachable", "status": None, "reason": "no route", "reached": reached}
    )
    company = Company(clock, Decision(Verdict.FAILED, why=why), Trouble.DEAD, 0.0)
    tried = []

    class Unreachable:
        name = "the upstream"

        def open(self, *_: Any) -> Any:
            tried.append(1)
            raise SourceError(self.name, 0, "no route", kind=FailureKind.UNREACHABLE)

    source = Part(company, KEY, "me:1").source(Unreachable())  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(SourceError, match="no route") as caught:
            source.open(0)
        assert not caught.value.retryable
    assert len(tried) == tries


def _gives_up(part: Part) -> Callable[[], bool]:
    source = part.source(Upstream())

    def try_once() -> bool:
        try:
            source.open(0)
        except AskAgain:
            return False
        except EOFError:
            return True
        raise AssertionError

    return try_once
