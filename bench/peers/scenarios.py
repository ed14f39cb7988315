"""What is measured, as data: how many clients ask for how many blobs, when, and of which origin.

Faults are in faults.py. A quick version of each is the same with less of everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.report import KIB, MIB


@dataclass(frozen=True)
class Scenario:
    """Clients and blobs.

    Attributes:
        name: for commands and files.
        title: for people.
        size: of each blob, in bytes.
        rate: bytes a second that the origin gives to each connection; 0: as fast as it can.
        blobs: how many there are.
        clients: how many ask for each blob.
        apart: seconds between one client and the next; 0: all at once.
        connections: that all the asks are dealt to, to follow one another; None: one for each.
        is_warm: whether the proxy has all blobs before.
        has_ways: whether Python processes do the same without a proxy, for comparison.
        is_of_requests: whether CPU is told for 1,000 requests, and not for a GiB served.
        beside: names of peers that are measured here beside the usual ones.
        only: names of peers, if not all of the usual ones are measured.
        is_profiled: whether one more round tells what the CPU time is spent on.
    """

    name: str
    title: str
    size: int
    rate: int = 0
    blobs: int = 1
    clients: int = 1
    apart: float = 0.0
    connections: int | None = None
    is_warm: bool = False
    has_ways: bool = False
    is_of_requests: bool = False
    beside: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    is_profiled: bool = True

    def quick(self) -> Scenario:
        """Less of everything; what it measures means nothing."""
        return replace(
            self,
            size=max(self.size // 16, 4 * KIB),
            blobs=max(self.blobs // 16, 1),
            clients=max(self.clients // 4, 1),
            apart=self.apart / 4,
            connections=self.connections and self.connections // 4,
        )


_RATE = 16 * MIB
_LIMITS = ("shmstream-name", "raw")  # what hashing costs, and what no server can save
SCENARIOS = (
    Scenario(
        "staggered",
        "16 clients, one each 0.2 s, want the same 64 MiB from an origin of 16 MiB/s",
        size=64 * MIB,
        rate=_RATE,
        clients=16,
        apart=0.2,
        has_ways=True,
        beside=_LIMITS,
    ),
    Scenario(
        "burst",
        "32 clients at once want the same 64 MiB from an origin of 16 MiB/s",
        size=64 * MIB,
        rate=_RATE,
        clients=32,
        has_ways=True,
        beside=_LIMITS,
    ),
    Scenario(
        "fast",
        "8 clients at once want the same 512 MiB from an origin as fast as it can",
        size=512 * MIB,
        clients=8,
        has_ways=True,
        beside=_LIMITS,
    ),
    Scenario(
        "many",
        "64 blobs of 8 MiB, 4 clients each, all at once, the origin gives each 4 MiB/s",
        size=8 * MIB,
        rate=4 * MIB,
        blobs=64,
        clients=4,
        beside=_LIMITS,
    ),
    Scenario(
        "hits",
        "16 clients at once want a complete blob of 64 MiB, each twice",
        size=64 * MIB,
        clients=32,
        connections=16,
        is_warm=True,
        beside=("shmstream-nginx",),
    ),
    Scenario(
        "hits-small",
        "16 clients want 8,000 times one of 64 complete blobs of 64 KiB",
        size=64 * KIB,
        blobs=64,
        clients=125,
        connections=16,
        is_warm=True,
        is_of_requests=True,
        beside=("shmstream-nginx",),
    ),
    Scenario(
        "small",
        "16 clients want 2,000 different blobs of 4 KiB that nobody has yet",
        size=4 * KIB,
        blobs=2000,
        connections=16,
        is_of_requests=True,
        beside=("floor",),
    ),
)

STREAMED = ("staggered", "burst", "fast", "many")
"""Those in which the clients get blobs that are still being downloaded."""

GROWTH = (1, 4, 16, 64)
"""How many clients, and how many flights."""

FEW_PEERS = ("shmstream", "nginx-slice", "varnish")
"""Ours, and the two that stream at least cost."""


def clients(count: int) -> Scenario:
    """So many clients of one flight."""
    return Scenario(
        f"clients-{count}",
        f"{count} clients, all within a second, want the same 16 MiB from an origin of 8 MiB/s",
        size=16 * MIB,
        rate=8 * MIB,
        clients=count,
        apart=1 / count,
        only=FEW_PEERS,
        is_profiled=count == GROWTH[-1],
    )


def flights(count: int) -> Scenario:
    """So many flights at the same time."""
    return Scenario(
        f"flights-{count}",
        f"2 clients each want {count} blobs of 4 MiB, all at once, the origin gives each 2 MiB/s",
        size=4 * MIB,
        rate=2 * MIB,
        blobs=count,
        clients=2,
        only=FEW_PEERS,
        is_profiled=count == GROWTH[-1],
    )


GROWING = {"clients": clients, "flights": flights}
"""What grows."""
