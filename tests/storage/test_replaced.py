"""A named blob is replaced while another process works on it: the digest of the old bytes must
never stand beside the new ones.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from shmstream import BlobNotFound, DamagedBlob, Store
from shmstream.flight.producer import Producer
from shmstream.storage import check, layout
from shmstream.storage.record import Record
from shmstream.stream.digest import digest_of
from tests.support.flights import make_store
from tests.support.interpreters import wait_until
from tests.support.roles import content, sha256

SIZE = 100_000
OLD, NEW = content(1, SIZE), content(2, SIZE + 1)
OF_OLD, OF_NEW = f"sha256:{sha256(OLD)}", f"sha256:{sha256(NEW)}"
NAME = "a name"
Hashed = Callable[[ModuleType], None]


@pytest.fixture(params=[True, False])
def store(request: pytest.FixtureRequest, folder: str) -> Store:
    return make_store(folder, {"hash_named": request.param})


def produce(store: Store) -> None:
    with store.create(NAME, replace=True) as made:
        made.write(NEW)


def download(store: Store) -> None:
    store.fetch(NAME, [NEW], digest=OF_NEW, size=len(NEW))


def put(store: Store) -> None:
    """The old blob, whose digest is not known."""
    make_store(store.folder, {"hash_named": False}).fetch(NAME, [OLD])


def record_of(store: Store) -> Record:
    [path] = Path(store.folder, "named").glob("*.shmstream-record")
    record = Record.read(str(path))
    assert record is not None
    return record


def is_new(store: Store) -> bool:
    """Whether the new blob is there, and never passes for the old one."""
    wait_until(lambda: not store.flights())
    with pytest.raises((DamagedBlob, BlobNotFound)):
        store.open(NAME, digest=OF_OLD)
    with store.open(NAME, digest=OF_NEW) as blob:
        return blob.read() == NEW


@pytest.fixture(params=[produce, download])
def replaced_when_hashed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, store: Store
) -> Hashed:
    """A function: once a module has hashed the blob, and before it does more, the blob is replaced.

    This happens only the first time.
    """

    def hash_slowly(fd: int, algorithm: str) -> str:
        digest = digest_of(fd, algorithm)
        monkeypatch.undo()
        request.param(store)
        return digest

    return lambda module: monkeypatch.setattr(module, "digest_of", hash_slowly)


def test_while_a_reader_hashes_it(store: Store, replaced_when_hashed: Hashed) -> None:
    put(store)
    replaced_when_hashed(layout)
    with store.open(NAME, digest=OF_OLD) as blob:
        assert blob.read() == OLD
    assert is_new(store)


def test_while_check_hashes_it(store: Store, replaced_when_hashed: Hashed) -> None:
    put(store)
    replaced_when_hashed(check)
    assert store.check() == []
    assert store.check() == []
    assert is_new(store)


def test_while_its_digest_is_recorded(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """The replacement waits until the old digest is written, and takes it back."""
    put(store)
    write = Record.write
    replacing = threading.Thread(target=produce, args=[store])
    waits = threading.Event()
    lock = fcntl.flock

    def locking(fd: int, how: int) -> None:
        if threading.current_thread() is replacing:
            waits.set()
        lock(fd, how)

    def write_slowly(self: Record, path: str, *, durable: bool = True) -> None:
        if threading.current_thread() is not replacing:
            replacing.start()
            assert waits.wait(60)
        write(self, path, durable=durable)

    monkeypatch.setattr(fcntl, "flock", locking)
    monkeypatch.setattr(Record, "write", write_slowly)
    with store.open(NAME, digest=OF_OLD) as blob:
        assert blob.read() == OLD
    replacing.join(60)
    monkeypatch.undo()
    assert is_new(store)


def test_a_replacement_that_is_not_recorded(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """As if its producer were killed between the rename and the record."""
    put(store)
    with store.open(NAME, digest=OF_OLD):
        assert record_of(store).digest == OF_OLD

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Producer, "_write_record", fail)
    produce(store)
    monkeypatch.undo()
    assert record_of(store).digest is None
    assert is_new(store)


def test_a_record_of_a_blob_that_was_evicted(store: Store) -> None:
    """As if the process that evicts were killed before it removed the record."""
    put(store)
    with store.open(NAME, digest=OF_OLD):
        pass
    [blob] = [each for each in Path(store.folder, "named").iterdir() if "." not in each.name]
    blob.unlink()
    made = store.create(NAME)
    assert record_of(store).digest is None
    made.write(NEW)
    made.commit()
    assert is_new(store)


def test_a_replacement_that_fails(store: Store) -> None:
    put(store)
    with store.open(NAME, digest=OF_OLD):
        pass
    with pytest.raises(ZeroDivisionError), store.create(NAME, replace=True) as made:
        made.write(NEW)
        raise ZeroDivisionError
    assert record_of(store).digest == OF_OLD


@pytest.mark.parametrize("remove", ["evict", "remove"])
def test_a_blob_that_is_made_anew_while_its_digest_is_recorded(
    remove: str, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """The record of a removed blob must not come back beside a new blob of the same name."""
    monkeypatch.setattr(layout, "_PATIENCE", 60)
    put(store)
    write, made = Record.write, threading.Event()

    def replace() -> None:
        if remove == "evict":
            store.evict(0)
        else:
            store.remove(NAME)
        if NAME not in store:
            produce(store)
        made.set()

    other = threading.Thread(target=replace)

    def write_late(self: Record, path: str, *, durable: bool = True) -> None:
        if threading.current_thread() is not other and not other.ident:
            other.start()
            made.wait(0.5)  # in vain, unless the new blob is made too early
        write(self, path, durable=durable)

    monkeypatch.setattr(Record, "write", write_late)
    with store.open(NAME, digest=OF_OLD) as blob:
        assert blob.read() == OLD
    other.join()
    if remove == "evict":  # a blob stays whose digest is being recorded
        assert record_of(store).digest == OF_OLD
        store.evict(0)
        produce(store)
    assert is_new(store)


def test_a_stopped_reader_holds_up_no_replacement(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """A reader that is stopped while it has the lock of the old blob."""
    monkeypatch.setattr(layout, "_PATIENCE", 0.05)
    put(store)
    [path] = [each.path for _, each in store.blobs()]
    with open(path, "rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        produce(store)
    assert is_new(store)
    with store.open(NAME) as blob:
        assert blob.read() == NEW
