"""The ways in which processes of one host get the same blob, each as a job of a crew.

    ours    `Store.open` in every process, which reads it while it arrives
    named   the same by a key that is no digest, so that nothing can be verified
    lock    a `FileLock`: its holder downloads to a file, the others wait, then all read the file
    each    every process downloads for itself, and keeps nothing
    plain   one process downloads to a file: what cannot be faster, for nobody else has anything
    hashed  the same, hashing each piece as it comes: what cannot be faster and still verify, as
            long as one thread does it

The last four are urllib3, read in the pieces that were fastest for it. `ours` and `hashed` verify,
the others do not. Nothing is synced to the disk by any of them (`durable=False`).

A process begins when the gate opens, or `delay` seconds later. Its interpreter is warm: it has
imported everything, and has a connection open as it would after the first request.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import urllib3
from filelock import FileLock

from bench.crew import Gate
from bench.report import KIB, CheckFailed
from shmstream import Feed, Role, Source, Store
from shmstream.sources.base import KernelFeed
from shmstream.sources.http import HTTPSource

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER = 128 * KIB
_PIECE = 512 * KIB  # with 128 KiB a plain download takes 1.7 times as long
_STEP = 0.002  # s; a curve has no more points than that
_PATIENCE = 10.0  # s

_pool = urllib3.PoolManager()


@dataclass(frozen=True)
class Order:
    """What a process is to do: get `url`, whose bytes have the SHA-256 `key`, using `folder`."""

    url: str
    key: str
    folder: str
    delay: float = 0.0
    verify: bool = False


@dataclass(frozen=True)
class Trip:
    """What one process had of it: times of the monotonic clock, which all processes share.

    `arrived` is when the first bytes came from the origin, where this process asked for them.
    `curve` is how many bytes the process had, when.
    """

    began: float
    first: float
    last: float
    cpu: float
    count: int
    role: str = ""
    arrived: float | None = None
    digest: str = ""
    curve: list[tuple[float, int]] = field(default_factory=list)


class Log:
    """Notes the bytes of one process as it gets them."""

    def __init__(self, order: Order) -> None:
        time.sleep(order.delay)
        self._cpu = time.process_time()
        self._began = time.monotonic()
        self._count = 0
        self._curve: list[tuple[float, int]] = []
        self._due = 0.0
        self._hash = hashlib.sha256() if order.verify else None
        self._wanted = order.key.partition(":")[2]

    def note(self, data: memoryview) -> None:
        """The process has these bytes now."""
        now = time.monotonic()
        self._count += len(data)
        if now >= self._due:
            self._curve.append((now, self._count))
            self._due = now + _STEP
        if self._hash is not None:
            self._hash.update(data)

    def end(self) -> Trip:
        """All bytes are here.

        Raises:
            CheckFailed: they are not the right ones.
        """
        last, cpu = time.monotonic(), time.process_time() - self._cpu
        if self._hash is not None and self._hash.hexdigest() != self._wanted:
            raise CheckFailed("a process got wrong bytes")
        self._curve.append((last, self._count))
        first = self._curve[0][0]
        return Trip(self._began, first, last, cpu, self._count, curve=self._curve)


class SupportsReadinto(Protocol):
    """A file, a blob or the body of a response."""

    def readinto(self, buffer: bytearray, /) -> int | None:
        """As `io.RawIOBase`."""


def drink(file: SupportsReadinto, log: Log) -> None:
    """Read a file to its end, noting what comes."""
    buffer = bytearray(_BUFFER)
    with memoryview(buffer) as view:
        while count := file.readinto(buffer):
            log.note(view[:count])


class Noting:
    """A source that notes when its first bytes came, and leaves them alone."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name = source.name
        self.arrived: float | None = None

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """As the source does."""
        feed = self._source.open(offset, validator)
        by_kernel = feed.by_kernel and NotingKernel(feed.by_kernel, self)
        return replace(feed, data=self._noting(feed), by_kernel=by_kernel)

    def _noting(self, feed: Feed) -> Iterator[Buffer]:
        for data in feed:
            self.note()
            yield data

    def note(self) -> None:
        """There are bytes."""
        if self.arrived is None:
            self.arrived = time.monotonic()


