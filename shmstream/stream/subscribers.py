"""The readers of a stream: how each takes a slot with a doorbell, and how the writer wakes them.

A reader takes a slot with the kernel lock on the slot's bytes. So a slot whose reader was killed is
free at once, and two readers never share a slot:

    reader                                    writer, at each publish
    1 lock a free slot, or a dead reader's;   1 post the doorbells that it has open
      unlink the doorbell that it names
    2 store a new generation, not active      2 compare the memberships with the last ones seen
    3 create the doorbell of it, and          3 for each that changed: close the old doorbell, or
      fill the slot                             open the new doorbell and post it
    4 store the membership as active          4 at most every 20 ms check one slot, in turn; if no
    5 load `published` again, then wait         process holds its lock, unlink the doorbell and
                                                store the membership as free

If the writer compares before step 4 of a new reader, it does not ring that reader, but in step 5
the reader sees what was published. A kill between 3 and 4 leaves a doorbell, and the membership
names it. So the next reader that takes the slot removes it, or `gc` or the end of the stream does.
None of them needs to list the doorbells of the host, which may be many. If another program has cut
the block off, the end of the stream removes what the memberships named at the last ring, and the
next `sweep` removes the rest. The writer posts the open doorbells first, so that these readers do
not wait while it reads the memberships. Readers never wait for each other, and the writer never
waits for a reader (I6).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from shmstream.errors import NoFreeSlot
from shmstream.stream import doorbell
from shmstream.stream.control_block import TERMINAL, Block, Slot, active_in, generations_in
from shmstream.stream.doorbell import GENERATIONS, Doorbell, Ringer
from shmstream.system.locks import KernelLock
from shmstream.system.process import Identity

_LOOK_INTERVAL = 0.02  # s; the writer checks one slot for a dead reader at most that often


class Subscription:
    """A reader's slot and doorbell, from construction until `close`."""

    def __init__(
        self,
        block: Block,
        lock: KernelLock,
        name: str,
        position: int = 0,
        sources: int = 0,
        *,
        ahead: bool = False,
    ) -> None:
        """Take a slot, for a reader that has read `position` bytes, and has these `sources`.

        `ahead`: it reads for another host.

        Raises:
            NoFreeSlot: live readers have all slots.
            OSError: descriptors or shared memory have run out; nothing is left behind.
        """
        self.slot: Slot = _claim(block, lock, name)
        self.store_position: Callable[[int], None] = partial(
            self.slot.words.__setitem__, Slot.position.offset >> 3
        )
        """Stores the reader's position without a Python frame: see `Block.load_published`."""
        self._block = block
        self._lock = lock
        generation, _ = self.slot.membership
        if generation:  # its reader may have been killed
            doorbell.unlink(doorbell.name_of(block.token, self.slot.index, generation))
        generation = generation % (GENERATIONS - 1) + 1  # 0 is of a slot that was never taken
        self.slot.membership = (generation, False)
        try:
            self.doorbell: Doorbell = Doorbell(
                doorbell.name_of(block.token, self.slot.index, generation)
            )
        except BaseException:
            lock.release(self.slot.span)
            self.slot.release()
            raise
        me = Identity.mine()
        self.slot.pid, self.slot.started, self.slot.namespace = me.pid, me.started, me.namespace
        self.slot.position = position
        self.slot.sources = sources
        self.slot.ahead = int(ahead)
        self.slot.membership = (generation, True)

    def close(self) -> None:
        """Give the slot back and remove the doorbell."""
        if self._block.is_whole:
            self.slot.membership = (self.slot.membership[0], False)
        self.doorbell.close(unlink_name=True)
        self._lock.release(self.slot.span)
        self.slot.release()

    def abandon(self) -> None:
        """In a forked child: release the memory; slot and doorbell belong to the parent."""
        self.slot.release()
        self.doorbell.abandon()


