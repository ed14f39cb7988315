# pyright: strict
"""The public API as users write it. Nobody runs this: mypy and pyright check it (`make check`)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, assert_type

import shmstream.sources
from shmstream import (
    AsyncBlob,
    Blob,
    BlobStreamer,
    BlobWriter,
    CommandSource,
    CopierStatistics,
    Description,
    Event,
    EventKind,
    Feed,
    Finding,
    Findings,
    FlightInfo,
    InFlightCopier,
    Progress,
    Retries,
    Role,
    ShmstreamError,
    Source,
    SourceFailed,
    State,
    Stock,
    Store,
    StoredBlob,
    StreamerStatistics,
    Subscriber,
    sweep,
    wsgi,
)
from shmstream.asgi import InFlightResponse, Receive, Scope, Send
from shmstream.registry import create_app
from shmstream.server import Protocol
from shmstream.sources import FileSource, FsspecSource, HTTPSource, PathSource, as_sources


def write(source: BinaryIO) -> None:
    with BlobStreamer.create("model.bin", name="model", size=5, digest="sha256:00") as blob:
        blob.append(b"12345")
        assert_type(blob.transfer(source), int)
        assert_type(blob.size, int | None)
        assert_type(blob.state, State)
        assert_type(blob.name, str)
        statistics = blob.statistics()
        assert_type(statistics, StreamerStatistics)
        assert_type(statistics.subscribers, tuple[Subscriber, ...])
        blob.commit()


def produce(store: Store, frame: bytes) -> None:
    with store.create("report", size=5, media_type="text/csv") as blob:
        assert_type(blob.write(frame), int)
        subprocess.run(["date"], stdout=blob, check=True)
        shutil.copyfileobj(BytesIO(frame), blob)
        assert_type(blob, BlobWriter)
    with store.open("report", wait_for=30) as arriving:
        assert_type(arriving.read(), bytes)


def read(destination: BinaryIO) -> None:
    with InFlightCopier.attach("model", timeout=5, stall_timeout=30) as blob:
        assert_type(blob.read(10), bytes)
        assert_type(blob.seek(-4, 2), int)
        assert_type(blob.copy(destination), int)
        assert_type(blob.statistics(), CopierStatistics)
        for data in blob:
            hashlib.sha256(data)
        shutil.copyfileobj(blob, destination)


def tell(progress: Progress) -> None:
    assert_type(progress.published, int)
    assert_type(progress.size, int | None)


def hear(event: Event) -> None:
    assert_type(event.kind, EventKind)
    assert_type(event.count, int)


def serve_wsgi(
    environ: dict[str, object], start_response: wsgi.StartResponse, store: Store
) -> Iterable[bytes]:
    response = wsgi.InFlightResponse(store, "report", filename="a.csv", wait_for=30.0)
    return response(environ, start_response)


class Mine:
    """A source of one's own."""

    name = "mine"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        def data() -> Iterator[bytes]:
            yield b"12345"[offset:]

        return Feed(data(), offset=offset, size=5, validator=validator)

    def describe(self) -> Description:
        return Description(size=5)


def sources(file: BinaryIO) -> None:
    mine: Source = Mine()
    http: Source = HTTPSource("https://host/blob", timeout=(5, 30))
    of_path: Source = PathSource("/blob")
    of_file: Source = FileSource(file)
    elsewhere: Source = FsspecSource("s3://bucket/blob")
    command: Source = CommandSource(["ffmpeg", "-i", Path("/a.mkv")], cwd="/", env={"A": "b"})
    process = subprocess.Popen(["cat"], stdout=subprocess.PIPE)
    every: list[Source | str | Path] = [mine, http, of_path, of_file, elsewhere, "/b", Path("/b")]
    given = as_sources(every) + as_sources(process) + as_sources(command)
    assert_type(given, list[Source])
    assert_type(shmstream.sources.HTTPSource, type[HTTPSource])


def store() -> None:
    blobs = Store("/var/cache/blobs", max_bytes=1 << 30, retries=Retries(), on_event=hear)
    sources: list[Source | str] = ["https://host/blob", Mine()]
    with blobs.open("sha256:00", sources, progress=tell) as blob:
        assert_type(blob, Blob)
        assert_type(blob.read(), bytes)
        assert_type(blob.role, Role)
        assert_type(blob.validator, str | None)
        assert_type(blob.wait(), int)
    assert_type(blobs.fetch("sha256:00", Path("/blob")), str)
    assert_type(blobs.fetch("a name", Path("/blob"), digest="md5:00", size=5), str)
    assert_type(blobs.flights(), list[FlightInfo])
    assert_type(blobs.blobs(), list[tuple[str | None, StoredBlob]])
    assert_type(blobs.stock(), Stock)
    assert_type(blobs.check(), Findings)
    for finding in blobs.check():
        assert_type(finding, Finding)
    assert_type(blobs.gc(), list[str])
    assert_type(blobs.evict(0), list[str])
    assert_type("sha256:00" in blobs, bool)
    assert_type(sweep(), list[str])


def fail(blobs: Store) -> str:
    try:
        return blobs.fetch("sha256:00", "https://host/blob")
    except SourceFailed as error:
        assert_type(error.reason, str)
        raise
    except ShmstreamError as error:
        return str(error)


async def wait(blobs: Store) -> None:
    async with blobs.aopen("sha256:00", "https://host/blob") as blob:
        assert_type(blob, AsyncBlob)
        assert_type(await blob.read(10), bytes)
        async for data in blob:
            assert_type(data, bytes)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    response = InFlightResponse(Store("/blobs"), "sha256:00", "https://host/blob")
    await response(scope, receive, send)


def servers() -> None:
    assert_type(Protocol.__name__, str)
    application = create_app()
    assert callable(application)
