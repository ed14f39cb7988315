"""Whether a stream keeps its invariants, as any process sees it without stopping anybody.

The writer goes on meanwhile. So what it stores last is loaded first, and what it may be in the
middle of is held against what was seen a moment before (`Glance`); and what looks wrong is looked
at again before it is said, for a stream may end, or its file move to its final name, between two
looks of ours. What makes a block unreadable (`Block.validate`) was found when it was attached.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from shmstream.errors import DamagedSegment
from shmstream.stream import segment
from shmstream.stream.control_block import TERMINAL, TRANSITIONS, UNKNOWN, State, chunks_in
from shmstream.stream.stream import Stream

MOMENT = 0.02
"""Seconds: longer than a writer that runs takes from one store of a publish to the next."""


@dataclass(frozen=True)
class Glance:
    """What a stream had published, and in which state it was."""

    published: int = 0
    state: State = State.OPENING

    @classmethod
    def at(cls, stream: Stream) -> Glance:
        """What is so now."""
        state = stream.state  # first: what it makes final is loaded after it (I3)
        return cls(stream.block.published, state)


def breaches(stream: Stream, before: Glance) -> list[str]:
    """Each invariant that does not hold, in words; `before` was a `MOMENT` ago, or is the default.

    Takes a `MOMENT` if there seems to be any.
    """
    now = Glance.at(stream)
    gone_back = _wrong_history(before, now)
    suspected = _look(stream, before)
    if suspected:
        time.sleep(MOMENT)
        again = _look(stream, now)
        suspected = {rule: again[rule] for rule in suspected if rule in again}
    if not stream.lock.is_at(segment.path_of(stream.name)):
        return []  # it has ended, and what was its is anybody's
    return [*gone_back, *suspected.values()]


def _wrong_history(before: Glance, now: Glance) -> list[str]:
    found = []
    if now.published < before.published:
        found.append(f"I1: published went back from {before.published} to {now.published} bytes")
    elif before.state in TERMINAL and now.published != before.published:
        found.append(f"I3: published went on from {before.published} bytes after the end")
    if not _may_follow(before.state, now.state):
        found.append(f"I3: it was {before.state.name} and is {now.state.name}")
    return found


def _may_follow(before: State, now: State) -> bool:
    return before == now or any(_may_follow(each, now) for each in TRANSITIONS[before])


def _look(stream: Stream, before: Glance) -> dict[str, str]:
    """Rule -> how it seems to be broken."""
    block = stream.block
    state, count, published, size = stream.state, block.chunk_count, block.published, block.size
    found = {}
    most = chunks_in(published, block.chunk_size, size)
    least = most if state in TERMINAL else before.published // block.chunk_size
    if count > most or (count < least and not stream.is_orphaned()):  # killed between two stores?
        found["chunks"] = f"chunk_count is {count}, with {published} bytes published"
    if state == State.ABORTED and isinstance(error := stream.abort_error(), DamagedSegment):
        found["error"] = f"I3: it is aborted, and {error.reason}"
    if published > 0 and state != State.ABORTED:  # until then the file may be exchanged
        found.update(_wrong_file(stream, published))
    return found


def _wrong_file(stream: Stream, published: int) -> dict[str, str]:
    is_committed = stream.state == State.COMMITTED  # first: then it has its final name
    opened = stream.open_file()
    if opened is None:
        if is_committed:
            how = "is another file" if os.path.lexists(stream.path) else "is missing"
            return {"file": f"I5: it is committed, and the blob {how}"}
        if stream.state in TERMINAL:
            return {}
        return {"file": "I2: its partial file was replaced or removed"}
    fd, path, _ = opened
    try:
        length = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if length < published:
        return {"file": f"I2: its file has {length} bytes of {published} published"}
    if path != stream.path and (is_committed or _needs_its_name(stream, published)):
        return {"file": "I5: all of it can be read, and the blob has not its final name"}
    return {}


def _needs_its_name(stream: Stream, published: int) -> bool:
    """Whether so much may be published only when the digest is verified."""
    block = stream.block
    if block.size == UNKNOWN or b":" not in block.digest:
        return False
    return published > max(block.size - 1, 0) // block.chunk_size * block.chunk_size
