"""How many calls a store of many blobs costs for each blob: the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import pytest

from shmstream import Store
from shmstream.cli import command
from tests.support.calls import Calls
from tests.support.flights import make_store
from tests.support.roles import content
from tests.support.stores import digest

FEW, MANY = 10, 60
Work = Callable[[Store], object]


def run(*arguments: str) -> Work:
    """A command, in this process."""

    def work(store: Store) -> None:
        with suppress(click.exceptions.Exit):
            command.main([*arguments, "--store", store.folder], standalone_mode=False)

    return work


WORKS: dict[str, tuple[Work, int, int]] = {
    "check(verify=False)": (lambda store: store.check(verify=False), 18, 54),
    "check()": (lambda store: store.check(), 24, 60),
    "blobs()": (lambda store: store.blobs(), 15, 37),
    "stock()": (lambda store: store.stock(), 11, 14),
    "ls": (run("ls"), 30, 51),
    "ls --json": (run("ls", "--json"), 27, 48),
    "check --quick": (run("check", "--quick"), 18, 54),
    "evict": (lambda store: store.evict(0), 35, 69),
}
"""The most calls for each blob whose key is a digest, and for each named one."""


def make(folder: Path, kind: str, count: int) -> Store:
    """A store of sealed blobs."""
    store = make_store(str(folder / str(count)), {})
    for number in range(count):
        key = digest(number, 10) if kind == "digests" else f"https://example.com/{number}"
        store.fetch(key, [content(number, 10)])
    assert store.check() == []
    return store


def count(work: Work, store: Store) -> int:
    calls = Calls()
    with calls:
        work(store)
    return calls.of.total()


@pytest.mark.parametrize("kind", ["digests", "names"])
def test_calls_for_each_blob(kind: str, tmp_path: Path) -> None:
    """The difference between stores is what blobs cost, without what a call costs in any case."""
    few, many = make(tmp_path, kind, FEW), make(tmp_path, kind, MANY)
    costs, most = {}, {}
    for name, (work, of_digests, of_names) in WORKS.items():
        most[name] = of_digests if kind == "digests" else of_names
        if name != "evict":
            work(few)  # what the first call imports and compiles is none of the second
        costs[name] = (count(work, many) - count(work, few)) / (MANY - FEW)
    assert {name: cost for name, cost in costs.items() if cost > most[name]} == {}, costs
