"""`Server`: uvicorn, for one worker among several. Needs the extra `serve`.

It takes its share of the connections (`acceptor`). At its end it takes those that wait, then closes
its end of the listening socket, and turns away no client that has just come: uvicorn closes
connections without a request as soon as it stops.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial

import uvicorn

from shmstream.asgi.protocol import Protocol
from shmstream.registry.application import Application
from shmstream.registry.server.acceptor import Acceptor, Counts
from shmstream.registry.settings import Settings

_LAST_REQUESTS = 0.5  # s; in which a connection that was just taken has its request here
_UNASKED = 2  # connections for each that `max_connections` allows; those beyond it get a 503
_FEW = 64  # connections; as many are taken in any case


def configuration(settings: Settings, app: Application) -> uvicorn.Config:
    """How uvicorn serves `app`; loaded.

    Raises:
        OSError: the certificate or its key cannot be read or used.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=round(settings.grace),
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
    )
    config.load()
    return config


class Server(uvicorn.Server):
    """Serves `app` to the connections of `listener`, which other workers accept from, too."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: Application,
        listener: socket.socket,
        counts: Counts,
        grace: float,
    ) -> None:
        """`grace`: seconds in which clients may finish when the server stops."""
        super().__init__(config)
        self._app = app
        self._listener = listener
        self._counts = counts
        self._grace = grace
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Begin to take connections; uvicorn itself takes none."""
        await super().startup(sockets=[])
        begin = partial(
            Protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        connections = self.server_state.connections
        most = _UNASKED * (self.config.limit_concurrency or 0) + _FEW
        self._acceptor = Acceptor(
            self._listener, begin, self.config.ssl, connections, self._counts, most
        )

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: tell the other workers how many connections there are."""
        if self._acceptor is not None:
            self._acceptor.tell()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let those that are there finish."""
        self._app.stop()
        if self._acceptor is not None:
            self._acceptor.finish()
        self._listener.close()
        await asyncio.sleep(min(_LAST_REQUESTS, self._grace))
        await super().shutdown(sockets)
