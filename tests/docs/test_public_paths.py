"""Every public path is imported, and gives a small blob: what users import keeps its name."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import shmstream
from bench.server import Port
from shmstream import ShmstreamError, Store
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256

SIZE = 200_000
DATA = content(1, SIZE)
KEY = f"sha256:{sha256(DATA)}"
ERRORS = {
    name
    for name in shmstream.__all__
    if isinstance(thing := getattr(shmstream, name), type) and issubclass(thing, ShmstreamError)
}
USED = {
    "AsyncBlob", "Blob", "BlobStreamer", "BlobWriter", "Cluster", "CommandSource",
    "CopierStatistics",
    "Description", "Event", "EventKind", "FailureKind", "Feed", "Finding", "Findings",
    "FlightInfo", "InFlightCopier", "Progress", "Retries", "Role", "Source", "State", "Stock",
    "Store", "StoredBlob", "StreamerStatistics", "Subscriber", "sweep",
}  # fmt: skip


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port of 127.0.0.1 at which nothing listens."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        yield place.getsockname()[1]


def test_this_uses_all_that_is_public() -> None:
    assert set(shmstream.__all__) == ERRORS | USED


class Mine:
    """A `Source` and its `Feed`, as users write them."""

    name = "mine"

    def open(self, offset: int = 0, validator: str | None = None) -> shmstream.Feed:
        return shmstream.Feed(iter([DATA[offset:]]), offset, SIZE, validator)

    def describe(self) -> shmstream.Description:
        return shmstream.Description(size=SIZE)


@pytest.mark.parametrize("module", ["shmstream", "shmstream.stream"])
def test_a_stream(module: str, tmp_path: Path) -> None:
    public = importlib.import_module(module)
    with public.BlobStreamer.create(tmp_path / "blob", digest=KEY) as writer:
        with public.InFlightCopier.attach(writer.name) as reader:
            assert writer.state == public.State.OPENING
            writer.append(DATA)
            told = writer.statistics()
            assert isinstance(told, public.StreamerStatistics)
            [subscriber] = told.subscribers
            assert isinstance(subscriber, public.Subscriber)
            writer.commit()
            assert reader.read() == DATA
            assert isinstance(reader.statistics(), public.CopierStatistics)
            assert reader.state == public.State.COMMITTED
    assert (tmp_path / "blob").read_bytes() == DATA
    assert public.sweep() == []


def test_a_store_tells_what_it_has(store: Store) -> None:
    store.fetch(KEY, Mine())
    [(key, blob)] = store.blobs()
    assert type(blob) is shmstream.StoredBlob
    assert (key, blob.key, blob.path, blob.size) == (KEY, KEY, store.path(KEY), SIZE)
    assert (blob.source, blob.is_pinned) == ("mine", False)
    stock = store.stock(5)
    assert type(stock) is shmstream.Stock
    assert (stock.count, stock.size, stock.recent) == (1, SIZE, (blob,))


@pytest.mark.parametrize("module", ["shmstream", "shmstream.store"])
def test_a_store(module: str, tmp_path: Path) -> None:
    heard: list[shmstream.Event] = []
    told: list[shmstream.Progress] = []
    flights: list[shmstream.FlightInfo] = []
    source: shmstream.Source = Mine()
    with_patience = shmstream.Retries(attempts=1)
    store: Store = importlib.import_module(module).Store(
        tmp_path / "store", on_event=heard.append, retries=with_patience
    )
    gate = threading.Event()

    def gated() -> Any:
        yield DATA[:150_000]
        gate.wait()
        yield DATA[150_000:]

    with store.open(KEY, gated(), progress=told.append) as blob:
        assert type(blob) is shmstream.Blob
        assert blob.read(1000) == DATA[:1000]
        flights += store.flights()
        gate.set()
        assert blob.read() == DATA[1000:]
        assert blob.role in shmstream.Role
    assert type(flights[0]) is shmstream.FlightInfo
    assert type(told[-1]) is shmstream.Progress
    wait_until(lambda: shmstream.EventKind.COMMITTED in {each.kind for each in heard})
    assert type(heard[-1]) is shmstream.Event
    assert Path(store.fetch("a name", source)).read_bytes() == DATA
    damaged = Path(store.fetch(KEY))
    damaged.write_bytes(DATA[::-1])
    [finding] = findings = store.check()
    assert type(findings) is shmstream.Findings
    assert type(finding) is shmstream.Finding

    with store.create("written") as writer:
        assert type(writer) is shmstream.BlobWriter
        writer.write(DATA)
    assert Path(store.fetch("written")).read_bytes() == DATA

    async def read() -> bytes:
        async with store.aopen("another name", Mine()) as blob:
            assert type(blob) is shmstream.AsyncBlob
            return await blob.read()

    assert asyncio.run(read()) == DATA


@pytest.mark.parametrize("module", ["shmstream", "shmstream.cluster"])
def test_a_store_of_a_cluster_that_is_away(module: str, tmp_path: Path, free_port: int) -> None:
    """It is as good as a store without a cluster."""
    public = importlib.import_module(module)
    cluster = public.Cluster(f"redis://127.0.0.1:{free_port}", secret="a secret of 16 bytes")
    with contextlib.closing(Store(tmp_path / "store", cluster=cluster)) as store:
        assert Path(store.fetch(KEY, Mine())).read_bytes() == DATA


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error(name: str) -> None:
    """Each is caught as a `ShmstreamError`, from `shmstream` and from `shmstream.errors`."""
    error = getattr(shmstream, name)
    assert getattr(importlib.import_module("shmstream.errors"), name) is error
    assert error.__doc__


def test_errors_come_from_a_small_blob(tmp_path: Path) -> None:
    store = shmstream.Store(tmp_path / "store")
    with pytest.raises(shmstream.BlobNotFound) as caught:
        store.open(KEY)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (shmstream.BlobNotFound, str(caught.value))
    with pytest.raises(shmstream.DigestMismatch):
        store.fetch(KEY, [DATA[::-1]])
    missing = Store(tmp_path / "store", retries=shmstream.Retries(attempts=1))
    with pytest.raises(shmstream.SourceFailed) as failed:
        missing.fetch("a name", tmp_path / "nothing")
    assert failed.value.kind in shmstream.FailureKind


@pytest.mark.parametrize(
    "path", ["shmstream.http_source:HTTPSource", "shmstream.sources:HTTPSource"]
)
def test_the_source_over_http(path: str, tmp_path: Path, origin: Origin) -> None:
    module, _, name = path.partition(":")
    source = getattr(importlib.import_module(module), name)
    url = origin.serve("/blob", seed=1, size=SIZE)
    assert Path(Store(tmp_path / "store").fetch(KEY, source(url))).read_bytes() == DATA


def test_sources(tmp_path: Path) -> None:
    sources = importlib.import_module("shmstream.sources")
    (tmp_path / "blob").write_bytes(DATA)
    store = Store(tmp_path / "store")
    with (tmp_path / "blob").open("rb") as file:
        given = {
            "path": sources.PathSource(tmp_path / "blob"),
            "file": sources.FileSource(file),
            "iterable": sources.IterableSource(iter([DATA])),
            "fsspec": sources.FsspecSource(f"file://{tmp_path}/blob"),
            "chosen": sources.as_sources(tmp_path / "blob")[0],
        }
        for name, source in given.items():
            assert Path(store.fetch(name, source)).read_bytes() == DATA
    with given["path"].open() as feed:
        assert isinstance(feed, sources.Feed)
    assert isinstance(given["path"].describe(), sources.Description)
    assert sources.Source is shmstream.Source


def test_what_needs_an_extra_is_imported_when_it_is_asked_for() -> None:
    program = (
        "import sys, shmstream, shmstream.sources, shmstream.stream, shmstream.store,"
        " shmstream.registry\n"
        "assert not {'urllib3', 'fsspec', 'uvicorn', 'click'} & set(sys.modules)\n"
        "shmstream.sources.HTTPSource\n"
        "assert 'urllib3' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_response(tmp_path: Path) -> None:
    asgi: Any = importlib.import_module("shmstream.asgi")
    sent: list[Any] = []

    async def receive() -> Any:
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    response = asgi.InFlightResponse(Store(tmp_path / "store"), KEY, Mine())
    asyncio.run(response(scope, receive, send))
    assert sent[0]["status"] == 200
    assert b"".join(each.get("body", b"") for each in sent[1:]) == DATA
    assert {"Receive", "Scope", "Send"} <= set(asgi.__all__)


def test_a_response_for_wsgi(tmp_path: Path) -> None:
    wsgi: Any = importlib.import_module("shmstream.wsgi")
    told: list[Any] = []
    response = wsgi.InFlightResponse(Store(tmp_path / "store"), KEY, Mine())
    environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"}
    body = response(environ, lambda status, headers: told.append((status, headers)))
    assert told[0][0] == "200 OK"
    assert b"".join(body) == DATA
    body.close()
    assert {"InFlightResponse", "Prepared", "for_django", "for_flask"} == set(wsgi.__all__)


def test_a_protocol_and_the_registry(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `uvicorn --factory shmstream.registry:create_app --http shmstream.server:Protocol`."""
    origin.serve(f"/v2/team/app/blobs/{KEY}", seed=1, size=SIZE)
    (tmp_path / "settings.toml").write_text(
        f'store = "{tmp_path}/store"\n[[upstream]]\nurl = "{origin.url("").rstrip("/")}"\n'
    )
    monkeypatch.setenv("SHMSTREAM_CONFIG", str(tmp_path / "settings.toml"))
    with Port() as port:
        config = uvicorn.Config(
            "shmstream.registry:create_app",
            factory=True,
            http="shmstream.server:Protocol",
            port=port.number,
            log_config=None,
            access_log=False,
        )
        answer = asyncio.run(_one_request(config, f"/v2/team/app/blobs/{KEY}"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert f'etag: "{KEY}"'.encode() in head.lower()
    assert hashlib.sha256(body).hexdigest() == KEY.partition(":")[2]


async def _one_request(config: uvicorn.Config, path: str) -> bytes:
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        assert not serving.done()
    reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    server.should_exit = True
    await serving
    return answer
