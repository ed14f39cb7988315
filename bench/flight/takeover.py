"""A leader is killed at a random moment: how long its followers wait for the next bytes.

Eight followers read a blob at 32 MiB/s. SIGKILL ends the process that leads somewhere in the first
seven tenths of the time that all of it takes. A follower's pause is the longest time in which it
got nothing, from the kill to the last chunk, which waits for all bytes to be verified; the longest
of all followers counts. Flights that were over before the kill are flown again.

    library    `Store.open`, each follower in a process of its own
    asyncio    `Store.aopen`, likewise
    registry   clients of `shmstream serve` with four workers; the worker that leads is killed, so a
               part of the followers are also clients of the killed worker

Some flights are calm: nothing is killed, and the moment counts from which it would have been. Their
pauses are those of the origin, which sends 64 KiB every 2 ms, of this machine, and of the leader,
which publishes every 2 ms here, and in the registry every 4 MiB or 200 ms. What a kill adds is the
difference between the two medians, or the two other quantiles. In the registry, where the regular
pauses are longer than a takeover, a kill can hide in one of them.

What every follower read is hashed after the clock; the origin is never asked for what any follower
had; and nothing is left behind. That the origin sends more than the blob's size is the dead
leader's doing: what it had received, or what lay in its socket, and was not published.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import threading
import time
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from bench.closing import Closing
from bench.crew import Crew, Gate, Job
from bench.flight import ways
from bench.flight.charts import Pictures
from bench.origin import Origin
from bench.registry import Registry, publish
from bench.report import KIB, MIB, CheckFailed, Goal, Options, Row, progress, quantile
from bench.server import Port
from shmstream import Role, Store

_PIECE = 1 << 20
_PATIENCE = 60.0  # s
_TRIES = 20
_SIZE, _RATE = 16 * MIB, 32 * MIB
_WITHHELD = MIB  # the last chunk, which waits for the verification
_CALM = 5  # kills for each calm flight
_WORKERS = 4
_BOUNDS = {"median": (0.5, 10), "p99": (0.99, 25)}  # ms; what a kill may add


@dataclass(frozen=True)
class Reading:
    """What one follower had, when: the monotonic clock at each read, and the bytes by then."""

    times: list[float]
    counts: list[int]
    digest: str

    def pause_from(self, moment: float) -> float:
        """The longest time without bytes from that moment to the withheld chunk, in seconds."""
        gaps = zip(self.times, self.times[1:], self.counts[1:], strict=False)
        return max(
            (
                end - max(begin, moment)
                for begin, end, count in gaps
                if end > moment and count <= _SIZE - _WITHHELD
            ),
            default=0.0,
        )

    def count_at(self, moment: float) -> int:
        """Bytes that it had by then."""
        index = bisect_right(self.times, moment)
        return self.counts[index - 1] if index else 0


@dataclass(frozen=True)
class Flown:
    """One flight: the moment of the kill, or of none; the followers; what the origin sent twice."""

    moment: float
    readings: list[Reading]
    excess: int

    @property
    def pause(self) -> float:
        """The longest one of any follower, in ms."""
        return max(each.pause_from(self.moment) for each in self.readings) * 1e3


def measure(options: Options, origin: Origin, pictures: Pictures, kills: int) -> list[Row]:
    """The distribution of the pauses, and what the origin sent twice."""
    many = 4 if options.quick else 8
    folder = ways.prepare(options.folder, "takeover")
    rows = []
    with Crew(many, pin=options.pin) as crew:
        for kind in (_Library, _Asyncio, _Registry):
            with kind(folder, origin, crew, many) as way:
                rows += _measure(way, kills, many, pictures)
    return rows


def _measure(way: _Way, kills: int, many: int, pictures: Pictures) -> list[Row]:
    chance = random.Random(1)
    killed: list[Flown] = []
    calm: list[Flown] = []
    for number in range(kills):
        if number % 10 == 0:
            progress(f"takeover, {way.name}, kill {number + 1} of {kills}")
        killed.append(_fly(way, chance, kills=True))
        if number % _CALM == 0:
            calm.append(_fly(way, chance, kills=False))
    if way.name == "library":
        pictures.kills = len(killed)
        pictures.pauses = [
            each.pause_from(flown.moment) * 1e3 for flown in killed for each in flown.readings
        ]
    ours, raw = [each.pause for each in killed], [each.pause for each in calm]
    case = f"{way.name}, {kills} kills, {many} followers"
    rows = []
    for name, (share, bound) in _BOUNDS.items():
        of_all, of_calm = quantile(ours, share), quantile(raw, share)
        goal = Goal(bound, at_least=False, of_ratio=False)
        notes = {"with a kill": of_all, "calm": of_calm}
        rows += [
            Row("takeover", f"{case}: pause, {name}", "ms", of_all, of_calm),
            Row("takeover", f"{way.name}: what the kill adds, {name}", "ms", of_all - of_calm,
                goal=goal, notes=notes),
        ]  # fmt: skip
    rows.append(Row("takeover", f"{case}: longest pause", "ms", max(ours), max(raw)))
    twice = max(each.excess for each in killed) / MIB
    rows.append(Row("takeover", f"{way.name}: what the origin sent twice, at most", "MiB", twice))
    return rows


def _fly(way: _Way, chance: random.Random, *, kills: bool) -> Flown:
    """One flight, whose leader is killed at a random moment if `kills`.

    Raises:
        CheckFailed: a follower got wrong bytes, or the origin was asked for too much.
    """
    for _ in range(_TRIES):
        if (flown := _try(way, chance.uniform(0, 0.7 * _SIZE / _RATE), kills)) is not None:
            return flown
    raise CheckFailed(f"the flight was over before the kill, {_TRIES} times")


def _try(way: _Way, delay: float, kills: bool) -> Flown | None:
    """As `_fly`; None if the kill came too late."""
    moments: list[float] = []
    errors: list[Exception] = []

    def strike() -> None:
        try:
            if kills:
                os.kill(way.leader(), signal.SIGKILL)
            moments.append(time.monotonic())
        except (ProcessLookupError, CheckFailed) as error:  # the flight is over
            errors.append(error)

    way.origin.begin()
    killer = threading.Timer(delay, strike)
    try:
        way.begin()
        readings = way.crew.run(way.jobs(), killer.start)
    finally:
        killer.cancel()
        way.end()
    killer.join()
    sent = [each for each in way.origin.transfers() if each.bytes]  # no HEAD
    requests = sorted(sent, key=lambda request: request.start)
    if any(f"sha256:{reading.digest}" != way.key for reading in readings):
        raise CheckFailed("a follower got wrong bytes")
    if errors or not moments or min(each.times[-1] for each in readings) < moments[0]:
        return None
    had = max(reading.count_at(moments[0]) for reading in readings)
    if any(request.start < had for request in requests[1:]):
        asked = ", ".join(f"{each.range or 'all'} ({each.bytes} bytes)" for each in requests)
        raise CheckFailed(f"a follower had {had} bytes, and the origin was asked for {asked}")
    return Flown(moments[0], readings, sum(request.bytes for request in requests) - _SIZE)


class _Way(Closing):
    """How processes of one host share a download: `begin`, then run the jobs, then `end`."""

    name: str

    def __init__(self, folder: Path, origin: Origin, crew: Crew, many: int) -> None:
        self.origin = origin
        self.crew = crew
        self._folder = ways.prepare(folder, self.name)
        self._many = many
        path = publish(origin, f"taken-{self.name}", _SIZE, f"bench/{self.name}")
        self._path = path
        self.key = path.rpartition("/")[2]

    @abstractmethod
    def begin(self) -> None:
        """Prepare a flight."""

    @abstractmethod
    def jobs(self) -> Sequence[Job[Reading]]:
        """What the followers do."""

    @abstractmethod
    def leader(self) -> int:
        """The process that leads. Raises `CheckFailed` if there is none."""

    @abstractmethod
    def end(self) -> None:
        """Clear up after a flight; see that nothing is left."""

    def close(self) -> None:
        """Close what the way holds open: nothing, unless a subclass says so."""


class _Library(_Way):
    """A process leads, others open the same key."""

    name = "library"

    def __init__(self, folder: Path, origin: Origin, crew: Crew, many: int) -> None:
        super().__init__(folder, origin, crew, many)
        self._url = origin.url(self._path[1:], _RATE, finely=True)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._flights = 0
        self._leader: ForkServerProcess | None = None
        self._pipe: Connection | None = None

    def begin(self) -> None:
        """Have a process lead."""
        self._flights += 1
        ours, theirs = self._context.Pipe()
        leader = self._context.Process(target=lead, args=(theirs, self._order()), daemon=True)
        leader.start()
        theirs.close()
        self._leader, self._pipe = leader, ours
        if not ours.poll(_PATIENCE) or ours.recv() != Role.LEADS:
            raise CheckFailed("the leader does not lead")

    def _order(self) -> ways.Order:
        return ways.Order(self._url, self.key, str(self._folder / str(self._flights)))

    def jobs(self) -> Sequence[Job[Reading]]:
        """All follow."""
        return [partial(follow, self._order(), _SIZE) for _ in range(self._many)]

    def leader(self) -> int:
        """The process that leads first."""
        assert self._leader is not None
        return self._leader.pid or 0

    def end(self) -> None:
        """End the leader."""
        assert self._leader is not None
        assert self._pipe is not None
        self._leader.kill()
        self._leader.join()
        self._leader.close()
        self._pipe.close()
        store = _open(self._order().folder)
        ways.settle(store, tidy=True)
        if findings := store.check(verify=False):
            raise CheckFailed(f"something is left: {findings}")
        shutil.rmtree(self._order().folder)


class _Asyncio(_Library):
    """The followers are tasks."""

    name = "asyncio"

    def jobs(self) -> Sequence[Job[Reading]]:
        """All follow."""
        return [partial(follow_in_a_task, self._order(), _SIZE) for _ in range(self._many)]


class _Registry(_Way):
    """The worker that leads is killed."""

    name = "registry"

    def __init__(self, folder: Path, origin: Origin, crew: Crew, many: int) -> None:
        super().__init__(folder, origin, crew, many)
        self._port = Port()
        url = origin.url("", _RATE, finely=True)
        self._server = Registry(self._folder, url, self._port, "--workers", str(_WORKERS))
        self._store = Store(self._server.store)

    def begin(self) -> None:
        """Wait for all workers."""
        self._server.wait_for(_WORKERS, _PATIENCE)

    def jobs(self) -> Sequence[Job[Reading]]:
        """All are clients."""
        return [partial(ask, self._port.number, self._path, _SIZE) for _ in range(self._many)]

    def leader(self) -> int:
        """The worker that leads."""
        for flight in self._store.flights():
            if flight.leader is not None:
                return flight.leader.pid
        raise CheckFailed("the flight is over")

    def end(self) -> None:
        """Have the next client begin a flight again."""
        ways.settle(self._store, tidy=True)
        self._store.remove(self.key)

    def close(self) -> None:
        """End the registry."""
        self._server.close()
        self._port.close()


def _open(folder: str) -> Store:
    return Store(
        folder, durable=False, publish_bytes=64 * KIB, publish_interval=0.002, connections=1
    )


def lead(pipe: Connection, order: ways.Order) -> None:
    """The process that leads, until it is killed."""
    with _open(order.folder).open(order.key, order.url) as blob:
        pipe.send(blob.role)
        blob.wait()
        pipe.recv_bytes()  # an end of file: the killer came too late


class _Notes:
    """The buffer of a follower, and how many bytes it had at which time."""

    def __init__(self, size: int) -> None:
        self._data = bytearray(size)
        self._data[::4096] = bytes(len(self._data[::4096]))  # so that its memory is there
        self.view = memoryview(self._data)
        self.times: list[float] = []
        self.counts: list[int] = []
        self.count = 0

    def note(self, count: int) -> None:
        """More bytes have come."""
        self.count += count
        self.times.append(time.monotonic())
        self.counts.append(self.count)

    def reading(self, first: int = 0) -> Reading:
        """All of it; what is before `first` is no part of the blob."""
        counts = [max(each - first, 0) for each in self.counts]
        digest = hashlib.sha256(self.view[first : self.count]).hexdigest()
        return Reading(self.times, counts, digest)


def follow(order: ways.Order, size: int, gate: Gate) -> Reading:
    """A follower, which may have to lead."""
    logging.disable(logging.WARNING)  # that another process took over is what this is about
    store = _open(order.folder)
    notes = _Notes(size)
    gate()
    notes.note(0)
    with store.open(order.key, order.url) as blob:
        while got := blob.readinto1(notes.view[notes.count : notes.count + _PIECE]):
            notes.note(got)
    notes.note(0)
    return notes.reading()


def follow_in_a_task(order: ways.Order, size: int, gate: Gate) -> Reading:
    """The same in asyncio."""
    logging.disable(logging.WARNING)
    store = _open(order.folder)
    notes = _Notes(size)

    async def main() -> None:
        notes.note(0)
        async with store.aopen(order.key, order.url) as blob:
            while piece := await blob.read1(_PIECE):
                notes.view[notes.count : notes.count + len(piece)] = piece
                notes.note(len(piece))
        notes.note(0)

    gate()
    asyncio.run(main())
    return notes.reading()


def ask(port: int, path: str, size: int, gate: Gate) -> Reading:
    """A client of the registry."""
    notes = _Notes(size + 64 * KIB)
    with socket.create_connection(("127.0.0.1", port), _PATIENCE) as connection:
        gate()
        notes.note(0)
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode()
        )
        while got := connection.recv_into(notes.view[notes.count : notes.count + _PIECE]):
            notes.note(got)
        notes.note(0)
    return notes.reading(bytes(notes.view[: 16 * KIB]).find(b"\r\n\r\n") + 4)
