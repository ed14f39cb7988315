"""Workers that are killed at a line while they serve one kept connection; others go on with it.

Each worker is a forked process with the worker's end of a real keeper. The role itself is the
supervisor and the client: it asks a fixed row of requests on one connection, and compares every
byte. Each of the `lives` workers is killed at its n-th line; the one after them serves the rest.

How long may an answer take? On a busy machine a process may get no processor for minutes, so
seconds say nothing. A worker tells ten times a second that its event loop turns: an answer is
missing if the loop has turned often enough, and nothing has come. For the same reason, no worker
and no keeper gives a connection up because a client or a worker is slow.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from shmstream.asgi.messages import SERVER, ZERO_COPY, Ready
from shmstream.registry.server import keeper as keeper_room
from shmstream.registry.server.channel import Channel
from shmstream.registry.server.connections import Table
from shmstream.registry.server.keeper import Keeper
from shmstream.registry.server.keeping_protocol import KeptProtocol
from shmstream.registry.server.kept import Kept, KeptConnection
from shmstream.registry.server.transport import Transport
from tests.support.interpreters import Link
from tests.support.lines import Death
from tests.support.narrow import connect, make_narrow
from tests.support.roles import content

BODY = content(3, 150_000)
TEXT = b"a short answer\n"
SMALL = BODY[:60_000]
BODIES = {"/text": TEXT, "/again": SMALL}
"""By path; `BODY` for all others."""
REQUESTS = [
    [("GET", "/again")],
    [("GET", "/again")],
    [("GET", "/text")],
    [("GET", "/file"), ("HEAD", "/file"), ("GET", "/hand")],
    [("GET", "/again")],
    [("GET", "/again"), ("GET", "/again"), ("GET", "/text"), ("GET", "/hand")],
]
"""What the client sends at one time, and then waits for the answers."""
_BEATS = 200  # of a worker, without a byte from it
_BEAT = 0.05  # s; two beats are further apart
_PATIENCE = 3600.0  # s; for what no worker tells of

Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Application:
    """Four kinds of responses: by hand and short, by hand, by the kernel, and again and again."""

    def __init__(self) -> None:
        self._asked = 0
        self._file = tempfile.TemporaryFile()
        self._file.write(BODY)
        self._file.flush()

    async def __call__(self, scope: dict[str, Any], _receive: object, send: Send) -> None:
        path = scope["path"]
        self._asked += 1
        body = BODIES.get(path, BODY)
        headers = [(b"content-length", b"%d" % len(body))]
        if path != "/text":
            headers.append((b"etag", b'"the body"'))
        if path == "/again":
            headers.append((b"x-asked", b"%d" % self._asked))
            server = scope["extensions"][SERVER]
            server["is_blob"] = True
            if "again" in server:
                server["again"] = self._again
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path == "/file" and scope["method"] == "GET":
            half = len(body) // 2
            span = {"type": "http.response.zerocopysend", "file": self._file.fileno()}
            await send({**span, "offset": 0, "count": half, "more_body": True})
            await asyncio.sleep(0)
            await send({**span, "offset": half, "count": len(body) - half})
        elif path == "/again":
            span = {"type": ZERO_COPY, "file": self._file.fileno(), "offset": 0}
            await send({**span, "count": len(body)})
        else:
            for start in range(0, len(body), 50_000):
                data = body[start : start + 50_000]
                more = {"type": "http.response.body", "body": data, "more_body": True}
                await send(more)
            await send({"type": "http.response.body", "body": b""})

    def _again(self, _client: object) -> Ready:
        return Ready(os.dup(self._file.fileno()), len(SMALL))


def _work(channel: socket.socket, table: int, nth: int, is_narrow: bool) -> None:
    """Be a worker, with what the keeper sends.

    `is_narrow`: the kernel takes little at one time.
    """
    KeptProtocol.head_timeout = _PATIENCE
    death = Death(nth) if nth else None

    async def main() -> None:
        config = uvicorn.Config(
            _Application(), http=KeptProtocol, lifespan="off", log_config=None,
            timeout_keep_alive=int(_PATIENCE),
        )  # fmt: skip
        config.load()
        named: dict[str, Any] = {"config": config, "server_state": ServerState()}
        named["app_state"] = {}
        loop = asyncio.get_running_loop()
        loop.set_debug(False)  # else each slow step is a line for a pipe that nobody reads

        def begin(connection: socket.socket, keeping: KeptConnection, is_new: bool) -> None:
            connection.setblocking(False)
            if is_narrow:
                make_narrow(connection)
            protocol = KeptProtocol(keeping, connection, **named)
            Transport(loop, connection, protocol)
            if not is_new:
                protocol.go_on()

        mine = Table.attach(table)
        assert mine is not None
        kept = Kept(mine, Channel(channel), begin, lambda: None)
        kept.ready()
        if death is not None:
            death.arm()
        await loop.create_future()

    asyncio.run(main())


class _Crew:
    """One connection, its client, and the workers."""

    def __init__(self, is_narrow: bool) -> None:
        self.is_narrow = is_narrow
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.keeper = Keeper(records=2, most=2, listener=self._listener, most_each=2)
        self.keeper.start(lambda: None)
        self.client = connect(self._listener.getsockname(), _PATIENCE, is_narrow=is_narrow)
        self.number = 0
        self.pid = self.pidfd = -1

    def hire(self, nth: int) -> None:
        """Start the next worker."""
        self.number += 1
        channel, table = self.keeper.enlist(self.number)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.client.close()
                self._listener.close()
                _work(channel, table, nth, self.is_narrow)
            finally:
                traceback.print_exc()
                os._exit(1)
        channel.close()
        self.pidfd = os.pidfd_open(self.pid)

    def has_something(self) -> list[int]:
        """Wait for bytes, or a death; empty if the loop of the worker turns, and nothing comes."""
        beats, told, deadline = 0, 0.0, time.monotonic() + _PATIENCE
        while beats < _BEATS and time.monotonic() < deadline:
            if ready := select.select([self.client.fileno(), self.pidfd], [], [], 2 * _BEAT)[0]:
                return ready
            if (silence := self.keeper.silence(self.number)) and (
                time.monotonic() - silence > told + _BEAT
            ):
                beats, told = beats + 1, time.monotonic() - silence
        return []

    def bury(self) -> None:
        """The worker is dead, or dies now."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.keeper.ended(self.number)

    def close(self) -> None:
        self.bury()
        self.keeper.close()
        self._listener.close()
        self.client.close()


