"""Prefetch: the flights of an image's layers begin when its manifest is asked for.

The client asks for the layers a moment later, and then joins their flights. This process follows at
most `limit` such flights at one time. The flights of further layers begin when the client asks.
"""

from __future__ import annotations

import asyncio
import logging

from shmstream.asgi.statuses import as_ours
from shmstream.errors import ShmstreamError
from shmstream.registry.upstream.repository import RepositorySource
from shmstream.store import Store

_log = logging.getLogger("shmstream")


class Prefetch:
    """Begins flights in advance, at most `limit` at one time."""

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""
        return len(self._tasks) < self._limit

    def begin(self, digest: str, source: RepositorySource) -> None:
        """Begin the flight of `digest`, unless the blob is complete or in flight."""
        if digest not in self._store and not self._store.is_in_flight(digest):
            task = asyncio.ensure_future(self._follow(digest, source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(self, digest: str, source: RepositorySource) -> None:
        try:
            async with self._store.aopen(digest, source) as blob:
                await blob.wait()
        except (ShmstreamError, OSError, MemoryError, RuntimeError) as error:
            if as_ours(error, digest) is None:
                raise
            # A client that asks for it gets the error.
            _log.info("%s: begun in advance, and failed: %s", digest, str(error))

    def close(self) -> None:
        """Stop following the flights, which go on, and begin no more."""
        self._limit = 0
        for task in self._tasks:
            task.cancel()
