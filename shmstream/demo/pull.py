"""The third act of `shmstream demo`: a registry with two workers, one of which is killed.

Several clients, one after another, pull an image with real layers through `shmstream serve`; its
upstream is the demo's origin. In the middle of the largest layer the worker that downloads it is
killed with SIGKILL. The other worker goes on, with the download and with the clients of the dead
one: no client is cut. In the end every digest must be right, and the upstream must have been asked
once for each blob, and once more for the rest of the largest.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection

import psutil

from shmstream import Store
from shmstream.demo.child import Child, DemoFailed
from shmstream.demo.pages import Origin
from shmstream.demo.readers import Part, Readers
from shmstream.demo.reading import Orders, pull_image
from shmstream.demo.sample import NAME, TAG, Image, make_image
from shmstream.demo.screen import TICK, Board, Fact
from shmstream.demo.stage import Stage, pace
from shmstream.registry.server.serve import serve
from shmstream.registry.settings import Settings, Upstream
from shmstream.storage.flights import FlightInfo, followers_of
from shmstream.system import tcp
from shmstream.units import amount

_SECONDS = 5.0  # how long it takes unless a rate is given
_WORKERS = 2
_LAST_JOINS = 0.4  # of the image
_PATIENCE = 10.0  # s; for the start of a worker


def run(stage: Stage) -> tuple[Readers, list[Fact], str]:
    """Play the act."""
    image = make_image(stage.folder, stage.source)
    size = sum(image.blobs.values())
    rate = size / _SECONDS if stage.rate is None else stage.rate
    origin = Origin(stage.undo, image.pages, rate)
    server, url = _start_server(stage, (Upstream(None, origin.url),))
    stage.say("A registry loses a worker", "bold")
    stage.say(f"upstream  {origin.url}, {pace(rate)}")
    stage.say(f"image     {NAME}:{TAG}, {amount(size)} in {len(image.blobs)} blobs")
    stage.say(f"registry  shmstream serve with {_WORKERS} workers; {stage.count} clients")
    stage.say(f"watch it  {url}/\n", "bold cyan")
    orders = Orders(url=f"{url}/v2/{NAME}/manifests/{TAG}")
    part = Part("client", pull_image, orders, size, image.digests, last_joins=_LAST_JOINS)
    clients = Readers(stage.undo, part, stage.count)
    store = Store(stage.folder / "store")
    play = _Play(stage, store, psutil.Process(server.pid), image, clients)
    Board(stage.undo, stage.console, "registry", clients).play(play.look)
    cut = sum(bool(each.report.cuts) for each in clients)
    pause = f"{clients.longest_pause}, the longest of any client; clients that were cut: {cut}"
    is_good = cut == 0 or not tcp.is_known  # where the kernel tells too little, nothing is kept
    facts = [play.of_kill(), _of_upstream(image, origin, clients), Fact("pause", pause, is_good)]
    moral = "of an image that was pulled once, though the worker that pulled it was killed"
    return clients, facts, moral


def _start_server(stage: Stage, upstreams: tuple[Upstream, ...]) -> tuple[Child, str]:
    """Start the registry and wait until it listens; returns it and its URL."""
    log, store = stage.folder / "serve.log", str(stage.folder / "store")
    settings = Settings(
        upstreams, store, workers=_WORKERS, listen="127.0.0.1:0", grace=0.0, access_log=False
    )
    with log.open("wb") as file:
        server = Child(stage.undo, partial(_serve, settings), file)
    if (found := re.search(r" at (http://\S+) with ", str(server.receive()))) is None:
        raise DemoFailed(f"the registry has ended: {log.read_text()[-2000:]}")
    return server, found[1]


def _serve(settings: Settings, demo: Connection) -> None:
    """The work of the child. SIGTERM, which ends it, is blocked; `serve` waits for that signal."""
    serve(settings, demo.send)


@dataclass
class _Play:
    """What happens in the store of the registry, and the kill."""

    stage: Stage
    store: Store
    server: psutil.Process
    image: Image
    clients: Readers
    victim: int | None = None
    killed_at: int = 0
    leaders: list[int] = field(default_factory=list)  # of the largest layer's flight, in turn
    workers: list[int] = field(default_factory=list)  # at the kill

    def look(self) -> tuple[int, str]:
        """See what there is, and kill; returns how many bytes, and which worker leads."""
        flights, blobs = {each.key: each for each in self.store.flights()}, self.image.blobs
        have, note = 0, ""
        for key, size in blobs.items():
            if key in self.store:
                have += size
            elif (flight := flights.get(key)) is not None:
                have += flight.published
                self.stage.note(flight.stream)
                note = self._follow(flight, size) if size == max(blobs.values()) else note
        return have, "has all of it" if have == sum(blobs.values()) else note

    def _follow(self, flight: FlightInfo, size: int) -> str:
        """Note which worker leads the largest layer, and kill it in the middle; returns a text."""
        leader = None if flight.leader is None else flight.leader.pid
        if leader is not None and leader not in self.leaders:
            self.leaders.append(leader)
        if self.victim is None:
            is_half = 2 * flight.published >= size and all(each.position for each in self.clients)
            # Wait a moment for another worker that could take over.
            is_time = is_half and (followers_of(flight) or 3 * flight.published >= 2 * size)
            if leader is None or not is_time:
                return "waits" if leader is None else f"worker {leader} leads"
            self.workers = [each.pid for each in self.server.children()]
            self.victim, self.killed_at = leader, flight.published
            os.kill(leader, signal.SIGKILL)
        if leader in (None, self.victim):
            return f"worker {self.victim} killed at {amount(self.killed_at)}"
        return f"worker {leader} took over"

    def of_kill(self) -> Fact:
        """Which worker was killed, which one went on, and which one the registry has started."""
        started: list[int] = []
        deadline = time.monotonic() + _PATIENCE
        while self.victim and not started and time.monotonic() < deadline:
            time.sleep(TICK)
            started = [each.pid for each in self.server.children() if each.pid not in self.workers]
        if not started:
            return Fact("kill", "no worker was killed, or none took its place", good=False)
        others = [f"worker {each}" for each in self.leaders if each != self.victim]
        killed = f"worker {self.victim}, which led, at {amount(self.killed_at)}"
        went_on = f"{[*others, 'another one'][0]} went on, and worker {started[0]}"
        return Fact("kill", f"{killed}; {went_on} was started in its place")


def _of_upstream(image: Image, origin: Origin, clients: Readers) -> Fact:
    """Whether each blob was asked for once, and the rest of one blob once more."""
    blobs = [each for each in origin.gets if "/blobs/" in each.path]
    whole = [each.path for each in blobs if each.start == 0]
    rest = len(blobs) - len(whole)
    sent, read = sum(each.sent for each in blobs), sum(each.position for each in clients)
    found = f"{len(whole)} requests for {len(image.blobs)} blobs"
    found += f", and {rest} for the rest of one after the kill" if rest else ""
    found += f"; {amount(sent)} sent, and {amount(read)} read by clients"
    good = len(whole) == len(set(whole)) == len(image.blobs) and rest == 1
    return Fact("upstream", found, good)
