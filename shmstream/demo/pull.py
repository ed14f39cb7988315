"""The third act of `shmstream demo`: a registry with two workers, one of which is killed.

An image with real layers is pulled by several clients, one after another, through `shmstream
serve`, from an upstream of ours on this host that is as slow as the rate says. In the middle of the
largest layer the worker that brings it is killed with SIGKILL. The other one goes on; whoever was
connected to the dead one asks again for the rest. In the end every digest must be right, and the
upstream must have been asked once for each blob, and once more for the rest of the one.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shmstream.demo import screen
from shmstream.demo.board import Row, board
from shmstream.demo.client import Client
from shmstream.demo.origin import Request
from shmstream.demo.sample import make_sample
from shmstream.demo.screen import Fact
from shmstream.demo.server import Server
from shmstream.demo.upstream import NAME, TAG, Image, Upstream, make_image, wrap
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
        rate: bytes a second of the upstream, 0 for no limit, None for one that takes five seconds.
        count: clients, at least 1.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    image = make_image(folder / "image", _layers(source, folder))
    rate = image.size / _DURATION if rate is None else rate
    with ExitStack() as undo:
        store = Store(folder / "store")
        undo.callback(store.gc)
        upstream = undo.enter_context(Upstream(folder / "image", rate))
        with Server(upstream.address, folder, _WORKERS) as server:
            _introduce(console, upstream, server, image, rate, count)
            play = _Play(store, server, image, count)
            for client in play.clients:
                undo.callback(client.close)
            with board(console, play.rows) as shown:
                while not play.is_over():
                    time.sleep(_TICK)
                    play.look()
                    shown.update()
                play.look()
                shown.update(final=True)
            play.wait_for_successor()
        facts = [play.of_kill(), _of_upstream(image, upstream.requests(), count)]
        facts += [play.of_pause(), play.of_remains()]
        return _conclude(console, play, facts)


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


def _introduce(
    console: Console, upstream: Upstream, server: Server, image: Image, rate: float, count: int
) -> None:
    clients = "1 client pulls" if count == 1 else f"{count} clients, one after another, pull"
    screen.say(console, "A registry loses a worker", "bold")
    screen.say(console, f"upstream  {upstream.address}, {screen.pace(rate)}")
    screen.say(console, f"image     {NAME}:{TAG}, {amount(image.size)} in {len(image.blobs)} blobs")
    screen.say(console, f"registry  shmstream serve, {_WORKERS} workers; {clients} through it")
    screen.say(console, f"watch it  {server.url}/", "bold cyan")
    screen.say(console)


@dataclass
class _Play:
    """What is to be seen, from the store and from the clients."""

    store: Store
    server: Server
    image: Image
    count: int
    clients: list[Client] = field(init=False)
    rows: list[Row] = field(init=False)
    victim: int | None = None
    killed_at: int = 0
    first_workers: set[int] = field(default_factory=set)
    leaders: list[int] = field(default_factory=list)
    successor: int | None = None
    streams: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clients = [
            Client(each, self.server.url, NAME, TAG) for each in range(1, self.count + 1)
        ]
        step = _LAST_COMES / max(self.count - 1, 1)
        self._comes_at = [step * number for number in range(self.count)]
        self.rows = [Row("registry", self.image.size)]
        self.rows += [Row(f"client {each.number}", self.image.size) for each in self.clients]

    def is_over(self) -> bool:
        """Whether nobody has anything left to do."""
        return all(each.ident is not None and not each.is_alive() for each in self.clients)

    def look(self) -> None:
        """See how far everybody is; let clients come; kill whom the play wants dead."""
        flights = self.store.flights()
        self.streams.update(each.stream for each in flights)
        published = {str(each.key): each.published for each in flights}
        have = {
            digest: size if digest in self.store else published.get(digest, 0)
            for digest, size in self.image.blobs.items()
        }
        large = next((each for each in flights if each.key == self.image.largest), None)
        if large is not None:
            self._note_leader(large)
            self._kill(large)
        self._show(sum(have.values()), large)
        share = have[self.image.largest] / self.image.blobs[self.image.largest]
        for client, comes_at in zip(self.clients, self._comes_at, strict=True):
            if client.ident is None and share >= comes_at:
                client.start()

    def _note_leader(self, flight: FlightInfo) -> None:
        if flight.leader is not None and flight.leader.pid not in self.leaders:
            self.leaders.append(flight.leader.pid)

    def _kill(self, flight: FlightInfo) -> None:
        """The leader, in the middle of the largest layer, once everybody has come."""
        size = self.image.blobs[self.image.largest]
        if self.victim is not None or flight.leader is None or 2 * flight.published < size:
            return
        if any(client.ident is None or client.position == 0 for client in self.clients):
            return
        if not followers_of(flight) and 3 * flight.published < 2 * size:
            return  # wait a moment for somebody to take over
        self.first_workers = set(self._workers())
        self.victim, self.killed_at = flight.leader.pid, flight.published
        os.kill(self.victim, signal.SIGKILL)

    def _workers(self) -> list[int]:
        return [each.pid for each in psutil.Process(self.server.process.pid).children()]

    def wait_for_successor(self, patience: float = 10.0) -> None:
        """Until another worker has the place of the one that was killed."""
        deadline = time.monotonic() + patience
        while self.victim is not None and time.monotonic() < deadline:
            fresh = set(self._workers()) - self.first_workers
            if fresh:
                self.successor = fresh.pop()
                return
            time.sleep(_TICK)

    def _show(self, have: int, large: FlightInfo | None) -> None:
        row = self.rows[0]
        row.completed = have
        row.status = amount(have)
        if have == self.image.size:
            row.style, row.news = "green", "has all of it"
        elif large is not None:
            row.news = self._leads(large)
            row.status += f", {row.news}"
        for client, row in zip(self.clients, self.rows[1:], strict=True):
            row.completed = client.position
            row.status = problem_of(client) or client.doing
            if client.cuts and client.doing != "complete":
                row.status += f", was cut at {amount(client.cuts[-1])}"
            done = client.ident is not None and not client.is_alive()
            row.style = "red" if client.error else "green" if done else ""
            row.news = row.status if client.ident is not None else ""

    def _leads(self, flight: FlightInfo) -> str:
        """Who brings the largest layer."""
        leader = None if flight.leader is None else flight.leader.pid
        if self.victim is None:
            return "waits" if leader is None else f"worker {leader} leads"
        if leader in (None, self.victim):
            return f"worker {self.victim} killed at {amount(self.killed_at)}"
        return f"worker {leader} took over"

    def of_kill(self) -> Fact:
        """Who was killed, and who went on."""
        others = [each for each in self.leaders if each != self.victim]
        if self.victim is None or self.successor is None:
            return Fact("kill", "no worker was killed, or none took its place", good=False)
        went_on = f"worker {others[-1]} went on" if others else "another one went on"
        return Fact(
            "kill",
            f"worker {self.victim}, which led, at {amount(self.killed_at)}; {went_on}, and "
            f"worker {self.successor} was started in its place",
        )

    def of_pause(self) -> Fact:
        """How long clients had to wait."""
        cut = sum(bool(each.cuts) for each in self.clients)
        longest = max((each.pause for each in self.clients), default=0.0)
        were = {0: "nobody was", 1: "1 client was"}.get(cut, f"{cut} clients were")
        told = f"{longest * 1000:.0f} ms, the longest of any client; {were} cut and asked again"
        return Fact("pause", told)

    def of_remains(self) -> Fact:
        """What is left in shared memory, and beside the blobs; and who."""
        remains = [name for name in self.streams if name in segment.names()]
        remains += [str(path) for path in Path(self.store.folder).rglob("*" + partial_path(""))]
        everybody = {*self.first_workers, *self.leaders, *filter(None, [self.successor])}
        remains += [f"worker {pid}" for pid in everybody if psutil.pid_exists(pid)]
        return screen.of_remains(remains)


def problem_of(client: Client) -> str:
    """What is wrong with how a client ended; nothing if it is not, or has not ended."""
    return f"FAILED: {client.error}" if client.error else ""


def _of_upstream(image: Image, requests: list[Request], clients: int) -> Fact:
    """Each blob once, and the rest of one once more."""
    blobs = [each for each in requests if "/blobs/" in each.path]
    again = [each for each in blobs if each.offset]
    sent = sum(each.sent for each in blobs)
    told = (
        f"{len(blobs) - len(again)} requests for {len(image.blobs)} blobs"
        + (f", and {len(again)} for the rest of one after the kill" if again else "")
        + f"; {amount(sent)} sent, and {amount(clients * image.size)} read by "
        + ("1 client" if clients == 1 else f"{clients} clients")
    )
    once = len(blobs) - len(again) == len({each.path for each in blobs}) == len(image.blobs)
    return Fact("upstream", told, good=once and len(again) == 1)


def _conclude(console: Console, play: _Play, facts: list[Fact]) -> bool:
    """Tell how it ended; whether that is as it should be."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("client", "longest pause", "first bytes after", "read"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome")
    wrong = [fact.subject for fact in facts if not fact.good]
    for client in play.clients:
        good = not client.error and client.verified == len(play.image.blobs) + 1
        outcome = f"{client.verified} digests ok" + (", was cut" if client.cuts else "")
        if not good:
            wrong.append(client.name)
            outcome = problem_of(client) or "incomplete"
        first = client.first_byte
        table.add_row(
            str(client.number),
            f"{client.pause * 1000:.0f} ms",
            "" if first is None else f"{first * 1000:.1f} ms",
            amount(client.position),
            Text(
                outcome if good else problem_of(client) or "incomplete", "green" if good else "red"
            ),
        )
    screen.say(console)
    console.print(table)
    screen.say(console)
    for fact in facts:
        screen.say(console, f"{fact.subject:<11}{fact.found}", "" if fact.good else "red")
    screen.say(console)
    if wrong:
        screen.say(console, f"NOT as it should be: {', '.join(wrong)}.", "bold red")
    else:
        who = {1: "The client has", 2: "Both clients have"}.get(
            play.count, f"All {play.count} clients have"
        )
        moral = "of an image that was pulled once, though the worker that pulled it was killed"
        screen.say(console, f"{who} every byte {moral}.", "bold green")
    return not wrong
