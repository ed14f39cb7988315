"""Processes that read one file, each an interpreter of its own that has imported all it needs."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import fsspec

from bench.caches.ways import FAMILIES, Order
from bench.closing import Closing
from bench.report import MIB, CheckFailed

_PATIENCE = 300.0  # s


@dataclass(frozen=True)
class Trip:
    """What one process had: seconds until its first line and its last byte, and whether all was
    right. `error` is how it failed, or nothing.
    """

    first: float
    last: float
    is_right: bool
    error: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether it had other bytes, and was not told."""
        return not self.is_right and not self.error


def read(pipe: Connection, family: str, way: str, order: Order) -> None:
    """Say that this process is ready; at the word read the file, and send the `Trip`.

    It leads a group of processes, so that programs which it starts are killed with it.
    """
    os.setpgid(0, 0)
    opened = FAMILIES[family][way].open
    fsspec.filesystem("http")
    pipe.send(None)
    pipe.recv()
    began = time.monotonic()
    first = error = None
    hashed = hashlib.sha256()
    try:
        with opened(order) as file:
            hashed.update(file.readline())
            first = time.monotonic()
            while data := file.read(MIB):
                hashed.update(data)
    except Exception as failure:  # noqa: BLE001  it is what this way gives
        error = f"{type(failure).__name__}: {failure}"
    last = time.monotonic()
    right = error is None and hashed.hexdigest() == order.name
    pipe.send(Trip((first or last) - began, last - began, right, error or ""))


class Readers(Closing):
    """So many processes that are ready to read."""

    def __init__(self, count: int, family: str, way: str, order: Order) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bench.caches.ways"])
        self._processes = []
        self._pipes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=read, args=(theirs, family, way, order))
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        for pipe in self._pipes:
            self._hear(pipe)

    def go(self, which: Sequence[int]) -> None:
        """Let these begin."""
        for index in which:
            self._pipes[index].send(None)

    def kill(self, index: int) -> None:
        """Kill a process and what it has started, as the kernel does with a container."""
        process = self._processes[index]
        if process.pid is not None and process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()

    def trips(self, which: Sequence[int]) -> list[Trip]:
        """What these had, when they are done."""
        return [self._hear(self._pipes[index]) for index in which]

    def _hear(self, pipe: Connection) -> Any:
        if not wait([pipe], _PATIENCE):
            raise CheckFailed(f"a process said nothing for {_PATIENCE:g} s")
        try:
            return pipe.recv()
        except EOFError:
            raise CheckFailed("a process ended, and printed why") from None

    def close(self) -> None:
        """End all. Idempotent."""
        for pipe in self._pipes:
            pipe.close()
        for index, process in enumerate(self._processes):
            process.join(2)
            with suppress(ProcessLookupError):  # it has ended just now
                self.kill(index)
        self._processes.clear()
        self._pipes.clear()
