"""Prefetch: the flights of an image's layers begin when its manifest is asked for.

A client asks for them a moment later anyway, and finds them on their way. There is a bound to how
many of them this process has begun and not yet seen complete; what has no place then is left to
the client.
"""

from __future__ import annotations

import asyncio
import logging

from shmstream.errors import ShmstreamError
from shmstream.registry.upstream.repository import RepositorySource
from shmstream.store import Store

_log = logging.getLogger("shmstream")


class Prefetch:
    """At most `limit` flights at one time, begun in advance."""

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""
        return len(self._tasks) < self._limit

    def begin(self, digest: str, source: RepositorySource) -> None:
        """Begin the flight of `digest`, unless it is here, or has begun."""
        if digest not in self._store and not self._store.is_in_flight(digest):
            task = asyncio.ensure_future(self._follow(digest, source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(self, digest: str, source: RepositorySource) -> None:
        try:
            async with self._store.aopen(digest, source) as blob:
                await blob.wait()
        except ShmstreamError as error:  # whoever asks for it will be told
            _log.info("%s: begun in advance, and failed: %s", digest, str(error))

    def close(self) -> None:
        """Follow them no longer, and begin no more; the flights go on."""
        self._limit = 0
        for task in self._tasks:
            task.cancel()
