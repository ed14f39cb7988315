"""A leader is killed at a random moment: how long its followers wait for the next bytes.

Eight followers read a blob at 64 MiB/s from a leader in a process of its own, which SIGKILL ends
somewhere in the first nine tenths of the time that all of it takes. A follower's pause is the
longest time in which it got nothing, from its first byte to the end of the blob; it contains what
the origin itself pauses (16 ms, see origin.py), the takeover, and at the end the verification. The
longest of all followers counts. Flights that were over before the kill are flown again.

What every follower read is hashed after the clock; the origin is never asked for what any follower
had; and nothing is left behind. That the origin sends more than the blob's size is the dead
leader's doing: what it had received, or what lay in its socket, and was not published.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from statistics import median

from bench.crew import Crew, Gate
from bench.flight import ways
from bench.flight.charts import Pictures
from bench.origin import Origin
from bench.report import MIB, CheckFailed, Goal, Options, Row, progress, quantile
from shmstream import Role, Store

_PIECE = 1 << 20
_PATIENCE = 10.0  # s
_TRIES = 5
_LONGEST = 0.5  # s


@dataclass(frozen=True)
class Reading:
    """What one follower had, when: the monotonic clock at each read, and the bytes by then."""

    times: list[float]
    counts: list[int]
    digest: str

    @property
    def pause(self) -> float:
        """The longest time without bytes, in seconds."""
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))

    def pause_at(self, moment: float) -> float:
        """The time without bytes that contains the moment, 0 if it had them all by then."""
        index = bisect_right(self.times, moment)
        return self.times[index] - self.times[index - 1] if 0 < index < len(self.times) else 0.0

    def count_at(self, moment: float) -> int:
        """Bytes that it had by then."""
        index = bisect_right(self.times, moment)
        return self.counts[index - 1] if index else 0


@dataclass(frozen=True)
class Kill:
    """One kill: when, what came of it, and what the origin sent beyond the blob's size."""

    moment: float
    readings: list[Reading]
    excess: int


def measure(options: Options, origin: Origin, pictures: Pictures, kills: int) -> list[Row]:
    """The distribution of the pauses, and what the origin sent twice."""
    many = 4 if options.quick else 8
    size, rate = (8 * MIB, 16 * MIB) if options.quick else (64 * MIB, 64 * MIB)
    folder = ways.prepare(options.folder, "takeover")
    key = f"sha256:{origin.make('taken', size)}"
    order = ways.Order(origin.url("taken", rate), key, "")
    chance = random.Random(1)
    done = []
    with Crew(many, pin=options.pin) as crew:
        for number in range(kills):
            if number % 10 == 0:
                progress(f"takeover, kill {number + 1} of {kills}")
            for attempt in range(_TRIES):
                where = ways.prepare(folder, f"{number}-{attempt}")
                delay = chance.uniform(0, 0.9 * size / rate)
                flight = ways.Order(order.url, key, str(where))
                kill = _fly(crew, many, origin, flight, size, delay)
                shutil.rmtree(where)
                if kill is not None:
                    done.append(kill)
                    break
            else:
                raise CheckFailed(f"the flight was over before the kill, {_TRIES} times")
    pauses = [max(reading.pause for reading in kill.readings) * 1e3 for kill in done]
    at_kill = [
        max(reading.pause_at(kill.moment) for reading in kill.readings) * 1e3 for kill in done
    ]
    pictures.kills = len(done)
    pictures.pauses = [reading.pause * 1e3 for kill in done for reading in kill.readings]
    case = f"{len(done)} kills, {many} followers: longest pause of any"
    notes = {"around the kill itself, longest": max(at_kill), "median": median(at_kill)}
    goal = Goal(_LONGEST * 1e3, at_least=False, of_ratio=False)
    return [
        Row("takeover", f"{case}, longest", "ms", max(pauses), goal=goal, notes=notes),
        Row("takeover", f"{case}, p90", "ms", quantile(pauses, 0.9)),
        Row("takeover", f"{case}, median", "ms", median(pauses)),
        Row(
            section="takeover",
            case="what the origin sent twice, at most",
            unit="MiB",
            ours=max(kill.excess for kill in done) / MIB,
            notes={"median": median(kill.excess for kill in done) / MIB},
        ),
    ]


def _fly(
    crew: Crew, many: int, origin: Origin, order: ways.Order, size: int, delay: float
) -> Kill | None:
    """One flight whose leader is killed `delay` seconds after its followers began; None: too late.

    Raises:
        CheckFailed: somebody got wrong bytes, or the origin was asked for too much.
    """
    origin.begin()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    leader = context.Process(target=lead, args=(theirs, order), daemon=True)
    leader.start()
    theirs.close()
    killed: list[float] = []

    def kill() -> None:
        os.kill(leader.pid or 0, signal.SIGKILL)
        killed.append(time.monotonic())

    killer = threading.Timer(delay, kill)
    try:
        if not ours.poll(_PATIENCE) or ours.recv() != Role.LEADS:
            raise CheckFailed("the leader does not lead")
        jobs = [partial(follow, order, size) for _ in range(many)]
        readings = crew.run(jobs, killer.start)
    finally:
        killer.cancel()
        leader.kill()
        leader.join()
        leader.close()
        ours.close()
    store = Store(order.folder, durable=False)
    ways.settle(store, tidy=True)
    requests = sorted(origin.transfers(), key=lambda request: request.start)
    if not killed or min(reading.times[-1] for reading in readings) < killed[0]:
        return None
    if any(f"sha256:{reading.digest}" != order.key for reading in readings):
        raise CheckFailed("a follower got wrong bytes")
    had = max(reading.count_at(killed[0]) for reading in readings)
    if any(request.start < had for request in requests[1:]):
        raise CheckFailed(f"the origin was asked again for what a follower had ({had} bytes)")
    if findings := store.check(verify=False):
        raise CheckFailed(f"something is left: {findings}")
    return Kill(killed[0], readings, sum(request.bytes for request in requests) - size)


def lead(pipe: Connection, order: ways.Order) -> None:
    """The process that leads, until it is killed."""
    with Store(order.folder, durable=False).open(order.key, order.url) as blob:
        pipe.send(blob.role)
        blob.wait()
        pipe.recv_bytes()  # an end of file: the killer came too late


def follow(order: ways.Order, size: int, gate: Gate) -> Reading:
    """A follower, which may have to lead."""
    logging.disable(logging.WARNING)  # that somebody took over is what this is about
    store = Store(order.folder, durable=False)
    data = bytearray(size)
    data[::4096] = bytes(len(data[::4096]))  # so that its memory is there
    gate()
    times, counts, count = [time.monotonic()], [0], 0
    with store.open(order.key, order.url) as blob, memoryview(data) as view:
        while got := blob.readinto(view[count : count + _PIECE]):
            count += got
            times.append(time.monotonic())
            counts.append(count)
        times.append(time.monotonic())
        counts.append(count)
    return Reading(times, counts, hashlib.sha256(data[:count]).hexdigest())
