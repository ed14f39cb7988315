"""Who is woken when bytes arrive: both ends of a slot and its doorbell.

A reader takes a slot by the kernel lock on its bytes, so a slot whose reader was killed is free at
once, and two readers never share one:

    reader                                    writer, at each publish
    1 lock a free slot, or a dead reader's    1 post the doorbells that it knows
    2 create the doorbell of a new generation 2 compare the memberships with the last ones seen
    3 fill the slot                           3 for those that changed: let go of the doorbell, or
    4 store the membership as active            open it, and post it
    5 load `published` again, then wait       4 now and then look at one slot, in turn; if nobody
                                                holds its lock, take the doorbell away and store
                                                it as free

A comparison before a newcomer's 4 does not ring it, but its 5 sees what was published. A kill
between 2 and 4 leaves a doorbell that the next one to take this slot replaces, and that `gc` or the
end of the stream removes. Those who are known are rung first: nothing that is read then stands
between them and the bytes. Readers never wait for each other, and the writer never waits for a
reader (I6).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from shmstream.errors import NoFreeSlot
from shmstream.stream import doorbell
from shmstream.stream.control_block import Block, Slot
from shmstream.stream.doorbell import GENERATIONS, Doorbell, Ringer
from shmstream.system.locks import KernelLock
from shmstream.system.process import Identity

_LOOK_INTERVAL = 0.02  # s; the writer looks for dead readers no more often than that


class Subscription:
    """A reader's slot and doorbell, from construction until `close`."""

    def __init__(self, block: Block, lock: KernelLock, name: str, position: int = 0) -> None:
        """Take a slot, for a reader that is at `position`.

        Raises:
            NoFreeSlot: all are taken by live readers.
            OSError: descriptors or shared memory have run out; nothing is left behind.
        """
        self.slot = _claim(block, lock, name)
        self._lock = lock
        generation, was_active = self.slot.membership
        if was_active:  # of a reader that was killed
            doorbell.unlink(doorbell.name_of(block.token, self.slot.index, generation))
        generation = (generation + 1) % GENERATIONS
        try:
            self.doorbell = Doorbell(doorbell.name_of(block.token, self.slot.index, generation))
        except BaseException:
            self.slot.membership = (generation, False)
            lock.release(self.slot.span)
            self.slot.release()
            raise
        me = Identity.mine()
        self.slot.pid, self.slot.started, self.slot.namespace = me.pid, me.started, me.namespace
        self.slot.position = position
        self.slot.membership = (generation, True)

    def close(self) -> None:
        """Give the slot back and remove the doorbell."""
        self.slot.membership = (self.slot.membership[0], False)
        self.doorbell.close(unlink_name=True)
        self._lock.release(self.slot.span)
        self.slot.release()

    def abandon(self) -> None:
        """In a forked child: let go of the memory; slot and doorbell are the parent's."""
        self.slot.release()  # not the doorbell: a thread that is not here may hold glibc's lock


def _claim(block: Block, lock: KernelLock, name: str) -> Slot:
    """A slot that is now locked: one that was given back, else one whose reader died.

    Two rounds, because the writer may be holding the lock of a dead reader's slot for an instant.
    """
    with block.memberships() as memberships:
        for is_taken in (False, True, False, True):
            for index, word in enumerate(memberships):
                if word & 1 == is_taken:
                    slot = block.slot(index)
                    if lock.try_acquire(slot.span):
                        return slot
                    slot.release()
    raise NoFreeSlot(name, block.slots)


@dataclass(frozen=True)
class Subscriber:
    """One reader, as the writer sees it: how far it has read, in bytes, and who it is."""

    slot: int
    position: int
    lag: int
    identity: Identity


