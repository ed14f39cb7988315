"""A program writes a blob as a file, and other processes read it meanwhile."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from shmstream import (
    BlobAborted,
    BlobExists,
    BlobNotFound,
    BlobStreamer,
    BlobWriter,
    ContentChanged,
    DigestMismatch,
    InFlightCopier,
    OutOfRoom,
    SizeMismatch,
    Store,
    StreamClosed,
    StreamExists,
    WriterDied,
)
from shmstream.flight import flight
from shmstream.stream.partial import claim_partial
from shmstream.stream.stream import Stream
from tests.support import flights
from tests.support.containers import Container, send
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.roles import content, sha256
from tests.support.stores import digest

Start = Callable[..., Interpreter]

SIZE = 300_000
DATA = content(1, SIZE)
KEY = digest(1, SIZE)


@pytest.fixture
def producer(start: Start, folder: str) -> Callable[..., Interpreter]:
    def begin(key: str, within: tuple[str, ...] = (), **options: Any) -> Interpreter:
        started = start(flights.produce, folder, within=within)
        started.say(["create", key, options])
        return started

    return begin


@pytest.fixture
def consumer(start: Start, folder: str) -> Callable[..., Interpreter]:
    def begin(
        key: str, source: Any = None, wait_for: float = 0.0, within: tuple[str, ...] = ()
    ) -> Interpreter:
        arguments = (folder, key, source, None, wait_for)
        started = start(flights.read_in_steps, *arguments, within=within)
        if wait_for:
            assert started.hear() == "waits"
        return started

    return begin


def write(producer: Interpreter, data: bytes) -> None:
    producer.say(["write", data.hex()])
    assert producer.hear() == len(data)


def read(consumer: Interpreter, count: int) -> dict[str, Any]:
    consumer.say(count)
    return dict(consumer.hear())


def leave(consumer: Interpreter) -> None:
    consumer.say(None)
    consumer.finish()


# What a consumer sees.


@pytest.mark.parametrize(
    ("key", "options"), [("report", {}), ("report", {"size": SIZE}), (KEY, {})]
)
def test_consumers_before_and_after_the_producer(
    key: str, options: dict[str, Any], producer: Any, consumer: Any, store: Store
) -> None:
    early = consumer(key, wait_for=50.0)
    writer = producer(key, **options)
    path = writer.hear()["path"]
    assert early.hear()["role"] == "follows"
    write(writer, DATA[:200_000])
    assert read(early, 100_000)["sha256"] == sha256(DATA[:100_000])
    late = consumer(key)
    assert late.hear()["role"] == "follows"
    assert read(late, 100_000)["sha256"] == sha256(DATA[:100_000])
    write(writer, DATA[200_000:])
    writer.say(["leave"])
    assert writer.hear() == {"error": None, "digest": KEY}
    for each in (early, late):
        assert read(each, -1)["sha256"] == sha256(DATA[100_000:])
        each.finish()
    assert Path(path).read_bytes() == DATA
    assert [found for found, _ in store.blobs()] == [key]
    assert store.check() == []


def test_a_consumer_that_comes_while_the_stream_is_made(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is claimed, and the stream is not there yet: the blob is in flight, and is read."""
    claimed, may_go_on = threading.Event(), threading.Event()
    claim, attach = claim_partial, Stream.attach

    def claim_later(*args: Any, **kwargs: Any) -> Any:
        claimed.set()
        may_go_on.wait()
        return claim(*args, **kwargs)

    def let_it_go_on(name: str, timeout: float | None = None, **options: bool) -> Stream:
        if options:
            may_go_on.set()
        return attach(name, timeout, **options)

    monkeypatch.setattr("shmstream.stream.stream.claim_partial", claim_later)
    monkeypatch.setattr(Stream, "attach", let_it_go_on)
    monkeypatch.setattr(flight, "SUCCESSION", 60.0)

    def produce() -> None:
        with store.create("report") as blob:
            blob.write(DATA)

    with ThreadPoolExecutor() as pool:
        produced = pool.submit(produce)
        try:
            claimed.wait()
            assert store.is_in_flight("report")
            with store.open("report") as blob:
                assert blob.read() == DATA
        finally:
            may_go_on.set()
        produced.result()


