"""Which congestion control connections get, by where their client is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from uvicorn.server import ServerState

from shmstream.asgi import congestion, protocol

NET = Path("/proc/sys/net/ipv4")


def control(of: socket.socket) -> bytes:
    return of.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.fixture(autouse=True)
def controls(monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """What the system has, which counts as paced here, and another one that may be chosen."""
    system = (NET / "tcp_congestion_control").read_bytes().strip()
    allowed = (NET / "tcp_available_congestion_control").read_bytes().split()
    plain = next(each for each in allowed if each != system)
    monkeypatch.setattr(congestion, "_PACED", system)
    monkeypatch.setattr(congestion, "_PLAIN", plain)
    congestion._unpace_listener.cache_clear()
    return system, plain


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listening:
        yield listening


def accept(listener: socket.socket, there: str | None = None) -> bytes:
    """What a connection has in the end, from this host, or as if from `there`."""
    address = listener.getsockname()[:2]
    with socket.create_connection(address, timeout=5):
        connection, client = listener.accept()
        with connection:
            congestion.suit(connection, address, (there or client[0], client[1]))
            return control(connection)


def test_clients_on_this_host_are_not_paced_but_the_first(
    listener: socket.socket, controls: tuple[bytes, bytes]
) -> None:
    system, plain = controls
    assert [accept(listener) for _ in range(3)] == [system, plain, plain]
    assert control(listener) == plain


def test_clients_elsewhere_have_what_the_system_has(
    listener: socket.socket, controls: tuple[bytes, bytes]
) -> None:
    system, plain = controls
    assert accept(listener, "2001:db8::1") == system
    assert control(listener) == system
    accept(listener)
    assert accept(listener, "2001:db8::1") == system
    assert control(listener) == plain


def test_nothing_is_changed_where_nothing_is_paced(
    listener: socket.socket, controls: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    system, _ = controls
    monkeypatch.setattr(congestion, "_PACED", b"another")
    assert [accept(listener) for _ in range(2)] == [system, system]


def test_only_the_listener_of_that_port_is_changed(
    listener: socket.socket, controls: tuple[bytes, bytes]
) -> None:
    system, plain = controls
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as unused:
        accept(listener)
        assert (control(listener), control(other), control(unused)) == (plain, system, system)


def test_what_is_no_tcp_is_left_alone() -> None:
    one, other = socket.socketpair()
    with one, other:
        congestion.suit(one, ("", 0), ("", 0))


async def app(_scope: object, _receive: object, send: uvicorn._types.ASGISendCallable) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class LeavingAlone(protocol.Protocol):
    congestion = False


@pytest.mark.parametrize("kind", [protocol.Protocol, LeavingAlone])
def test_the_protocol_sees_to_it_unless_it_is_told_not_to(
    kind: type[protocol.Protocol], listener: socket.socket, controls: tuple[bytes, bytes]
) -> None:
    config = uvicorn.Config(app, http=kind, lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    async def one_request() -> None:
        loop = asyncio.get_running_loop()
        serving = await loop.create_server(
            lambda: kind(config=config, server_state=state, app_state={}),
            sock=listener.dup(),
        )
        async with serving:
            reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 204")
            writer.close()
            await writer.wait_closed()

    asyncio.run(one_request())
    system, plain = controls
    assert control(listener) == (plain if kind is protocol.Protocol else system)