def _expected(row: list[tuple[str, str]]) -> list[tuple[str, bytes]]:
    return [(method, b"" if method == "HEAD" else BODIES.get(path, BODY)) for method, path in row]


def _problem(answer: bytes, expected: list[tuple[str, bytes]]) -> str | None:
    """What is wrong with all answers to a row; "" if they are not complete; None if all is good."""
    for _, body in expected:
        head, end, rest = answer.partition(b"\r\n\r\n")
        if not end:
            return ""
        if not head.startswith(b"HTTP/1.1 200 OK\r\n") or head.count(b"HTTP/1.1") != 1:
            return f"a head is {head!r}"
        if not re.search(rb"\r\ncontent-length: \d+", head):
            return f"a head is {head!r}"
        if len(rest) < len(body):
            return "" if body.startswith(rest) else "wrong bytes in a body"
        if not rest.startswith(body):
            return "wrong bytes in a body"
        answer = rest[len(body) :]
    return f"too much: {answer[:100]!r}" if answer else None


def _ask(crew: _Crew, deaths: list[int]) -> tuple[str | None, int]:
    """What went wrong, if anything; how many workers were killed at their line."""
    killed, heads = 0, list[bytes]()
    for row in REQUESTS:
        said = "".join(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n" for method, path in row)
        crew.client.sendall(said.encode())
        answer, problem = b"", ""
        while problem == "":
            ready = crew.has_something()
            if crew.pidfd in ready:
                killed += 1
                crew.bury()
                crew.hire(deaths[killed] if killed < len(deaths) else 0)
            elif ready:
                try:
                    data = crew.client.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    return f"cut after {len(answer)} bytes in the row {row}", killed
                answer += data
            else:
                return f"nothing comes after {len(answer)} bytes in the row {row}", killed
            found = _problem(answer, _expected(row))
            problem = found if found is not None else "none"
        if problem != "none":
            return problem, killed
        if row == REQUESTS[0]:
            heads.append(answer.partition(b"\r\n\r\n")[0])
    if not (killed or crew.is_narrow) and len(set(heads)) != 1:
        return f"the application was asked again: {heads}", killed
    return None, killed


def die_at_lines(link: Link, first: int, stride: int, lives: int, is_narrow: bool = False) -> None:
    """Tell what went wrong, by line, and how many rounds there were.

    `is_narrow`: the kernel takes a part of each response at one time.
    """
    keeper_room._PATIENCE = _PATIENCE
    wrong: list[str] = []
    nth, rounds = first, 0
    while True:
        deaths = [nth] * lives
        crew = _Crew(is_narrow)
        crew.hire(deaths[0])
        problem, killed = _ask(crew, deaths)
        crew.close()
        if problem is not None:
            wrong.append(f"{lives} killed at line {nth}: {problem}")
        if not killed:
            break
        rounds += 1
        nth += stride
    link.say({"rounds": rounds, "wrong": wrong})
