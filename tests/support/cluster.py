"""Nodes of a cluster for tests: stores in this process, and nodes in interpreters of their own."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmstream import Cluster, Event, Retries, ShmstreamError, Store, sweep
from shmstream.cluster import endpoint, node, part, peer
from tests.support.interpreters import PATIENCE, Interpreter, Link, wait_until
from tests.support.redis import Redis

SECRET = "the secret of the tests"
HASTY = Retries(first_pause=0.01, longest_pause=0.05)


def be_hasty() -> None:
    """Wait less for peers that are stopped, so that tests end sooner."""
    peer.READ, endpoint.PATIENCE, part._STALLED = 0.5, 0.2, 0.6
    vars(node)["PATIENCE"] = endpoint.PATIENCE


class Ports:
    """Addresses of 127.0.0.1 that no other program takes: they are bound, and nothing listens."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> str:
        place = socket.socket()
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind(("127.0.0.1", 0))
        self._held.append(place)
        return f"127.0.0.1:{place.getsockname()[1]}"

    def close(self) -> None:
        for each in self._held:
            each.close()


class Counts:
    """What the flights of a store have told, in bytes and in events."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.times: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.bytes[event.kind] = self.bytes.get(event.kind, 0) + event.count
            self.times[event.kind] = self.times.get(event.kind, 0) + 1


class Reading(threading.Thread):
    """Reads a blob to its end in a thread."""

    def __init__(self, store: Store, key: str, source: Any) -> None:
        super().__init__(name="reading", daemon=True)
        self._store, self._key, self._source = store, key, source
        self.began = threading.Event()
        self.sha = ""
        self.size = 0
        self.error: ShmstreamError | None = None
        self.start()

    def run(self) -> None:
        running = hashlib.sha256()
        try:
            with self._store.open(self._key, self._source) as blob:
                for data in blob:
                    running.update(data)
                    self.size += len(data)
                    self.began.set()
                blob.wait()  # the leader has cleared up
        except ShmstreamError as error:
            self.error = error
        self.sha = running.hexdigest()

    def finish(self) -> None:
        self.join(60)
        assert not self.is_alive(), "it does not end"

    def is_right(self, key: str) -> bool:
        self.finish()
        if self.error is not None:
            raise self.error
        return key == f"sha256:{self.sha}"


class Nodes:
    """Makes nodes, each with a folder and an address of its own."""

    def __init__(self, folder: Path, redis: Redis, start: Callable[..., Interpreter]) -> None:
        self.folder = folder
        self.redis = redis
        self.url = redis.url
        self.lease = PATIENCE  # s; no node loses it only because the machine is busy
        self.ports = Ports()
        self.addresses: list[str] = []  # those of `where`
        self._start = start
        self.stores: list[Store] = []
        self.counts: dict[str, Counts] = {}
        self._count = 0

    def options(self, **more: Any) -> dict[str, Any]:
        return {"url": self.url, "secret": SECRET, "lease": self.lease, **more}

    def place(self) -> str:
        self._count += 1
        return str(self.folder / f"node{self._count}")

    def store(self, address: str | None = "", folder: str | None = None, **more: Any) -> Store:
        """A node in this process; without an address a consumer."""
        address = self.ports.take() if address == "" else address
        counts = Counts()
        settings = {name: more.pop(name) for name in ("max_bytes", "durable") if name in more}
        cluster = Cluster(**self.options(advertise=address, **more))
        made = Store(
            folder or self.place(), cluster=cluster, retries=HASTY, on_event=counts, **settings
        )
        self.stores.append(made)
        self.counts[made.folder] = counts
        return made

    def processes(
        self, *where: tuple[str, str], fan: int = 2, liar: int | None = None, **lies: int
    ) -> list[Interpreter]:
        """Nodes in interpreters: tell each a key and a URL; it says its beginning and its end.

        The one with the number `liar` lies to its peers, see `lie`. Then nobody is stopped, and no
        node is given up only because the machine is busy.
        """
        made = [
            self._start(
                take,
                folder,
                self.options(advertise=address, fan=fan),
                lies if number == liar else {},
                liar is None,
            )
            for number, (address, folder) in enumerate(where)
        ]
        for each in made:
            assert each.hear() == "ready"
        return made

    def where(self) -> tuple[str, str]:
        """An address and a folder for a node."""
        self.addresses.append(self.ports.take())
        return self.addresses[-1], self.place()

    def settle(self, store: Store) -> None:
        """Wait until the directory knows how the flights of `store` have ended."""
        assert store._node is not None
        wait_until(lambda: not store.flights())
        wait_until(lambda: not store._node._telling)  # type: ignore[union-attr]

    def close(self) -> None:
        for each in self.stores:
            wait_until(lambda store=each: not store.flights())  # type: ignore[misc]
            each.close()
            assert each.check() == []
        self.ports.close()
        sweep()  # what was killed


def lie(wrong_at: int = 1 << 60, more: int = 0) -> None:
    """Have the endpoint of this process give another byte at `wrong_at`, and tell `more` bytes."""
    copy, say = endpoint.Endpoint._copy, endpoint._say

    def say_wrong(
        talk: socket.socket, status: int, headers: dict[str, str] | None = None, length: int = 0
    ) -> None:
        told = dict(headers or {})
        if status == 206:
            span, size = told["content-range"].split("/")
            first, last = span.split("-")
            told["content-range"] = f"{first}-{int(last) + more}/{int(size) + more}"
        say(talk, status, told, length + (more if status in (200, 206) else 0))

    def copy_wrong(self: endpoint.Endpoint, talk: socket.socket, blob: Any, start: int) -> None:
        if start <= wrong_at < (blob.size or 0):
            blob.seek(start)
            data = bytearray(blob.read(wrong_at + 1 - start))
            data[-1] ^= 0xFF
            talk.sendall(data)
            start = wrong_at + 1
        copy(self, talk, blob, start)

    endpoint.Endpoint._copy = copy_wrong  # type: ignore[method-assign]
    endpoint._say = say_wrong


def take(
    link: Link, folder: str, options: dict[str, Any], lies: dict[str, int], is_hasty: bool
) -> None:
    """A node: it hears a key and a URL, reads the blob, and says what it got."""
    if lies:
        lie(**lies)
    counts = Counts()
    if "SHMSTREAM_TEST_LOG" in os.environ:
        form = f"%(asctime)s.%(msecs)03d {options['advertise']} %(threadName)s %(message)s"
        logging.basicConfig(level="DEBUG", filename=os.environ["SHMSTREAM_TEST_LOG"], format=form)
    if is_hasty:
        be_hasty()
    else:
        peer.READ = PATIENCE
    store = Store(folder, cluster=Cluster(**options), retries=HASTY, on_event=counts)
    link.say("ready")
    while (order := link.hear()) != "end":
        key, url = order
        reading = Reading(store, key, url)
        reading.began.wait(60)
        link.say("began")
        reading.finish()
        error = None if reading.error is None else repr(reading.error)
        link.say({"sha": reading.sha, "size": reading.size, "error": error, **counts.bytes})
    store.close()


@pytest.fixture
def nodes(tmp_path: Path, redis: Redis, start: Callable[..., Interpreter]) -> Iterator[Nodes]:
    made = Nodes(tmp_path, redis, start)
    yield made
    made.close()
    for each in os.listdir(tmp_path):
        shutil.rmtree(tmp_path / each, ignore_errors=True)
