"""`Server`: uvicorn, for one worker among several. Needs the extra `serve`.

With a `Share` it takes its share of the connections (`acceptor`). At its end it takes those that
wait, then closes its end of the listening socket, and turns away no client that has just come:
uvicorn closes connections without a request as soon as it stops.

With a `Post` the supervisor accepts the connections and gives this worker its share, and keeps
duplicates (`keeper`). Then this worker goes on with connections of workers that have ended, and if
another worker takes its place, it hands its own over instead of waiting for their ends.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import typing
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType

import uvicorn

from shmstream.asgi.messages import Receive, Scope, Send
from shmstream.asgi.protocol import Protocol
from shmstream.registry.server.acceptor import Acceptor, Counts, prepare
from shmstream.registry.server.channel import Channel
from shmstream.registry.server.connections import Table
from shmstream.registry.server.keeping_protocol import KeptProtocol
from shmstream.registry.server.kept import Kept, KeptConnection
from shmstream.registry.server.repeats import Repeats
from shmstream.registry.server.transport import Transport
from shmstream.registry.settings import Settings

_LAST_REQUESTS = 0.5  # s; in which a connection that was just taken has its request here
_TELL = 0.1  # s; from one look at the count of connections to the next one
_IDLE = 75  # s; how long a connection is kept without a request. nginx keeps its own for 60 s.
_DATE = 1.0  # s; from one header `Date` to the next one
_ANSWER = 10.0  # s; in which the supervisor says whether this worker is to leave
_UNASKED = 2  # connections for each that `max_connections` allows; those beyond it get a 503
_FEW = 64  # connections; as many are taken in any case


class Served(typing.Protocol):
    """The ASGI application of a worker."""

    def stop(self) -> None:
        """The server is about to stop."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""


def most_connections(settings: Settings) -> int:
    """How many connections a worker takes."""
    return _UNASKED * settings.max_connections + _FEW


@dataclass
class Share:
    """How a worker takes its share of the connections by itself: at most `most` at one time."""

    counts: Counts
    most: int


@dataclass
class Post:
    """How a worker reaches the keeper of the supervisor, which gives it connections."""

    channel: Channel
    table: Table


def configuration(settings: Settings, app: Served) -> uvicorn.Config:
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
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=round(settings.grace),
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
        ssl_ca_certs=settings.client_ca,
        ssl_cert_reqs=ssl.CERT_NONE if settings.client_ca is None else ssl.CERT_REQUIRED,
    )
    config.load()
    return config


class Server(uvicorn.Server):
    """Serves `app` to the connections of `listener`, which the workers share."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: Served,
        listener: socket.socket,
        grace: float,
        share: Share | Post,
    ) -> None:
        """`grace`: seconds in which clients may finish when the server stops. `share`: how it gets
        its connections.
        """
        super().__init__(config)
        self._app = app
        self._listener = listener
        self._grace = grace
        self._share = share
        self._kept: Kept | None = None
        self._repeats = Repeats()
        self._leaves = False  # another worker goes on with the connections
        self._has_shut = False  # uvicorn has told all connections that the server stops
        self._acceptor: Acceptor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signal = asyncio.Event()  # there was one

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Begin to take connections, or to be given some; uvicorn itself takes none."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_debug(False)  # a fork has `-X dev` of its parent
        await super().startup(sockets=[])
        self._state = {
            "config": self.config,
            "server_state": self.server_state,
            "app_state": self.lifespan.state,
        }
        if isinstance(self._share, Post):
            self._kept = Kept(self._share.table, self._share.channel, self._adopt, self._leave)
            self._kept.ready()
        else:
            self._acceptor = Acceptor(
                self._listener,
                partial(Protocol, **self._state),
                self.config.ssl,
                self.server_state.connections,
                self._share.counts,
                self._share.most,
            )

    def _begin(self, connection: socket.socket, keeping: KeptConnection) -> KeptProtocol:
        prepare(connection)  # also one of another worker, which may not have come to it
        protocol = KeptProtocol(keeping, connection, self._repeats, **self._state)
        Transport(asyncio.get_running_loop(), connection, protocol)
        return protocol

    def _adopt(self, connection: socket.socket, keeping: KeptConnection, is_new: bool) -> None:
        """Begin with a new connection, or go on with one of another worker."""
        protocol = self._begin(connection, keeping)
        if not is_new:
            protocol.go_on()
        if self._has_shut:  # as uvicorn has done with those that were there
            protocol.shutdown()

    def _leave(self) -> None:
        self._leaves = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: stop. This runs between any two steps of the main thread."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: this process is about to end
                self._loop.call_soon_threadsafe(self._signal.set)

    async def main_loop(self) -> None:
        """Wait for a signal, with a fresh `Date` each second.

        uvicorn would wake this process ten times a second to look whether there was a signal:

            main loop                               handle_exit
            1 look at `should_exit`                 1 set `should_exit`
            2 wait for `_signal`, a second at most  2 set `_signal`, in the event loop
        """
        pause = _DATE if self._acceptor is None else _TELL
        while not await self.on_tick(0):  # 0: make the header `Date`
            if self._acceptor is not None:
                self._acceptor.tell()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._signal.wait(), pause)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections; hand over those that are there, or let them finish."""
        if self._acceptor is not None:
            self._acceptor.finish()
        self._listener.close()
        if self._kept is not None:
            await self._kept.end(_ANSWER)
        if self._leaves:
            for each in [*self.server_state.connections]:
                if isinstance(each, KeptProtocol):
                    each.hand_over()
        self._app.stop()
        if self.server_state.connections or (self._acceptor is not None and self._acceptor.count):
            await asyncio.sleep(min(_LAST_REQUESTS, self._grace))
        self._has_shut = True
        await super().shutdown(sockets)
