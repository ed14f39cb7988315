"""Joining and leaving a live stream: attach, subscribe and detach, against the bare system calls.

ours    `InFlightCopier.attach` and `close`, while the writer, in another process, appends 4 KiB
        every 10 ms, alone with it or beside 100 other subscribers in a third process
raw     opening and mapping the same segment and opening the same file, making and opening a
        semaphore, and giving all of it back

One of each by turns, in one process.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import posix_ipc

from bench.crew import Crew, Gate
from bench.report import KIB, Goal, Options, Row, progress, quantile
from shmstream import BlobStreamer, InFlightCopier
from shmstream.stream import segment
from shmstream.stream.partial import partial_path

_OTHERS = (0, 100)

Times = list[tuple[int, int]]  # ns of ours and of raw


def measure(options: Options) -> list[Row]:
    """Rows for the median and p99, alone and beside others."""
    samples = 50 if options.quick else 500
    rows = []
    with Crew(3, pin=options.pin) as crew:
        for others in _OTHERS:
            progress(f"joining, {others} other subscribers")
            rounds = [_round(crew, options, others, samples) for _ in range(options.rounds)]
            for label, share in (("median", 0.5), ("p99", 0.99)):
                ours = [quantile([a / 1e6 for a, _ in each], share) for each in rounds]
                raw = [quantile([b / 1e6 for _, b in each], share) for each in rounds]
                row = Row.of_rounds(
                    section="attach+detach",
                    case=f"beside {others} subscribers, {label}",
                    unit="ms",
                    ours=ours,
                    raw=raw,
                    goal=Goal(1, at_least=False, of_ratio=False) if share == 0.5 else None,
                    notes={"samples a round": samples},
                )
                rows.append(row)
    return rows


def _round(crew: Crew, options: Options, others: int, samples: int) -> Times:
    path = options.folder / "live"
    name = f"bench-{os.getpid()}"
    jobs = [
        partial(write_slowly, str(path), name),
        partial(stay, name, others),
        partial(come_and_go, str(path), name, samples),
    ]
    *_, times = crew.run(jobs)
    path.unlink()
    return times


def write_slowly(path: str, name: str, gate: Gate) -> Times:
    """The writer: appends until the others have done."""
    done = threading.Event()
    with BlobStreamer.create(path, name=name) as streamer:

        def append() -> None:
            while not done.wait(0.01):
                streamer.append(bytes(4 * KIB))

        appending = threading.Thread(target=append)
        gate()
        appending.start()
        gate()
        done.set()
        appending.join()
        streamer.commit()
    return []


def stay(name: str, count: int, gate: Gate) -> Times:
    """The other subscribers: there, and not reading."""
    with ExitStack() as there:
        for _ in range(count):
            there.enter_context(InFlightCopier.attach(name))
        gate()
        gate()
    return []


def come_and_go(path: str, name: str, samples: int, gate: Gate) -> Times:
    """The newcomer: nanoseconds of each visit, ours and raw."""
    with InFlightCopier.attach(name):  # wait for the writer, and warm up
        pass
    gate()
    times = []
    for _ in range(samples):
        began = time.monotonic_ns()
        InFlightCopier.attach(name).close()
        between = time.monotonic_ns()
        _bare_visit(segment.path_of(name), partial_path(path), f"/{name}-visit")
        times.append((between - began, time.monotonic_ns() - between))
    gate()
    return times


def _bare_visit(shared: str, path: str, bell: str) -> None:
    with Path(shared).open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        semaphore = posix_ipc.Semaphore(bell, posix_ipc.O_CREX, mode=0o600)
        semaphore.unlink()
        semaphore.close()
        os.close(fd)
