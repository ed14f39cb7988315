"""A worker ends, in whatever way, and its clients are not cut: real workers, real SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import Store
from tests.support.interpreters import wait_until
from tests.support.kept import (
    Client,
    Cut,
    all_serve,
    are_ready,
    kept_ports,
    kill,
    left_over,
    ports,
)
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.serving import Serve, Serving
from tests.support.stores import digest

MIB = 1 << 20
COUNT = 3  # workers


class Kept:
    """A registry whose workers are killed, and what its upstream has."""

    def __init__(self, serving: Serving, origin: Origin) -> None:
        self.serving = serving
        self.origin = origin
        self._clients: list[Client] = []

    def blob(self, seed: int, size: int = 3 * MIB, **fault: object) -> tuple[str, bytes]:
        """The path and the bytes of a blob; the fault is of the first request for it."""
        path = f"/v2/team/app/blobs/{digest(seed, size)}"
        self.origin.serve(path, seed=seed, size=size)
        if fault:
            self.origin.change(path, first=0, count=1, **fault)
        return path, content(seed, size)

    def client(self) -> Client:
        self._clients.append(Client(self.serving))
        return self._clients[-1]

    def kill(self, worker: int) -> None:
        """Kill a worker, and wait until another one has its connections."""
        had = ports(self.serving, worker)
        kill(worker)
        wait_until(lambda: worker not in self.serving.workers())
        wait_until(lambda: had <= self._at_workers())

    def _at_workers(self) -> set[int]:
        """The ports of the clients whose connections workers have."""
        serving = self.serving
        return {port for worker in serving.workers() for port in ports(serving, worker)}

    def close(self) -> None:
        for each in self._clients:
            each.close()
        wait_until(lambda: kept_ports(self.serving) == set())
        wait_until(lambda: all_serve(self.serving, COUNT))


@pytest.fixture(scope="module")
def process(origin_process: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(
        tmp_path_factory.mktemp("kept"), "--workers", str(COUNT),
        upstream=origin_process.url("").rstrip("/"),
    )  # fmt: skip
    wait_until(lambda: are_ready(serving, COUNT, COUNT))
    yield serving
    serving.close()
    assert "Traceback" not in serving.log, serving.log
    store = Store(serving.store)
    wait_until(lambda: not store.flights())
    assert store.check() == []


@pytest.fixture
def kept(process: Serving, origin: Origin) -> Iterator[Kept]:
    found = Kept(process, origin)
    yield found
    origin.release()
    found.close()


def test_a_response_under_way_goes_on(kept: Kept) -> None:
    path, data = kept.blob(11, stall_after=MIB)
    client = kept.client()
    client.say(path)
    status, headers = client.head()
    first = client.read(MIB // 2)
    kept.kill(client.worker)
    kept.origin.release()
    assert (status, headers["content-length"]) == (200, str(len(data)))
    assert first + client.read(len(data) - MIB // 2) == data
    assert client.ask("/healthz").body == b"alive\n", "the connection goes on"


def test_a_blob_in_the_store_goes_on_at_the_exact_byte(kept: Kept) -> None:
    """The client reads slowly, so the kernel has taken a part only. Each worker dies once."""
    size = 24 * MIB
    path, data = kept.blob(12, size)
    client = kept.client()
    assert client.ask(path).body == data
    client.say(path, Range="bytes=5-")
    status, headers = client.head()
    got = b""
    for _ in range(3):
        got += client.read(2 * MIB)
        kept.kill(client.worker)
    got += client.read(size - 5 - len(got))
    assert (status, headers["content-range"]) == (206, f"bytes 5-{size - 1}/{size}")
    assert got == data[5:]
    assert client.ask("/healthz").body == b"alive\n"


def test_a_worker_that_is_told_to_end_hands_over(kept: Kept) -> None:
    """By a signal to this worker alone."""
    path, data = kept.blob(20, stall_after=MIB)
    client, idle = kept.client(), kept.client()
    client.say(path)
    client.head()
    first = client.read(MIB // 2)
    idle.ask("/healthz")
    for worker in {client.worker, idle.worker}:
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda gone=worker: gone not in kept.serving.workers())  # type: ignore[misc]
    kept.origin.release()
    assert first + client.read(len(data) - len(first)) == data
    assert idle.ask("/healthz").body == b"alive\n"


def test_a_request_that_was_not_answered_is_answered(kept: Kept) -> None:
    path, data = kept.blob(13, MIB, stall_after=-1)
    client = kept.client()
    client.say(path)
    wait_until(lambda: len(kept.origin.requests(path)) == 1)
    kept.kill(client.worker)
    kept.origin.release()
    assert client.hear().body == data
    assert client.ask(path, "HEAD").headers["content-length"] == str(len(data))


def test_requests_in_a_row_are_answered_in_order(kept: Kept) -> None:
    path, data = kept.blob(14, stall_after=MIB)
    client = kept.client()
    for asked in (path, "/healthz", path, "/v2/"):
        client.say(asked)
    status, _ = client.head()
    first = client.read(MIB // 2)
    kept.kill(client.worker)
    kept.origin.release()
    assert status == 200
    assert first + client.read(len(data) - len(first)) == data
    assert client.hear().body == b"alive\n"
    assert client.hear().body == data
    assert client.hear().status == 200


def test_requests_before_the_end_are_answered(kept: Kept) -> None:
    """The client ends its side at once. Then a worker is killed.

    The next worker may be done with the connection before anybody sees that it has it.
    """
    path, data = kept.blob(21, stall_after=MIB)
    client = kept.client()
    for asked in ("/healthz", path, "/healthz"):
        client.say(asked)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.hear().body == b"alive\n"
    client.head()
    first = client.read(MIB // 2)
    kill(client.worker)
    kept.origin.release()
    assert first + client.read(len(data) - len(first)) == data
    assert client.hear().body == b"alive\n"
    assert client.is_over()


def test_idle_connections_go_on(kept: Kept) -> None:
    clients = [kept.client() for _ in range(6)]
    for client in clients[:3]:
        assert client.ask("/healthz").status == 200
    clients[3].say("/v2/team/app/tags/list", "HEAD")
    assert clients[3].hear("HEAD").status == 404
    for _ in range(2):
        for worker in {client.worker for client in clients}:
            kept.kill(worker)
        for client in clients:
            assert client.ask("/healthz").body == b"alive\n"


def test_two_workers_die_one_after_the_other(kept: Kept) -> None:
    path, data = kept.blob(15, stall_after=MIB)
    client = kept.client()
    client.say(path)
    client.head()
    first = client.read(MIB // 2)
    for _ in range(2):
        worker = client.worker
        kill(worker)
        wait_until(lambda gone=worker: client.worker != gone)  # type: ignore[misc]
    kept.origin.release()
    assert first + client.read(len(data) - len(first)) == data


def test_clients_that_leave_leave_nothing(kept: Kept) -> None:
    path, _ = kept.blob(16, stall_after=MIB)
    clients = [kept.client() for _ in range(4)]
    clients[0].say("/healthz", Connection="close")
    assert clients[0].hear().body == b"alive\n"
    assert clients[0].is_over(), "it sees the end, although there was a duplicate"
    wait_until(lambda: clients[0].port not in kept_ports(kept.serving))
    clients[1].ask("/healthz")
    clients[2].say(path)
    clients[2].head()
    clients[3].socket.sendall(b"GET /heal")
    wait_until(lambda: {each.port for each in clients[1:]} <= kept_ports(kept.serving))
    worker = clients[2].worker
    kill(worker)
    wait_until(lambda: clients[2].worker != worker)
    for client in clients[1:]:
        client.close()
    wait_until(lambda: kept_ports(kept.serving) == set())


def test_clients_that_leave_before_their_answer(kept: Kept) -> None:
    """No process has a descriptor of them, although the kernel knows no connection any more."""
    before = left_over(kept.serving)  # such as of the origin, or of an earlier test
    clients = [kept.client() for _ in range(60)]
    for client in clients:
        client.say("/healthz")
        client.close()
    kept.client().ask("/healthz")  # so all that came before it were accepted

    def are_gone() -> bool:
        known = {each.port for each in clients} & kept_ports(kept.serving)
        return not known and left_over(kept.serving) <= before

    wait_until(are_gone, 40)  # sooner than idle connections are closed (75 s)


def test_a_head_that_came_in_pieces(kept: Kept) -> None:
    """Its worker is killed in the middle of the response."""
    path, data = kept.blob(22, stall_after=MIB)
    client = kept.client()
    other = neighbour(kept, client)
    for piece in (b"\r", b"\nGET ", f"{path} HTTP/1.1\r\nHo".encode(), b"st: a\r\n\r"):
        client.socket.sendall(piece)
        other.ask("/healthz")  # so the worker has parsed this piece
    client.socket.sendall(b"\n")
    client.head()
    first = client.read(MIB // 2)
    kept.kill(client.worker)
    kept.origin.release()
    assert first + client.read(len(data) - len(first)) == data
    assert client.ask("/healthz").body == b"alive\n"


def test_half_a_head_goes_on(kept: Kept) -> None:
    path, data = kept.blob(23)
    client = kept.client()
    for method in ("HEAD", "GET"):
        client.socket.sendall(f"{method} {path} HTTP/1.1\r\nHo".encode())
        neighbour(kept, client).ask("/healthz")
        kept.kill(client.worker)
        client.socket.sendall(b"st: a\r\n\r\n")
        answer = client.hear(method)
        assert answer.headers["content-length"] == str(len(data))
        assert answer.body == (data if method == "GET" else b"")


def test_an_end_in_the_middle_of_a_head(kept: Kept) -> None:
    client = kept.client()
    client.socket.sendall(b"GET /healthz HTTP/1.1\r\nHo")
    neighbour(kept, client).ask("/healthz")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.is_over()


def neighbour(kept: Kept, client: Client) -> Client:
    """Another client of the same worker.

    When it has its answer, the worker has seen all that `client` sent before.
    """
    while True:
        other = kept.client()
        assert other.ask("/healthz").body == b"alive\n"
        if other.worker == client.worker:
            return other


def test_half_a_body_ends_the_connection(kept: Kept) -> None:
    client = kept.client()
    assert client.ask("/healthz").status == 200
    head = b"PUT /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    client.socket.sendall(head + b"half")
    client.hear()
    assert client.is_over()


def unread(worker: int, port: int) -> int:
    """Bytes of that client that the worker has not read."""
    for line in Path(f"/proc/{worker}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].partition(":")[2], 16) == port:
            return int(fields[4].partition(":")[2], 16)
    return -1


def test_a_worker_that_is_stopped_is_killed_and_succeeded(
    serve: Serve, origin: Origin, folder_of_blob: Callable[[], tuple[str, bytes]]
) -> None:
    path, data = folder_of_blob()
    serving = serve("--stuck-after", "0.5s", upstream=origin.url("").rstrip("/"))
    wait_until(lambda: are_ready(serving, 2, 2))
    client = Client(serving)
    client.say(path)
    client.head()
    first = client.read(MIB // 2)
    os.kill(client.worker, signal.SIGSTOP)
    wait_until(lambda: "has made no progress for" in serving.log)
    origin.release()
    assert first + client.read(len(data) - len(first)) == data
    client.close()


def test_requests_of_a_dead_worker_are_not_turned_away(
    serve: Serve, origin: Origin, folder_of_blob: Callable[[], tuple[str, bytes]]
) -> None:
    """The next worker has as many connections as it may have, before it answers one of them."""
    path, data = folder_of_blob()
    limits = "--workers", "1", "--max-connections", "3"
    serving = serve(*limits, upstream=origin.url("").rstrip("/"))
    wait_until(lambda: are_ready(serving, 1, 1))
    clients = [Client(serving), Client(serving)]
    for client in clients:
        client.say(path)
        client.head()
    got = [client.read(MIB // 2) for client in clients]
    clients.append(Client(serving))
    wait_until(lambda: len(kept_ports(serving)) == 3)
    kill(clients[0].worker)
    origin.release()
    for client, first in zip(clients, got, strict=False):
        assert first + client.read(len(data) - len(first)) == data
    for client in clients:
        client.close()


@pytest.fixture
def folder_of_blob(origin: Origin) -> Callable[[], tuple[str, bytes]]:
    def make() -> tuple[str, bytes]:
        path = f"/v2/team/app/blobs/{digest(17, 3 * MIB)}"
        origin.serve(path, seed=17, size=3 * MIB)
        origin.change(path, first=0, count=1, stall_after=MIB)
        return path, content(17, 3 * MIB)

    return make


def test_workers_that_are_replaced_hand_over(
    serve: Serve, origin: Origin, folder_of_blob: Callable[[], tuple[str, bytes]]
) -> None:
    """They do not wait for `grace`, and cut nobody."""
    path, data = folder_of_blob()
    serving = serve("--grace", "10m", upstream=origin.url("").rstrip("/"))
    wait_until(lambda: are_ready(serving, 2, 2))
    client, idle, asking = Client(serving), Client(serving), Client(serving)
    idle.ask("/healthz")
    client.say(path)
    client.head()
    first = client.read(MIB // 2)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            assert asking.ask("/healthz").body == b"alive\n"

    thread = threading.Thread(target=ask)
    thread.start()
    before = set(serving.workers())
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(serving.workers()))
    stop.set()
    thread.join()
    origin.release()
    assert first + client.read(len(data) - len(first)) == data
    for each in (client, idle, asking):
        assert each.ask("/healthz").body == b"alive\n"
        each.close()


def test_without_the_keeper_clients_are_cut(
    serve: Serve, origin: Origin, folder_of_blob: Callable[[], tuple[str, bytes]]
) -> None:
    path, data = folder_of_blob()
    serving = serve("--no-keep", upstream=origin.url("").rstrip("/"))
    wait_until(lambda: are_ready(serving, 2, 2))
    client = Client(serving)
    client.say(path)
    client.head()
    client.read(MIB // 2)
    assert kept_ports(serving) == set()
    kill(client.worker)
    with pytest.raises(Cut):
        client.read(3 * MIB)
    origin.release()
    client.close()
    assert serving.ask(path).body == data


def test_a_storm(kept: Kept) -> None:
    """Clients of small and large blobs, while one worker after the other is killed."""
    large, small = kept.blob(18, 8 * MIB), kept.blob(19, 5000)
    stop = threading.Event()
    wrong: list[object] = []
    count = [0, 0]

    def ask(number: int, path: str, data: bytes) -> None:
        client = kept.client()
        try:
            while not stop.is_set():
                if client.ask(path).body != data:
                    wrong.append(path)
                count[number] += 1
        except (Cut, OSError, AssertionError) as error:
            wrong.append(error)

    threads = [
        threading.Thread(target=ask, args=(number, *blob))
        for number, blob in enumerate((small, large))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for _ in range(5):
        before = list(count)
        wait_until(lambda was=before: count[0] > was[0] + 5 and count[1] > was[1])  # type: ignore[misc]
        worker = kept.serving.workers()[0]
        kill(worker)
        wait_until(lambda gone=worker: gone not in kept.serving.workers())  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