def test_a_task_that_waits(producer: Any, store: Store) -> None:
    async def wait() -> bytes:
        async with store.aopen("report", wait_for=50.0) as blob:
            return await blob.read()

    async def main() -> list[bytes]:
        waiting = [asyncio.ensure_future(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        writer = await asyncio.to_thread(producer, "report")
        await asyncio.to_thread(writer.hear)
        await asyncio.to_thread(write, writer, DATA)
        writer.say(["leave"])
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [DATA] * 3


def test_a_producer_that_never_comes(store: Store) -> None:
    with pytest.raises(BlobNotFound, match=r"no process has begun it in 0.05 s$"):
        store.open("report", wait_for=0.05)
    with store.open("report", [DATA], wait_for=0.05) as blob:  # then the source is asked
        assert blob.read() == DATA
    assert store.fetch("report", wait_for=1e6) == store.path("report")

    async def wait() -> None:
        async with store.aopen("another", wait_for=0.05):
            pass

    with pytest.raises(BlobNotFound, match=r"no process has begun it in 0.05 s"):
        asyncio.run(wait())
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="wait_for"):
            store.open("report", wait_for=wrong)


def test_an_exception_reaches_every_consumer(producer: Any, consumer: Any, store: Store) -> None:
    writer = producer("report")
    writer.hear()
    write(writer, DATA[:1000])
    reader = consumer("report")
    reader.hear()
    assert read(reader, 500)["sha256"] == sha256(DATA[:500])
    writer.say(["fail", "division by zero"])
    assert writer.hear() == {"error": "ValueError", "text": "division by zero"}
    got = read(reader, 1000)
    assert got["error"] == "BlobAborted"
    assert "division by zero" in got["text"]
    assert "report" in got["text"]
    leave(reader)
    assert os.listdir(os.path.dirname(store.path("report"))) == []


@pytest.mark.parametrize("key", ["report", KEY])
def test_a_producer_that_is_killed(key: str, producer: Any, consumer: Any, store: Store) -> None:
    writer = producer(key)
    path = writer.hear()["path"]
    write(writer, DATA[:100_000])
    reader = consumer(key)
    reader.hear()
    assert read(reader, 50_000)["sha256"] == sha256(DATA[:50_000])
    writer.kill()
    got = read(reader, 100_000)
    assert got["error"] == "WriterDied"
    assert repr(key) in got["text"]
    assert "not complete" in got["text"]
    leave(reader)
    assert not Path(path).exists()
    assert list(Path(store.folder).rglob("*.shmstream-partial")) == []
    with pytest.raises(BlobNotFound):
        store.open(key)
    with store.create(key) as blob:
        blob.write(DATA)
    assert Path(path).read_bytes() == DATA


def test_the_next_producer_begins_at_once(producer: Any, consumer: Any, store: Store) -> None:
    """Nobody has cleared up after the first one; a consumer of the first one goes on."""
    first = producer("report")
    first.hear()
    write(first, DATA[:100_000])
    reader = consumer("report")
    reader.hear()
    assert read(reader, 50_000)["sha256"] == sha256(DATA[:50_000])
    first.kill()
    with store.create("report") as blob:
        blob.write(DATA)
        blob.flush()
        reader.say(-1)  # whether it has looked before or looks now: it joins the second one
    assert reader.hear()["sha256"] == sha256(DATA[50_000:])


def test_a_consumer_never_gets_two_contents(producer: Any, consumer: Any, store: Store) -> None:
    first = producer("report")
    first.hear()
    write(first, DATA[:100_000])
    reader = consumer("report")
    reader.hear()
    read(reader, 50_000)
    first.kill()
    with store.create("report") as blob:
        blob.write(DATA[::-1])
        got = read(reader, 100_000)
    assert got["error"] == ContentChanged.__name__
    leave(reader)


@pytest.mark.parametrize("key", ["report", KEY])
def test_a_consumer_with_a_source_begins_anew(
    key: str, producer: Any, store: Store, tmp_path: Path
) -> None:
    """What the dead producer has written is not gone on with: it may be wrong."""
    (tmp_path / "source").write_bytes(DATA)
    writer = producer(key)
    writer.hear()
    write(writer, b"wrong" * 20_000)
    writer.kill()
    with store.open(key, tmp_path / "source") as blob:
        assert blob.read() == DATA
    assert store.check() == []


def test_two_producers(producer: Any, store: Store) -> None:
    writer = producer("report")
    pid = writer.hear()["pid"]
    with pytest.raises(StreamExists, match=f"'report'.*pid {pid}"):
        store.create("report")
    write(writer, DATA)
    writer.say(["leave"])
    assert writer.hear()["error"] is None
    with pytest.raises(BlobExists, match=r"store.remove.*replace=True"):
        store.create("report")
    assert pickle.loads(pickle.dumps(BlobExists("a", "b"))).key == "a"
    with store.create("report", replace=True) as blob:
        assert store.open("report").read() == DATA  # until the new one is complete
        blob.write(DATA[::-1])
    assert store.open("report").read() == DATA[::-1]
    with pytest.raises(ZeroDivisionError), store.create("report", replace=True) as blob:
        raise ZeroDivisionError
    assert store.open("report").read() == DATA[::-1]
    assert store.check() == []


def test_a_producer_and_a_download(store: Store, tmp_path: Path) -> None:
    gate = threading.Event()

    def arriving() -> Any:
        yield DATA[:1000]
        gate.wait()
        yield DATA[1000:]

    with store.open("report", arriving()) as blob:
        blob.read(10)
        with pytest.raises(StreamExists):
            store.create("report")
        gate.set()
        blob.wait()
    with store.create("another") as writer, store.open("another", tmp_path / "none") as blob:
        writer.write(DATA)
        writer.flush()
        assert blob.read(100) == DATA[:100]
        assert blob.role == "follows"


def test_consumers_in_another_container(
    producer: Any, consumer: Any, containers: tuple[Container, Container], folder: str
) -> None:
    here, there = (each.within for each in containers)
    early = consumer("report", wait_for=50.0, within=there)
    writer = producer("report", within=here)
    writer.hear()
    write(writer, DATA[:1000])
    assert early.hear()["role"] == "follows"
    assert read(early, 1000)["sha256"] == sha256(DATA[:1000])
    write(writer, DATA[1000:])
    writer.say(["leave"])
    assert writer.hear()["error"] is None
    assert read(early, -1)["sha256"] == sha256(DATA[1000:])
    second = producer("second", within=here)
    second.hear()
    write(second, DATA[:1000])
    reader = consumer("second", within=there)
    reader.hear()
    assert read(reader, 1000)["sha256"] == sha256(DATA[:1000])
    send(second, signal.SIGKILL)
    assert read(reader, 1000)["error"] == WriterDied.__name__
    leave(reader)
    for each in Path(folder).rglob("*.shmstream-partial"):
        each.unlink()


# What is promised of the blob.


def test_digest_and_size(store: Store) -> None:
    with pytest.raises(DigestMismatch), store.create("report", digest=KEY) as blob:
        blob.write(DATA[::-1])
    with pytest.raises(DigestMismatch), store.create(KEY) as blob:
        blob.write(DATA[::-1])
    with pytest.raises(SizeMismatch), store.create("report", 10) as blob:
        blob.write(b"nine, ten, eleven")
    with pytest.raises(SizeMismatch), store.create("report", size=10) as blob:
        with store.open("report") as reader:
            blob.write(b"nine bytes"[:9])
            blob.flush()
            assert reader.published == 0  # the last chunk is withheld until the end
    with pytest.raises(ValueError, match="digest"):
        store.create("report", digest="sha256:12")
    assert os.listdir(os.path.dirname(store.path("report"))) == []
    with store.create("report", digest=KEY, size=SIZE, media_type="text/csv") as blob:
        blob.write(DATA)
    with store.open("report", digest=KEY, size=SIZE) as reader:
        assert reader.media_type == "text/csv"
        assert reader.read() == DATA


def test_an_empty_blob(store: Store) -> None:
    with store.create("empty"):
        pass
    with store.open("empty") as blob:
        assert (blob.size, blob.read()) == (0, b"")


def test_no_room(folder: str) -> None:
    store = make_store(folder, {"max_bytes": 100_000})
    with pytest.raises(OutOfRoom, match="keeps 100000 at most"):
        store.create("report", SIZE)
    with store.create("old") as blob:
        blob.write(DATA[:90_000])
    with pytest.raises(OutOfRoom, match=r"report.*keeps 100000"), store.create("report") as blob:
        blob.write(DATA)
    with store.create("new") as blob:
        blob.write(DATA[:90_000])
    wait_until(lambda: [key for key, _ in store.blobs()] == ["new"])


def test_of_a_read_only_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(store._layout), "is_read_only", True)
    with pytest.raises(Exception, match="read-only"):
        store.create("report")


