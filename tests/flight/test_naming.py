"""What people are told of a flight names the key, and never the stream that brings it."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from shmstream import (
    DamagedPartial,
    DamagedSegment,
    DigestMismatch,
    NoFreeSlot,
    OutOfResources,
    ShmstreamError,
    Store,
    StreamExists,
)
from shmstream.flight import flight
from shmstream.stream import mapping, segment
from shmstream.stream.control_block import HEADER_SIZE
from shmstream.system.locks import KernelLock
from tests.support.flights import make_store
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

MIB = 1 << 20
DATA = content(1, MIB)
KEY = digest(1, MIB)

Open = Callable[[Store, str, object], bytes]


def by_open(store: Store, key: str, source: object) -> bytes:
    with store.open(key, source) as blob:  # type: ignore[arg-type]
        return blob.read()


def by_aopen(store: Store, key: str, source: object) -> bytes:
    async def read() -> bytes:
        async with store.aopen(key, source) as blob:  # type: ignore[arg-type]
            return await blob.read()

    return asyncio.run(read())


def fails(kind: type[ShmstreamError], store: Store, key: str, do: Callable[[], object]) -> str:
    """What the error says, which has to be of this `kind`."""
    with pytest.raises(kind) as caught:
        do()
    text = str(caught.value)
    assert key in text
    assert key in str(pickle.loads(pickle.dumps(caught.value)))
    if kind is not DamagedSegment:
        assert stream_of(store, key) not in text
        assert caught.value.facts["name"] == key
    return text


def stream_of(store: Store, key: str) -> str:
    return store._layout.place(key).stream


@pytest.mark.parametrize("read", [by_open, by_aopen])
@pytest.mark.parametrize("key", [KEY, "a name"])
def test_wrong_and_damaged_bytes(
    key: str, read: Open, store: Store, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    if key == KEY:
        told = fails(DigestMismatch, store, key, lambda: read(store, key, [DATA[:-1] + b"."]))
        assert told.startswith(f"'{KEY}' was aborted after {MIB} bytes: its digest is")

    def damaging() -> object:
        yield DATA[:1000]
        [partial] = Path(folder).rglob("*.shmstream-partial")
        partial.write_bytes(b"")
        yield DATA[1000:]

    told = fails(ShmstreamError, store, key, lambda: read(store, key, damaging()))
    assert "broke at offset" in told  # found by the leader, or by the reader
    wait_until(lambda: f"{key}: given up at 1000 bytes: it broke" in caplog.text)
    assert stream_of(store, key) not in caplog.text


@pytest.mark.parametrize("read", [by_open, by_aopen])
def test_what_runs_out(read: Open, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(mapping, "create", run_out)
        told = fails(OutOfResources, store, KEY, lambda: read(store, KEY, [DATA]))
    assert told.startswith(f"'{KEY}': out of space in")


def test_no_slot(folder: str, origin: Origin) -> None:
    store = make_store(folder, {"max_subscribers": 1})
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)
    with store.open(KEY, url) as blob:
        fails(NoFreeSlot, store, KEY, lambda: by_open(store, KEY, url))
        origin.wait("/blob", bool)
        origin.release()
        assert blob.read() == DATA


def test_a_truncated_file(store: Store, folder: str, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)
    with store.open(KEY, url) as blob:
        assert blob.read(1000) == DATA[:1000]
        [partial] = Path(folder).rglob("*.shmstream-partial")
        wait_until(lambda: partial.stat().st_size == 500_000)  # else the leader writes behind it
        os.truncate(partial, 1000)
        told = fails(DamagedPartial, store, KEY, lambda: blob.read1(10))
        assert f"{partial} is shorter than" in told
        origin.release()
        with pytest.raises(ShmstreamError, match=KEY):
            blob.wait()


def test_foreign_shared_memory_names_the_file_to_remove(store: Store) -> None:
    path = Path(segment.path_of(stream_of(store, KEY)))
    path.write_bytes(b"x" * 10_000)
    path.chmod(0o600)
    try:
        told = fails(DamagedSegment, store, KEY, lambda: by_open(store, KEY, [DATA]))
        assert f"remove {path}" in told
    finally:
        path.unlink()


def test_a_name_that_is_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "_PATIENCE", 0.0)
    held = segment.Segment.create(stream_of(store, KEY), 100_000)  # its writer never finishes it
    lock = KernelLock.reopen(held.fd)
    assert lock.try_acquire((0, HEADER_SIZE))
    try:
        fails(StreamExists, store, KEY, lambda: by_open(store, KEY, [DATA]))
    finally:
        lock.close()
        held.unlink()
        held.close()
