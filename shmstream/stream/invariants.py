"""Checks whether a stream keeps its invariants; any process can, without stopping the writer.

The writer goes on during the check. So fields that the writer stores last are loaded first, and
fields that it may be just storing are compared with their values of a moment before (`Glance`). If
something looks wrong, the check repeats it before it reports it: between two loads the stream may
have ended, or its file may have moved to the final name. A block that cannot be read was refused
before, when it was attached (`Block.validate`).
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
"""Seconds: a running writer needs less time from one store of a publish to the next."""


@dataclass(frozen=True)
class Glance:
    """The published bytes and the state of a stream, at one moment."""

    published: int = 0
    state: State = State.OPENING

    @classmethod
    def at(cls, stream: Stream) -> Glance:
        """The present ones."""
        state = stream.state  # first: fields that it makes final are loaded after it (I3)
        return cls(stream.block.published, state)


def breaches(stream: Stream, before: Glance) -> list[str]:
    """Each invariant that does not hold, in words; `before` was a `MOMENT` ago, or is the default.

    Takes a `MOMENT` if something looks wrong.
    """
    now = Glance.at(stream)
    gone_back = _wrong_history(before, now)
    suspected = _look(stream, before)
    if suspected:
        time.sleep(MOMENT)
        again = _look(stream, now)
        suspected = {rule: again[rule] for rule in suspected if rule in again}
    if not stream.lock.is_at(segment.path_of(stream.name)):
        return []  # it has ended, and its file may belong to another stream now
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
    """Rule -> how it looks broken."""
    block = stream.block
    state, count, published, size = stream.state, block.chunk_count, block.published, block.size
    found = {}
    most = chunks_in(published, block.chunk_size, size)
    least = most if state in TERMINAL else before.published // block.chunk_size
    # A writer that was killed between two stores leaves `chunk_count` behind `published`.
    if count > most or (count < least and not stream.is_orphaned()):
        found["chunks"] = f"chunk_count is {count}, with {published} bytes published"
    if state == State.ABORTED and isinstance(error := stream.abort_error(), DamagedSegment):
        found["error"] = f"I3: it is aborted, and {error.reason}"
    if published > 0 and state != State.ABORTED:  # before, the writer may take another file
        found.update(_wrong_file(stream, published))
    return found


def _wrong_file(stream: Stream, published: int) -> dict[str, str]:
    is_committed = stream.state == State.COMMITTED  # before the file: then it has its final name
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
    """Whether so many bytes may be published only after the digest was verified (I5)."""
    block = stream.block
    if block.size == UNKNOWN or b":" not in block.digest:
        return False
    return published > max(block.size - 1, 0) // block.chunk_size * block.chunk_size