# As a file.


def test_it_is_a_file(store: Store, blob: str) -> None:
    with store.create("report") as writer, BlobStreamer.create(blob) as streamer:
        for file in (writer, streamer):
            assert (file.writable(), file.readable(), file.seekable()) == (True, False, False)
            assert file.mode == "wb"
            assert not file.closed
            assert file.write(b"abc") == 3
            assert file.write(numpy.arange(4, dtype="u4").data) == 16  # bytes, not items
            assert file.tell() == 19
            for whence in (0, 1):
                with pytest.raises(io.UnsupportedOperation, match="readers may have read"):
                    file.seek(0, whence)
            with pytest.raises(TypeError, match=r"io\.TextIOWrapper"):
                file.write("text")  # type: ignore[arg-type]
            file.flush()
        with InFlightCopier.attach(streamer.name) as copier:
            assert copier.read(3) == b"abc"
            streamer.commit()
        assert store.open("report").read(3) == b"abc"
        with pytest.raises(TypeError, match="hand on the key"):
            pickle.dumps(writer)
    assert writer.closed
    assert streamer.closed
    with pytest.raises(StreamClosed):
        writer.write(b"d")


def to_csv(frame: pandas.DataFrame, blob: Any) -> None:
    frame.to_csv(blob, index=False)


