"""Throughput of one writer and N readers, against as many processes that do not coordinate.

ours    a writer appends the blob in pieces, N readers `readinto` 128 KiB until the end
raw     a writer `os.write`s the same pieces to a new file, N readers `os.preadv` a file of the same
        bytes that has been complete all along, into the same 128 KiB

Raw is a limit, not a rival: its readers never wait for a byte, so they spread evenly over all the
time the writer takes, and with one reader the clock measures the writer alone. Ours cannot be
faster except by the cache: its readers read what has just been written. Raw's file was written in
pieces of the same size, since the kernel keeps a file in folios that depend on it, and reading
large ones is cheaper.

The clock runs from the gate until the last process is done, in both; files are opened, and copiers
attached, before it. Nothing is synced while it runs, and no blob lives long enough to be written
back, so that the disk stays out of it. Before the clock ever runs, a round is read through SHA-256
by every reader, with each piece numbered.

The rest of the machine is watched: what other processes and the hypervisor take during a round is
what the kernel counts as busy less what our own processes used. A pair of rounds of which they took
more than a twentieth of the processors is measured again, as a pair, twice at most and as long as
no more than as many pairs again were; whether it is depends on nothing but that.

The memory is the same in both, too. A virtual machine may give back to its host what has lain free
for two seconds (free page reporting), and such a page costs ten times as much to write to when it
is used again: 2.2 s a GiB instead of 0.2 where this was found. So the blob of the round before is
unlinked only as the gate opens, and its pages go straight into the next; and rounds begin at least
2.5 s apart, so that the host's collector, woken by that unlink, finds nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.crew import Crew, Gate, Job
from bench.report import KIB, MIB, CheckFailed, Goal, Options, Row, busy_seconds, progress
from shmstream import BlobStreamer, InFlightCopier

READERS = (1, 4, 8)
PIECES = {4 * KIB: 0.6, 64 * KIB: 0.95, MIB: 0.95}  # bytes of an append -> goal
_BUFFER = 128 * KIB
_APART = 2.5  # s
_DISTURBED = 0.05  # of all processors, taken by others
_TRIES = 3


@dataclass(frozen=True)
class Part:
    """What one process did in a round: its clock in ns, its bytes, and their digest if verified."""

    began: int
    ended: int
    cpu: int
    count: int
    digest: str = ""


@dataclass(frozen=True)
class Round:
    """What a round took, in seconds: all of it, its writer, its slowest reader, and CPU time.

    `others` is the share of the processors that other programs on the machine took.
    """

    wall: float
    writing: float
    reading: float
    cpu: float
    others: float


def measure(options: Options) -> list[Row]:
    """One row for each size of piece and number of readers."""
    rows = []
    with Crew(1 + max(READERS), pin=options.pin) as crew:
        for piece, bound in PIECES.items():
            bench = _Bench(crew, options, piece)
            with_raw: dict[int, list[tuple[Round, Round]]] = {each: [] for each in READERS}
            for readers in READERS:
                bench.verify(readers)
            for turn in range(options.rounds):
                progress(f"throughput, {piece // KIB} KiB, round {turn + 1} of {options.rounds}")
                for readers in READERS:
                    with_raw[readers].append(bench.pair(readers, ours_first=turn % 2 == 0))
            bench.close()
            for readers, rounds in with_raw.items():
                rows.append(_row(options.size, piece, readers, rounds, bound))
    return rows


def _row(
    size: int, piece: int, readers: int, rounds: list[tuple[Round, Round]], bound: float
) -> Row:
    volume = readers * size / MIB
    notes = {}
    for which, label in enumerate(("ours", "raw")):
        for fact in ("wall", "writing", "reading", "cpu", "others"):
            unit = "share" if fact == "others" else "s"
            notes[f"{label} {fact} {unit}"] = median(getattr(each[which], fact) for each in rounds)
    return Row.of_rounds(
        section="throughput",
        case=f"{piece // KIB} KiB, {readers} reader{'s' * (readers > 1)}",
        unit="MiB/s",
        ours=[volume / ours.wall for ours, _ in rounds],
        raw=[volume / raw.wall for _, raw in rounds],
        goal=Goal(bound, at_least=True),
        notes=notes,
    )


class _Bench:
    """Everything for one size of piece; `close` removes the file that raw reads."""

    def __init__(self, crew: Crew, options: Options, piece: int) -> None:
        self._crew = crew
        self._size = options.size
        self._piece = piece
        self._complete = options.folder / "complete"
        self._folder = options.folder
        self._last: Path | None = None
        self._number = 0
        self._again = 0 if options.quick else options.rounds * len(READERS)
        self._apart = 0.0 if options.quick else _APART
        self._opened = 0.0
        self._busy = 0.0
        with self._complete.open("wb", buffering=0) as file:
            _write_pieces(file.fileno(), self._size, piece)
            os.fsync(file.fileno())  # else the kernel does it while the clock runs

    def close(self) -> None:
        self._complete.unlink()
        self._unlink_last()

    def _unlink_last(self) -> None:
        if self._last is not None:
            self._last.unlink()
            self._last = None

    def _run(self, jobs: Callable[[str], list[Job[Part]]]) -> list[Part]:
        """Run the `jobs` that write a new blob at the path they are given."""

        def before() -> None:
            time.sleep(max(self._opened + self._apart - time.monotonic(), 0))
            self._unlink_last()
            self._opened = time.monotonic()
            self._busy = busy_seconds()

        self._number += 1
        path = self._folder / f"blob-{self._number}"
        parts = self._crew.run(jobs(str(path)), before)
        self._busy = busy_seconds() - self._busy
        self._last = path
        return parts

    def pair(self, readers: int, *, ours_first: bool) -> tuple[Round, Round]:
        """One round of ours and one of raw, next to each other, in quiet if that can be had."""
        pairs: list[tuple[Round, Round]] = []
        while len(pairs) < _TRIES:
            if ours_first:
                ours, raw = self._ours(readers), self._raw(readers)
            else:
                raw, ours = self._raw(readers), self._ours(readers)
            pairs.append((ours, raw))
            if max(ours.others, raw.others) <= _DISTURBED or self._again == 0:
                break
            self._again -= 1
        return min(pairs, key=lambda pair: max(pair[0].others, pair[1].others))

    def verify(self, readers: int) -> None:
        """A round that is not timed: every reader reads the very bytes that were written."""
        parts = self._stream(readers, verify=True)
        if {each.digest for each in parts} != {parts[0].digest}:
            raise CheckFailed(f"of {readers} readers, some read other bytes than were written")
        self._raw(readers)

    def _ours(self, readers: int) -> Round:
        return self._round(self._stream(readers, verify=False))

    def _stream(self, readers: int, *, verify: bool) -> list[Part]:
        name = f"bench-{os.getpid()}"
        read = partial(read_ours, name, verify)

        def jobs(path: str) -> list[Job[Part]]:
            write = partial(write_ours, path, name, self._size, self._piece, verify)
            return [write, *[read] * readers]

        return self._run(jobs)

    def _raw(self, readers: int) -> Round:
        read = partial(read_raw, str(self._complete))

        def jobs(path: str) -> list[Job[Part]]:
            return [partial(write_raw, path, self._size, self._piece), *[read] * readers]

        return self._round(self._run(jobs))

    def _round(self, parts: list[Part]) -> Round:
        if any(each.count != self._size for each in parts):
            raise CheckFailed(f"of {self._size} bytes only {min(each.count for each in parts)}")
        began = min(each.began for each in parts)
        ends = [each.ended - began for each in parts]
        wall, writing, reading = max(ends) / 1e9, ends[0] / 1e9, max(ends[1:]) / 1e9
        cpu = sum(each.cpu for each in parts) / 1e9
        others = (self._busy - cpu) / wall / len(os.sched_getaffinity(0))
        return Round(wall, writing, reading, cpu, max(others, 0.0))


# What the processes do.


def write_ours(path: str, name: str, size: int, piece: int, verify: bool, gate: Gate) -> Part:
    """Stream a blob of `size` bytes; with `verify`, number its pieces and tell the digest."""
    data = bytearray(os.urandom(piece))
    digest = hashlib.sha256()
    with BlobStreamer.create(path, name=name, size=size, chunk_size=piece) as streamer:
        gate()
        began, cpu = time.monotonic_ns(), time.process_time_ns()
        for number in range(size // piece):
            if verify:
                data[:8] = number.to_bytes(8, "little")
                digest.update(data)
            streamer.append(data)
        streamer.commit()
        ended, cpu = time.monotonic_ns(), time.process_time_ns() - cpu
    return Part(began, ended, cpu, size, digest.hexdigest() if verify else "")


def read_ours(name: str, verify: bool, gate: Gate) -> Part:
    """Read the blob to its end."""
    buffer = bytearray(_BUFFER)
    total = 0
    digest = hashlib.sha256()
    with InFlightCopier.attach(name) as copier:
        gate()
        began, cpu = time.monotonic_ns(), time.process_time_ns()
        while count := copier.readinto1(buffer):
            total += count
            if verify:
                digest.update(memoryview(buffer)[:count])
        ended, cpu = time.monotonic_ns(), time.process_time_ns() - cpu
    return Part(began, ended, cpu, total, digest.hexdigest() if verify else "")


def write_raw(path: str, size: int, piece: int, gate: Gate) -> Part:
    """Write a file of `size` bytes."""
    with Path(path).open("xb", buffering=0) as file:
        fd = file.fileno()
        gate()
        began, cpu = time.monotonic_ns(), time.process_time_ns()
        total = _write_pieces(fd, size, piece)
        ended, cpu = time.monotonic_ns(), time.process_time_ns() - cpu
    return Part(began, ended, cpu, total)


def _write_pieces(fd: int, size: int, piece: int) -> int:
    data = bytearray(os.urandom(piece))
    total = 0
    for _ in range(size // piece):
        total += os.write(fd, data)
    return total


def read_raw(path: str, gate: Gate) -> Part:
    """Read a complete file to its end."""
    buffer = bytearray(_BUFFER)
    buffers = [buffer]
    total = 0
    with Path(path).open("rb", buffering=0) as file:
        fd = file.fileno()
        gate()
        began, cpu = time.monotonic_ns(), time.process_time_ns()
        while count := os.preadv(fd, buffers, total):
            total += count
        ended, cpu = time.monotonic_ns(), time.process_time_ns() - cpu
    return Part(began, ended, cpu, total)
