"""The command line, run as a user runs it: real processes, a real origin, pipes and terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import State, Store
from shmstream.storage.flights import followers_of
from tests.support.commands import ROOT, Command, Running
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256

SIZE = 300_000
BLOB = content(1, SIZE)
DIGEST = f"sha256:{sha256(BLOB)}"
Begin = Callable[..., Running]
Run = Callable[..., tuple[int, str, str]]
Show = Callable[..., Command]


@pytest.fixture
def store(
    as_found: None,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Store]:
    """The store that a command uses if it has no `--store`; at the end no partial file is left."""
    path = tmp_path / "store"
    monkeypatch.setenv("SHMSTREAM_STORE", str(path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "100")
    yield Store(path)
    for partial in path.rglob("*.shmstream-*"):
        partial.unlink()


@pytest.fixture
def begin(store: Store, tmp_path: Path) -> Iterator[Begin]:  # noqa: ARG001
    """Start a command. When the test ends, it is killed, and its shared memory is removed."""
    begun: list[Running] = []

    def begin_command(*arguments: str) -> Running:
        begun.append(Running(*arguments, cwd=tmp_path))
        return begun[-1]

    yield begin_command
    for each in begun:
        each.close()
    Store(tmp_path / "store").gc()


@pytest.fixture
def run(begin: Begin) -> Callable[..., tuple[int, str, str]]:
    """Run a command to its end; returns its exit code, standard output and standard error."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code, out, errors = begin(*arguments).finish()
        return code, out.decode(), errors

    return run_command


@pytest.fixture
def show(store: Store, tmp_path: Path) -> Iterator[Callable[..., Command]]:  # noqa: ARG001
    """Start a command in a terminal."""
    shown: list[Command] = []

    def show_command(*arguments: str) -> Command:
        shown.append(Command(tmp_path, *arguments, terminal=True))
        return shown[-1]

    yield show_command
    for each in shown:
        each.close()
    Store(tmp_path / "store").gc()


@pytest.fixture
def url(origin: Origin) -> str:
    """The URL of the blob."""
    return origin.serve("/blob", seed=1, size=SIZE)


def flying(store: Store, published: int = 1, followers: int = 0) -> None:
    """Wait until a flight has published so many bytes and has so many followers."""

    def is_so() -> bool:
        flights = store.flights()
        return (
            len(flights) == 1
            and flights[0].leader is not None
            and flights[0].state is State.STREAMING
            and flights[0].published >= published
            and len(followers_of(flights[0])) == followers
        )

    wait_until(is_so)


@pytest.fixture
def flight(begin: Begin, store: Store, origin: Origin, url: str) -> tuple[Running, Running]:
    """A leader and a follower; their origin sends 200,000 bytes and then waits."""
    origin.change("/blob", stall_after=200_000)
    leader = begin("fetch", url, "--digest", DIGEST, "-q")
    flying(store, published=200_000)
    follower = begin("fetch", url, "--digest", DIGEST, "-q")
    flying(store, published=200_000, followers=1)
    return leader, follower