def to_parquet(frame: pandas.DataFrame, blob: Any) -> None:
    parquet.write_table(pyarrow.Table.from_pandas(frame), blob)


def to_tar(frame: pandas.DataFrame, blob: Any) -> None:
    with tarfile.open(fileobj=blob, mode="w:gz") as tar:
        entry = tarfile.TarInfo("frame.csv")
        data = frame.to_csv(index=False).encode()
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))


def to_zip(frame: pandas.DataFrame, blob: Any) -> None:
    with zipfile.ZipFile(blob, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("frame.csv", "w") as file:
            frame.to_csv(file, index=False)


def to_lines(frame: pandas.DataFrame, blob: Any) -> None:
    with io.TextIOWrapper(blob, newline="") as text:  # closes the blob, as it closes any file
        out = csv.writer(text)
        out.writerow(frame.columns)
        out.writerows(frame.itertuples(index=False))


def to_gzip(frame: pandas.DataFrame, blob: Any) -> None:
    with gzip.GzipFile(fileobj=blob, mode="wb") as file:
        shutil.copyfileobj(io.BytesIO(frame.to_csv(index=False).encode()), file)


READ: dict[Callable[..., None], Callable[[Any], pandas.DataFrame]] = {
    to_csv: pandas.read_csv,
    to_parquet: pandas.read_parquet,
    to_tar: lambda blob: pandas.read_csv(tarfile.open(fileobj=blob).extractfile("frame.csv")),
    to_zip: lambda blob: pandas.read_csv(zipfile.ZipFile(blob).open("frame.csv")),
    to_lines: pandas.read_csv,
    to_gzip: lambda blob: pandas.read_csv(gzip.open(blob)),
}


@pytest.mark.parametrize("write_with", READ)
@pytest.mark.parametrize("kind", ["store", "streamer"])
def test_programs_that_write_files(
    kind: str, write_with: Callable[..., None], store: Store, blob: str
) -> None:
    frame = pandas.DataFrame({"number": range(20_000), "square": [n * n for n in range(20_000)]})
    if kind == "store":
        with store.create("frame") as writer, store.open("frame") as reader:
            write_with(frame, writer)
        got = READ[write_with](reader_of(store))
        assert reader.closed
    elif write_with is not to_lines:  # which closes the streamer, and so aborts
        with BlobStreamer.create(blob) as streamer:
            write_with(frame, streamer)
            streamer.commit()
        with open(blob, "rb") as file:
            got = READ[write_with](file)
    else:
        return
    pandas.testing.assert_frame_equal(got, frame)


def reader_of(store: Store) -> Any:
    return io.BytesIO(store.open("frame").read())


def test_an_image(store: Store) -> None:
    """Pillow writes to the descriptor in between: the order of the bytes stays."""
    image = Image.effect_noise((300, 200), 50)
    expected = io.BytesIO()
    image.save(expected, "JPEG")
    with store.create("picture") as blob:
        image.save(blob, "JPEG")
    assert store.open("picture").read() == expected.getvalue()


def test_what_is_closed_inside_the_block(store: Store) -> None:
    """The end of the block decides, and not the program that closes the file."""
    with pytest.raises(ZeroDivisionError), store.create("report") as blob:
        with io.TextIOWrapper(blob) as text:
            text.write("half of it")
            raise ZeroDivisionError
    assert "report" not in store
    with store.create("report") as blob:
        blob.write(DATA)
        blob.close()
        assert blob.closed
        with pytest.raises(StreamClosed):
            blob.write(b"more")
    assert store.open("report").read() == DATA


def test_without_a_block(store: Store) -> None:
    blob = store.create("report")
    blob.write(DATA)
    blob.close()
    assert "report" not in store
    blob = store.create("report")
    blob.write(DATA)
    blob.commit()
    blob.close()
    assert store.open("report").read() == DATA
    with pytest.warns(ResourceWarning, match="never closed"):
        store.create("forgotten").write(b"a")
    assert not store.is_in_flight("forgotten")


def test_what_was_given_up_says_why(store: Store) -> None:
    with store.create("report") as blob, store.open("report") as reader:
        blob.abort("no data today")
        with pytest.raises(BlobAborted, match="no data today"):
            blob.write(b"a")
        with pytest.raises(BlobAborted, match="no data today"):
            reader.read()
    with store.create("report", size=5) as blob:
        with pytest.raises(SizeMismatch):
            blob.write(b"six by")
        with pytest.raises(SizeMismatch):
            blob.commit()


# Other processes that write to it.

TWICE = "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data * 2)"


def test_the_output_of_a_process(store: Store) -> None:
    with store.create("report") as blob:
        blob.write(b"head")
        subprocess.run([sys.executable, "-c", TWICE], input=DATA, stdout=blob, check=True)
        blob.write(b"between")
        assert blob.tell() == 4 + 2 * SIZE + 7
        subprocess.run(["echo", "foot"], stdout=blob, check=True)
    assert store.open("report").read() == b"head" + DATA * 2 + b"between" + b"foot\n"


def test_its_output_streams(store: Store) -> None:
    with store.create("report") as blob, store.open("report") as reader:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=blob) as process:
            assert process.stdin is not None
            process.stdin.write(DATA[:1000])
            process.stdin.flush()
            assert reader.read(1000) == DATA[:1000]
            process.stdin.write(DATA[1000:])
            process.stdin.close()
        assert process.returncode == 0
    assert store.open("report").read() == DATA


