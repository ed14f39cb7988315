"""Fixtures: above all the proof that a test leaves the machine as it found it."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from hypothesis import HealthCheck, settings

from shmstream.stream import doorbell, segment
from shmstream.system import threads
from tests.support.interpreters import Interpreter, live_threads, wait_until

# How fast hypothesis draws its examples depends on the machine, and says nothing of the code.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

pytest_plugins = [
    "tests.support.docker_registry",
    "tests.support.fuse",
    "tests.support.nginx",
    "tests.support.origin",
    "tests.support.serving",
    "tests.support.stores",
    "tests.support.token_server",
    "tests.support.registries",  # after those that it uses
]  # the servers, each started when a test asks


class Traces(NamedTuple):
    """What a test could leave behind."""

    segments: list[str]
    doorbells: list[str]
    partials: list[str]
    processes: list[str]
    threads: list[str]
    descriptors: list[str]


def traces(folder: Path) -> Traces:
    """What there is now."""
    return Traces(
        segments=segment.names(),
        doorbells=sorted(name for _, name in doorbell.names()),
        partials=sorted(str(path) for path in folder.rglob("*.shmstream-partial")),
        processes=sorted(
            command
            for child in psutil.Process().children(recursive=True)
            if not _is_infrastructure(command := _command(child))
        ),
        threads=live_threads(),
        descriptors=_descriptors(),
    )


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return f"zombie {process.pid}"
    except psutil.NoSuchProcess:
        return f"just gone {process.pid}"


def _is_infrastructure(command: str) -> bool:
    """multiprocessing keeps a resource tracker and a fork server for as long as we live."""
    return "resource_tracker" in command or "forkserver" in command


def _descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
        found.append(f"{number} {target}")
    return sorted(found)


def pytest_configure() -> None:
    """Give the tests a /dev/shm of their own where that can be had: as root.

    Then they neither see nor touch what else this machine streams. Elsewhere they share it, and
    whoever streams at the same time may make the proof below fail.

    And let nobody inherit that signals are ignored, as whatever runs in the background does.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        new_namespace, recursive_private = 0x20000, 0x4000 | 0x40000
        if libc.unshare(new_namespace) == 0:
            libc.mount(b"none", b"/", None, recursive_private, None)
            libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"mode=1777")


def pytest_xdist_auto_num_workers() -> int:
    """As many test processes as there are processors, where each has a /dev/shm of its own."""
    return min(os.cpu_count() or 1, 4) if os.geteuid() == 0 else 0


@pytest.fixture(scope="session", autouse=True)
def infrastructure() -> None:
    """Start what multiprocessing starts once, before anybody counts."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    process.close()


def _endlive_threads() -> None:
    """Those that start others, ask sources or read cold files stay as long as their process."""
    with threads._executors.held() as executors:
        for executor in executors.values():
            executor.shutdown()
        executors.clear()


@pytest.fixture(autouse=True)
def as_found(tmp_path: Path) -> Iterator[None]:
    """Every test leaves the machine as it found it."""
    gc.collect()
    before = traces(tmp_path)
    yield
    _endlive_threads()
    gc.collect()
    wait_until(lambda: len(live_threads()) <= len(before.threads), patience=2)
    assert traces(tmp_path) == before


@pytest.fixture
def start() -> Iterator[Callable[..., Interpreter]]:
    """Start a role in an interpreter of its own; all are gone when the test ends."""
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
    """Where a blob will be."""
    return str(tmp_path / "blob")
