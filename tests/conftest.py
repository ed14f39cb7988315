"""Fixtures: above all the proof that a test leaves the machine as it found it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from shmstream.sources.http import close_pools
from tests.support import isolation, zygote
from tests.support.interpreters import Interpreter
from tests.support.traces import end_threads, traces, traces_in_the_end

# How fast hypothesis draws its examples depends on the machine, and says nothing of the code.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

pytest_plugins = [
    "tests.support.containers",
    "tests.support.docker_registry",
    "tests.support.nginx",
    "tests.support.origin",
    "tests.support.redis",
    "tests.support.root",
    "tests.support.serving",
    "tests.support.stores",
    "tests.support.token_server",
    "tests.support.cluster",  # after those that it uses, as all that follow
    "tests.support.fuse",
    "tests.support.registries",
    "tests.support.quirks",
    "tests.support.mirrors",
    "tests.support.hub",
    "tests.support.package_index",
]  # the servers, each started when a test asks


def pytest_configure() -> None:
    isolation.heed_signals()
    isolation.take_own_shared_memory()
    # An example that takes long proves only that the machine is busy.
    settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("steady")


LONGEST = (
    "tests/flight/test_flight.py",
    "tests/registry/test_registry.py",
    "tests/registry/server/test_serve.py",
    "tests/bench/test_bench.py",
    "tests/demo/test_demo.py",
    "tests/asgi/test_response.py",
    "tests/hazards/test_end_at_every_place.py",
    "tests/hazards/test_model.py",
    "tests/hazards/test_deaths.py",
    "tests/hazards/test_load.py",
    "tests/registry/test_quirks.py",
    "tests/cli/test_fetch.py",
    "tests/cluster/test_cluster.py",
    "tests/models/test_models.py",
    "tests/docs/test_examples.py",
    "tests/docs/test_paths.py",
)
"""Files that take longest, from the longest on. A few processes share all files, and the last file
that begins decides the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files. `make test` lets xdist keep this order."""
    root = Path(__file__).parents[1]
    turns = {root / name: turn for turn, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


def pytest_xdist_auto_num_workers() -> int:
    """One test process more than there are processors, where each has a /dev/shm of its own.

    For a third of its time a test process waits: for a server that starts, or for a pause to end.
    """
    return min((os.cpu_count() or 1) + 1, 4) if os.geteuid() == 0 else 0


@pytest.fixture(scope="session", autouse=True)
def infrastructure() -> Iterator[None]:
    """What every test finds running already, so that no test seems to leave it behind."""
    isolation.start_helpers_of_multiprocessing()
    for each in (zygote.ROLES, zygote.COMMANDS):
        each.begin()
    yield
    gc.unfreeze()
    for each in (zygote.ROLES, zygote.COMMANDS):
        each.close()


@pytest.fixture(autouse=True)
def as_found(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the machine as it found it.

    What a test finds stays, so no collection of garbage has to look at it again. If it did not
    stay, `before` would have told of its descriptors, threads and shared memory.
    """
    has_folder = "tmp_path" in request.fixturenames
    folder = request.getfixturevalue("tmp_path") if has_folder else None
    gc.collect()
    gc.freeze()
    before = traces(folder)
    yield
    gc.collect()
    end_threads(before)
    close_pools()  # they keep connections to origins
    gc.collect()
    left = traces_in_the_end(folder, before)
    assert left.is_as(before), left.told_beside(before)


@pytest.fixture
def start() -> Iterator[Callable[..., Interpreter]]:
    """Start a role in an interpreter of its own; all have ended when the test ends.

    `fresh`: an interpreter that has imported nothing, and is a child of this process.
    """
    started: list[Interpreter] = []

    def start_role(
        role: Callable[..., None],
        *arguments: Any,
        within: tuple[str, ...] = (),
        fresh: bool = False,
    ) -> Interpreter:
        mother = None if fresh else zygote.ROLES
        interpreter = Interpreter(role, *arguments, within=within, zygote=mother)
        started.append(interpreter)
        return interpreter

    yield start_role
    for interpreter in started:
        interpreter.close()


@pytest.fixture
def blob(tmp_path: Path) -> str:
    """The path where a blob will lie."""
    return str(tmp_path / "blob")
