"""`InFlightResponse` on a real server with several worker processes, and real clients."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from shmstream import Store
from tests.support.asgi_servers import Server
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 2 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)


SPARE = 2  # descriptors; each worker's loop keeps one from its first connection on

PROTOCOLS = ("httptools", "shmstream.server:Protocol")
Both = Callable[..., list[Server]]


@pytest.fixture(scope="module", params=PROTOCOLS, ids=["by hand", "zero-copy"])
def server_of_all(
    origin_process: Origin, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    running = Server.for_many(place, origin_process, "--http", request.param)
    yield running
    running.close()


@pytest.fixture
def server(server_of_all: Server, folder: str, store: Store, origin: Origin) -> Iterator[Server]:
    """A server of two workers, which serves other tests, too; the store is of this test."""
    origin.serve("/blob", seed=1, size=SIZE, media_type="application/x-test")
    server_of_all.use(folder)
    yield server_of_all
    wait_until(lambda: not store.flights())
    store.gc()


@pytest.fixture(params=PROTOCOLS, ids=["by hand", "zero-copy"])
def doomed(
    folder: str, store: Store, origin: Origin, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Server]:
    """A server of one test, which may kill its workers."""
    origin.serve("/blob", seed=1, size=SIZE, media_type="application/x-test")
    running = Server(folder, origin, tmp_path / "log", "--http", request.param)
    yield running
    running.close()
    wait_until(lambda: not store.flights())
    store.gc()


def test_a_blob_in_flight_and_then_complete(server: Server, origin: Origin, store: Store) -> None:
    for _ in range(2):
        answer = server.request("GET", f"/blob/{KEY}")
        assert (answer.status, sha256(answer.body)) == (200, sha256(DATA))
        assert answer.getheader("content-length") == str(SIZE)
        assert answer.getheader("etag") == f'"{KEY}"'
        assert answer.getheader("accept-ranges") == "bytes"
        wait_until(lambda: KEY in store)
    assert len(origin.requests("/blob")) == 1


def test_clients_of_all_workers_share_a_flight(server: Server, origin: Origin) -> None:
    origin.change("/blob", stall_after=MIB)
    clients = [server.open("GET", f"/blob/{KEY}") for _ in range(16)]
    assert {response.getheader("content-type") for _, response in clients} == {"application/x-test"}
    assert {sha256(response.read(900_000)) for _, response in clients} == {sha256(DATA[:900_000])}
    for connection, response in clients[:5]:  # clients that leave disturb nobody
        response.close()
        connection.close()
    origin.release()
    for connection, response in clients[5:]:
        assert sha256(response.read()) == sha256(DATA[900_000:])
        connection.close()
    assert len(origin.requests("/blob")) == 1


RANGES: list[tuple[str, int, slice | None]] = [
    ("bytes=0-0", 206, slice(0, 1)),
    ("bytes=100-199", 206, slice(100, 200)),
    ("bytes=2000000-", 206, slice(2_000_000, SIZE)),
    ("bytes=-100", 206, slice(SIZE - 100, SIZE)),
    (f"bytes=-{10 * SIZE}", 206, slice(0, SIZE)),
    (f"bytes=0-{10 * SIZE}", 206, slice(0, SIZE)),
    (f"bytes={SIZE}-", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=5-2", 200, slice(0, SIZE)),
    ("bytes=0-1,5-6", 200, slice(0, SIZE)),
    ("lines=0-1", 200, slice(0, SIZE)),
    ("bytes=", 200, slice(0, SIZE)),
    ("bytes=" + "9" * 30 + "-", 416, None),
    ("bytes=0-1" * 1000, 200, slice(0, SIZE)),
]


@pytest.mark.parametrize("complete", [False, True])
def test_ranges(complete: bool, server: Server, origin: Origin, store: Store) -> None:
    if complete:
        store.fetch(KEY, origin.url("/blob"))
    for wanted, status, part in RANGES:
        answer = server.request("GET", f"/blob/{KEY}", Range=wanted)
        assert answer.status == status, wanted
        if part is None:
            assert answer.getheader("content-range") == f"bytes */{SIZE}"
            assert answer.body == b""
            continue
        assert answer.body == DATA[part], wanted
        if status == 206:
            told = f"bytes {part.start}-{part.stop - 1}/{SIZE}"
            assert answer.getheader("content-range") == told


def test_a_range_ahead_of_the_tail_waits(server: Server, origin: Origin) -> None:
    origin.change("/blob", stall_after=MIB)
    connection, response = server.open("GET", f"/blob/{KEY}", {"Range": "bytes=-1000"})
    assert response.status == 206, "the headers are there before the bytes"
    origin.release()
    assert response.read() == DATA[-1000:]
    connection.close()


def test_the_head_does_not_wait_for_the_first_bytes(server: Server, origin: Origin) -> None:
    origin.change("/blob", stall_after=0)
    connection, response = server.open("GET", f"/blob/{KEY}")
    assert response.getheader("content-length") == str(SIZE)
    assert response.getheader("content-type") == "application/x-test"
    origin.release()
    assert sha256(response.read()) == sha256(DATA)
    connection.close()


def test_conditions(server: Server, origin: Origin) -> None:
    etag = f'"{KEY}"'
    cases: list[tuple[dict[str, str], int]] = [
        ({"If_None_Match": etag}, 304),
        ({"If_None_Match": f'"other", W/{etag}'}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_Match": etag}, 200),
        ({"If_Match": '"other"'}, 412),
        ({"If_Range": etag, "Range": "bytes=0-9"}, 206),
        ({"If_Range": '"other"', "Range": "bytes=0-9"}, 200),
    ]
    for headers, status in cases:
        answer = server.request("GET", f"/blob/{KEY}", **headers)
        assert answer.status == status, headers
        assert answer.getheader("etag") == etag
    assert server.request("POST", f"/blob/{KEY}").status == 405
    assert len(origin.requests("/blob")) == 1


def test_head_begins_no_download(server: Server, origin: Origin, store: Store) -> None:
    for _ in range(2):
        answer = server.request("HEAD", f"/blob/{KEY}")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.getheader("content-length") == str(SIZE)
        assert answer.getheader("content-type") == "application/x-test"
        assert answer.getheader("etag") == f'"{KEY}"'
    assert server.request("HEAD", f"/blob/{KEY}", Range="bytes=0-9").status == 200
    assert server.request("GET", f"/blob/{KEY}", If_None_Match=f'"{KEY}"').status == 304
    assert [each.method for each in origin.requests("/blob")] == ["HEAD"] * 3
    assert (KEY in store, store.flights()) == (False, [])
    origin.change("/blob", status=404)
    assert server.request("HEAD", f"/blob/{KEY}").status == 404
    origin.change("/blob", status=None)
    server.request("GET", f"/blob/{KEY}")
    wait_until(lambda: KEY in store)
    answer = server.request("HEAD", f"/blob/{KEY}")
    assert (answer.status, answer.getheader("content-length")) == (200, str(SIZE))
    # The HEAD that was refused, and then a GET for one byte; the download.
    assert [each.method for each in origin.requests("/blob")[3:]] == ["HEAD", "GET", "GET"]


@pytest.fixture
def both(folder: str, origin: Origin, tmp_path: Path) -> Iterator[Both]:
    """Start servers that differ in their options; a test waits for all of them at once."""
    running: list[Server] = []

    def start(*each: Sequence[str], **named: Any) -> list[Server]:
        for options in each:
            log = tmp_path / f"log-{len(running)}"
            running.append(Server(folder, origin, log, *options, **named))
        return running

    yield start
    for server in running:
        server.close()


BY_HAND_AND_NOT = [("--http", "tests.support.app:ByHand"), ("--http", PROTOCOLS[1])]


def has_let_go(server: Server, descriptors: int) -> bool:
    """Whether it has no client left, and no more descriptors than these."""
    return not server.connections() and server.descriptors() <= descriptors


def test_clients_that_take_nothing_are_cut(both: Both, store: Store, origin: Origin) -> None:
    size = 64 * MIB  # more than the buffers of two sockets
    origin.serve("/blob", seed=2, size=size)
    store.fetch("key", origin.url("/blob"))
    servers = both(*BY_HAND_AND_NOT, response={"write_timeout": 1.0})
    before = [running.descriptors() for running in servers]
    clients = []
    for running in servers:
        connections = [running.open("GET", "/blob/key") for _ in range(4)]
        for each in connections.pop():  # a client that leaves in the middle
            each.close()
        clients.append(connections)

    for running, had, connections in zip(servers, before, clients, strict=True):
        wait_until(partial(has_let_go, running, had + SPARE))
        for connection, response in connections:  # no client has taken anything
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
            connection.close()
        assert running.request("GET", "/blob/key", Range="bytes=-5").status == 206


def test_the_rest_of_an_answer_is_taken_or_the_client_is_cut(both: Both, store: Store) -> None:
    """Some answers of these sizes just fit into the server's buffers, and count as complete."""
    store.fetch("key", [content(2, 4 * MIB)])
    hasty = "--http", "tests.support.app:HastyByHand", "--loop"
    loops = [(*hasty, loop) for loop in ("uvloop", "asyncio")]
    servers = both(*loops, response={"write_timeout": 0.5})
    clients = []
    for size in range(100_000, 4_000_000, 30_000):
        for running in servers:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", running.port))
            client.sendall(
                b"GET /blob/key HTTP/1.1\r\nHost: test\r\nRange: bytes=0-%d\r\n\r\n" % size
            )
            clients.append(client)
    wait_until(lambda: not any(running.connections() for running in servers))
    for client in clients:
        client.close()


