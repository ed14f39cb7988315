"""The peak memory of a reader, of a small blob and of a large one: it must not grow with the blob.

Each reader is a fresh interpreter and reads a blob while it is being written, in one of three ways:
`readinto`, iteration, `copy` to /dev/null. The peak is the kernel's own record (`VmHWM`), which
unlike `ru_maxrss` begins anew with the program.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.crew import Crew, Gate
from bench.report import GIB, KIB, MIB, CheckFailed, Goal, Options, Row, progress
from shmstream import BlobStreamer, InFlightCopier

_PIECE = MIB


def _by_readinto(copier: InFlightCopier) -> int:
    buffer = bytearray(128 * KIB)
    total = 0
    while count := copier.readinto1(buffer):
        total += count
    return total


def _by_iteration(copier: InFlightCopier) -> int:
    return sum(len(data) for data in copier)


def _by_copy(copier: InFlightCopier) -> int:
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        return copier.copy(nowhere)


_WAYS: dict[str, Callable[[InFlightCopier], int]] = {
    "readinto": _by_readinto,
    "iteration": _by_iteration,
    "copy": _by_copy,
}


def measure(options: Options) -> list[Row]:
    """One row for each way of reading: by how much the large blob's peak is higher."""
    small, large = 16 * MIB, (256 * MIB if options.quick else 4 * GIB)
    peaks: dict[int, list[int]] = {}
    for size in (small, large):
        progress(f"memory, a blob of {size // MIB} MiB")
        path = options.folder / "large"
        name = f"bench-{os.getpid()}"
        with Crew(1 + len(_WAYS)) as crew:
            read = [partial(read_all, name, size, way) for way in _WAYS]
            _, *peaks[size] = crew.run([partial(write_all, str(path), name, size), *read])
        path.unlink()
    return [
        Row(
            section="memory",
            case=f"{way}: peak of {large // MIB} MiB less of {small // MIB} MiB",
            unit="MiB",
            ours=(peaks[large][index] - peaks[small][index]) / MIB,
            goal=Goal(2, at_least=False, of_ratio=False),
            notes={
                f"peak of {size // MIB} MiB blob, MiB": peaks[size][index] / MIB
                for size in (small, large)
            },
        )
        for index, way in enumerate(_WAYS)
    ]


def write_all(path: str, name: str, size: int, gate: Gate) -> int:
    """The writer."""
    data = os.urandom(_PIECE)
    with BlobStreamer.create(path, name=name, size=size) as streamer:
        gate()
        for _ in range(size // _PIECE):
            streamer.append(data)
        streamer.commit()
    return 0


def read_all(name: str, size: int, way: str, gate: Gate) -> int:
    """A reader: its peak in bytes."""
    with InFlightCopier.attach(name) as copier:
        gate()
        total = _WAYS[way](copier)
    if total != size:
        raise CheckFailed(f"{way} gave {total} of {size} bytes")
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    raise CheckFailed("this kernel does not tell VmHWM")
