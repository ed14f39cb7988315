"""`Processes`: what the parent and the workers of a server use: processor time, memory, files.

A worker that is asked looks at its siblings, too: the children of its parent that are workers. It
knows them by their names, because a forked worker has the command line of its parent. A process
that runs without a parent of ours, in another server, looks at itself alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

_NAME = "shmstream-w"  # the kernel cuts a name off after 15 characters


def name_worker(number: str) -> None:
    """Name this process, a worker, so that `ps` and other workers can tell what it is."""
    with suppress(OSError):  # it counts for nothing then
        Path("/proc/self/comm").write_text(f"{_NAME}{number}")


def is_worker(process: psutil.Process) -> bool:
    """Whether this process is a worker, and has nothing of its parent any more.

    Raises:
        psutil.Error: it has ended.
    """
    return bool(process.name().startswith(_NAME))


class Processes:
    """Looks at the processes of this server. One thread at a time."""

    def __init__(self) -> None:
        self._is_worker = "SHMSTREAM_WORKER" in os.environ

    def look(self) -> dict[str, dict[tuple[str, ...], float]]:
        """By metric and by label `process`, the sums."""
        found: dict[str, dict[tuple[str, ...], float]] = {
            "shmstream_process_cpu_seconds_total": {},
            "shmstream_process_resident_memory_bytes": {},
            "shmstream_process_open_fds": {},
        }
        cpu, memory, files = found.values()
        for label, process in self._all():
            try:
                with process.oneshot():
                    times, used = process.cpu_times(), process.memory_info().rss
                    count = process.num_fds()
            except psutil.Error:  # it has just ended
                continue
            cpu[label,] = cpu.get((label,), 0.0) + times.user + times.system
            memory[label,] = memory.get((label,), 0.0) + used
            files[label,] = files.get((label,), 0.0) + count
        return found

    def _all(self) -> list[tuple[str, psutil.Process]]:
        me = psutil.Process()
        parent = me.parent() if self._is_worker else None
        if parent is None:
            return [("workers", me)]
        found = [("parent", parent)]
        for each in parent.children():
            try:
                if is_worker(each):
                    found.append(("workers", each))
            except psutil.Error:  # it has just ended
                continue
        return found