def test_a_client_that_takes_a_little_is_not_cut(both: Both, store: Store) -> None:
    """It takes so little that one write takes much longer than `write_timeout`."""
    data = content(2, 16 * MIB)
    store.fetch("key", [data])
    servers = both(*BY_HAND_AND_NOT, response={"write_timeout": 1.0})
    clients = [running.open("GET", "/blob/key") for running in servers]
    got = [bytearray(response.read(8 * MIB)) for _, response in clients]
    for _ in range(30):
        time.sleep(0.1)  # the pace of the clients
        for had, (_, response) in zip(got, clients, strict=True):
            had.extend(response.read(128 * 1024))
    for had, (connection, response) in zip(got, clients, strict=True):
        assert bytes(had) + response.read() == data
        connection.close()


def test_heads_of_requests_have_bounds(
    folder: str, store: Store, origin: Origin, tmp_path: Path
) -> None:
    store.fetch("key", [DATA])
    running = Server(folder, origin, tmp_path / "log", "--http", "tests.support.app:Hasty")
    try:
        before = running.descriptors()
        idle = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(500)]
        dribbling = idle[:5]
        for number in range(6):  # a client that sends a byte now and then is late, too
            for each in dribbling:
                with suppress(ConnectionError):
                    each.sendall(b"GET /blob/key HT"[number : number + 1])
            assert running.request("GET", "/blob/key", Range="bytes=0-4").body == DATA[:5]
        for each in idle:
            with each.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
            each.close()
        wait_until(lambda: running.descriptors() <= before + SPARE)
        assert running.request("GET", "/blob/key", Range="bytes=" + "0-1," * 25_000).status == 431
        assert running.request("GET", "/blob/key?" + "x" * 100_000).status == 431
        answer = running.request("GET", "/blob/key", Range="bytes=" + "0-1," * 1000)
        assert (answer.status, sha256(answer.body)) == (200, sha256(DATA))
    finally:
        running.close()


