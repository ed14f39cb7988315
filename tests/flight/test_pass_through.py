"""A blob without room: each client gets it straight from the source, and no client is cut off.

The store is on a disk of 2 MiB; the blob has 4. Where its size is known there is no flight at all,
where it is not, the flight ends in the middle.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shmstream import DamagedPartial, Store
from shmstream.errors import OutOfRoom
from shmstream.sources.base import Description, Feed
from tests.asgi.test_response import PROTOCOLS, SPARE
from tests.hazards.test_shortages import with_shared_memory_of
from tests.support.asgi_servers import Server
from tests.support.images import OCI_MANIFEST, digest_of
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.registries import Run
from tests.support.roles import content, sha256
from tests.support.root import unmount
from tests.support.stores import digest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")

MIB = 1 << 20
SIZE = 4 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
LAST = SIZE - 65536  # where the last chunk begins


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """The folder of a store on a small disk. At the end its check finds nothing."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mounted], check=True)
    yield str(mounted / "store")
    if (mounted / "filling").exists():
        (mounted / "filling").unlink()
    store = Store(mounted / "store")
    wait_until(lambda: not store.flights())
    store.gc(partial_age=0)
    assert store.check() == []
    unmount(mounted)


Serving = Callable[..., Server]
Client = tuple[http.client.HTTPConnection, http.client.HTTPResponse]


@pytest.fixture(scope="module")
def servers_of_all(
    origin_process: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """A server for each protocol; each test gives it a store."""
    running = {
        protocol: Server.for_many(
            tmp_path_factory.mktemp("server"), origin_process, "--http", protocol
        )
        for protocol in PROTOCOLS
    }
    yield running
    for each in running.values():
        each.close()


@pytest.fixture
def serving(
    servers_of_all: dict[str, Server], store: Store, origin: Origin, tmp_path: Path
) -> Iterator[Serving]:
    """A server, by default with zero-copy. The origin has the blob, and tells its size.

    A server of other tests, too, unless it is to be a special one.
    """
    own: list[Server] = []
    used: list[Server] = []
    origin.serve("/blob", seed=1, size=SIZE, media_type="application/x-test")

    def serve(protocol: str = PROTOCOLS[1], folder: str = store.folder, **named: Any) -> Server:
        if named:
            own.append(Server(folder, origin, tmp_path / "log", "--http", protocol, **named))
            return own[-1]
        used.append(servers_of_all[protocol])
        used[-1].use(folder)
        return used[-1]

    yield serve
    for each in own:
        each.close()
        assert "never retrieved" not in (tmp_path / "log").read_text()
    for each in used:
        assert "never retrieved" not in each.said
    assert KEY not in store
    wait_until(lambda: not store.flights())


def gets(server: Server, key: str = KEY, **headers: str) -> bytes:
    """The bytes that a client gets before its answer is cut off."""
    connection, response = server.open("GET", f"/blob/{key}", headers)
    with closing(connection), pytest.raises((http.client.IncompleteRead, ConnectionError)) as cut:
        response.read()
    return cut.value.partial if isinstance(cut.value, http.client.IncompleteRead) else b""


def open_when_there_is_a_place(server: Server) -> Client:
    """An answer with the blob: a passage has its place until it has closed its connection."""
    while True:
        connection, response = server.open("GET", f"/blob/{KEY}")
        if response.status == 200:
            return connection, response
        assert response.status == 503
        connection.close()


def fill(folder: str) -> None:
    """Fill the disk to the last byte."""
    with (Path(folder).parent / "filling").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


# Before the headers.


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_are_served_what_will_not_fit(protocol: str, serving: Serving, store: Store) -> None:
    server = serving(protocol)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.request("GET", f"/blob/{KEY}"), range(8)))
    for answer in answers:
        assert (answer.status, sha256(answer.body)) == (200, sha256(DATA))
        assert answer.getheader("content-length") == str(SIZE)
        assert answer.getheader("content-type") == "application/x-test"
        assert answer.getheader("etag") == f'"{KEY}"'
    assert [key for key, _ in store.blobs()] == []


