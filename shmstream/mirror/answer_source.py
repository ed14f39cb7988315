"""`AnswerSource`: the source of a flight whose first answer is there already.

The mirror has asked for the content, to learn its head. The first opening at 0 takes the body of
that answer, so the origin is asked once. If it breaks off, and in a process that takes over, the
source asks by itself for the rest, with `Range` and `If-Range` (`sources/http`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from shmstream.mirror.origin import Origin, OriginSource
from shmstream.sources.base import Description, Feed, checked, public
from shmstream.sources.http_body import Body
from shmstream.sources.http_client import Reply, discard


class AnswerSource:
    """The content of `url`; see `Source`. `close` drops the answer that was not used."""

    def __init__(
        self,
        origin: Origin,
        key: str,
        url: str,
        headers: Mapping[str, str],
        reply: Reply | None = None,
    ) -> None:
        """`key`: of the flight that it is for. `headers` go to the origin.

        `reply`: the answer that is there; its status is 200.
        """
        self._origin = origin
        self._key = key
        plain = {name: value for name, value in headers.items() if name != "accept-encoding"}
        self._later = OriginSource(origin, key, url, plain)
        self._lock = threading.Lock()
        self._reply = reply
        self.name: str = public(url)
        self.identity: str = self._later.identity
        self.connections: int | None = self._later.connections

    def __repr__(self) -> str:
        return f"AnswerSource({self.name!r})"

    def _take(self) -> Reply | None:
        with self._lock:
            reply, self._reply = self._reply, None
        return reply

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Begin at `offset`; see `Source.open`."""
        reply = self._take()
        if reply is None:
            return self._later.open(offset, validator)
        if offset:
            discard(reply.response)
            return self._later.open(offset, validator)
        return self._feed(reply)

    def open_part(self, offset: int, end: int, validator: str | None = None) -> Feed:
        """`open` for the bytes before `end` alone."""
        self.close()
        return self._later.open_part(offset, end, validator)

    def describe(self) -> Description:
        """What a HEAD tells."""
        return self._later.describe()

    def _feed(self, reply: Reply) -> Feed:
        response = reply.response
        size, validator, media_type = self._later.told(response)
        client = self._origin.client
        body = Body(response, 0, client.patience.silence, client.explain)
        data = checked(iter(body), 0, size, client.explain)
        self._origin.gives(self._key)
        by_kernel = body if size is not None and body.length == size else None
        return Feed(data, 0, size, validator, media_type, body.close, by_kernel)

    def close(self) -> None:
        """Drop the answer if no flight has taken it. Idempotent."""
        if (reply := self._take()) is not None:
            discard(reply.response)