class Subscribers:
    """All readers of a stream, for its writer. Not thread-safe: the streamer's lock guards it."""

    def __init__(self, block: Block, lock: KernelLock) -> None:
        self._block = block
        self._lock = lock
        self._memberships = block.memberships()
        self._seen = b""  # a successor finds readers there already
        self._ringers: dict[int, tuple[int, Ringer]] = {}  # slot -> generation and doorbell
        self._rings: list[Callable[[], None]] = []
        self._active: list[int] = []  # slots, ascending
        self._looked_after = -1
        self._next_look = 0.0
        self.here: Callable[[], None] | None = None
        """Called at every ring, for those in this very process who need no slot; not to block."""

    def ring(self) -> None:
        """Wake every reader. Never blocks, never fails."""
        _post(self._rings)
        memberships = self._memberships.tobytes()
        if memberships != self._seen:
            self._seen = memberships
            _post(self._follow())
        self.tell_here()

    def tell_here(self) -> None:
        """Call whoever listens in this process: there is news that is worth no ring to others."""
        if self.here is not None:
            self.here()

    def look_after_one(self) -> None:
        """Now and then free the next slot, in turn, whose reader was killed. Never blocks."""
        if self._active and (now := time.monotonic()) >= self._next_look:
            self._next_look = now + _LOOK_INTERVAL
            after_last = bisect_right(self._active, self._looked_after) % len(self._active)
            self._looked_after = self._active[after_last]
            reclaim(self._block, self._lock, self._looked_after)

    def _follow(self) -> list[Callable[[], None]]:
        """Let go of the doorbells of those who left, open those of readers who came: these."""
        generations = self._block.taken()
        for index, (generation, ringer) in list(self._ringers.items()):
            if generations.get(index) != generation:
                del self._ringers[index]
                ringer.close()
        came = []
        for index, generation in generations.items():
            if index not in self._ringers:
                try:
                    ringer = Ringer(doorbell.name_of(self._block.token, index, generation))
                except FileNotFoundError:  # removed by somebody: its reader looks by itself (I4)
                    continue
                except OSError:  # no descriptor is free just now: try again at the next ring
                    self._seen = b""
                    continue
                self._ringers[index] = (generation, ringer)
                came.append(ringer.ring)
        self._rings = [ringer.ring for _, ringer in self._ringers.values()]
        self._active = list(generations)
        return came

    def abandon(self) -> None:
        """In a forked child: let go of the memory only."""
        self._memberships.release()
        self._ringers.clear()

    def close(self) -> None:
        """Let go of all doorbells; their names stay."""
        for _, ringer in self._ringers.values():
            ringer.close()
        self._memberships.release()
        self._ringers.clear()
        self._rings.clear()
        self._active.clear()
        self.here = None


def _post(rings: Iterable[Callable[[], None]]) -> None:
    for ring in rings:
        try:
            ring()
        except OSError:  # posted to its limit already: its reader has enough to wake for (I4)
            continue


def reclaim(block: Block, lock: KernelLock, index: int, bells: Iterable[str] = ()) -> list[str]:
    """Free the slot if its reader was killed: the doorbells that go, of which some may be `bells`.

    For anybody, at any time; never blocks.
    """
    slot = block.slot(index)
    try:
        if lock.is_held_elsewhere(slot.span) or not lock.try_acquire(slot.span):
            return []
        generation, active = slot.membership
        if active:
            bells = {*bells, doorbell.name_of(block.token, index, generation)}
        gone = [each for each in bells if doorbell.unlink(each)]
        if active:
            slot.membership = (generation, False)
        lock.release(slot.span)
        return gone
    finally:
        slot.release()


def forsaken(block: Block, lock: KernelLock, bells: Iterable[str]) -> dict[int, set[str]]:
    """Slots whose readers were killed, with their doorbells: those active, and those of `bells`."""
    found: dict[int, set[str]] = {}
    for bell in bells:  # some were killed before they were active
        with suppress(ValueError):
            found.setdefault(doorbell.slot_of(bell), set()).add(bell)
    for index, bell in _active(block):
        found.setdefault(index, set()).add(bell)
    free = [each for each in found if each < block.slots and not _is_held(block, lock, each)]
    # Who left in between has cleared up.
    still = {bell for _, bell in [*_active(block), *doorbell.names(block.token)]} if free else set()
    return {index: found[index] & still for index in free if found[index] & still}


def deaf(block: Block, lock: KernelLock) -> list[str]:
    """The doorbells that readers alive lack; they look by themselves (I4)."""
    active = _active(block)
    there = {bell for _, bell in doorbell.names(block.token)} if active else set()
    if lacking := [each for each in active if each[1] not in there]:
        still = _active(block)
        lacking = [each for each in lacking if each in still and _is_held(block, lock, each[0])]
    return [bell for _, bell in lacking]


def _active(block: Block) -> list[tuple[int, str]]:
    """Slots that somebody has, dead or alive, and the names of their doorbells."""
    return [
        (index, doorbell.name_of(block.token, index, generation))
        for index, generation in block.taken().items()
    ]


def _is_held(block: Block, lock: KernelLock, index: int) -> bool:
    slot = block.slot(index)
    try:
        return lock.is_held_elsewhere(slot.span)
    finally:
        slot.release()


def present(block: Block, lock: KernelLock) -> list[Subscriber]:
    """Who alive reads now, in order of slot."""
    found = []
    published = block.published
    for index in block.taken():
        slot = block.slot(index)
        if lock.is_held_elsewhere(slot.span):
            identity = Identity(slot.pid, slot.started, slot.namespace)
            lag = max(published - slot.position, 0)
            found.append(Subscriber(index, slot.position, lag, identity))
        slot.release()
    return found