def test_ranges_and_conditions(serving: Serving) -> None:
    server = serving()
    for wanted, status, span in (
        ("bytes=0-0", 206, (0, 0)),
        ("bytes=100-199", 206, (100, 199)),
        ("bytes=2000000-3000000", 206, (2_000_000, 3_000_000)),
        ("bytes=2000000-", 206, (2_000_000, SIZE - 1)),
        ("bytes=-100", 206, (SIZE - 100, SIZE - 1)),
        (f"bytes=0-{10 * SIZE}", 206, (0, SIZE - 1)),
        ("bytes=0-1,5-6", 200, (0, SIZE - 1)),
    ):
        first, last = span
        for key in (KEY, "name"):
            answer = server.request("GET", f"/blob/{key}", Range=wanted)
            assert (answer.status, sha256(answer.body)) == (status, sha256(DATA[first : last + 1]))
            told = f"bytes {first}-{last}/{SIZE}" if status == 206 else None
            assert answer.getheader("content-range") == told
            assert answer.getheader("content-length") == str(last + 1 - first)
    etag = f'"{KEY}"'
    head = server.request("HEAD", f"/blob/{KEY}")
    assert (head.status, head.getheader("content-length"), head.body) == (200, str(SIZE), b"")
    assert server.request("GET", f"/blob/{KEY}", If_None_Match=etag).status == 304
    assert server.request("GET", "/blob/name", If_None_Match=f'"1-{SIZE}"').status == 304
    assert server.request("GET", "/blob/name", Range=f"bytes={SIZE}-").status == 416
    answer = server.request("GET", "/blob/name", Range="bytes=5-9", If_Range=f'"1-{SIZE}"')
    assert (answer.status, answer.body) == (206, DATA[5:10])


def test_a_head_that_only_a_download_can_tell(serving: Serving, origin: Origin) -> None:
    server = serving()
    answer = server.request("HEAD", "/blob/silent")
    assert (answer.status, answer.getheader("content-length")) == (200, str(SIZE))
    assert answer.getheader("etag") == f'"1-{SIZE}"'
    origin.wait("/blob", lambda heard: len(heard) == 2 and all(each.over for each in heard))
    assert {each.method for each in origin.requests("/blob")} == {"GET"}


def test_http_1_0_is_told_the_length_or_refused(serving: Serving, origin: Origin) -> None:
    server = serving()
    for framing, status in (("length", b"200 OK"), ("chunked", b"503 Service Unavailable")):
        origin.change("/blob", framing=framing)
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            client.sendall(f"GET /blob/{KEY} HTTP/1.0\r\n\r\n".encode())
            with client.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
        assert status in head.splitlines()[0]
        assert sha256(body) == sha256(DATA if framing == "length" else b"")


def test_a_part_is_asked_for_as_a_part(serving: Serving, origin: Origin) -> None:
    server = serving()
    assert server.request("GET", f"/blob/{KEY}", Range="bytes=2000000-2000099").status == 206
    assert origin.requests("/blob")[-1].range == "bytes=2000000-2000099"


def test_wrong_bytes_complete_no_client(serving: Serving, origin: Origin) -> None:
    server = serving()
    origin.change("/blob", wrong_at=1_500_000)
    assert len(gets(server)) <= LAST
    assert len(gets(server, Range="bytes=0-")) <= LAST
    answer = server.request("GET", f"/blob/{KEY}", Range="bytes=2000000-")
    assert sha256(answer.body) == sha256(DATA[2_000_000:]), "no digest is of a part"
    origin.change("/blob", wrong_at=None)
    assert sha256(server.request("GET", f"/blob/{KEY}").body) == sha256(DATA)


def test_what_breaks_is_gone_on_with(serving: Serving, origin: Origin) -> None:
    server = serving()
    origin.change("/blob", first=1, count=1, close_after=MIB)  # the first request is the flight's
    assert sha256(server.request("GET", f"/blob/{KEY}").body) == sha256(DATA)
    assert origin.requests("/blob")[2].range == f"bytes={MIB}-"
    count = len(origin.requests("/blob"))
    origin.change("/blob", etag=None)
    origin.change("/blob", first=count + 1, count=1, close_after=MIB)
    assert sha256(server.request("GET", "/blob/name").body) == sha256(DATA)
    assert [each.range for each in origin.requests("/blob")[count:]] == [None] * 3
    count = len(origin.requests("/blob"))
    origin.change("/blob", first=count + 1, count=1, close_after=MIB)
    origin.change("/blob", first=count + 2, seed=2)
    assert len(gets(server, "name")) <= MIB


def test_shared_memory_is_full(serving: Serving, origin: Origin, store: Store) -> None:
    server = serving(within=with_shared_memory_of("16k"))
    origin.serve("/blob", seed=1, size=MIB)  # this one fits on the disk
    key = digest(1, MIB)
    assert sha256(server.request("GET", f"/blob/{key}").body) == key.removeprefix("sha256:")
    assert key not in store
    origin.change("/blob", status=404)
    assert server.request("GET", f"/blob/{key}").status == 404


