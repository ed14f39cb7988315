"""The ways in which processes read one file through fsspec, each process an interpreter of its own.

    shmstream    `shmstream::`
    filecache    `filecache::`: the whole file, noted in an index when it is complete
    simplecache  `simplecache::`: the whole file, without an index
    blockcache   `blockcache::`: the blocks that are read, in a sparse file

All caches have their defaults but for the folder, which all processes of a run share. A process
reads the first line, then the rest, and hashes all of it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import fsspec

from bench.closing import Closing
from bench.report import MIB, CheckFailed
from shmstream.filesystem import ShmstreamFileSystem

WAYS = ("shmstream", "filecache", "simplecache", "blockcache")
_PATIENCE = 300.0  # s


@dataclass(frozen=True)
class Trip:
    """What one process had: seconds until its first line and its last byte, and whether all was
    right. `error` is how reading failed, or nothing.
    """

    first: float
    last: float
    is_right: bool
    error: str = ""


def options(way: str, folder: Path) -> dict[str, Any]:
    """What fsspec is given with the URL."""
    name = "store" if way == "shmstream" else "cache_storage"
    return {way: {name: str(folder)}}


def read(pipe: Connection, way: str, url: str, folder: Path, digest: str) -> None:
    """Say that this process is ready; at the word read the file, and send the `Trip`."""
    fsspec.register_implementation("shmstream", ShmstreamFileSystem, clobber=True)
    fsspec.filesystem("http")
    pipe.send(None)
    pipe.recv()
    began = time.monotonic()
    first = error = None
    hashed = hashlib.sha256()
    try:
        with fsspec.open(f"{way}::{url}", "rb", **options(way, folder)) as file:
            hashed.update(file.readline())
            first = time.monotonic()
            while data := file.read(MIB):
                hashed.update(data)
    except Exception as failure:  # noqa: BLE001  it is what this way gives
        error = f"{type(failure).__name__}: {failure}"
    last = time.monotonic()
    right = error is None and hashed.hexdigest() == digest
    pipe.send(Trip((first or last) - began, last - began, right, error or ""))


class Readers(Closing):
    """So many processes that are ready to read."""

    def __init__(self, count: int, way: str, url: str, folder: Path, digest: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = []
        self._pipes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=read, args=(theirs, way, url, folder, digest))
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
        """As the kernel does when memory runs out."""
        self._processes[index].kill()
        self._processes[index].join()

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
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
            process.join()
        self._processes.clear()
        self._pipes.clear()
