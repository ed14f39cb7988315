"""What a reader of the demo does, in an interpreter of its own: it reads, hashes and reports.

It loads everything first, reports that it is ready, and waits for its orders. So it joins at the
very moment that the demo wants, and not when an interpreter happens to have started.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection

from shmstream import Blob, Cluster, InFlightCopier, Role, ShmstreamError, SourceError, State, Store
from shmstream.sources.http import HTTPSource

STANDARD_OUTPUT = 1

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_BUFFER = 64 * 1024  # bytes; a piece of this size stays in the processor's cache
_INTERVAL = 0.02  # s; at least, from one report of progress to the next
_ATTEMPTS = 100  # at the rest of a blob, before a byte comes
_PAUSE = 0.05  # s; between two attempts


@dataclass(frozen=True)
class Orders:
    """What a reader is to read, and what it does with it."""

    name: str = ""  # of a stream; with `store`, the key of a blob
    out: str | int = os.devnull  # a path or STANDARD_OUTPUT, where it copies to
    store: str | None = None  # the folder of a store; None to attach to the stream
    url: str = ""  # where the store gets the blob
    chunk_size: int = 65536  # of the store, in bytes
    cluster: Cluster | None = None  # of the store


@dataclass
class Report:
    """What a reader has done so far."""

    event: str = "starting"  # not sent; then ready, joined, and finished or failed
    doing: str = ""  # for people; empty of a reader of a stream
    joined_at: int = 0  # bytes that were published when it attached
    position: int = 0  # bytes that it has read
    first_byte: float | None = None  # s; from the orders to the first bytes
    pause: float = 0.0  # s; the longest wait for more bytes
    role: Role | None = None  # of its process in a flight
    took_over: bool = False  # whether it leads a flight that it followed
    cuts: tuple[int, ...] = ()  # its positions when a request was refused or cut
    digests: tuple[str, ...] = ()  # of everything that it has read to the end
    state: State | None = None  # of a stream at its end; a blob of a store ends only complete
    error: str = ""  # why it failed


class Reporter:
    """Keeps the report of a reader, and sends it to the demo."""

    def __init__(self, demo: Connection) -> None:
        """Report that the reader is ready, and wait for its orders."""
        self.report: Report = Report()
        self.demo = demo
        self.tell("ready")
        self.orders: Orders = demo.recv()
        self._began = self._last = time.monotonic()

    def tell(self, event: str) -> None:
        """Send the report as it is now."""
        self.report.event = event
        self.demo.send(self.report)
        self._next = time.monotonic() + _INTERVAL

    def count(self, size: int) -> None:
        """Note that so many bytes have come."""
        report, now = self.report, time.monotonic()
        if report.first_byte is None:
            report.first_byte = now - self._began
        else:
            report.pause = max(report.pause, now - self._last)
        report.position += size
        self._last = now
        if now >= self._next:
            self.tell("joined")


def work(read: Callable[[Reporter], None], demo: Connection) -> None:
    """Be a reader that reads by `read`: the work of a child."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # it comes when the demo has ended
    reporter = Reporter(demo)
    try:
        read(reporter)
    except (ShmstreamError, OSError, ValueError) as error:
        reporter.report.error = f"{type(error).__name__}: {error}"
        reporter.tell("failed")
    else:
        reporter.tell("finished")


def read_blob(reporter: Reporter) -> None:
    """Read a stream, or a blob of a store, to the end."""
    digest, report, out = hashlib.sha256(), reporter.report, reporter.orders.out
    with (
        ExitStack() as undo,
        _open(undo, reporter.orders) as blob,
        open(out, "wb", 0, closefd=out != STANDARD_OUTPUT) as copy,  # others see the bytes at once
    ):
        report.joined_at = blob.published
        _note_role(report, blob)
        reporter.tell("joined")
        while data := blob.read1(_BUFFER):
            digest.update(data)
            copy.write(data)
            _note_role(report, blob)
            reporter.count(len(data))
        report.digests = (f"sha256:{digest.hexdigest()}",)
        if isinstance(blob, Blob):
            blob.wait()  # a leader clears up before it ends
        else:
            report.state = blob.state
        if reporter.orders.cluster is not None:  # a node that ends gives nothing to other nodes
            reporter.tell("finished")
            reporter.demo.recv()


def _open(undo: ExitStack, orders: Orders) -> InFlightCopier | Blob:
    if orders.store is None:
        return InFlightCopier.attach(orders.name)
    store = Store(orders.store, chunk_size=orders.chunk_size, durable=False, cluster=orders.cluster)
    undo.callback(store.close)
    return store.open(orders.name, orders.url)


def _note_role(report: Report, blob: InFlightCopier | Blob) -> None:
    if isinstance(blob, Blob) and blob.role is not report.role:
        report.took_over = report.role is Role.FOLLOWS and blob.role is Role.LEADS
        report.doing = "took over, and leads" if report.took_over else blob.role
        report.role = blob.role


def pull_image(reporter: Reporter) -> None:
    """Pull the image whose manifest is at the URL of the orders, as containerd and others do.

    That is, hash all bytes; and where a connection is cut, ask for the rest of the blob.
    """
    report, url = reporter.report, reporter.orders.url
    report.doing = "asks for the manifest"
    reporter.tell("joined")
    with HTTPSource(url, headers={"Accept": _MANIFEST}).open() as feed:
        data = b"".join(bytes(each) for each in feed)
    report.digests = (f"sha256:{hashlib.sha256(data).hexdigest()}",)
    manifest = json.loads(data)
    layers = manifest["layers"]
    for number, blob in enumerate([manifest["config"], *layers]):
        report.doing = f"layer {number} of {len(layers)}" if number else "configuration"
        reporter.tell("joined")
        blob_url = f"{url.rpartition('/manifests/')[0]}/blobs/{blob['digest']}"
        _fetch(reporter, blob_url, blob["size"])


def _fetch(reporter: Reporter, url: str, size: int) -> None:
    """Read a blob to the end, by several requests if need be."""
    digest, report, begin = hashlib.sha256(), reporter.report, reporter.report.position
    while (position := report.position - begin) < size:
        try:
            with HTTPSource(url).open(position) as feed:
                for data in feed:
                    digest.update(data)
                    reporter.count(memoryview(data).nbytes)
        except SourceError:
            if report.cuts.count(report.position) == _ATTEMPTS:
                raise
            report.cuts += (report.position,)
            time.sleep(_PAUSE)
    report.digests += (f"sha256:{digest.hexdigest()}",)
