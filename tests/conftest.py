"""Fixtures: above all the proof that a test leaves the machine as it found it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import isolation
from tests.support.interpreters import Interpreter
from tests.support.traces import end_threads, traces

# How fast hypothesis draws its examples depends on the machine, and says nothing of the code.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

pytest_plugins = [
    "tests.support.containers",
    "tests.support.docker_registry",
    "tests.support.fuse",
    "tests.support.nginx",
    "tests.support.origin",
    "tests.support.redis",
    "tests.support.root",
    "tests.support.serving",
    "tests.support.stores",
    "tests.support.token_server",
    "tests.support.cluster",  # after those that it uses
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


def pytest_xdist_auto_num_workers() -> int:
    """As many test processes as there are processors, where each has a /dev/shm of its own."""
    return min(os.cpu_count() or 1, 4) if os.geteuid() == 0 else 0


@pytest.fixture(scope="session", autouse=True)
def infrastructure() -> None:
    """What every test finds running already, so that no test seems to leave it behind.

    What has been imported for all tests stays, so no collection of garbage has to look at it.
    """
    isolation.start_helpers_of_multiprocessing()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def as_found(tmp_path: Path) -> Iterator[None]:
    """Every test leaves the machine as it found it."""
    gc.collect()
    before = traces(tmp_path)
    yield
    gc.collect()
    end_threads(before)
    gc.collect()
    assert traces(tmp_path) == before


@pytest.fixture
def start() -> Iterator[Callable[..., Interpreter]]:
    """Start a role in an interpreter of its own; all have ended when the test ends."""
    started: list[Interpreter] = []

    def start_role(
        role: Callable[..., None], *arguments: Any, within: tuple[str, ...] = ()
    ) -> Interpreter:
        interpreter = Interpreter(role, *arguments, within=within)
        started.append(interpreter)
        return interpreter

    yield start_role
    for interpreter in started:
        interpreter.close()


@pytest.fixture
def blob(tmp_path: Path) -> str:
    """The path where a blob will lie."""
    return str(tmp_path / "blob")
