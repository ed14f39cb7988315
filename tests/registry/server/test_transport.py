"""A transport that reads nothing by itself, and can leave a connection as it is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from shmstream.registry.server.transport import Transport
from tests.support.interpreters import PATIENCE


class Notes:
    """A protocol that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.was_woken = asyncio.Event()

    def connection_made(self, _: asyncio.Transport) -> None:
        self.told.append("made")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def readable(self) -> None:
        self.was_woken.set()


Test = Callable[[Transport, Notes, socket.socket], Awaitable[None]]


def connected(test: Test) -> None:
    """Run a test with a transport, its protocol, and the client's end."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), PATIENCE)
            accepted, _ = listener.accept()
        accepted.setblocking(False)
        with client, accepted:
            client.setblocking(False)
            notes = Notes()
            transport = Transport(asyncio.get_running_loop(), accepted, notes)
            await asyncio.wait_for(test(transport, notes, client), PATIENCE)
            transport.abort()
            await asyncio.sleep(0)

    asyncio.run(main())


async def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(client, 1 << 20)
        if not more:
            break
        data += more
    return data


def test_it_reads_nothing() -> None:
    async def test(transport: Transport, notes: Notes, client: socket.socket) -> None:
        client.sendall(b"hello")
        await notes.was_woken.wait()
        assert transport.get_extra_info("socket").recv(10) == b"hello"
        transport.pause_reading()
        assert not transport.is_reading()
        notes.was_woken.clear()
        client.sendall(b"more")
        transport.resume_reading()
        await notes.was_woken.wait()

    connected(test)


def test_what_the_kernel_does_not_take_waits() -> None:
    async def test(transport: Transport, notes: Notes, client: socket.socket) -> None:
        data, count = bytes(range(256)) * 4096, 0
        while not transport.get_write_buffer_size():
            transport.write(data)
            count += len(data)
        transport.write(b"end")
        assert notes.told == ["made", "pause"]
        transport.close()
        assert transport.is_closing()
        got = await read(client, count + 3)
        assert got == data * (count // len(data)) + b"end"
        assert await notes.lost is None
        assert notes.told == ["made", "pause", "resume", "lost"]
        assert await read(client, 1) == b""

    connected(test)


def test_abort_waits_for_nothing() -> None:
    async def test(transport: Transport, notes: Notes, _: socket.socket) -> None:
        while not transport.get_write_buffer_size():
            transport.write(bytes(1 << 20))
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        transport.write(b"is dropped")
        assert await notes.lost is None

    connected(test)


def test_a_client_that_is_gone_ends_it() -> None:
    async def test(transport: Transport, notes: Notes, client: socket.socket) -> None:
        client.close()
        while not notes.lost.done():
            transport.write(bytes(1 << 16))
            await asyncio.sleep(0)
        assert isinstance(await notes.lost, ConnectionError)

    connected(test)


def test_a_released_connection_stays_as_it_is() -> None:
    async def test(transport: Transport, notes: Notes, client: socket.socket) -> None:
        other = transport.get_extra_info("socket").dup()
        with other:
            client.sendall(b"a request")
            transport.release()
            transport.write(b"is dropped")
            transport.close()
            await asyncio.sleep(0)
            assert notes.told == ["made"]
            assert await asyncio.get_running_loop().sock_recv(other, 100) == b"a request"
            other.sendall(b"an answer")
            assert await read(client, 9) == b"an answer"

    connected(test)
