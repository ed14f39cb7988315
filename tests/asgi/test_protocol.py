"""uvicorn with our protocol: connections that misbehave, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from shmstream import Store
from shmstream.asgi.messages import SERVER
from shmstream.asgi.protocol import Protocol
from shmstream.system import tcp
from tests.support.asgi_servers import Server
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 2 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
GET = f"GET /blob/{KEY} HTTP/1.1\r\nHost: test\r\n".encode()
SPARE = 2  # descriptors; each worker's loop keeps one from its first connection on


LOOPS = ("uvloop", "asyncio")
HASTY = ("--http", "tests.support.app:Hasty", "--loop")


@pytest.fixture(scope="module", params=LOOPS)
def server_of_all(
    origin_process: Origin, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    running = Server.for_many(place, origin_process, *HASTY, request.param)
    yield running
    running.close()


@pytest.fixture
def server(server_of_all: Server, folder: str, store: Store, origin: Origin) -> Server:
    """A server that serves other tests, too; the store is of this test."""
    assert store.folder == folder
    origin.serve("/blob", seed=1, size=SIZE)
    server_of_all.use(folder)
    return server_of_all


@pytest.fixture(params=LOOPS)
def server_of_one(
    folder: str, store: Store, origin: Origin, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Server]:
    """A server that has done nothing yet, so that its descriptors can be counted."""
    assert store.folder == folder
    origin.serve("/blob", seed=1, size=SIZE)
    running = Server(folder, origin, tmp_path / "log", *HASTY, request.param)
    yield running
    running.close()


class Client:
    """A connection that may send anything."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer, as far as it came."""
        status = int(self.file.readline().split()[1])
        length = 0
        while (line := self.file.readline().strip()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return status, self.rest(length)

    def rest(self, length: int = -1) -> bytes:
        """The bytes until the end; none if the connection is reset."""
        try:
            return self.file.read(length)
        except ConnectionResetError:
            return b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()


def test_requests_in_a_row(server: Server, store: Store) -> None:
    store.fetch(KEY, [DATA])
    spans = [(start, start + 1 + 7 * start) for start in range(0, 40_000, 1000)]
    with Client(server) as client:
        for start, end in spans:
            client.send(GET + f"Range: bytes={start}-{end - 1}\r\n\r\n".encode())
        for start, end in spans:
            assert client.answer() == (206, DATA[start:end])


def test_a_client_that_ends_its_side_gets_its_answers(server: Server, origin: Origin) -> None:
    """As `nc -N` does, and some proxies: all requests that it has sent are answered."""
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    with Client(server) as client:
        client.send(GET + b"\r\n" + GET + b"\r\n" + b"GET /blob/absent HTTP/1.1\r\nHost: a\r\n\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        origin.wait("/blob", lambda asked: bool(asked) and asked[0].sent >= MIB)
        origin.release()
        assert [client.answer(), client.answer()] == [(200, DATA)] * 2
        assert client.answer() == (404, b"")
        assert client.rest() == b""
    with Client(server) as client:  # a request that is not complete, and none at all
        client.send(GET)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b""
    with Client(server) as client:
        client.send(GET + b"\r\n")
        assert client.answer() == (200, DATA)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b""


def test_a_client_that_has_ended_its_side_waits_as_others_do(
    server: Server, origin: Origin
) -> None:
    """Its response pauses in the middle, for longer than a client elsewhere may be silent."""
    origin.change("/blob", first=0, count=1, stall_after=MIB, stall_for=1.5)
    with Client(server) as client:
        client.send(GET + b"\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer() == (200, DATA)
        assert client.rest() == b""


def test_a_request_names_one_host(server: Server, store: Store) -> None:
    store.fetch(KEY, [DATA])
    for version, hosts, expected in (
        (b"1.1", [], 400),
        (b"1.1", [b"a", b"a"], 400),
        (b"1.0", [b"a", b"b"], 400),
        (b"1.1", [b"a b"], 400),
        (b"1.1", [b"a/b"], 400),
        (b"1.0", [b"me@a"], 400),
        (b"1.1", [b""], 200),
        (b"1.1", [b"[fe80::1%25eth0]:5000"], 200),
        (b"1.1", [b"my_cache:5000"], 200),
        (b"1.0", [], 200),
    ):
        with Client(server) as client:
            lines = b"".join(b"Host: %b\r\n" % each for each in hosts)
            client.send(b"HEAD /blob/%b HTTP/%b\r\n%b\r\n" % (KEY.encode(), version, lines))
            assert client.file.readline().split()[1] == b"%d" % expected


def test_each_request_of_a_connection_names_one_host(server: Server, store: Store) -> None:
    """That the request before it did so is not enough."""
    store.fetch(KEY, [DATA])
    for hosts in ([], [b"a", b"a"], [b"a b"]):
        with Client(server) as client:
            for each, expected in (([b"a"], 200), ([b"a"], 200), ([b"b"], 200), (hosts, 400)):
                lines = b"".join(b"Host: %b\r\n" % host for host in each)
                client.send(b"HEAD /blob/%b HTTP/1.1\r\n%b\r\n" % (KEY.encode(), lines))
                assert client.file.readline().split()[1] == b"%d" % expected
                while client.file.readline().strip():
                    pass


def test_a_head_is_not_late_while_an_answer_is_under_way(server: Server, origin: Origin) -> None:
    """The server does not read while it answers, so the head may have come unread."""
    origin.change("/blob", stall_after=MIB)
    with Client(server) as client:
        client.send(GET + b"\r\n" + GET + b"\r\n" + GET)
        with Client(server) as other:  # it has as much time for its head
            assert other.answer() == (408, b"")
        origin.release()
        client.send(b"\r\n")
        assert [client.answer() for _ in range(3)] == [(200, DATA)] * 3


def test_empty_lines_keep_no_connection(server: Server) -> None:
    with Client(server) as client:
        client.send(b"GET /blob/absent HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.answer() == (404, b"")
        client.send(b"\r\n")
        assert client.answer() == (408, b"")
        assert client.rest() == b""


def test_nothing_but_the_body_while_an_answer_is_under_way(server: Server, origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=SIZE - 50)
    with Client(server) as client:
        client.send(b"GET /blob/named HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.file.readline() == b"HTTP/1.1 200 OK\r\n"
        while client.file.readline() != b"\r\n":
            pass
        body = client.rest(SIZE - 65536)
        client.send(b"this is no request\r\n\r\n")
        body += client.rest()
        assert len(body) < SIZE
        assert body == DATA[: len(body)]
    origin.release()


def test_what_is_no_request_is_refused_once(server: Server) -> None:
    heads = {
        b"this is no request\r\n\r\n": 400,
        b"GET /blob/x HTTP/1.1\r\nA: " + b"a" * 70_000 + b"\r\n\r\n": 431,
    }
    for head, status in heads.items():
        with Client(server) as client:
            client.send(head)
            assert client.answer() == (status, b"")
            assert client.rest() == b""
    for before in (b"A: ", b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: "):  # a head without an end
        with Client(server) as client, pytest.raises(ConnectionError):
            client.send(b"GET /blob/absent HTTP/1.1\r\nHost: test\r\n" + before)
            for _ in range(1000):
                client.send(b"a" * 65536)
    assert server.said.count("Invalid HTTP") == 1
    assert "Traceback" not in server.said


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_a_connection_that_becomes_a_websocket_is_let_go(
    server_of_one: Server, store: Store
) -> None:
    store.fetch(KEY, [DATA])
    before = server_of_one.descriptors()
    for _ in range(10):
        with Client(server_of_one) as client:
            client.send(GET + b"Range: bytes=0-4\r\n\r\n")
            assert client.answer() == (206, DATA[:5])
            client.send(UPGRADE)
            client.answer()
    wait_until(lambda: server_of_one.descriptors() <= before + SPARE)


class Hasty(Protocol):
    head_timeout = 0.2
    end_patience = 0.1


@contextmanager
def protocol_of(app: Callable[..., Coroutine[Any, Any, None]]) -> Iterator[Callable[[], Protocol]]:
    """A factory of connections, for a server in this process with the application `app`."""
    config = uvicorn.Config(app, http=Hasty, lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    yield lambda: Hasty(config=config, server_state=state, app_state={})
    assert not state.connections


async def serve(make: Callable[[], Protocol]) -> asyncio.Server:
    return await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)


def noted(made: list[Protocol], protocol: Protocol) -> Protocol:
    """The protocol, which is in the list from now on."""
    made.append(protocol)
    return protocol


def test_a_websocket_has_no_heads_to_wait_for() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        await send({"type": "websocket.send", "text": "still here"})
        await send({"type": "websocket.close"})

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            address = serving.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(UPGRADE)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            idle, other = await asyncio.open_connection(*address)
            assert (await idle.read()).startswith(b"HTTP/1.1 408"), "as long as a head may take"
            go_on.set()
            assert b"still here" in await reader.readexactly(12)
            for each in (writer, other):
                each.close()
                await each.wait_closed()

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))


HALF = {"type": "http.response.body", "body": b"12345", "more_body": True}


async def begin(send: Any) -> None:
    """The head and a half of a response."""
    head = [(b"content-length", b"10")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send(HALF)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_client_that_has_left_is_noticed_while_nothing_comes(*, has_begun: bool) -> None:
    """It has ended its side before, and has read all that came: its end is no reset."""
    here = asyncio.Event()
    noticed = asyncio.Event()

    async def app(_scope: object, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        if has_begun:
            await begin(send)
        here.set()
        assert (await receive())["type"] == "http.disconnect"
        noticed.set()

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            reader, writer = await asyncio.open_connection(*serving.sockets[0].getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            writer.write_eof()
            await here.wait()
            if has_begun:
                await reader.readuntil(b"12345")
            assert not noticed.is_set()
            writer.close()
            await writer.wait_closed()
            await noticed.wait()

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))


def test_a_client_elsewhere_that_has_ended_its_side_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only in the middle of a response: before it, there is a bound on silence elsewhere."""
    go_on = asyncio.Event()
    asked: list[tuple[str, int | None]] = []

    def is_held(*sides: tuple[str, int | None]) -> None:
        asked.extend(sides)
        if len(asked) >= 6:
            go_on.set()

    async def app(_scope: object, receive: Any, send: Any) -> None:
        await receive()
        await go_on.wait()
        await begin(send)
        assert (await receive())["type"] == "http.disconnect"

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            here = serving.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*here)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            writer.write_eof()
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while data := await reader.read(1000):
                    received += data
            assert received.endswith(b"12345")
            assert set(asked) == {here, writer.get_extra_info("sockname")}
            writer.close()
            with contextlib.suppress(ConnectionResetError):
                await writer.wait_closed()

    monkeypatch.setattr(tcp, "is_held", is_held)
    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))


def test_a_head_has_its_bounds_behind_another_one() -> None:
    """Also if both heads come in one read."""
    asked: list[str] = []
    made: list[Protocol] = []

    async def app(scope: Any, _receive: object, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(lambda: noted(made, make())) as serving:
            reader, writer = await asyncio.open_connection(*serving.sockets[0].getsockname())
            writer.write(b"GET /first HTTP/1.1\r\n")
            while not made or made[0]._head_size == 0:
                await asyncio.sleep(0)
            big = b"GET /second HTTP/1.1\r\nA: " + b"a" * 150_000 + b"\r\n\r\n"
            made[0].data_received(b"Host: test\r\n\r\n" + big)
            await reader.read()
            writer.close()
            await writer.wait_closed()
        assert "/second" not in asked

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))


def test_responses_are_told_when_their_client_has_left() -> None:
    """Each response is told, unless it has withdrawn; also if the client left before it asked."""
    told: list[str] = []
    undo: dict[str, Callable[[], object]] = {}
    over = asyncio.Event()

    async def app(scope: Any, _receive: object, send: Any) -> None:
        when_lost, path = scope["extensions"]["shmstream.server"]["when_lost"], scope["path"]
        if path == "/late":
            while not told:  # until the connection is lost
                await asyncio.sleep(0)
        undo[path] = when_lost(lambda: told.append(path))
        if path == "/late":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            over.set()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            reader, writer = await asyncio.open_connection(*serving.sockets[0].getsockname())
            for path in (b"/first", b"/second"):
                writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: test\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            undo["/first"]()  # the second has begun by now
            writer.write(b"GET /late HTTP/1.1\r\nHost: test\r\n\r\n")
            # A reset: the mere end of what it sends does not tell that a client has left.
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            await writer.wait_closed()
            await over.wait()
        assert told[0] == "/second"
        assert "/late" in told
        assert "/first" not in told

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))


def test_a_client_that_has_sent_more_requests_has_left() -> None:
    """The response that is under way is told, and can be sent on without an error."""
    told: list[str] = []
    begun, over = asyncio.Event(), asyncio.Event()

    async def app(_scope: object, receive: Any, send: Any) -> None:
        await receive()  # the end of the request
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        leaving = asyncio.ensure_future(receive())
        try:
            while not leaving.done():  # a write finds that the client has left
                await send({"type": "http.response.body", "body": b"data", "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"data", "more_body": True})
            told.append(leaving.result()["type"])
        finally:
            leaving.cancel()
            over.set()

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            client = socket.create_connection(serving.sockets[0].getsockname())
            client.sendall(b"GET /first HTTP/1.1\r\nHost: test\r\n\r\n" * 3)
            await begun.wait()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await over.wait()

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))
    assert told == ["http.disconnect"]


# What a client may send, and what waits here.


def test_requests_in_a_row_wait_in_the_socket() -> None:
    """However many come: few are queued, nothing more is read, and all are answered in order."""
    count = 800
    go_on = asyncio.Event()
    made: list[Protocol] = []
    queued = held = 0
    asked: list[str] = []

    async def app(scope: Any, _receive: object, send: Any) -> None:
        nonlocal queued, held
        await go_on.wait()
        asked.append(scope["path"])
        queued = max(queued, len(made[0].pipeline))
        held = max(held, len(made[0]._unparsed))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(lambda: noted(made, make())) as serving:
            reader, writer = await asyncio.open_connection(*serving.sockets[0].getsockname())
            writer.write(
                b"".join(b"GET /%d HTTP/1.1\r\nHost:a\r\n\r\n" % each for each in range(count))
            )
            while not (made and made[0].pipeline):
                await asyncio.sleep(0)
            assert made[0].flow.read_paused
            assert len(made[0].pipeline) < 40
            go_on.set()
            for _ in range(count):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            writer.close()
            await writer.wait_closed()

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))
    assert asked == [f"/{each}" for each in range(count)]
    assert queued < 40
    assert held <= 512 * 1024, "what two reads bring"


BODIES = {
    "length": (b"Content-Length: 1000000000\r\n\r\n", b"x" * 65536),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    "requests": (b"Content-Length: 1000000000\r\n\r\n", b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * 3000),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_nobody_wants_ends_the_connection(kind: str) -> None:
    """The client gets its answer, and no more than a bounded part of the body is taken."""
    head, piece = BODIES[kind]
    asked: list[str] = []

    async def app(scope: Any, _receive: object, send: Any) -> None:
        asked.append(scope["method"])
        await send(
            {"type": "http.response.start", "status": 405, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"no"})

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            reader, writer = await asyncio.open_connection(*serving.sockets[0].getsockname())
            writer.write(b"PUT /a HTTP/1.1\r\nHost: a\r\n" + head + piece)
            answer = await reader.read()  # to its end, while more could be sent
            assert answer.startswith(b"HTTP/1.1 405")
            assert b"\r\nconnection: close\r\n" in answer
            assert answer.endswith(b"\r\n\r\nno")
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 100 * MIB:
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
            assert sent < 100 * MIB
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))
    assert asked == ["PUT"]


def test_a_body_that_has_come_keeps_the_connection() -> None:
    """And so does one that the application reads; its bytes are what was sent."""
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] == "/read"
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        bodies.append(body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            reader, writer = await asyncio.open_connection(*serving.sockets[0].getsockname())
            chunked = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            for request in (
                b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE + DATA,
                b"POST /read HTTP/1.1\r\nHost: a\r\n" + chunked,
                b"POST /skip HTTP/1.1\r\nHost: a\r\n" + chunked,
                b"POST /skip HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
                b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
                b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n",
            ):
                writer.write(request)
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 204"), request[:40]
                assert b"connection: close" not in answer
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            writer.close()
            await writer.wait_closed()

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))
    assert bodies == [DATA, b"hello", b"", b"", b"", b""]


LENGTH = (b"content-length", b"5")
HEADS: dict[str, tuple[bool, list[tuple[Any, Any]]]] = {
    "plain": (True, [LENGTH, (b"etag", b'"a"'), (b"x-mine", b"tab\tand \xe9")]),
    "with a date": (True, [LENGTH, (b"date", b"Mon, 30 Nov 2026 12:00:00 GMT")]),
    "capitals": (False, [LENGTH, (b"ETag", b'"a"')]),
    "a length in capitals": (False, [(b"Content-Length", b"5")]),
    "two lengths": (False, [LENGTH, LENGTH]),
    "no length": (False, [(b"etag", b'"a"')]),
    "chunked": (False, [(b"transfer-encoding", b"chunked")]),
    "the last one": (False, [LENGTH, (b"connection", b"close")]),
    "no bytes": (False, [LENGTH, (b"etag", bytearray(b'"a"'))]),
    "a line in a value": (False, [LENGTH, (b"etag", b'"a"\r\nset-cookie: b')]),
    "a space in a name": (False, [LENGTH, (b"e tag", b'"a"')]),
    "a length that is none": (False, [(b"content-length", b"five")]),
    "a length with a sign": (False, [(b"content-length", b"+5")]),
}
"""Heads, and whether our protocol writes them by itself."""


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_of_a_blob_is_as_uvicorn_writes_it(
    kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ours, headers = HEADS[kind]
    written: list[bool] = []
    write = Protocol._write_plain_head

    def note(*given: Any) -> bool:
        written.append(write(*given))
        return written[-1]

    monkeypatch.setattr(Protocol, "_write_plain_head", note)

    async def app(scope: Any, _receive: object, send: Any) -> None:
        scope["extensions"][SERVER]["is_blob"] = scope["path"] == "/blob"
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"12345"})

    async def answer(address: Any, path: str) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        writer.write_eof()
        got = b""
        with contextlib.suppress(ConnectionError):  # a head that is not valid ends the connection
            got = await reader.read()
            writer.close()
            await writer.wait_closed()
        return got

    async def main(make: Callable[[], Protocol]) -> None:
        async with await serve(make) as serving:
            address = serving.sockets[0].getsockname()
            of_uvicorn = await answer(address, "/other")
            assert await answer(address, "/blob") == of_uvicorn
            assert of_uvicorn.startswith(b"HTTP/1.1 200 OK\r\n") or not is_ours

    with protocol_of(app) as make:
        asyncio.run(asyncio.wait_for(main(make), PATIENCE))
    assert written[0] is False
    assert any(written) is is_ours