# In the middle.


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("etag", ["auto", None])
@pytest.mark.parametrize("key", [KEY, "name"])
def test_clients_of_a_flight_go_on_without_it(
    key: str, etag: str | None, protocol: str, serving: Serving, origin: Origin
) -> None:
    server = serving(protocol)
    origin.change("/blob", framing="chunked", etag=etag)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    clients = [server.open("GET", f"/blob/{key}") for _ in range(4)]
    assert {response.read(500_000) for _, response in clients} == {DATA[:500_000]}
    assert len(origin.requests("/blob")) == 1
    origin.release()
    for connection, response in clients:
        assert sha256(response.read()) == sha256(DATA[500_000:])
        connection.close()
    own = origin.requests("/blob")[1:]
    assert len(own) == 4
    offsets = [int((each.range or "bytes=0-").strip("bytes=-")) for each in own]
    if key == "name" and etag is None:  # only the bytes show that it is the same
        assert set(offsets) == {0}
    else:
        assert min(offsets) >= MIB


@pytest.mark.parametrize("etag", ["auto", None])
def test_bytes_of_two_contents_are_never_mixed(
    etag: str | None, serving: Serving, origin: Origin
) -> None:
    server = serving()
    origin.change("/blob", framing="chunked", etag=etag)
    origin.change("/blob", first=1, seed=2)
    got = gets(server, "name")
    assert got == DATA[: len(got)]


def test_wrong_bytes_that_a_client_has_already(serving: Serving, origin: Origin) -> None:
    """The bytes that follow are right, and so is all that the client's own request brings."""
    server = serving()
    origin.change("/blob", framing="chunked")
    origin.change("/blob", first=0, count=1, wrong_at=1000)
    assert len(gets(server)) <= LAST
    assert len(origin.requests("/blob")) == 2
    assert sha256(server.request("GET", f"/blob/{KEY}").body) == sha256(DATA), "and nothing is left"


