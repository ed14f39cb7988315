"""`Watch`: looks at the flights of a store again and again, and knows from that how fast they are.

For `shmstream top` and for the status page of the registry.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from shmstream.audit import FlightInfo
from shmstream.control import TERMINAL
from shmstream.store import Store
from shmstream.subscribers import Subscriber

_WINDOW = 5.0  # s; the time over which a rate is taken


@dataclass(frozen=True)
class Sight:
    """A flight as it was seen: `rate` in bytes/s and `eta` in s, None while they are not known."""

    flight: FlightInfo
    rate: float | None
    eta: float | None


class Watch:
    """Looks at the flights of a store, and remembers enough to tell their rates."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._seen: dict[str, deque[tuple[float, int]]] = {}  # stream -> when, how much

    def look(self) -> list[Sight]:
        """All flights as they are now."""
        now = time.monotonic()
        flights = self.store.flights()
        self._seen = {each.stream: self._seen.get(each.stream, deque()) for each in flights}
        return [self._sight(each, now) for each in flights]

    def _sight(self, flight: FlightInfo, now: float) -> Sight:
        seen = self._seen[flight.stream]
        if seen and seen[-1][1] > flight.published:  # it ended, and another has its name
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
    """`opening`, `streaming`, `committed`, `aborted`; or `orphaned`: nobody leads it just now."""
    if flight.leader is None and flight.state not in TERMINAL:
        return "orphaned"
    return flight.state.name.lower()


def followers_of(flight: FlightInfo) -> list[Subscriber]:
    """Who reads, in other processes than the one that leads."""
    return [each for each in flight.followers if each.identity != flight.leader]
