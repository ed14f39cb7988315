"""Workers with kept connections whose hits a test looks at: how they are made, and what they cost.

Each role is one worker with a real keeper. It says its port, and ends when the test says something.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from shmstream.asgi.messages import Ready, answer
from shmstream.asgi.response import InFlightResponse
from shmstream.registry.application import Application
from shmstream.registry.server.channel import Channel
from shmstream.registry.server.connections import Table
from shmstream.registry.server.keeper import Keeper
from shmstream.registry.server.keeping_protocol import KeptProtocol
from shmstream.registry.server.kept import Kept, KeptConnection
from shmstream.registry.server.repeats import Repeats
from shmstream.registry.server.transport import Transport
from shmstream.registry.settings import Settings, Upstream
from tests.support.calls import Calls
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, Link
from tests.support.narrow import make_narrow

WARM = 40
"""Hits before the first one that is counted."""
COUNTED = 20
ASKED = "x-asked"
"""A header of responses: how often the application was asked when it made them."""
IDLE = 1
"""Seconds after which a worker closes a connection without a request."""


class _Repeatable(InFlightResponse):
    _repeatable = True


class _Blobs:
    """Gives the blob whose key is the path, from the store alone."""

    def __init__(self, folder: str, *, repeatable: bool = True, tells: bool = True) -> None:
        """`tells`: how often it was asked."""
        self._store = make_store(folder, {})
        self._response = _Repeatable if repeatable else InFlightResponse
        self._tells = tells
        self._asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._asked += 1
        key = scope["path"][1:]
        headers = {ASKED: str(self._asked)} if self._tells else None
        # nothing asks the source
        source = f"http://127.0.0.1:9/{key}" if key.startswith("sha256:") else None
        blob = self._response(self._store, key, source, headers=headers)
        await blob(scope, receive, send)


class _Profiled(KeptProtocol):
    """Counts the calls from one hit until the same point of a later one."""

    calls = Calls()
    hits = 0
    link: Link

    def readable(self) -> None:
        _Profiled.hits += 1
        if self.hits == WARM + 1:
            self.calls.__enter__()
        elif self.hits == WARM + COUNTED + 1:
            self.calls.__exit__()
            of = [[round(count / COUNTED, 1), name] for name, count in self.calls.of.most_common()]
            self.link.say({"calls": self.calls.of.total() / COUNTED, "of": of})
        super().readable()


class _Counted(KeptProtocol):
    """Counts the responses that were made without the application, as a whole and in part."""

    whole = part = 0

    def _send_again(self, asked: bytes, head: bytes, ready: Ready) -> bool:
        is_sent = super()._send_again(asked, head, ready)
        _Counted.whole += is_sent
        _Counted.part += self._resumes is not None
        return is_sent


def count_a_hit(link: Link, folder: str, repeatable: bool) -> None:
    """Say the calls of a hit, too."""
    _Profiled.link = link
    app = _Blobs(folder, repeatable=repeatable, tells=False)
    _work(app, _Profiled, partial(_talk, link))


class _Lenient(KeptProtocol):
    """Its parser takes a head that ends with a bare LF, as those of httptools before 0.6.2 do."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)


def give_blobs(link: Link, folder: str, limit: int | None, is_lenient: bool = False) -> None:
    """Give blobs to fewer clients than `limit`."""
    KeptProtocol.head_timeout = IDLE / 2
    app = _Blobs(folder)
    _work(app, _Lenient if is_lenient else KeptProtocol, partial(_talk, link), limit)


def be_registry(
    link: Link, folder: str, upstream: str, tokens: str | None, is_narrow: bool = False
) -> None:
    """Be a registry. At /short it tells what was sent without the application.

    If it is narrow, the kernel takes little at one time.
    """
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    app = Application(Settings((Upstream(None, upstream),), folder, tokens=tokens))

    async def with_count(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/short":
            await answer(send, 200, {}, b"%d %d" % (_Counted.whole, _Counted.part))
        else:
            await app(scope, receive, send)

    async def finish() -> None:
        if app._log is not None:
            await app._log.close(PATIENCE)

    _work(with_count, _Counted, partial(_talk, link), is_narrow=is_narrow, finish=finish)


def _talk(link: Link, port: int) -> None:
    link.say(port)
    link.hear()


async def _nothing() -> None:
    pass


def _work(
    app: Any,
    protocol: type[KeptProtocol],
    talk: Callable[[int], object],
    limit: int | None = None,
    *,
    is_narrow: bool = False,
    finish: Callable[[], Awaitable[object]] = _nothing,
) -> None:
    """Be a worker while `talk` runs, in a thread; then `finish`."""
    listener = socket.create_server(("127.0.0.1", 0))
    keeper = Keeper(records=8, most=8, listener=listener, most_each=8)
    keeper.start(lambda: None)
    channel, table = keeper.enlist(1)

    async def main() -> None:
        config = uvicorn.Config(
            app, http=protocol, lifespan="off", log_config=None, access_log=False,
            limit_concurrency=limit, timeout_keep_alive=IDLE,
        )  # fmt: skip
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"Mon, 30 Nov 2026 12:00:00 GMT")]
        named: dict[str, Any] = {"config": config, "server_state": state, "app_state": {}}
        loop, repeats = asyncio.get_running_loop(), Repeats()
        loop.set_debug(False)  # as the server does it; `-X dev` would count tracebacks

        def begin(connection: socket.socket, keeping: KeptConnection, _is_new: bool) -> None:
            connection.setblocking(False)
            if is_narrow:
                make_narrow(connection)
            Transport(loop, connection, protocol(keeping, connection, repeats, **named))

        mine = Table.attach(table)
        assert mine is not None
        kept = Kept(mine, Channel(channel), begin, lambda: None)
        kept.ready()
        await loop.run_in_executor(None, talk, listener.getsockname()[1])
        await finish()

    uvloop.run(main())
    keeper.close()
    listener.close()
