"""The wake-up, from bytes published to a reader that has them, against a bare semaphore ping.

ours    a writer appends 64 bytes and publishes them at once; the clock runs from the publish (the
        block's `progress`, stored just before the rings), and in a second figure from the call of
        `append`, until the `readinto` of a waiting reader has returned
raw     one process posts a POSIX semaphore, the clock runs from just before that until the
        `acquire` of a waiting process has returned

Both are done by the same two processes, in blocks of 100 by turns, so that whatever else the
machine does meets both alike. Between samples the writer sleeps for 1 to 2 ms, so the reader is
asleep, and so is its processor.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from functools import partial
from statistics import median

import posix_ipc
from crew import Crew, Gate
from report import CheckFailed, Goal, Options, Row, progress, quantile

from shmstream import BlobStreamer, InFlightCopier

_PIECE = 64  # bytes
_BLOCK = 100  # samples
_SHARES = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True)
class Stamps:
    """When, in ns, by the host's monotonic clock; a process fills in what it sees."""

    called: list[int]
    published: list[int]
    pinged: list[int]


def measure(options: Options) -> list[Row]:
    """Rows for p50 and p99, from the publish and from the append."""
    blocks = 2 if options.quick else 20
    rounds: list[dict[str, list[float]]] = []
    with Crew(2, pin=options.pin) as crew:
        for turn in range(options.rounds):
            progress(f"wake-up, round {turn + 1} of {options.rounds}")
            rounds.append(_round(crew, options, blocks))
    rows = []
    for start, goal in (("published", Goal(1.5, at_least=False)), ("called", None)):
        for label, share in _SHARES.items():
            ours = [quantile(each[start], share) for each in rounds]
            raw = [quantile(each["pinged"], share) for each in rounds]
            begin = "append called" if start == "called" else "published"
            row = Row(
                section="wake-up",
                case=f"{begin} -> read, {label}",
                unit="us",
                ours=median(ours),
                raw=median(raw),
                ratios=[a / b for a, b in zip(ours, raw, strict=True)],
                goal=goal,
                notes={"samples a round": len(rounds[0]["pinged"])},
            )
            rows.append(row)
    return rows


def _round(crew: Crew, options: Options, blocks: int) -> dict[str, list[float]]:
    """Latencies in microseconds of one round, by where the clock began."""
    name = f"bench-{os.getpid()}"
    path = options.folder / "pings"
    semaphore = posix_ipc.Semaphore(f"/{name}", posix_ipc.O_CREX, mode=0o600)
    try:
        write = partial(publish_and_ping, str(path), name, blocks)
        wrote, read = crew.run([write, partial(read_and_pong, name, blocks)])
    finally:
        semaphore.unlink()
        semaphore.close()
    path.unlink()
    latencies: dict[str, list[float]] = {}
    ends = {"called": read.published, "published": read.published, "pinged": read.pinged}
    for start, end in ends.items():
        began: list[int] = getattr(wrote, start)
        taken = [(b - a) / 1e3 for a, b in zip(began, end, strict=True)]
        if min(taken) < 0:
            raise CheckFailed("a reader had bytes before they were published")
        # the first of a block may find its reader not yet asleep
        latencies[start] = [each for index, each in enumerate(taken) if index % _BLOCK]
    return latencies


def publish_and_ping(path: str, name: str, blocks: int, gate: Gate) -> Stamps:
    """The writer: `blocks` blocks of each kind."""
    stamps = Stamps([], [], [])
    data = os.urandom(_PIECE)
    semaphore = posix_ipc.Semaphore(f"/{name}")
    with BlobStreamer.create(path, name=name, publish_interval=0) as streamer:
        gate()
        for _ in range(blocks):
            for _ in range(_BLOCK):
                time.sleep(random.uniform(0.001, 0.002))
                stamps.called.append(time.monotonic_ns())
                streamer.append(data)
                stamps.published.append(streamer._block.progress)
            for _ in range(_BLOCK):
                time.sleep(random.uniform(0.001, 0.002))
                stamps.pinged.append(time.monotonic_ns())
                semaphore.release()
        streamer.commit()
    semaphore.close()
    return stamps


def read_and_pong(name: str, blocks: int, gate: Gate) -> Stamps:
    """The reader: one piece, or one ping, at a time."""
    stamps = Stamps([], [], [])
    buffer = bytearray(_PIECE)
    semaphore = posix_ipc.Semaphore(f"/{name}")
    with InFlightCopier.attach(name) as copier:
        gate()
        for _ in range(blocks):
            for _ in range(_BLOCK):
                copier.readinto(buffer)
                stamps.published.append(time.monotonic_ns())
            for _ in range(_BLOCK):
                semaphore.acquire()
                stamps.pinged.append(time.monotonic_ns())
        if copier.position != blocks * _BLOCK * _PIECE:
            raise CheckFailed(f"{copier.position} bytes are not one piece for each read")
    semaphore.close()
    return stamps
