"""`Share`: how the flights of this process share the connections to one server.

It counts where nobody has said how many connections a blob may come over. One large blob then comes
over 8. Many servers bear no more from one client, so several large blobs have no more together:

    flights of large blobs from that server    1    2    3    4    5 and more
    connections of each                        8    4    2    2    1

A flight counts until it ends. Its share may shrink while it goes on: then its connections bring the
pieces that they have begun, and claim no others until there are few enough.
"""

from __future__ import annotations

from shmstream.sources.base import Source
from shmstream.system.process import PerProcess

MOST = 8  # connections


class Share:
    """The share of one flight in the connections to the server of `source`. Any thread uses it."""

    def __init__(self, source: Source) -> None:
        self._server = "/".join(source.name.split("/", 3)[:3])
        with _flights.lock:
            _flights.value.setdefault(self._server, set()).add(self)

    @property
    def connections(self) -> int:
        """How many connections the flight may have just now."""
        with _flights.lock:
            return max(MOST // max(len(_flights.value.get(self._server, ())), 1), 1)

    def leave(self) -> None:
        """The flight ends: the others have more. Idempotent."""
        with _flights.lock:
            flights = _flights.value.get(self._server, set())
            flights.discard(self)
            if not flights:
                _flights.value.pop(self._server, None)


_flights: PerProcess[dict[str, set[Share]]] = PerProcess(dict)  # by their server
