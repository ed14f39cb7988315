"""The third act of `shmstream demo`: a registry with two workers, one of which is killed.

An image with real layers is pulled by several clients, one after another, through `shmstream
serve`, from an origin on this host that is as slow as the rate says. In the middle of the largest
layer the worker that brings it is killed with SIGKILL. The other worker goes on; the clients of the
dead one ask again for the rest. In the end every digest must be right, and the origin must have
been asked once for each blob, and once more for the rest of the one.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
from rich.console import Console

from shmstream.demo import screen
from shmstream.demo.client import Client
from shmstream.demo.origin import NAME, TAG, Image, Origin, Request, make_image, wrap
from shmstream.demo.sample import make_sample
from shmstream.demo.screen import Fact, Outcome, Row
from shmstream.demo.server import Server
from shmstream.storage.flights import FlightInfo, followers_of
from shmstream.store import Store
from shmstream.stream import segment
from shmstream.stream.partial import partial_path
from shmstream.units import amount

_DURATION = 5.0  # s; how long it takes unless a rate is given
_WORKERS = 2
_LEAST = 2 << 20  # bytes of the largest layer, so that there is a middle
_SMALL = 256 << 10  # bytes, more or less, of the others
_LAST_COMES = 0.4  # of the largest layer
_TICK = 0.02  # s; how often we look


def run(console: Console, source: Path, folder: Path, rate: float | None, count: int) -> bool:
    """Show it, with `count` clients, in `folder`; whether all went as it should.

    Args:
        console: where to show it.
        source: what is to be in the largest layer; itself one, if it is a tar.
        folder: for the image and the store.
        rate: bytes a second of the origin, 0 for no limit, None for one that takes five seconds.
        count: clients, at least 1.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    image = make_image(folder / "image", _layers(source, folder))
    rate = image.size / _DURATION if rate is None else rate
    with ExitStack() as undo:
        store = Store(folder / "store")
        undo.callback(store.gc)
        origin = undo.enter_context(Origin(folder / "image", rate))
        with Server(origin.address, folder, _WORKERS) as server:
            clients = (
                "1 client pulls" if count == 1 else f"{count} clients, one after another, pull"
            )
            blobs = f"{amount(image.size)} in {len(image.blobs)} blobs"
            told = [
                ("upstream", f"{origin.address}, {screen.pace(rate)}"),
                ("image", f"{NAME}:{TAG}, {blobs}"),
                ("registry", f"shmstream serve, {_WORKERS} workers; {clients} through it"),
                ("watch it", f"{server.url}/"),
            ]
            screen.introduce(console, "A registry loses a worker", told)
            play = _Play(store, server, image, count)
            for client in play.clients:
                undo.callback(client.close)
            with screen.board(console, play.rows) as update:
                while not play.is_over():
                    time.sleep(_TICK)
                    play.look()
                    update()
                play.look()
                update(final=True)
            play.wait_for_successor()
        facts = [play.of_kill(), _of_upstream(image, origin.requests(), count)]
        facts += [play.of_pause(), play.of_remains()]
        moral = "of an image that was pulled once, though the worker that pulled it was killed"
        return screen.conclude(console, "longest pause", play.outcomes(), facts, moral)


def _layers(source: Path, folder: Path) -> list[Path]:
    """The tars of the image, the largest one last: it is what everybody waits for."""
    is_tar = source.suffix == ".tar" and source.stat().st_size >= _LEAST
    large = source if is_tar else wrap(source, folder / "source.tar")
    if large.stat().st_size < _LEAST:
        wrapped, large = large, folder / "more.tar"
        make_sample(large, _LEAST)
    else:
        wrapped = folder / "small.tar"
        make_sample(wrapped, _SMALL)
    return [wrapped, large]


