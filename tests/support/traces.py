"""What a test could leave behind: in shared memory, on disk, and in this process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from shmstream.stream import doorbell, segment
from shmstream.system import threads
from tests.support.interpreters import PATIENCE, live_threads


class Traces(NamedTuple):
    """All of it at one moment."""

    segments: list[str]
    doorbells: list[str]
    partials: list[str]
    processes: list[str]
    threads: list[str]
    descriptors: list[str]


def traces(folder: Path) -> Traces:
    """What there is now; `folder` is the test's own."""
    return Traces(
        segments=segment.names(),
        doorbells=sorted(name for _, name in doorbell.names()),
        partials=sorted(str(path) for path in folder.rglob("*.shmstream-partial")),
        processes=sorted(_processes()),
        threads=live_threads(),
        descriptors=_descriptors(),
    )


def end_threads(before: Traces) -> None:
    """End the pooled threads, and wait until no more threads live than `before`.

    Threads of the pools, which ask sources or read cold files, live as long as their process.
    """
    with threads._executors.lock:
        executors = threads._executors.value
        for executor in executors.values():
            executor.shutdown()
        executors.clear()
    deadline = time.monotonic() + PATIENCE
    while len(live_threads()) > len(before.threads) and time.monotonic() < deadline:
        time.sleep(0.001)


def _processes() -> list[str]:
    """The commands of all children that live or are zombies, and of their children."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.ZombieProcess:
            command = f"zombie {child.pid}"
        except psutil.NoSuchProcess:
            continue
        # multiprocessing keeps a resource tracker and a fork server for as long as this process.
        if "resource_tracker" not in command and "forkserver" not in command:
            found.append(command)
    return found


def _descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
        found.append(f"{number} {target}")
    return sorted(found)
