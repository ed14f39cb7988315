"""The second act of `shmstream demo`: the leader of a flight is killed, and the others carry on.

Several interpreters call `Store.open(key, url)` for one key at the same time. One of them leads and
downloads, from an origin on this host; the others follow. In the middle the leader is killed with
SIGKILL. One of the followers takes over, asks the origin for the rest, and all finish.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console

from shmstream.demo import screen
from shmstream.demo.origin import NAME, Origin, Request, link_blob
from shmstream.demo.reader import Orders, Readers
from shmstream.demo.scene import Part, Phase, Scene
from shmstream.demo.screen import Fact
from shmstream.errors import ShmstreamError
from shmstream.flight.flight import Role
from shmstream.storage.flights import FlightInfo
from shmstream.store import Store
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import State
from shmstream.stream.partial import partial_path
from shmstream.stream.stream import Stream
from shmstream.units import amount

_DURATION = 4.0  # s; how long it takes unless a rate is given
_TICK = 0.01  # s; how often we look


def run(
    console: Console, scene: Scene, source: Path, folder: Path, rate: float | None, count: int
) -> bool:
    """Show it, with `count` interpreters, at least 2, in `folder`; whether all went as it should.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    rate = scene.size / _DURATION if rate is None else rate
    key = f"sha256:{scene.sha256}"
    shelf = folder / "origin" / "blobs" / "sha256"
    shelf.mkdir(parents=True)
    link_blob(shelf, "", source)
    with ExitStack() as undo:
        store = Store(folder / "store")
        undo.callback(store.gc)
        origin = undo.enter_context(Origin(folder / "origin", rate))
        readers = undo.enter_context(Readers())
        url = f"{origin.address}/v2/{NAME}/blobs/{key}"
        call = f"{count} interpreters call store.open(key, url); one of them downloads"
        told = [("origin", f"{origin.address}, {screen.pace(rate)}"), ("flight", call)]
        screen.introduce(console, "The leader is killed", told)
        scene.begin([Part(each) for each in readers.start(count)])
        orders = Orders(key, None, None, str(folder / "store"), url, scene.chunk_size)
        for part in scene.parts:
            part.reader.let_in(orders)
        flight = _Flight(store, scene)
        with screen.board(console, scene.rows) as update:
            while not readers.are_gone:
                readers.listen(_TICK)
                flight.look()
                flight.kill_leader_in_the_middle()
                update()
            scene.published = scene.size if key in store else scene.published
            scene.update_rows()
            update(final=True)
        facts = [flight.of_kill(origin.requests()), _of_pause(scene)]
        facts += [_of_origin(scene, origin.requests())]
        facts += [scene.of_file(Path(store.fetch(key))), flight.of_remains()]
        return scene.conclude(console, facts)


class _Flight:
    """The flight that is to be seen, as shared memory tells it."""

    def __init__(self, store: Store, scene: Scene) -> None:
        self._store = store
        self._scene = scene
        self._streams: dict[str, int] = {}  # name -> token
        self._victim: Part | None = None
        self._has_begun = False  # the source has answered

    def look(self) -> None:
        """See who leads, and how far everybody is."""
        scene, now = self._scene, time.monotonic()
        flights = self._store.flights()
        for each in flights:
            self._see(each)
        readers = [each for flight in flights for each in flight.followers]
        readers.sort(key=lambda each: each.position)  # one that joins anew has two for an instant
        subscribers = {each.identity.pid: each for each in readers}
        for part in scene.parts:
            part.see(subscribers.get(part.reader.pid), now)
        scene.update_rows()

    def _see(self, flight: FlightInfo) -> None:
        self._scene.published = flight.published
        self._has_begun = self._has_begun or flight.state is State.STREAMING
        if flight.stream not in self._streams:
            with (
                suppress(ShmstreamError, FileNotFoundError),  # just made, or just gone
                Stream.attach(flight.stream, timeout=0) as stream,
            ):
                self._streams[flight.stream] = stream.block.token
        leader = None if flight.leader is None else flight.leader.pid
        for part in self._scene.parts:
            if part.reader.pid == leader:
                part.role = Role.LEADS
            elif part.phase is Phase.READING:
                part.role = Role.FOLLOWS

    def kill_leader_in_the_middle(self) -> None:
        """If it is there, and all the others are."""
        scene = self._scene
        if self._victim is not None or not self._has_begun or scene.published < scene.size // 2:
            return
        if not all(part.reader.has_joined for part in scene.parts):
            return
        for part in scene.parts:
            if part.role is Role.LEADS:
                part.reader.kill()
                part.killed = time.monotonic()
                self._victim = part

    def of_kill(self, requests: list[Request]) -> Fact:
        """Who was killed, and who went on."""
        victim = self._victim
        successors = [part for part in self._scene.parts if part.took_over]
        if victim is None or len(successors) != 1:
            return Fact("kill", f"{len(successors)} processes took over", good=False)
        killed = f"process {victim.reader.number}, the leader, at {amount(victim.position)}"
        went_on = f"process {successors[0].reader.number} took over"
        return Fact("kill", f"{killed}; {went_on} and went on at {amount(requests[-1].offset)}")

    def of_remains(self) -> Fact:
        """What is left of it in shared memory, and beside the blob."""
        remains = [name for name in self._streams if name in segment.names()]
        remains += [bell for token in self._streams.values() for _, bell in doorbell.names(token)]
        remains += [str(path) for path in Path(self._store.folder).rglob("*" + partial_path(""))]
        return screen.of_remains(remains)


def _of_pause(scene: Scene) -> Fact:
    """How long the survivors had to wait."""
    reports = [part.reader.report for part in scene.parts if part.killed is None]
    pauses = [report.pause for report in reports if report is not None]
    return Fact("pause", f"{max(pauses, default=0) * 1000:.0f} ms, the longest of any survivor")


def _of_origin(scene: Scene, requests: list[Request]) -> Fact:
    sent = sum(each.sent for each in requests)
    told = f"{amount(sent)} sent in {len(requests)} requests, for a blob of {amount(scene.size)}"
    return Fact("origin", told, good=len(requests) == 2)
