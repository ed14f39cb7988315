"""Which connections a worker takes, and which end before they have asked for anything."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from shmstream.registry.server import acceptor
from shmstream.registry.server.acceptor import Acceptor, Counts
from tests.support.interpreters import PATIENCE, wait_until


class Connection(asyncio.Protocol):
    """Ends at the end of the test."""

    open: set[Connection]
    made = most = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.open.add(self)
        Connection.made += 1
        Connection.most = max(Connection.most, len(self.open))

    def connection_lost(self, _: Exception | None) -> None:
        self.open.discard(self)


def accepting(
    tmp_path: Path,
    test: Callable[[Acceptor, socket.socket], None],
    *,
    tls: ssl.SSLContext | None = None,
    most: int = 100,
) -> None:
    """Run `test` in a thread, while an acceptor takes connections."""

    async def main() -> None:
        Connection.open, Connection.made, Connection.most = set(), 0, 0
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            counts = Counts(str(tmp_path / "counts"), 0)
            taking = Acceptor(listener, Connection, tls, Connection.open, counts, most)
            try:
                await asyncio.wait_for(asyncio.to_thread(test, taking, listener), PATIENCE)
            finally:
                taking.close()
            for each in list(Connection.open):
                each.transport.close()
            while Connection.open:
                await asyncio.sleep(0)

    asyncio.run(main())


def test_tls_without_a_handshake_ends_soon(
    tmp_path: Path, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert acceptor._HANDSHAKE == 20
    monkeypatch.setattr(acceptor, "_HANDSHAKE", 0.1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_certificate)

    def test(_: Acceptor, listener: socket.socket) -> None:
        with socket.create_connection(listener.getsockname(), PATIENCE) as client:
            assert client.recv(1) == b""

    accepting(tmp_path, test, tls=context)


def test_no_more_connections_than_it_may_have(tmp_path: Path) -> None:
    """Further ones wait in the socket; they are taken when others have ended."""

    def test(taking: Acceptor, listener: socket.socket) -> None:
        clients = [socket.create_connection(listener.getsockname(), PATIENCE) for _ in range(9)]
        for ending in (clients[:3], clients[3:6], clients[6:]):
            wait_until(lambda: taking.count == 3)
            for client in ending:
                client.close()
        wait_until(lambda: Connection.made == 9 and taking.count == 0)
        assert Connection.most <= 3

    accepting(tmp_path, test, most=3)


def test_it_leaves_a_socket_that_listens_no_more(tmp_path: Path) -> None:
    def test(taking: Acceptor, listener: socket.socket) -> None:
        with socket.create_connection(listener.getsockname(), PATIENCE) as client:
            wait_until(lambda: taking.count == 1)
            listener.shutdown(socket.SHUT_RDWR)
            wait_until(lambda: taking._is_closed)
            client.sendall(b"still here")
            assert taking.count == 1, "the accepted one stays"

    accepting(tmp_path, test)
