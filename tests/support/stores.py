"""Stores for tests: fixtures, and flights that were interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import Store
from shmstream.stream import segment
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256

Start = Callable[..., Interpreter]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """The folder of a store. At the end of the test `check` must find nothing."""
    path = tmp_path / "store"
    yield str(path)
    store = Store(path)
    wait_until(lambda: not store.flights())
    assert store.check() == []
    wait_until(lambda: _is_removed(path))


def _is_removed(folder: Path) -> bool:
    """Remove a folder. A server that serves many tests may still tidy up there, in its thread."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


@pytest.fixture
def store(folder: str) -> Store:
    return make_store(folder, {})


def digest(seed: int, size: int) -> str:
    return f"sha256:{sha256(content(seed, size))}"


def interrupt(
    start: Start,
    folder: str,
    origin: Origin,
    key: str,
    size: int,
    at: int,
    rate: int | None = None,
) -> None:
    """Kill the only process of a flight of /blob, about `at` bytes after its beginning."""
    origin.serve("/blob", seed=1, size=size, rate=rate)
    origin.change("/blob", first=0, count=1, stall_after=at)
    taker = start(flights.take, folder, {})
    taker.hear()
    taker.say([key, origin.url("/blob"), 0])
    taker.hear()
    store = Store(folder)
    wait_until(lambda: bool(store.flights()) and store.flights()[0].published > at - 65536)
    taker.kill()


def has_published(store: Store, count: int, epoch: int = 0) -> bool:
    """Whether a live leader of this `epoch` has published `count` bytes."""
    [flight] = store.flights()
    return flight.leader is not None and flight.published >= count and flight.epoch == epoch


def reboot(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wipe shared memory, and have another boot id."""
    for name in segment.names():
        segment.unlink(name)
    Store(folder).gc()  # doorbells
    monkeypatch.setattr("shmstream.storage.journal.boot_id", lambda: "another boot")
