"""The wake-up, from bytes published to a reader that has them, against a bare semaphore ping.

ours    a writer appends 64 bytes and publishes them at once; the clock runs from the publish (the
        block's `progress`, stored just before the rings), and in a second figure from the call of
        `append`, until the `readinto` of a waiting reader has returned
raw     one process posts a POSIX semaphore, the clock runs from just before that until the
        `acquire` of a waiting process has returned
least   the least that also brings bytes: one process writes 64 bytes to a file, and from here the
        clock runs; it stores their end in shared memory and posts, the other wakes, loads that, and
        has read them with `preadv`
in C    the ping and the least once more, by a program in C (in_c.c): what is left of ours beside
        the least in C is Python's and ours, and the rest is the machine's

All but that in C are done by the same two processes, in blocks of 100 by turns, so that whatever
else the machine does meets all alike; those in C follow in each round. Between samples the writer
sleeps for 1 to 2 ms, so the reader is asleep, and so is its processor.

Where the kernel wakes the reader decides what this measures, so it is measured twice: left to the
kernel, and with a processor for each. Left to itself, a kernel (that of the virtual machine where
this was written does, nine times in ten) may wake the reader on the writer's own processor though
another sleeps. Then a ping is a mere switch of some 5 us, after 1 to 2 ms in which the caches went
cold, and every further line of Python, on either side, is paid for in cache misses: `least` shows
how much of that there must be. With a processor each, the reader's is woken by an interrupt, which
takes 25 to 50 us.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from functools import partial

import posix_ipc

from bench.crew import Crew, Gate, shared_words
from bench.report import CheckFailed, Goal, Options, Row, progress, quantile
from bench.stream import in_c
from shmstream import BlobStreamer, InFlightCopier

_PIECE = 64  # bytes
_BLOCK = 100  # samples
_SHARES = {"p50": 0.5, "p99": 0.99}


Latencies = dict[str, list[float]]  # where the clock began, or which program in C -> us


@dataclass(frozen=True)
class Stamps:
    """When, in ns, by the host's monotonic clock; a process fills in what it sees."""

    called: list[int]
    published: list[int]
    pinged: list[int]
    least: list[int]


def measure(options: Options) -> list[Row]:
    """Rows for p50 and p99, from the publish, from the append, of the least; both placements."""
    placements = {"": False}
    if len(os.sched_getaffinity(0)) > 1:
        placements[", a core each"] = True
    rows = []
    program = in_c.find(options.folder)
    for placement, pin in placements.items():
        processors = sorted(os.sched_getaffinity(0))[:2] if pin else ()
        with Crew(2, pin=pin) as crew:
            rounds = []
            for turn in range(options.rounds):
                progress(f"wake-up{placement}, round {turn + 1} of {options.rounds}")
                latencies = _round(crew, options)
                if program is not None:
                    samples = len(latencies["pinged"])
                    latencies["pinged in C"], latencies["least in C"] = program.wake(
                        samples, processors
                    )
                rounds.append(latencies)
        rows += _rows(rounds, placement)
    return rows


def _rows(rounds: list[Latencies], placement: str) -> list[Row]:
    rows = []
    cases = [
        ("published -> read", "published", "pinged", Goal(1.5, at_least=False)),
        ("append called -> read", "called", "pinged", None),
        ("least: ping, load, preadv", "least", "pinged", None),
    ]
    if "least in C" in rounds[0]:
        cases += [
            ("published -> read / the least in C", "published", "least in C", None),
            ("least / the least in C", "least", "least in C", None),
            ("ping / the ping in C", "pinged", "pinged in C", None),
        ]
    for case, one, other, goal in cases:
        for label, share in _SHARES.items():
            ours = [quantile(each[one], share) for each in rounds]
            raw = [quantile(each[other], share) for each in rounds]
            row = Row.of_rounds(
                section="wake-up",
                case=f"{case}, {label}{placement}",
                unit="us",
                ours=ours,
                raw=raw,
                goal=goal,
                notes={"samples a round": len(rounds[0]["pinged"])},
            )
            rows.append(row)
    return rows


def _round(crew: Crew, options: Options) -> Latencies:
    blocks = 2 if options.quick else 21
    name = f"bench-{os.getpid()}"
    path = options.folder / "pings"
    plain = options.folder / "plain"
    plain.write_bytes(bytes(8))  # a word, then the bytes of `least`
    semaphore = posix_ipc.Semaphore(f"/{name}", posix_ipc.O_CREX, mode=0o600)
    try:
        write = partial(publish_and_ping, str(path), str(plain), name, blocks)
        wrote, read = crew.run([write, partial(read_and_pong, str(plain), name, blocks)])
    finally:
        semaphore.unlink()
        semaphore.close()
    path.unlink()
    plain.unlink()
    latencies: Latencies = {}
    ends = {
        "called": read.published,
        "published": read.published,
        "pinged": read.pinged,
        "least": read.least,
    }
    for start, end in ends.items():
        began: list[int] = getattr(wrote, start)
        taken = [(b - a) / 1e3 for a, b in zip(began, end, strict=True)]
        if min(taken) < 0:
            raise CheckFailed("a reader had bytes before they were published")
        # the first of a block may find its reader not yet asleep
        latencies[start] = [each for index, each in enumerate(taken) if index % _BLOCK]
    return latencies


def publish_and_ping(path: str, plain: str, name: str, blocks: int, gate: Gate) -> Stamps:
    """The writer: `blocks` blocks of each kind."""
    stamps = Stamps([], [], [], [])
    words = shared_words(plain)
    fd = os.open(plain, os.O_WRONLY | os.O_APPEND)
    end = 8
    data = os.urandom(_PIECE)
    semaphore = posix_ipc.Semaphore(f"/{name}")
    with BlobStreamer.create(path, name=name, publish_interval=0) as streamer:
        gate()
        for _ in range(blocks):
            for _ in range(_BLOCK):
                time.sleep(random.uniform(0.001, 0.002))
                if len(stamps.called) > len(stamps.published):
                    stamps.published.append(streamer._block.progress)
                stamps.called.append(time.monotonic_ns())
                streamer.append(data)
            time.sleep(0.001)
            stamps.published.append(streamer._block.progress)
            for _ in range(_BLOCK):
                time.sleep(random.uniform(0.001, 0.002))
                stamps.pinged.append(time.monotonic_ns())
                semaphore.release()
            for _ in range(_BLOCK):
                time.sleep(random.uniform(0.001, 0.002))
                end += os.write(fd, data)
                stamps.least.append(time.monotonic_ns())
                words[0] = end
                semaphore.release()
        streamer.commit()
    os.close(fd)
    semaphore.close()
    return stamps


def read_and_pong(plain: str, name: str, blocks: int, gate: Gate) -> Stamps:
    """The reader: one piece, or one ping, at a time."""
    stamps = Stamps([], [], [], [])
    words = shared_words(plain)
    fd = os.open(plain, os.O_RDONLY)
    position = 8
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
            for _ in range(_BLOCK):
                semaphore.acquire()
                os.preadv(fd, [memoryview(buffer)[: words[0] - position]], position)
                stamps.least.append(time.monotonic_ns())
                position += _PIECE
        if copier.position != blocks * _BLOCK * _PIECE:
            raise CheckFailed(f"{copier.position} bytes are not one piece for each read")
    os.close(fd)
    semaphore.close()
    return stamps
