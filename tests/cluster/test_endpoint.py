"""The listener for other nodes, by itself: how it begins and ends."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shmstream import Cluster, Store, StoreUnusable
from shmstream.cluster.endpoint import Endpoint
from shmstream.cluster.signing import Guard
from shmstream.system import threads
from tests.support.interpreters import PATIENCE


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No thread can be started, until this is undone."""

    def cannot(_self: threads.Call) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads.Call, "start", cannot)
    return monkeypatch


def listener_of(endpoint: Endpoint) -> socket.socket | None:
    return endpoint._listener


def test_without_a_thread_nobody_can_connect_and_the_next_start_tries_again(
    no_threads: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def opens(digest: str) -> None:
        raise AssertionError(digest)

    guard = Guard(b"x" * 16, "a:1", str(tmp_path))
    endpoint = Endpoint(("127.0.0.1", 0), guard, opens, 1, None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="new thread"):
        endpoint.start()
    assert listener_of(endpoint) is None
    no_threads.undo()
    endpoint.start()
    try:
        listener = listener_of(endpoint)
        assert listener is not None
        with socket.create_connection(listener.getsockname(), PATIENCE) as peer:
            peer.sendall(b"nonsense\r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    finally:
        endpoint.close()


@pytest.mark.usefixtures("no_threads")
def test_a_store_says_why_it_gives_nothing(tmp_path: Path) -> None:
    with socket.socket() as place:  # so that no other program gets the port
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind(("127.0.0.1", 0))
        cluster = Cluster("redis://127.0.0.1:1", f"127.0.0.1:{place.getsockname()[1]}", b"x" * 16)
        with pytest.raises(StoreUnusable, match=r"cannot listen on .*: can't start new thread"):
            Store(tmp_path / "store", cluster=cluster)