@pytest.mark.parametrize("key", [KEY, "name"])
def test_what_a_client_has_already_and_the_file_no_longer(
    key: str, folder: str, tmp_path: Path
) -> None:
    """Another flight kept fewer bytes: the bytes that the client has cannot be hashed any more."""

    class Plain:
        name = "plain"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
            return Feed(iter([DATA]), 0, SIZE)

    (tmp_path / "partial").write_bytes(DATA[: MIB // 2])
    full = OutOfRoom(key, MIB, "No space left on device")
    got = b""

    async def main() -> None:
        nonlocal got
        with (tmp_path / "partial").open("rb") as file:
            async with Store(folder).pass_through(key, Plain(), full) as passage:
                passage.give(MIB, None, Description(SIZE), file.fileno())
                async for piece in passage:
                    got += piece

    with pytest.raises(DamagedPartial, match="truncated"):
        asyncio.run(main())
    assert got == b""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("key", [KEY, "name"])
def test_a_flight_that_was_promised_its_room(
    key: str, protocol: str, serving: Serving, origin: Origin, tmp_path: Path
) -> None:
    """The server's files cannot grow beyond 2 MB, although the disk has reserved more."""
    folder = tmp_path / "roomy"
    limited = ("prlimit", "--fsize=2000000")
    server = serving(protocol, folder=str(folder), within=limited)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    whole = [server.open("GET", f"/blob/{key}") for _ in range(3)]
    wanted = {"part": "bytes=2500000-2599999", "rest": "bytes=1500000-", "end": "bytes=-1000"}
    ranges = {
        name: server.open("GET", f"/blob/{key}", {"Range": each}) for name, each in wanted.items()
    }
    assert {response.read(500_000) for _, response in whole} == {DATA[:500_000]}
    assert len(origin.requests("/blob")) == 1
    origin.release()
    for connection, response in whole:
        assert sha256(response.read()) == sha256(DATA[500_000:])
        connection.close()
    assert ranges["part"][1].read() == DATA[2_500_000:2_600_000]
    assert sha256(ranges["rest"][1].read()) == sha256(DATA[1_500_000:])
    assert ranges["end"][1].read() == DATA[-1000:]
    for connection, _ in ranges.values():
        connection.close()
    asked = [each.range or "-" for each in origin.requests("/blob")]
    assert "bytes=2500000-2599999" in asked
    assert sum(each.endswith("-") for each in asked) == 6, "each but the part, to its end"
    wait_until(lambda: not Store(folder).flights())
    Store(folder).gc(partial_age=0)
    assert Store(folder).check() == []


# Clients.


def test_a_client_that_leaves_ends_its_own(serving: Serving, origin: Origin) -> None:
    server = serving(store={"max_pass_through": 1})
    assert sha256(server.request("GET", f"/blob/{KEY}").body) == sha256(DATA)
    before = server.descriptors()
    for _ in range(2):
        count = len(origin.requests("/blob"))
        origin.change("/blob", first=count, stall_after=MIB)
        connection, response = open_when_there_is_a_place(server)
        first = response.read(MIB)  # from now on the client waits for the source
        assert sha256(first) == sha256(DATA[:MIB])
        response.close()
        connection.close()
        origin.wait("/blob", lambda heard: len(heard) >= 2 and all(each.over for each in heard))
    wait_until(lambda: server.descriptors() <= before + 2 * SPARE)


def test_there_is_a_bound(serving: Serving, origin: Origin) -> None:
    server = serving(store={"max_pass_through": 2})
    origin.change("/blob", stall_after=MIB)
    clients = [server.open("GET", f"/blob/{KEY}") for _ in range(20)]
    served = [each for each in clients if each[1].status == 200]
    assert 2 <= len(served) <= 4, "two for each worker"
    for connection, response in clients:
        if response.status != 200:
            assert (response.status, response.getheader("retry-after")) == (503, "5")
            connection.close()
    origin.release()
    for connection, response in served:
        assert sha256(response.read()) == sha256(DATA)
        connection.close()
    origin.change("/blob", stall_after=None)
    connection, response = open_when_there_is_a_place(server)
    with closing(connection):
        assert sha256(response.read()) == sha256(DATA)


def test_none_at_all(serving: Serving, origin: Origin) -> None:
    server = serving(store={"max_pass_through": 0})
    answer = server.request("GET", f"/blob/{KEY}")
    assert (answer.status, answer.getheader("retry-after")) == (503, "5")
    origin.change("/blob", framing="chunked")
    assert len(gets(server)) < 2 * MIB


def test_a_slow_client_holds_up_no_other(serving: Serving) -> None:
    server = serving()
    connection, slow = server.open("GET", f"/blob/{KEY}")
    with closing(connection):
        assert slow.read(1000) == DATA[:1000]
        assert sha256(server.request("GET", f"/blob/{KEY}").body) == sha256(DATA)
        assert sha256(slow.read()) == sha256(DATA[1000:])


def test_what_can_be_read_only_once_is_not_passed_through(serving: Serving, folder: str) -> None:
    server = serving()
    assert len(gets(server, "once")) < 2 * MIB
    wait_until(lambda: not Store(folder).flights())
    Store(folder).gc(partial_age=0)  # the partial file would give its room to the next flight
    fill(folder)
    answer = server.request("GET", "/blob/once")
    assert (answer.status, answer.getheader("retry-after")) == (503, "5")
    assert "no room:" not in server.said


# The registry.


def test_an_image_is_pulled_through_a_full_disk(
    run_registry: Run, folder: str, origin: Origin
) -> None:
    layer = f"/v2/team/app/blobs/{KEY}"
    origin.serve(layer, seed=1, size=SIZE)
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": KEY, "size": SIZE}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    text = json.dumps(manifest)
    name = digest_of(text.encode())
    for reference in ("v1", name):
        path = f"/v2/team/app/manifests/{reference}"
        told = {"Docker-Content-Digest": name}
        origin.serve(path, text=text, media_type=OCI_MANIFEST, headers=told)
    registry = run_registry(origin.url(""), workers=2)
    fill(folder)
    answer = registry.get("/v2/team/app/manifests/v1")
    assert (answer.status, answer.body) == (200, text.encode())
    assert answer.headers["content-type"] == OCI_MANIFEST
    assert registry.get(f"/v2/team/app/manifests/{name}").body == text.encode()
    assert sha256(registry.get(layer).body) == sha256(DATA)
    passed, pulled = "shmstream_passed_through_total", "shmstream_upstream_bytes_total"
    wait_until(lambda: registry.serving.metric(passed) >= 3)
    wait_until(lambda: registry.serving.metric(pulled) >= SIZE)
    origin.change(layer, wrong_at=SIZE - 5)
    connection, response = registry.open(layer)
    with closing(connection), pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