def test_several_lines_of_one_name_are_a_list(server: Server, store: Store) -> None:
    store.fetch(KEY, [DATA])
    for name, status in (("If-None-Match", 304), ("If-Match", 200), ("If-Range", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.putrequest("GET", f"/blob/{KEY}")
        connection.putheader("Range", "bytes=0-9")
        connection.putheader(name, f'"{KEY}"')
        connection.putheader(name, '"other"')
        connection.putheader("Range", "bytes=20-29")
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_a_body_that_nobody_wants_holds_up_nothing(server: Server, origin: Origin) -> None:
    """The body is read while the answer is sent: this client reads only after it has sent all."""
    origin.change("/blob", stall_after=MIB)
    with closing(
        http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    ) as connection:
        connection.request("GET", f"/blob/{KEY}", body=bytes(32 * MIB))
        origin.release()
        assert sha256(connection.getresponse().read()) == sha256(DATA)


def test_keys_that_are_none(server: Server, origin: Origin) -> None:
    for key in ("", "sha256:1234", "sha256:%0d%0aX-Evil:%201", "sha256:%e2%82%ac"):
        for condition in ({}, {"If_None_Match": '"x"'}, {"If_None_Match": "*"}):
            answer = server.request("GET", f"/blob/{key}", **condition)
            assert (answer.status, answer.getheader("etag")) == (404, None)
    origin.change("/blob", status=404)
    assert server.request("GET", f"/blob/{KEY}", If_None_Match="*").status == 404


def test_http_1_0_is_told_the_length(server: Server, origin: Origin) -> None:
    origin.change("/blob", framing="chunked")
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"GET /blob/key HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert f"content-length: {SIZE}".encode() in head
    assert sha256(body) == sha256(DATA)


def test_no_body_ends_before_its_blob_does(server: Server, origin: Origin, store: Store) -> None:
    """All bytes have come, and then the blob cannot get its final name."""
    # Each piece is published at once; none comes before the test is ready.
    origin.serve("/blob", seed=1, size=MIB // 8, rate=MIB // 4, stall_after=0)
    connection, response = server.open("GET", "/blob/key")
    [flight] = store.flights()
    in_the_way = Path(flight.path)
    in_the_way.mkdir()
    origin.release()
    with closing(connection), pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    wait_until(lambda: store.flights() == [])
    in_the_way.rmdir()
    assert caught.value.expected == 1


def test_unknown_length_is_chunked(server: Server, origin: Origin) -> None:
    origin.change("/blob", framing="chunked", stall_after=MIB)
    connection, response = server.open("GET", f"/blob/{KEY}")
    assert response.getheader("content-length") is None
    origin.release()
    assert sha256(response.read()) == sha256(DATA)
    connection.close()


def test_wrong_bytes_never_complete_a_body(server: Server, origin: Origin, store: Store) -> None:
    origin.change("/blob", wrong_at=1_500_000)
    connection, response = server.open("GET", f"/blob/{KEY}")
    with pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    assert caught.value.expected
    connection.close()
    wait_until(lambda: store.flights() == [])
    assert KEY not in store
    origin.change("/blob", wrong_at=None)
    assert sha256(server.request("GET", f"/blob/{KEY}").body) == sha256(DATA)


def test_errors_before_the_headers_are_answers(server: Server, origin: Origin) -> None:
    for status, expected in ((404, 404), (410, 404), (403, 502), (500, 502)):
        origin.change("/blob", status=status)
        for method in ("HEAD", "GET"):
            answer = server.request(method, f"/blob/{KEY}")
            assert (answer.status, answer.body) == (expected, b"")
    assert server.request("GET", "/blob/absent").status == 404


def test_the_worker_that_leads_is_killed(doomed: Server, origin: Origin, store: Store) -> None:
    """Clients of the other worker see a pause, and the upstream one more request."""
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    clients = [doomed.open("GET", f"/blob/{KEY}")]
    [flight] = store.flights()
    assert flight.leader is not None
    leading = psutil.Process(flight.leader.pid)
    leading.suspend()  # so that the other worker gets the next client
    wait_until(lambda: leading.status() == psutil.STATUS_STOPPED)
    clients.append(doomed.open("GET", f"/blob/{KEY}"))
    leading.kill()
    finished = 0
    for connection, response in clients:
        try:
            finished += hashlib.sha256(response.read()).hexdigest() == sha256(DATA)
        except (http.client.IncompleteRead, ConnectionError):
            pass  # a client of the killed worker
        connection.close()
    assert 0 < finished < len(clients)
    first, second = origin.requests("/blob")
    assert (first.status, second.status) == (200, 206)


def test_the_first_bytes_are_few_and_their_client_has_the_processor_next(
    folder: str, store: Store, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    store.fetch(KEY, origin.url("/blob"))
    notes = tmp_path / "sends"
    monkeypatch.setenv("TEST_SENDS", str(notes))
    running = Server(folder, origin, tmp_path / "log", "--http", PROTOCOLS[1])
    try:
        assert running.request("GET", f"/blob/{KEY}").body == DATA
        wait_until(lambda: sum(map(int, re.findall(r"sendfile (\d+)", notes.read_text()))) == SIZE)
        lines = notes.read_text().splitlines()
        assert lines[:2] == ["sendfile 65536", "sched_yield None"]
        assert "sched_yield None" not in lines[2:]
    finally:
        running.close()


def test_a_slow_client_holds_up_nobody(server: Server, origin: Origin) -> None:
    slow_connection, slow = server.open("GET", f"/blob/{KEY}")
    assert slow.read(1000) == DATA[:1000]
    assert sha256(server.request("GET", f"/blob/{KEY}").body) == sha256(DATA)
    assert sha256(slow.read()) == sha256(DATA[1000:])
    slow_connection.close()
    assert len(origin.requests("/blob")) == 1


@pytest.mark.parametrize("framework", ["starlette", "fastapi", "django"])
def test_frameworks_take_it_for_a_response(
    framework: str, folder: str, store: Store, origin: Origin, tmp_path: Path
) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    running = Server(
        folder, origin, tmp_path / "log", "--factory", app=f"tests.support.app:{framework}"
    )
    try:
        answer = running.request("GET", f"/blob/{KEY}", Range="bytes=5-9")
        assert (answer.status, answer.body) == (206, DATA[5:10])
        wait_until(lambda: KEY in store)
        if framework == "django":
            assert running.request("GET", "/").body == b"Django"
    finally:
        running.close()


@pytest.mark.parametrize("middleware", ["compressing", "calling"])
def test_what_is_in_between_may_know_nothing_of_zero_copy(
    middleware: str, folder: str, store: Store, origin: Origin, tmp_path: Path
) -> None:
    origin.serve("/blob", seed=1, size=SIZE, media_type="text/x-test")
    options = ("--factory", "--http", PROTOCOLS[1])
    running = Server(
        folder, origin, tmp_path / "log", *options, app=f"tests.support.app:{middleware}"
    )
    try:
        for wanted in ("gzip", "identity"):
            answer = running.request("GET", f"/blob/{KEY}", Accept_Encoding=wanted)
            is_gzip = answer.getheader("content-encoding") == "gzip"
            assert sha256(gzip.decompress(answer.body) if is_gzip else answer.body) == sha256(DATA)
        ranged = {"Range": "bytes=5-9", "Accept_Encoding": "gzip"}
        answer = running.request("GET", f"/blob/{KEY}", **ranged)
        assert (answer.status, answer.body) == (206, DATA[5:10])
        wait_until(lambda: KEY in store)
    finally:
        running.close()


def test_background_tasks_run(folder: str, store: Store, origin: Origin, tmp_path: Path) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    running = Server(folder, origin, tmp_path / "log", "--factory", app="tests.support.app:fastapi")
    try:
        assert running.request("GET", f"/blob/{KEY}?note=1").body == DATA
        wait_until(lambda: "served" in store)
        wait_until(lambda: KEY in store and store.flights() == [])
    finally:
        running.close()


@pytest.mark.parametrize("name", ["hypercorn", "granian"])
def test_on_other_servers(
    name: str, folder: str, store: Store, origin: Origin, tmp_path: Path
) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    running = Server(folder, origin, tmp_path / "log", server=name)
    try:
        origin.change("/blob", first=0, count=1, stall_after=MIB)
        clients = [running.open("GET", f"/blob/{KEY}") for _ in range(4)]
        assert {response.read(9) for _, response in clients} == {DATA[:9]}
        if name != "granian":  # granian sends the head together with the first bytes
            ahead = running.open("GET", f"/blob/{KEY}", {"Range": "bytes=-1000"})
            assert ahead[1].status == 206
        for each in clients.pop(0):  # a client that leaves disturbs nobody
            each.close()
        origin.release()
        for connection, response in clients:
            assert sha256(response.read()) == sha256(DATA[9:])
            connection.close()
        if name != "granian":
            assert ahead[1].read() == DATA[-1000:]
            ahead[0].close()
        wait_until(lambda: KEY in store)
        assert len(origin.requests("/blob")) == 1
        for headers, status in (
            ({"Range": "bytes=5-9"}, 206),
            ({"Range": f"bytes={SIZE}-"}, 416),
            ({"If_None_Match": f'"{KEY}"'}, 304),
            ({"If_Match": '"other"'}, 412),
        ):
            assert running.request("GET", f"/blob/{KEY}", **headers).status == status
        assert running.request("HEAD", f"/blob/{KEY}").getheader("content-length") == str(SIZE)
        origin.serve("/blob", seed=2, size=SIZE)
        origin.change("/blob", wrong_at=SIZE - 5)
        connection, response = running.open("GET", f"/blob/{digest(2, SIZE)}")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        connection.close()
        origin.serve("/blob", seed=3, size=SIZE, framing="chunked")
        assert sha256(running.request("GET", "/blob/unsized").body) == sha256(content(3, SIZE))
    finally:
        running.close()
