"""The first act of `shmstream demo`: the main job on a real blob, where everybody can watch.

A writer, this process, gets the blob once and at a given pace. The readers, each an interpreter of
its own, join at staggered moments: the first before there is a byte, the last when 70 % are
published. The first is killed in the middle. In the end every survivor must have the digest of the
blob, the file must have it too, and nothing may be left over.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from shmstream import BlobStreamer
from shmstream.demo.readers import Part, Reader, Readers
from shmstream.demo.reading import Orders, read_blob
from shmstream.demo.screen import TICK, Board, Fact
from shmstream.demo.stage import Stage, pace, paced
from shmstream.system.signals import undisturbed
from shmstream.units import amount

_SECONDS = 5.0  # how long it takes unless a rate is given
_LAST_JOINS = 0.7  # of the blob


def run(stage: Stage) -> tuple[Readers, list[Fact], str]:
    """Play the act. Of several readers one is killed."""
    size, digest, chunk_size = stage.size, stage.digest, stage.chunk_size
    name, path = f"demo-{secrets.token_hex(4)}", stage.folder / "blob"
    rate = size / _SECONDS if stage.rate is None else stage.rate
    several = f"{stage.count} interpreters, one after another; one of them is killed"
    stage.say("Readers come and go", "bold")
    stage.say(f"stream    {name}, one writer {pace(rate)}")
    stage.say(f"readers   {several if stage.count > 1 else '1 interpreter'}\n")
    with undisturbed():
        streamer = BlobStreamer.create(
            path, name=name, size=size, chunk_size=chunk_size, digest=digest
        )
        stage.undo.enter_context(streamer)
    stage.note(name)
    part = Part("reader", read_blob, Orders(name), size, (digest,), "joined at", _LAST_JOINS)
    # The readers end before the streamer, so that the streamer removes what they have left.
    readers = Readers(stage.undo, part, stage.count)
    board = Board(stage.undo, stage.console, "writer", readers)
    victim = readers[0] if stage.count > 1 else None
    play = _Play(stage, streamer, readers, victim)
    readers.let_in(0)
    readers.listen_until(lambda: readers[0].has_joined)
    began = time.monotonic()
    streamer.transfer(play.pieces(rate, partial(board.turn, play.look)))
    elapsed = time.monotonic() - began
    board.play(play.look)
    reached = size / elapsed
    share = f"{reached * 100 / rate:.0f} % of the rate asked for" if rate else "without a limit"
    told = f"{amount(size)} in {elapsed:.1f} s, that is {amount(reached)}/s; {share}"
    facts = [Fact("writer", told)]
    if victim is not None:
        slot = "the stream was complete before the writer came to look after its slot"
        if play.slot_free_after is not None:
            slot = f"its slot was free again within {play.slot_free_after * 1000:.0f} ms"
        facts += [Fact("kill", f"{victim.name} at {amount(victim.position)}; {slot}")]
    return readers, [*facts, stage.check_file(path)], "of a blob that was pulled once"


@dataclass
class _Play:
    """The writer, which looks after the readers while it waits for the next bytes."""

    stage: Stage
    streamer: BlobStreamer
    readers: Readers
    victim: Reader | None
    slot_free_after: float | None = None  # s; from the kill

    def pieces(self, rate: float, wait: Callable[[float], None]) -> Iterator[bytes]:
        """The source. In the middle it waits until the victim has come as far, and kills it."""
        size, victim = self.stage.size, self.victim
        with self.stage.source.open("rb") as file:
            yield from paced(file, size // 2, rate, wait)
            while victim is not None and victim.exit_code is None:
                wait(TICK)
                if victim.position >= size // 2:
                    victim.kill()
            yield from paced(file, size, rate, wait)

    def look(self) -> tuple[int, str]:
        """See how far each reader is, and when the slot of the victim is free."""
        seen, victim = self.streamer.statistics(), self.victim
        self.readers.see(seen.subscribers)
        pids = [each.identity.pid for each in seen.subscribers]
        if victim and victim.killed and self.slot_free_after is None and victim.pid not in pids:
            self.slot_free_after = time.monotonic() - victim.killed
        return seen.published, ""
