"""A pickled blob opens its key again, in the other process, at the same position."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmstream import BlobStreamer, InFlightCopier, Store
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest

Start = Callable[..., Interpreter]

MIB = 1 << 20
DATA = content(1, MIB)
KEY = digest(1, MIB)


@pytest.fixture
def other(start: Start) -> Interpreter:
    return start(flights.unpickle)


def test_a_stored_blob(other: Interpreter, store: Store) -> None:
    with store.open(KEY, [DATA]) as blob:
        blob.wait()
    with store.open(KEY) as blob:
        blob.seek(1000)
        other.say(pickle.dumps(blob).hex())
        assert other.hear() == {"position": 1000, "role": "stored"}
        assert other.hear() == {"sha256": sha256(DATA[1000:])}
        assert blob.read() == DATA[1000:]


@pytest.mark.parametrize("key", [KEY, "a name"])
def test_a_blob_in_flight(key: str, other: Interpreter, store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", first=0, count=1, stall_after=500_000)
    with store.open(key, url, stall_timeout=50.0) as blob:
        assert blob.read(1000) == DATA[:1000]
        other.say(pickle.dumps(blob).hex())
        assert other.hear() == {"position": 1000, "role": "follows"}
        origin.release()
        assert other.hear() == {"sha256": sha256(DATA[1000:])}
        assert blob.read() == DATA[1000:]
    assert len(origin.requests("/blob")) == 1


def test_its_sources_go_with_it(other: Interpreter, store: Store, origin: Origin) -> None:
    """By the time the other process opens the key, there is neither a blob nor a flight."""
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", first=0, count=1, close_after=500_000)
    origin.change("/blob", first=1, count=2, status=404)  # and the file has the wrong size
    sources: list[Any] = [url, io.BytesIO()]
    with store.open(KEY, sources) as blob:
        pickled = pickle.dumps(blob)
    wait_until(lambda: not store.flights())
    other.say(pickled.hex())
    assert other.hear() == {"position": 0, "role": "leads"}
    assert other.hear() == {"sha256": sha256(DATA)}
    other.finish()


def test_a_source_that_cannot_be_pickled_stays_behind(other: Interpreter, store: Store) -> None:
    """The other process follows the flight, and needs no source."""
    is_followed = threading.Event()

    def arriving() -> Iterator[bytes]:
        yield DATA[:500_000]
        is_followed.wait(PATIENCE)
        yield DATA[500_000:]

    with store.open(KEY, arriving()) as blob:
        assert blob.read(10) == DATA[:10]
        other.say(pickle.dumps(blob).hex())
        assert other.hear() == {"position": 10, "role": "follows"}
        is_followed.set()
        assert other.hear() == {"sha256": sha256(DATA[10:])}


def test_neither_blob_nor_source(other: Interpreter, store: Store) -> None:
    with store.open("a name", [DATA]) as blob:
        blob.wait()
        pickled = pickle.dumps(blob)
    assert store.evict(0) == [blob.path]
    other.say(pickled.hex())
    heard = other.hear()
    assert heard["error"] == "BlobNotFound"
    assert "no source was given" in heard["text"]


def test_a_copy_is_a_blob_of_its_own(store: Store) -> None:
    with store.open(KEY, [DATA]) as blob:
        blob.read(100)
        with copy.copy(blob) as other:
            assert other.read() == DATA[100:]
        assert blob.read() == DATA[100:]


def test_what_cannot_be_pickled_says_what_to_do(folder: str, blob: str) -> None:
    told: list[object] = []
    store = make_store(folder, {"on_event": lambda event: told.append(event)})
    with store.open(KEY, [DATA]) as opened:
        opened.wait()
        with pytest.raises(TypeError, match=f"{KEY}.*on_event.*open it in the other process"):
            pickle.dumps(opened)
    with pytest.raises(ValueError, match="was closed"):
        pickle.dumps(opened)
    with BlobStreamer.create(blob) as streamer:
        with pytest.raises(TypeError, match="attach an InFlightCopier in the other process"):
            pickle.dumps(streamer)

    async def in_asyncio() -> None:
        async with store.aopen(KEY) as opened:
            with pytest.raises(TypeError, match=r"Store\.aopen"):
                pickle.dumps(opened)

    asyncio.run(in_asyncio())


def test_a_copier_attaches_again(other: Interpreter, blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        streamer.append(DATA[:1000])
        with InFlightCopier.attach(streamer.name, stall_timeout=50) as copier:
            assert copier.read(10) == DATA[:10]
            other.say(pickle.dumps(copier).hex())
            assert other.hear() == {"position": 10, "role": None}
            streamer.transfer([DATA[1000:]])
            assert other.hear() == {"sha256": sha256(DATA[10:])}
        with pytest.raises(ValueError, match="was closed"):
            pickle.dumps(copier)