def _claim(block: Block, lock: KernelLock, name: str) -> Slot:
    """Lock a slot: one that a reader gave back, else the slot of a dead reader.

    It tries all slots twice, because the writer holds the lock of a dead reader's slot for a moment
    while it frees the slot.
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
    """One reader, as the writer sees it: its slot, the bytes it has read, and its process.

    `position` is exact while the reader waits for bytes. Else it has read up to 64 KiB more. `lag`
    is the number of published bytes beyond `position`. `sources` is a number that readers with
    other sources have not; 0 if it has no source.
    """

    slot: int
    position: int
    lag: int
    identity: Identity
    sources: int = 0


class Subscribers:
    """All readers of a stream, for its writer. Not thread-safe: the streamer's lock guards it."""

    def __init__(self, block: Block, lock: KernelLock) -> None:
        self._block = block
        self._lock = lock
        self._memberships = block.memberships()
        self._seen = b""  # not the present ones: a successor must open its readers' doorbells
        self._latest = b""  # the memberships at the last ring
        self._ringers: dict[int, tuple[int, Ringer]] = {}  # slot -> generation and doorbell
        self._rings: list[Callable[[], None]] = []
        self._active: list[int] = []  # slots, ascending
        self._ahead: set[int] = set()  # slots of readers for other hosts
        self._looked_after = -1
        self._next_look = 0.0
        self._is_closed = False
        self.here: Callable[[], None] | None = None
        """Called at every ring, for a listener in this process, which needs no slot. It must not
        block."""

    @property
    def have_ahead(self) -> bool:
        """Whether one of the readers reads for another host, as the last ring found."""
        return bool(self._ahead)

    def ring(self) -> bool:
        """Wake every reader, until it is closed; whether readers have come or gone since the last
        ring. Never blocks, never fails.

        A reader that is woken on this processor may run only after this process waits for
        something, so there is little to do after the rings.
        """
        if self._is_closed:
            return False
        _post(self._rings)
        memberships = self._memberships.tobytes()
        has_changed = memberships != self._seen
        if has_changed:
            self._seen = self._latest = memberships
            _post(self._follow(memberships))
        if self.here is not None:
            self.here()
        return has_changed

    def last_taken(self) -> dict[int, int]:
        """As `Block.ever_taken` at the last ring, for a block that was cut off since."""
        return generations_in(self._latest)

    def tell_here(self) -> None:
        """Call the listener in this process only, for news that does not wake other readers."""
        if self.here is not None:
            self.here()

    def look_after_one(self) -> None:
        """If it is time, check the next slot in turn, and free it if its reader died.

        Never blocks.
        """
        if self._active and (now := time.monotonic()) >= self._next_look:
            self._next_look = now + _LOOK_INTERVAL
            after_last = bisect_right(self._active, self._looked_after) % len(self._active)
            self._looked_after = self._active[after_last]
            reclaim(self._block, self._lock, self._looked_after)

    def _follow(self, memberships: bytes) -> list[Callable[[], None]]:
        """Close the doorbells of readers that left, and open and return those of new readers."""
        generations = active_in(memberships)
        left = []
        for index, (generation, ringer) in list(self._ringers.items()):
            if generations.get(index) != generation:
                left.append(ringer)
                del self._ringers[index]
                self._ahead.discard(index)
        came = []
        for index, generation in generations.items():
            if index not in self._ringers:
                try:
                    ringer = Ringer(doorbell.name_of(self._block.token, index, generation))
                except FileNotFoundError:  # it was removed: its reader checks by itself (I4)
                    continue
                except OSError:  # no descriptor is free: try again at the next ring
                    self._seen = b""
                    continue
                self._ringers[index] = (generation, ringer)
                if self._block.reads_ahead(index):
                    self._ahead.add(index)
                came.append(ringer.ring)
        self._rings = [ringer.ring for _, ringer in self._ringers.values()]
        self._active = list(generations)
        for ringer in left:  # last: nothing rings them any more, even if this is interrupted
            ringer.close()
        return came

    def abandon(self) -> None:
        """In a forked child: release the memory only."""
        self._memberships.release()
        self._ringers.clear()

    def close(self) -> None:
        """Close all doorbells; their names stay. Idempotent."""
        self._is_closed = True
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
        except OSError:  # it is posted to its limit: its reader wakes anyway (I4)
            continue


def reclaim(block: Block, lock: KernelLock, index: int, bells: Iterable[str] = ()) -> list[str]:
    """Free the slot if its reader was killed, and unlink its doorbell and `bells`; those unlinked.

    Any process may call this at any time; it never blocks.
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


def remove_doorbells(token: int, ever_taken: dict[int, int]) -> None:
    """Unlink every doorbell that the readers of a stream may have left, at its end."""
    for index, generation in ever_taken.items():
        doorbell.unlink(doorbell.name_of(token, index, generation))


def forsaken(block: Block, lock: KernelLock, bells: Iterable[str]) -> dict[int, set[str]]:
    """Slots whose readers were killed, each with its doorbells that still exist.

    `bells` are the names of all doorbells of the stream, or of those that a listing found.
    """
    found: dict[int, set[str]] = {}
    for bell in bells:  # a reader may have been killed before it was active
        with suppress(ValueError):
            found.setdefault(doorbell.slot_of(bell), set()).add(bell)
    for index, bell in _active(block):
        found.setdefault(index, set()).add(bell)
    free = [each for each in found if each < block.slots and not _is_held(block, lock, each)]
    # A reader that left since the first look has removed its doorbell itself.
    active = {bell for _, bell in _active(block)} if free else set()
    still = {
        index: {bell for bell in found[index] if bell in active or doorbell.is_there(bell)}
        for index in free
    }
    return {index: left for index, left in still.items() if left}


def deaf(block: Block, lock: KernelLock) -> list[str]:
    """Names of the missing doorbells of live readers; these readers check by themselves (I4).

    A stream that has ended rings no more, and its writer has perhaps just removed the doorbells.
    """
    if lacking := [each for each in _active(block) if not doorbell.is_there(each[1])]:
        still = _active(block)
        lacking = [each for each in lacking if each in still and _is_held(block, lock, each[0])]
    return [] if block.state in TERMINAL else [bell for _, bell in lacking]


def _active(block: Block) -> list[tuple[int, str]]:
    """Slots that readers have, dead or alive, and the names of their doorbells."""
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


def is_first(block: Block, lock: KernelLock, index: int) -> bool:
    """Whether no live reader in a slot before `index` has sources and has read everything."""
    published = block.published
    for each in block.taken():
        if each >= index:
            break
        slot = block.slot(each)
        try:
            if slot.sources and slot.position >= published and lock.is_held_elsewhere(slot.span):
                return False
        finally:
            slot.release()
    return True


def present(block: Block, lock: KernelLock) -> list[Subscriber]:
    """The live readers, in the order of their slots."""
    found: list[Subscriber] = []
    if not (taken := block.taken()):
        return found
    published = block.published
    for index in taken:
        slot = block.slot(index)
        if lock.is_held_elsewhere(slot.span):
            identity = Identity(slot.pid, slot.started, slot.namespace)
            lag = max(published - slot.position, 0)
            found.append(Subscriber(index, slot.position, lag, identity, slot.sources))
        slot.release()
    return found