class _Play:
    """What is to be seen, from the store and from the clients."""

    def __init__(self, store: Store, server: Server, image: Image, count: int) -> None:
        self._store = store
        self._server = server
        self._image = image
        self.clients = [Client(each + 1, server.url, NAME, TAG) for each in range(count)]
        self._comes_at = [_LAST_COMES * each / max(count - 1, 1) for each in range(count)]
        self.rows = [
            Row(each, image.size) for each in ("registry", *(c.name for c in self.clients))
        ]
        self._victim: int | None = None
        self._killed_at = 0
        self._first_workers: set[int] = set()
        self._leaders: list[int] = []
        self._successor: int | None = None
        self._streams: set[str] = set()

    def is_over(self) -> bool:
        """Whether nobody has anything left to do."""
        return all(each.ident is not None and not each.is_alive() for each in self.clients)

    def look(self) -> None:
        """See how far everybody is; let clients come; kill the leader when it is time."""
        flights = self._store.flights()
        self._streams.update(each.stream for each in flights)
        published = {str(each.key): each.published for each in flights}
        have = {
            digest: size if digest in self._store else published.get(digest, 0)
            for digest, size in self._image.blobs.items()
        }
        large = next((each for each in flights if each.key == self._image.largest), None)
        if large is not None:
            if large.leader is not None and large.leader.pid not in self._leaders:
                self._leaders.append(large.leader.pid)
            self._kill(large)
        self._show(sum(have.values()), large)
        share = have[self._image.largest] / self._image.blobs[self._image.largest]
        for client, comes_at in zip(self.clients, self._comes_at, strict=True):
            if client.ident is None and share >= comes_at:
                client.start()

    def _kill(self, flight: FlightInfo) -> None:
        """The leader, in the middle of the largest layer, once everybody has come."""
        size = self._image.blobs[self._image.largest]
        if self._victim is not None or flight.leader is None or 2 * flight.published < size:
            return
        if any(client.ident is None or client.position == 0 for client in self.clients):
            return
        if not followers_of(flight) and 3 * flight.published < 2 * size:
            return  # wait a moment for a worker that can take over
        self._first_workers = self._workers()
        self._victim, self._killed_at = flight.leader.pid, flight.published
        os.kill(self._victim, signal.SIGKILL)

    def _workers(self) -> set[int]:
        return {each.pid for each in psutil.Process(self._server.pid).children()}

    def wait_for_successor(self, patience: float = 10.0) -> None:
        """Until another worker has the place of the one that was killed."""
        deadline = time.monotonic() + patience
        while self._victim is not None and time.monotonic() < deadline:
            if fresh := self._workers() - self._first_workers:
                self._successor = fresh.pop()
                return
            time.sleep(_TICK)

    def _show(self, have: int, large: FlightInfo | None) -> None:
        registry, *rows = self.rows
        registry.completed, registry.status = have, amount(have)
        if have == self._image.size:
            registry.style, registry.news = "green", "registry has all of it"
        elif large is not None:
            leads = self._leads(large)
            registry.news, registry.status = f"registry {leads}", f"{amount(have)}, {leads}"
        for client, row in zip(self.clients, rows, strict=True):
            row.completed = client.position
            row.status = f"FAILED: {client.error}" if client.error else client.doing
            if client.cuts and client.doing != "complete":
                row.status += f", was cut at {amount(client.cuts[-1])}"
            if client.ident is not None:
                row.news = f"{row.name} {row.status}"
                row.style = "red" if client.error else "" if client.is_alive() else "green"

    def _leads(self, flight: FlightInfo) -> str:
        """Which worker brings the largest layer."""
        leader = None if flight.leader is None else flight.leader.pid
        if self._victim is None:
            return "waits" if leader is None else f"worker {leader} leads"
        if leader in (None, self._victim):
            return f"worker {self._victim} killed at {amount(self._killed_at)}"
        return f"worker {leader} took over"

    # How it ended.

    def outcomes(self) -> list[Outcome]:
        """Of each client."""
        return [
            Outcome(
                each.name,
                f"{each.pause * 1000:.0f} ms",
                each.first_byte,
                each.position,
                f"{each.verified} digests ok" + (", was cut" if each.cuts else ""),
                f"FAILED: {each.error}" if each.error
                else "incomplete" if each.verified != len(self._image.blobs) + 1 else "",
            )
            for each in self.clients
        ]  # fmt: skip

    def of_kill(self) -> Fact:
        """Who was killed, and who went on."""
        others = [each for each in self._leaders if each != self._victim]
        if self._victim is None or self._successor is None:
            return Fact("kill", "no worker was killed, or none took its place", good=False)
        went_on = f"worker {others[-1]} went on" if others else "another one went on"
        killed = f"worker {self._victim}, which led, at {amount(self._killed_at)}"
        started = f"worker {self._successor} was started in its place"
        return Fact("kill", f"{killed}; {went_on}, and {started}")

    def of_pause(self) -> Fact:
        """How long clients had to wait."""
        cut = sum(bool(each.cuts) for each in self.clients)
        longest = max((each.pause for each in self.clients), default=0.0)
        were = {0: "nobody was", 1: "1 client was"}.get(cut, f"{cut} clients were")
        told = f"{longest * 1000:.0f} ms, the longest of any client; {were} cut and asked again"
        return Fact("pause", told)

    def of_remains(self) -> Fact:
        """What is left in shared memory, and beside the blobs; and which processes."""
        remains = [name for name in self._streams if name in segment.names()]
        remains += [str(path) for path in Path(self._store.folder).rglob("*" + partial_path(""))]
        everybody = {*self._first_workers, *self._leaders, *filter(None, [self._successor])}
        remains += [f"worker {pid}" for pid in everybody if psutil.pid_exists(pid)]
        return screen.of_remains(remains)


def _of_upstream(image: Image, requests: list[Request], clients: int) -> Fact:
    """Each blob once, and the rest of one once more."""
    again = [each for each in requests if each.offset]
    first, sent = len(requests) - len(again), sum(each.sent for each in requests)
    told = (
        f"{first} requests for {len(image.blobs)} blobs"
        + (f", and {len(again)} for the rest of one after the kill" if again else "")
        + f"; {amount(sent)} sent, and {amount(clients * image.size)} read by "
        + ("1 client" if clients == 1 else f"{clients} clients")
    )
    once = first == len({each.path for each in requests}) == len(image.blobs)
    return Fact("upstream", told, good=once and len(again) == 1)
