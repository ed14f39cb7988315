"""What a test could leave behind: in shared memory, on disk, and in this process."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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

    def is_as(self, before: Traces) -> bool:
        """Whether all is as it was, but that a thread of an earlier test may have ended."""
        is_same = self._replace(threads=[]) == before._replace(threads=[])
        return is_same and not Counter(self.threads) - Counter(before.threads)

    def told_beside(self, before: Traces) -> str:
        """What is there now and was not before, and what is missing."""
        told = []
        for name, now, was in zip(self._fields, self, before, strict=True):
            more, less = Counter(now) - Counter(was), Counter(was) - Counter(now)
            if more or less:
                told.append(f"{name}: more {[*more.elements()]}, less {[*less.elements()]}")
        return "\n".join(told)


def traces(folder: Path | None) -> Traces:
    """What there is now; `folder` is the test's own, if it has one."""
    return Traces(
        segments=segment.names(),
        doorbells=sorted(name for _, name in doorbell.names()),
        partials=sorted(map(str, folder.rglob("*.shmstream-partial"))) if folder else [],
        processes=sorted(_processes()),
        threads=live_threads(),
        descriptors=_descriptors(),
    )


def traces_in_the_end(folder: Path | None, before: Traces) -> Traces:
    """What there is when it is as before; else what there is after a while.

    What ends by itself may take long on a busy machine: a server of this process notices a moment
    later that its client has left. What is left behind stays.
    """
    deadline = time.monotonic() + PATIENCE
    while not (now := traces(folder)).is_as(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return now


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
    for pid in _descendants(os.getpid()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # multiprocessing keeps a resource tracker and a fork server for as long as this process.
        if b"resource_tracker" not in command and b"forkserver" not in command:
            found.append(command.decode(errors="replace") or f"zombie {pid}")
    return found


def _descendants(pid: int) -> Iterator[int]:
    """The children of a process, and theirs. Much cheaper than a list of all processes."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
        for child in map(int, children):
            yield child
            yield from _descendants(child)


def _descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
        found.append(f"{number} {target}")
    return sorted(found)
