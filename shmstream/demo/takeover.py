"""The second act of `shmstream demo`: the leader of a flight is killed, and the others carry on.

Several interpreters call `Store.open(key, url)` for one key at the same time. One of them leads and
downloads from the demo's origin; the others follow. In the middle the leader is killed with
SIGKILL. One of the followers takes over and asks the origin for the rest, and all of them finish.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from shmstream.demo.origin import Origin, Page
from shmstream.demo.readers import Part, Reader, Readers
from shmstream.demo.reading import Orders, read_blob
from shmstream.demo.screen import Board, Fact, conclude
from shmstream.demo.stage import Stage, pace
from shmstream.flight.flight import Role
from shmstream.store import Store
from shmstream.units import amount

_SECONDS = 4.0  # how long it takes unless a rate is given
_TICK = 0.01  # s; from one look at the flight to the next


def run(stage: Stage) -> bool:
    """Show the act, with at least 2 processes; returns whether everything went as it should.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    rate = stage.size / _SECONDS if stage.rate is None else stage.rate
    with ExitStack() as undo:
        store = Store(stage.folder)
        undo.callback(store.gc)
        origin = Origin(undo, {"/blob": Page(stage.source)}, rate)
        url = f"{origin.url}/blob"
        stage.say("The leader is killed", "bold")
        stage.say(f"origin    {url}, {pace(rate)}")
        stage.say(f"flight    {stage.count} interpreters call store.open(key, url); one leads\n")
        orders = Orders(stage.digest, store=str(stage.folder), url=url, chunk_size=stage.chunk_size)
        part = Part("process", read_blob, orders, stage.size, (stage.digest,))
        readers = Readers(undo, part, stage.count)
        shown = Board(undo, stage.console, "published", readers)
        victim = _play(stage, store, origin, readers, shown)
        sent, asked = sum(each.sent for each in origin.requests), len(origin.requests)
        told = f"{amount(sent)} sent in {asked} requests, for a blob of {amount(stage.size)}"
        pause = Fact("pause", f"{readers.longest_pause}, the longest of any survivor")
        facts = [_of_kill(victim, readers, origin), pause, Fact("origin", told, asked == 2)]
        facts += [stage.check_file(Path(store.fetch(stage.digest)))]
        facts += [stage.left_over(each.pid for each in readers)]
    moral = "of a blob that was pulled once, though its leader was killed"
    return conclude(stage.console, readers, facts, moral)


def _play(
    stage: Stage, store: Store, origin: Origin, readers: Readers, shown: Board
) -> Reader | None:
    """Play the act to its end; returns the leader that was killed."""
    published, victim = 0, None
    readers.let_in(0)
    while not readers.are_gone:
        readers.listen(_TICK)
        for flight in store.flights():
            published = flight.published
            stage.note(flight.stream)
            readers.see(flight.followers)
        is_half = bool(origin.requests) and published >= stage.size // 2
        if victim is None and is_half and all(each.has_joined for each in readers):
            victim = next((each for each in readers if each.report.role is Role.LEADS), None)
            if victim is not None:
                victim.kill()
        shown.show(published)
    shown.show(stage.size if stage.digest in store else published, final=True)
    return victim


def _of_kill(victim: Reader | None, readers: Readers, origin: Origin) -> Fact:
    """Which process was killed, and which one went on."""
    successors = [each.name for each in readers if each.report.took_over]
    if victim is None or len(successors) != 1:
        return Fact("kill", f"{len(successors)} processes took over", good=False)
    killed = f"{victim.name}, the leader, at {amount(victim.position)}"
    went_on = f"took over and went on at {amount(origin.requests[-1].offset)}"
    return Fact("kill", f"{killed}; {successors[0]} {went_on}")
