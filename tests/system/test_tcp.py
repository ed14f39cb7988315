"""What the kernel tells of a connection is exact, whatever its other side does."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from shmstream.system import tcp
from tests.support.interpreters import wait_until

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A client, and the accepted connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client, accepted:
        accepted.setblocking(False)
        yield client, accepted


def test_nothing_was_written_or_read_at_first(pair: Pair) -> None:
    _, accepted = pair
    assert (tcp.written(accepted), tcp.taken(accepted), tcp.waiting(accepted)) == (0, 0, 0)
    assert not tcp.has_ended(accepted)


def test_written_bytes_count_wherever_they_are(pair: Pair) -> None:
    """While the client reads as fast as it can: the counts change between the calls."""
    client, accepted = pair
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            client.recv(1000)

    reader = threading.Thread(target=read)
    reader.start()
    written = 0
    for _ in range(2000):
        try:
            written += accepted.send(bytes(5000))
        except BlockingIOError:
            pass
        assert tcp.written(accepted) == written
    stop.set()
    accepted.shutdown(socket.SHUT_WR)
    reader.join()


def test_read_bytes_count_and_peeked_ones_do_not(pair: Pair) -> None:
    client, accepted = pair
    client.sendall(bytes(100))
    wait_until(lambda: tcp.waiting(accepted) == 100)
    assert len(accepted.recv(70, socket.MSG_PEEK)) == 70
    assert tcp.taken(accepted) == 0
    assert tcp.drop(accepted, 30) == 30
    assert tcp.taken(accepted) == 30
    assert tcp.drop(accepted, 300) == 70
    assert (tcp.taken(accepted), tcp.waiting(accepted)) == (100, 0)


@pytest.mark.parametrize("unread", [0, 40])
def test_the_end_is_no_byte(pair: Pair, unread: int) -> None:
    client, accepted = pair
    client.sendall(bytes(60 + unread))
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: tcp.has_ended(accepted))
    tcp.drop(accepted, 60)
    assert tcp.taken(accepted) == 60
    if not unread:
        assert accepted.recv(1) == b""
        assert tcp.taken(accepted) == 60
    assert not tcp.is_lost(accepted)


def test_a_reset_is_seen(pair: Pair) -> None:
    client, accepted = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: tcp.is_lost(accepted))
    assert tcp.has_ended(accepted)


def test_what_is_no_connection_of_tcp_is_an_error() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(OSError):
        tcp.written(one)


@pytest.mark.parametrize(("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_a_side_is_held_until_its_last_descriptor_is_closed(family: str, address: str) -> None:
    with socket.create_server((address, 0), family=socket.AddressFamily[family]) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        accepted, _ = listener.accept()
    here, there = accepted.getsockname()[:2], accepted.getpeername()[:2]
    with client, accepted, client.dup() as duplicate:
        assert tcp.is_held(here, there) is True
        client.shutdown(socket.SHUT_WR)
        client.close()
        assert tcp.is_held(here, there) is True
        duplicate.close()
        assert tcp.is_held(here, there) is False


def test_a_side_that_is_not_here_is_not_known() -> None:
    for side in (("192.0.2.1", 80), ("127.0.0.1", 1), ("fe80::1%lo", 80), ("name", None)):
        assert tcp.is_held(("127.0.0.1", 2), side) is None
