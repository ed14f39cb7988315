"""A worker with one kept connection that counts the calls of functions that a hit takes in it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from shmstream.asgi.response import InFlightResponse
from shmstream.registry.server.channel import Channel
from shmstream.registry.server.connections import Table
from shmstream.registry.server.keeper import Keeper
from shmstream.registry.server.keeping_protocol import KeptProtocol
from shmstream.registry.server.kept import Kept, KeptConnection
from shmstream.registry.server.transport import Transport
from tests.support.calls import Calls
from tests.support.flights import make_store
from tests.support.interpreters import Link

WARM = 40
"""Hits before the first one that is counted."""
COUNTED = 20


class _Counted:
    """Answers with one blob; counts from one hit until the same point of a later one."""

    def __init__(self, link: Link, folder: str, key: str) -> None:
        self._link = link
        self._store = make_store(folder, {})
        self._key = key
        self._calls = Calls()
        self._hits = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._hits += 1
        if self._hits == WARM + 1:
            self._calls.__enter__()
        elif self._hits == WARM + COUNTED + 1:
            self._calls.__exit__()
            of = [[round(count / COUNTED, 1), name] for name, count in self._calls.of.most_common()]
            self._link.say({"calls": self._calls.of.total() / COUNTED, "of": of})
        source = f"http://127.0.0.1:9/{self._key}"  # nothing asks it
        await InFlightResponse(self._store, self._key, source)(scope, receive, send)


def count_a_hit(link: Link, folder: str, key: str) -> None:
    """Say the port, then the calls of a hit, and end when the client does."""
    listener = socket.create_server(("127.0.0.1", 0))
    keeper = Keeper(records=2, most=2, listener=listener, most_each=2)
    keeper.start(lambda: None)
    channel, table = keeper.enlist(1)

    async def main() -> None:
        app = _Counted(link, folder, key)
        config = uvicorn.Config(
            app, http=KeptProtocol, lifespan="off", log_config=None, access_log=False
        )
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"Mon, 30 Nov 2026 12:00:00 GMT")]
        named = {"config": config, "server_state": state, "app_state": {}}
        loop = asyncio.get_running_loop()
        loop.set_debug(False)  # as the server does it; `-X dev` would count tracebacks

        def begin(connection: socket.socket, keeping: KeptConnection, _is_new: bool) -> None:
            connection.setblocking(False)
            Transport(loop, connection, KeptProtocol(keeping, connection, **named))

        mine = Table.attach(table)
        assert mine is not None
        kept = Kept(mine, Channel(channel), begin, lambda: None)
        kept.ready()
        link.say(listener.getsockname()[1])
        await loop.run_in_executor(None, link.hear)

    uvloop.run(main())
    keeper.close()
    listener.close()
