"""Kill this very process with SIGKILL at a named point of the protocol.

The library has no hooks for this. A point is the moment before or after a call of one of its
functions, or before or after one store to shared memory. The process that is to die wraps that
function or that store.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from shmstream.stream import doorbell, partial, reader, segment, stream, subscribers, waiter, writer
from shmstream.stream.control_block import Block, Slot, State, Text, Word


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def before(owner: Any, name: str) -> Callable[[int], None]:
    """Die at the nth call of `owner.name`, before the call does anything."""
    return lambda nth: _wrap(owner, name, nth, dies_before=True)


def after(owner: Any, name: str) -> Callable[[int], None]:
    """Die at the nth call of `owner.name` that has done everything; a call that fails has not."""
    return lambda nth: _wrap(owner, name, nth, dies_before=False)


def _wrap(owner: Any, name: str, nth: int, *, dies_before: bool) -> None:
    original = getattr(owner, name)
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = None if dies_before else original(*args, **kwargs)
        calls += 1
        if calls == nth:
            _die()
        return original(*args, **kwargs) if dies_before else result

    is_class = isinstance(owner, type)
    bound = is_class and hasattr(original, "__self__")
    setattr(owner, name, staticmethod(dying) if bound else dying)


def _store(
    field: Word | Text, *, dies_before: bool, value: int | None = None
) -> Callable[[int], None]:
    def arm(nth: int) -> None:
        kind = type(field)
        original = kind.__set__
        stores = 0

        def dying(self: Any, block: Any, stored: Any) -> None:
            nonlocal stores
            counts = self is field and value in (None, stored)
            stores += counts
            if counts and dies_before and stores == nth:
                _die()
            original(self, block, stored)
            if counts and not dies_before and stores == nth:
                _die()

        kind.__set__ = dying  # type: ignore[assignment, method-assign]

    return arm


WRITER_POINTS: dict[str, Callable[[int], None]] = {
    "after the segment is made": after(segment.Segment, "create"),
    "after the segment is locked": after(stream, "claim_segment"),
    "after the partial file is made": after(stream, "claim_partial"),
    "before the magic": _store(Block.magic, dies_before=True),
    "after the magic": _store(Block.magic, dies_before=False),
    "after write": after(partial.PartialFile, "append"),
    "before published": _store(Block.published, dies_before=True),
    "after published": _store(Block.published, dies_before=False),
    "before the post": before(subscribers.Subscribers, "ring"),
    "after the post": after(subscribers.Subscribers, "ring"),
    "before commit": before(writer.BlobStreamer, "commit"),
    "before the rename": before(partial.PartialFile, "move"),
    "after the rename": after(partial.PartialFile, "move"),
    "before COMMITTED": _store(Block.state, dies_before=True, value=State.COMMITTED),
    "after COMMITTED": _store(Block.state, dies_before=False, value=State.COMMITTED),
    "before ABORTED": _store(Block.state, dies_before=True, value=State.ABORTED),
    "while it closes": before(segment.Segment, "unlink"),
}

READER_POINTS: dict[str, Callable[[int], None]] = {
    "after the segment is attached": after(stream.Stream, "attach"),
    "after the slot is locked": after(subscribers, "_claim"),
    "after the doorbell is made": after(subscribers, "Doorbell"),
    "before the membership": _store(Slot.position, dies_before=False),
    "after subscribing": after(waiter, "Subscription"),
    "before the wait": before(doorbell.Doorbell, "wait"),
    "after the wake": after(doorbell.Doorbell, "wait"),
    "after a read": before(reader.InFlightCopier, "_advance"),
    "while it closes": before(doorbell.Doorbell, "close"),
}
