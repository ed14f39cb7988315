"""The first act of `shmstream demo`: the main job on a real blob, where everybody can watch.

A writer, this process, gets the blob once and at a given pace. The readers, each an interpreter of
its own, join at staggered moments: the first before there is a byte, the last when 70 % are
published. The first is killed in the middle. In the end every survivor must have the digest of the
blob, the file must have it too, and nothing may be left over.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from shmstream.demo.readers import Part, Reader, Readers
from shmstream.demo.reading import Orders, read_blob
from shmstream.demo.screen import Board, Fact, conclude
from shmstream.demo.stage import Stage, pace, paced
from shmstream.stream.writer import BlobStreamer
from shmstream.system.signals import undisturbed
from shmstream.units import amount

_SECONDS = 5.0  # how long it takes unless a rate is given
_LAST_JOINS = 0.7  # of the blob
_TICK = 0.02  # s; from one look at the readers to the next


def run(stage: Stage) -> bool:
    """Show the act; returns whether everything went as it should. Of several readers one is killed.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    size, digest, chunk_size = stage.size, stage.digest, stage.chunk_size
    name, path = f"demo-{secrets.token_hex(4)}", stage.folder / "blob"
    rate = size / _SECONDS if stage.rate is None else stage.rate
    several = f"{stage.count} interpreters, one after another; one of them is killed"
    stage.say("Readers come and go", "bold")
    stage.say(f"stream    {name}, one writer {pace(rate)}")
    stage.say(f"readers   {several if stage.count > 1 else '1 interpreter'}\n")
    with ExitStack() as undo:
        with undisturbed():
            streamer = BlobStreamer.create(
                path, name=name, size=size, chunk_size=chunk_size, digest=digest
            )
            undo.enter_context(streamer)
        stage.note(name)
        part = Part("reader", read_blob, Orders(name), size, (digest,), "joined at", _LAST_JOINS)
        # The readers end before the streamer, so that the streamer removes what they have left.
        readers = Readers(undo, part, stage.count)
        shown = Board(undo, stage.console, "writer", readers)
        play = _Play(stage, streamer, readers, shown, readers[0] if stage.count > 1 else None)
        play.perform(rate)
    left_over = stage.left_over(each.pid for each in readers)
    facts = [play.of_writer(rate), *play.of_kill(), stage.check_file(path), left_over]
    return conclude(stage.console, readers, facts, "of a blob that was pulled once")


@dataclass
class _Play:
    """The writer, which looks after the readers while it waits for the next bytes."""

    stage: Stage
    streamer: BlobStreamer
    readers: Readers
    shown: Board
    victim: Reader | None
    elapsed: float = 0.0  # s; how long the writer took
    next_look: float = 0.0  # on the monotonic clock
    slot_free_after: float | None = None  # s; from the kill

    def perform(self, rate: float) -> None:
        """Play the act to its end."""
        self.readers.let_in(0)
        self.readers.listen_until(lambda: self.readers[0].has_joined)
        began = time.monotonic()
        self.streamer.transfer(self._pieces(rate))
        self.elapsed = time.monotonic() - began
        while not self.readers.are_gone:
            self._look(_TICK)
        self._look(_TICK, final=True)

    def _pieces(self, rate: float) -> Iterator[bytes]:
        """The source. It holds the last quarter back until the victim has ended."""
        size, victim = self.stage.size, self.victim
        with self.stage.source.open("rb") as file:
            yield from paced(file, size * 3 // 4, rate, self._look)
            while victim is not None and victim.exit_code is None:
                self._look(_TICK)
            yield from paced(file, size, rate, self._look)

    def _look(self, patience: float, *, final: bool = False) -> None:
        """Wait for reports for `patience` seconds at most; then let readers in, kill and show."""
        if not patience and time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + _TICK
        self.readers.listen(patience)
        seen = self.streamer.statistics()
        self.readers.see(seen.subscribers)
        self.readers.let_in(seen.published)
        if self.victim is not None:
            pids = [each.identity.pid for each in seen.subscribers]
            if self.victim.killed is None:
                if self.victim.position >= self.stage.size // 2:
                    self.victim.kill()
            elif self.slot_free_after is None and self.victim.pid not in pids:
                self.slot_free_after = time.monotonic() - self.victim.killed
        self.shown.show(seen.published, final=final)

    def of_writer(self, rate: float) -> Fact:
        """How fast the writer was."""
        size, reached = amount(self.stage.size), self.stage.size / self.elapsed
        asked = f"{reached * 100 / rate:.0f} % of the rate asked for" if rate else "without a limit"
        told = f"{size} in {self.elapsed:.1f} s, that is {amount(reached)}/s; {asked}"
        return Fact("writer", told)

    def of_kill(self) -> list[Fact]:
        """What became of the slot of the killed reader; nothing if no reader was killed."""
        if self.victim is None:
            return []
        slot = "the stream was complete before the writer came to look after its slot"
        if self.slot_free_after is not None:
            slot = f"its slot was free again within {self.slot_free_after * 1000:.0f} ms"
        return [Fact("kill", f"{self.victim.name} at {amount(self.victim.position)}; {slot}")]
