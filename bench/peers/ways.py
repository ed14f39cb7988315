"""What Python users do today, without a server: every process gets the blob by itself.

The processes read what they get and throw it away, so their CPU has in it what a proxy's clients
do; what a proxy costs comes on top of that. Most of this is bench/flight/ways.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import diskcache
import urllib3

import bench.flight.ways as flight_ways
from bench.crew import Crew, Gate
from bench.flight.ways import Log, Order, Trip
from bench.peers.measure import Sample, Stage
from bench.peers.origin import Blob
from bench.peers.scenarios import Scenario
from bench.report import CheckFailed


def cached(order: Order, gate: Gate) -> Trip:
    """diskcache: the holder of its lock downloads into the cache, the others ask for the lock.

    They ask every millisecond, each time in a transaction of SQLite.
    """
    with diskcache.Cache(order.folder) as cache:
        gate()
        log = Log(order)
        with diskcache.Lock(cache, "lock"):
            file = cache.get("blob", read=True)
            if file is None:
                with urllib3.request("GET", order.url, preload_content=False) as answer:
                    cache.set("blob", answer, read=True)
                file = cache.get("blob", read=True)
        with file:
            flight_ways.drink(file, log)
        return log.end()


@dataclass(frozen=True)
class Way:
    """How each of many processes gets the same blob."""

    name: str
    title: str
    job: Callable[[Order, Gate], Trip]


WAYS = (
    Way("library", "shmstream as a library", flight_ways.ours),
    Way("each", "each process for itself (urllib3)", flight_ways.each),
    Way("filelock", "filelock around a download", flight_ways.lock),
    Way("diskcache", "diskcache, and wait", cached),
)


def go(stage: Stage, crew: Crew, way: Way, scenario: Scenario, blob: Blob, turn: int) -> Sample:
    """As many processes as the scenario has clients go that way. Turn 0 hashes.

    Raises:
        CheckFailed: one did not get every byte, or got a wrong one.
    """
    folder = stage.place()
    folder.mkdir(mode=0o700)
    origin = stage.origin
    first = Order(
        url=f"http://127.0.0.1:{origin.port}{blob.path(scenario.rate)}",
        key=f"sha256:{blob.name}",
        folder=str(folder),
        verify=turn == 0,
    )
    orders = [replace(first, delay=index * scenario.apart) for index in range(scenario.clients)]
    try:
        origin.begin()
        origin_cpu = origin.cpu()
        trips = crew.run([partial(way.job, order) for order in orders])
        lines = origin.requests()
        origin_cpu = origin.cpu() - origin_cpu
    finally:
        shutil.rmtree(folder)
    if any(trip.count != blob.size for trip in trips):
        raise CheckFailed(f"{way.name}: a process did not get all bytes")
    waits = [trip.first - trip.began for trip in trips]
    return Sample(
        scenario=scenario.name,
        peer=way.name,
        turn=turn,
        cpu=sum(trip.cpu for trip in trips),
        wall=max(trip.last for trip in trips) - min(trip.began for trip in trips),
        first=waits[0],
        late=median(waits[1:]) if waits[1:] else None,
        worst=max(waits[1:], default=None),
        requests=len(trips),
        served=sum(trip.count for trip in trips),
        gets=len(lines),
        sent=sum(line.sent for line in lines),
        origin_cpu=origin_cpu,
    )