@dataclass
class NotingKernel:
    """The same for bytes that the kernel moves."""

    _feed: KernelFeed
    _noting: Noting

    def wait(self, gather: float, enough: int) -> bool:
        """As the feed does."""
        return self._feed.wait(gather, enough)

    def move(self, fd: int, limit: int) -> int:
        """As the feed does."""
        count = self._feed.move(fd, limit)
        if count:
            self._noting.note()
        return count


def ours(order: Order, gate: Gate) -> Trip:
    """`Store.open`, whatever comes of it."""
    return _open(order.key, order, gate)


def named(order: Order, gate: Gate) -> Trip:
    """The same for content whose digest is not known."""
    return _open("a blob", order, gate)


def _open(key: str, order: Order, gate: Gate) -> Trip:
    store = Store(order.folder, durable=False, connections=1)  # as the other ways have it
    source = Noting(HTTPSource(order.url))
    gate()
    log = Log(order)
    with store.open(key, source) as blob:
        drink(blob, log)
        trip, role = log.end(), blob.role
    if role == Role.LEADS:
        settle(store)
    return replace(trip, role=str(role), arrived=source.arrived)


def settle(store: Store, *, tidy: bool = False) -> None:
    """Wait until the flight has gone: its leader tidies up after its readers are done.

    With `tidy` do it instead of the leader, which may have been killed in between.

    Raises:
        CheckFailed: it does not end.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        if tidy:
            store.gc()
        if not (there := store.flights()):
            return
        if time.monotonic() > deadline:
            raise CheckFailed(f"a flight does not end: {there}")
        time.sleep(0.001)


def lock(order: Order, gate: Gate) -> Trip:
    """One downloads, the others wait for it, as with `filelock` everywhere."""
    path = Path(order.folder) / "blob"
    guard = FileLock(f"{path}.lock")
    gate()
    log = Log(order)
    with guard:
        if not path.exists():
            partial = path.with_suffix(".partial")
            with partial.open("wb", buffering=0) as file:
                download(order.url, file)
            partial.rename(path)
    with path.open("rb", buffering=0) as file:
        drink(file, log)
    return log.end()


def each(order: Order, gate: Gate) -> Trip:
    """Every process asks the origin."""
    gate()
    log = Log(order)
    with _pool.request("GET", order.url, preload_content=False, decode_content=False) as answer:
        for piece in _pieces(answer):
            log.note(memoryview(piece))
    return log.end()


def plain(order: Order, gate: Gate) -> Trip:
    """One process alone: a download to a file."""
    return _to_file(order, gate)


def hashed(order: Order, gate: Gate) -> Trip:
    """One process alone: a download to a file that verifies what comes."""
    return _to_file(replace(order, verify=True), gate)


def _to_file(order: Order, gate: Gate) -> Trip:
    path = Path(order.folder) / "blob"
    gate()
    log = Log(order)
    with path.open("wb", buffering=0) as file:
        download(order.url, file, log)
    return log.end()


def download(url: str, file: BinaryIO, log: Log | None = None) -> None:
    """A plain download; notes what it has, for `log`, when it is written."""
    with _pool.request("GET", url, preload_content=False, decode_content=False) as answer:
        for piece in _pieces(answer):
            file.write(piece)
            if log is not None:
                log.note(memoryview(piece))


def _pieces(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The body as it comes: what is there at once, in pieces that are not too small to be fast."""
    while piece := answer.read1(_PIECE, decode_content=False):
        yield piece


def prepare(folder: Path, name: str) -> Path:
    """A new, empty folder that only this user can write to."""
    path = folder / name
    os.mkdir(path, 0o700)
    return path