def test_a_process_that_fails(store: Store) -> None:
    with pytest.raises(subprocess.CalledProcessError), store.create("report") as blob:
        subprocess.run(["sh", "-c", "echo half; exit 3"], stdout=blob, check=True)
    assert "report" not in store


def test_a_process_that_writes_too_much(store: Store) -> None:
    with pytest.raises(SizeMismatch), store.create("report", size=10) as blob:
        done = subprocess.run(["yes"], stdout=blob, check=False)
        assert done.returncode == -signal.SIGPIPE


def test_a_process_that_goes_on(store: Store) -> None:
    """The commit waits for it; an abort does not."""
    with pytest.raises(ZeroDivisionError), store.create("report") as blob:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=blob)
        raise ZeroDivisionError
    assert process.stdin is not None
    with pytest.raises(BrokenPipeError):
        while True:  # `cat` gets SIGPIPE
            process.stdin.write(DATA)
            process.stdin.flush()
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass
    assert process.wait() == -signal.SIGPIPE


def test_a_forked_child_leaves_it_alone(store: Store) -> None:
    with store.create("report") as blob:
        subprocess.run(["echo", "first"], stdout=blob, check=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                blob.write(b"from the child")
            except StreamClosed:
                blob.abort("from the child")
                blob.close()
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        blob.write(b"second")
    assert store.open("report").read() == b"first\nsecond"


def test_it_is_listed(store: Store) -> None:
    with store.create("report", 10) as blob:
        [flight] = store.flights()
        assert (flight.key, flight.size) == ("report", 10)
        assert isinstance(blob, BlobWriter)
        assert repr(blob) == "<BlobWriter 'report' 0/10 bytes>"
        blob.write(b"0123456789")
    assert store.flights() == []
