"""The flights of a store: a list of them as they are now, and a watch that tells their rates.

flights    lists the streams of this host that bring blobs into the store
Watch      looks at the flights again and again, and so knows the rate of each; `shmstream top` and
           the status page of the registry use it
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from shmstream.storage.layout import Layout
from shmstream.stream import segment
from shmstream.stream.control_block import TERMINAL, State
from shmstream.stream.stream import Stream
from shmstream.stream.subscribers import Subscriber, present
from shmstream.system.process import Identity

_WINDOW = 5.0  # s; a rate is the mean of the last seconds


@dataclass(frozen=True)
class FlightInfo:
    """One flight on this host; sizes in bytes. `leader` is None while no process leads it."""

    key: str | None
    stream: str
    path: str
    state: State
    size: int | None
    published: int
    epoch: int
    leader: Identity | None
    followers: tuple[Subscriber, ...]


def flights(layout: Layout) -> list[FlightInfo]:
    """The streams that bring blobs into this store."""
    return [
        FlightInfo(
            key=layout.key_of(stream.path),
            stream=stream.name,
            path=stream.path,
            state=stream.state,
            size=stream.size,
            published=stream.block.published,
            epoch=stream.block.epoch,
            leader=None if stream.is_orphaned() else stream.writer,
            followers=tuple(present(stream.block, stream.lock)),
        )
        for stream in streams()
        if layout.has(stream.path)
    ]


def streams(among: Iterable[str] | None = None) -> Iterator[Stream]:
    """The streams of this user on this host. Each is closed when the next is asked for.

    `among`: a listing that the caller has; else this lists the shared memory of the host.

    Raises:
        OutOfResources: descriptors or memory have run out.
    """
    for name in segment.names(among):
        if (stream := Stream.find(name)) is not None:
            with stream:
                yield stream


@dataclass(frozen=True)
class Sight:
    """A flight at one look. `rate` (bytes/s) and `eta` (s) are None while they are not known."""

    flight: FlightInfo
    rate: float | None
    eta: float | None


class Watch:
    """Looks at the flights of a store, and remembers enough to tell their rates.

    For one thread at a time.
    """

    def __init__(self, flights: Callable[[], list[FlightInfo]]) -> None:
        """`flights` returns all flights as they are now, as `Store.flights` does."""
        self._flights = flights
        self._seen: dict[str, deque[tuple[float, int]]] = {}  # stream -> (time, published)

    def look(self) -> list[Sight]:
        """All flights as they are now."""
        now = time.monotonic()
        flights = self._flights()
        self._seen = {each.stream: self._seen.get(each.stream, deque()) for each in flights}
        return [self._sight(each, now) for each in flights]

    def _sight(self, flight: FlightInfo, now: float) -> Sight:
        seen = self._seen[flight.stream]
        if seen and seen[-1][1] > flight.published:  # another flight has its name now
            seen.clear()
        seen.append((now, flight.published))
        while len(seen) > 2 and now - seen[0][0] > _WINDOW:
            seen.popleft()
        before, published = seen[0]
        if now <= before:
            return Sight(flight, None, None)
        rate = (flight.published - published) / (now - before)
        eta = None
        if rate > 0 and flight.size is not None:
            eta = (flight.size - flight.published) / rate
        return Sight(flight, rate, eta)


def state_of(flight: FlightInfo) -> str:
    """`opening`, `streaming`, `committed` or `aborted`; `orphaned` while no process leads it."""
    if flight.leader is None and flight.state not in TERMINAL:
        return "orphaned"
    return flight.state.name.lower()


def followers_of(flight: FlightInfo) -> list[Subscriber]:
    """The readers in all processes but the leader's."""
    return [each for each in flight.followers if each.identity != flight.leader]
