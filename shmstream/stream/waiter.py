"""The live tail of a stream: how a reader waits for bytes without losing a wake-up.

Every way of reading asks `Tail.readable`: how many bytes of the blob may be read now? It answers
at once if the bytes that the reader wants are published. Otherwise it waits:

    1 load `published`; if it is enough, answer. Bytes up to there need no look at the block from
      then on, because `published` never decreases (I1)
    2 load the state; if it is terminal, load `published` again, and conclude
    3 look at the writer's lock, in any of these cases:
        - it is the first round;
        - a quarter of a second has passed since the last look, and since the last ring that came
          with bytes;
        - the last wait took a ring without new bytes, or more than one ring;
        - the writer's process has ended.
      If the lock is free, load the state again, because the writer may have finished and left
      meanwhile, and conclude
    4 take all rings that have come; if there are none, wait for one, at most a quarter of a second;
      go to 1

A reader that finds enough in 1 leaves the rings for those bytes. Then its next wait ends at once,
mostly without new bytes. `published` is loaded after the rings were taken, and a ring that comes
after 4 ends the next wait, so no wake-up is lost:

    writer                                  reader
                                            loads `published`: not enough
    publishes
                                            takes the rings: none of them is for those bytes
    rings
                                            loads `published`: enough, answers
                                            comes for more; its wait takes that ring, without bytes

A ring that never comes costs a quarter of a second (I4). In 2 the order matters: the writer stores
`published` before the state (I3), so the `published` that is loaded after a terminal state is
final.

A reader that slept has taken one ring only, because it has bytes to read; the others end its next
wait at once. A writer that hands the stream over rings twice, and a reader that did not sleep may
take both rings in one wait:

    writer                                  reader
    publishes, rings
    unlocks the header, rings
                                            takes both rings, and answers with the bytes
                                            comes for more: the rings were two, so it looks

If the reader slept, or if the second ring comes later than that, the next wait takes it, without
new bytes: so it looks. If an old ring was left, the wait takes the first ring with it, or the
second without new bytes.

A writer that was killed cannot ring. So before the first look at its lock, the reader asks
`system/exit_watcher` to ring the doorbell when the writer's process has ended. The kernel frees the
lock before it tells that, so the look after that ring sees the lock free. It is a ring like any
other: if it never comes, the next look comes in a quarter of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shmstream.errors import WriterDied, WriterStalled, naming_shortages
from shmstream.stream.control_block import LIVE, TERMINAL, UNKNOWN, State
from shmstream.stream.doorbell import Doorbell
from shmstream.stream.stream import Stream
from shmstream.stream.subscribers import Subscription, is_first
from shmstream.system import exit_watcher
from shmstream.system.exit_watcher import Watch
from shmstream.system.process import Identity

_SLICE = 0.25  # s; the longest wait before the reader checks again


class Tail:
    """The wait of one reader for one stream. It subscribes, unless the stream has ended already."""

    def __init__(
        self,
        stream: Stream,
        stall_timeout: float | None,
        *,
        subscribes_late: bool = False,
        sources: int = 0,
        ahead: bool = False,
    ) -> None:
        """With `subscribes_late`, the reader subscribes only when it has to wait for bytes.

        `ahead`: it reads for another host, and has all bytes once they are verified.

        Raises:
            NoFreeSlot: all slots are taken by live readers.
            OutOfResources: descriptors or shared memory have run out; nothing is left behind.
        """
        self._stream = stream
        self._block = stream.block
        self.stall_timeout: float | None = stall_timeout
        self._subscription: Subscription | None = None
        self._sources = sources
        self.ahead: bool = ahead
        self.load: Callable[[], int] = self._load_ahead if ahead else stream.block.load_published
        """Loads how many bytes can be read. The caller requires that the block is whole."""
        if not subscribes_late:
            self._subscribe()
        self._known = 0  # bytes that were published when it last looked (I1)
        self._next_look = 0.0
        self._writer: Identity | None = None  # whose end `_watch` tells
        self._watch: Watch | None = None
        self.waits: int = 0
        """How often this reader has waited for a ring."""

    def _subscribe(self, position: int = 0) -> bool:
        """Take a slot and a doorbell; False if the stream has ended, so that nothing rings."""
        stream = self._stream
        if stream.block.state in TERMINAL:
            return False
        with naming_shortages(stream.name, "shared memory (/dev/shm)"):
            self._subscription = Subscription(
                stream.block,
                stream.lock,
                stream.name,
                position,
                self._sources,
                ahead=self.ahead,
            )
        return True

    def _load_ahead(self) -> int:
        return max(self._block.load_published(), self._block.verified)

    def readable(self, position: int, want: int) -> int:
        """Wait until `want` bytes are published, or the blob is complete; how many are published.

        If the stream is broken, the answer is less than `want` as long as it is past `position`.

        Raises:
            BlobAborted, WriterDied: the stream is broken, and no byte past `position` will come.
            WriterStalled: no byte came for `stall_timeout`.
            DamagedSegment: another program has cut the shared memory off, or written to it.
            NoFreeSlot, OutOfResources: as the constructor, if this reader subscribes late.
        """
        if want <= self._known:
            return self._known
        self._block.require_whole()
        if self._subscription is not None:
            self._subscription.store_position(position)
        published = self.load()
        if published < want:
            published = self._wait(position, want, published)
        self._known = published
        return published

    def _wait(self, position: int, want: int, published: int) -> int:
        if self._subscription is None:
            if not self._subscribe(min(position, published)):
                return self._conclude(position)
            return self.readable(position, want)  # what was published before is not rung for
        block, doorbell = self._block, self._subscription.doorbell
        now = last_progress = time.monotonic()
        while True:
            if block.load_state() not in LIVE or self._sees_writer_dead(now, doorbell):
                return self._conclude(position)
            pause = _SLICE
            if self.stall_timeout is not None:
                pause = min(pause, last_progress + self.stall_timeout - now)
                if pause <= 0:
                    raise WriterStalled(self._stream.name, position, self.stall_timeout)
            self.waits += 1
            rings = doorbell.wait(pause)
            now = time.monotonic()  # before the load, so that a pause of this process is no stall
            block.require_whole()
            seen, published = published, self.load()
            if rings:  # one with bytes: the writer is alive; else it may have handed over
                self._next_look = now + _SLICE if rings == 1 and published != seen else 0.0
            if published >= want:
                return published
            if published != seen:
                now = last_progress = time.monotonic()

    def _sees_writer_dead(self, now: float, doorbell: Doorbell) -> bool:
        """Whether no writer holds the lock on the header; checks only if it is time to."""
        has_ended = self._watch is not None and self._watch.has_ended
        if now < self._next_look and not has_ended:
            return False
        self._next_look = now + _SLICE
        if has_ended:
            self._watch = None  # one look for one end
        if self._writer != (writer := self._stream.writer):
            self._stop_watching()
            self._writer, self._watch = writer, exit_watcher.watch(writer, doorbell.ring)
        if is_dead := self._stream.is_orphaned():
            self._next_look = 0.0  # a reader that takes the rest first looks again at once
        return is_dead

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def await_successor(self, seconds: float) -> None:
        """If the writer has died, let another reader succeed first; see `InFlightCopier`.

        The successor rings when it publishes. If it has died by then, too, the time passes.
        """
        stream, block = self._stream, self._block
        block.require_whole()
        if self._subscription is None:
            return
        if is_first(block, stream.lock, self._subscription.slot.index):
            return
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not stream.is_orphaned() or block.known_state() in TERMINAL:
                return
            self._subscription.doorbell.wait(left)
            block.require_whole()

    def look(self) -> tuple[State, int, int | None]:
        """The state, how many bytes are published, and the size, or None while it is not known.

        If the state is terminal, all are final. Every reader that wants them asks here, because the
        order of the loads matters (I3): the state comes first.
        """
        now = self._block.at_once()
        state, published, size = now.known_state(), self.load(), now.size
        return state, published, None if size == UNKNOWN else size

    def _conclude(self, position: int) -> int:
        """How many bytes can be read of a stream that is terminal or has lost its writer."""
        state, published, _ = self.look()
        if state == State.COMMITTED or published > position:
            return published
        if state == State.ABORTED:
            raise self._stream.abort_error()
        offset = min(position, published)
        raise WriterDied(self._stream.name, offset, str(self._stream.writer))

    def note(self, position: int) -> None:
        """Store how far this reader has read, for people: an error of it is none of the reader."""
        if self._subscription is None:
            return
        try:
            if self._block.is_whole:
                self._subscription.store_position(position)
        except (OSError, ValueError):  # another thread has closed this reader meanwhile
            pass

    def offer(self, sources: int) -> None:
        """Store which sources this reader has, for a writer that gives up."""
        if self._sources == sources:
            return
        self._sources = sources
        if self._subscription is not None:
            self._subscription.slot.sources = sources

    def close(self) -> None:
        """Give the slot back. No other process notices."""
        self._stop_watching()
        if self._subscription is not None:
            self._subscription.close()

    def abandon(self) -> None:
        """In a forked child: release the memory, and leave the slot to the parent."""
        if self._subscription is not None:
            self._subscription.abandon()
