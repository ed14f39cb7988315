"""The application of one worker: /v2/ goes to the registry, everything else to operations.

When the server stops it (the lifespan's end), whatever flights this process leads are handed over:
servers may end a process by a signal that leaves no time for that later.
"""

from __future__ import annotations

import asyncio

from shmstream import liveness
from shmstream.asgi import Receive, Scope, Send
from shmstream.registry.app import Registry
from shmstream.registry.operations import Operations
from shmstream.registry.settings import Settings
from shmstream.store import Store


class Application:
    """An ASGI application; one for each process."""

    def __init__(self, settings: Settings) -> None:
        """Raises:
        StoreUnusable: the store's folder is not fit for one.
        """
        self.store = Store(
            settings.store, max_bytes=settings.max_bytes, max_flights=settings.max_flights
        )
        self.operations = Operations(settings, self.store)
        self.registry = Registry(settings, self.store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._dispatch(scope, receive, send)
        else:
            raise ValueError(f"this application speaks HTTP only, not {scope['type']}")

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/v2" or path.startswith("/v2/"):
            await self.registry(scope, receive, send)
        else:
            await self.operations(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.registry.close()
        await asyncio.to_thread(liveness.close_all)
        await send({"type": "lifespan.shutdown.complete"})
