"""`Pieces`: which bytes of a blob are here ahead of their turn, and which are being brought.

A blob is cut into blocks (`storage/ahead`). The *front* is the end of the partial file. Behind the
front, each block of the window is in one of these states:

    free       no connection brings it
    own        the leader's own feed will give it: the bytes from the front to `own_end`
    claimed    a connection brings it, as a part of its `Piece`
    here       it is complete in the ring

A piece begins at the first free block, so the gaps that are nearest to the front are closed first.
No piece goes beyond the window, which is as long as the ring has slots. The window begins at the
oldest byte that a connection may still write: two blocks with one slot are never written at once,
also if the leader's own feed has gone beyond a piece (`overtaken`), which is dropped soon. Nothing
here waits, and nothing is locked: `Lanes` calls all of it under its lock.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmstream.storage.ahead import BLOCK, AheadFile

if TYPE_CHECKING:
    from shmstream.flight.supply import Supply
    from shmstream.sources.base import Feed

_SHORTEST = 1 << 20  # bytes
_SPREAD = 1.25  # a piece is shorter than what is left for each connection, because some are slower
_TAIL = 0.2  # of what a connection would bring otherwise, a piece has so much at least


@dataclass(eq=False)
class Piece:
    """The bytes from `start` to `end`, which `supply` brings; `at` is how far they are here.

    `writing` is held while bytes are written for it. After `is_dropped` was set with it, none are.
    """

    supply: Supply
    start: int
    end: int
    blocks: range
    at: int = 0
    began: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    """When its last bytes came."""
    feed: Feed | None = None
    is_active: bool = False
    """Whether `supply.active` counts it."""
    is_dropped: bool = False
    is_over: bool = False
    """Whether its connection has ended with it, and may bring another one."""
    writing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.at = self.start


class Pieces:
    """The bookkeeping for one blob, whose blocks lie in `file`."""

    def __init__(self, file: AheadFile, size: int, front: int, here: set[int]) -> None:
        self._file = file
        self._size = size
        self.front: int = front
        """Bytes in the partial file."""
        self.here = here
        """The blocks that are complete in the ring."""
        self.own_end: int | None = None
        """Where the leader's own feed is to end; None: it goes on to the end of the blob."""
        self.claimed: list[Piece] = []
        self._taken = set(here)  # here or claimed
        self.lanes: int = 1
        """How many connections there may be."""

    # Connections.

    def claim(self, supply: Supply, length: int) -> Piece | None:
        """A piece of at most `length` bytes, for `supply` to bring; None if the window has none."""
        first = self.front // BLOCK
        after = self.front if self.own_end is None else max(self.own_end, self.front)
        begin = max(first, -(-after // BLOCK) if self.own_end is not None else first)
        oldest = min([self.front, *(each.at for each in self.claimed)]) // BLOCK
        until = min(oldest + self._file.slots, self._file.blocks)
        left = (self._file.blocks - begin - len(self._taken)) * BLOCK
        # All end at the same time; and to ask costs time, too, so the last ones are not tiny.
        fair = int(left / (_SPREAD * self.lanes))
        length = min(length, max(fair, int(length * _TAIL), _SHORTEST))
        start = next((each for each in range(begin, until) if each not in self._taken), None)
        if start is None:
            return None
        most = min(start + max(length // BLOCK, 1), until)
        end = next((each for each in range(start, most) if each in self._taken), most)
        blocks = range(start, end)
        self._file.forget(blocks)
        self._taken.update(blocks)
        offset = max(start * BLOCK, self.front)
        piece = Piece(supply, offset, self._file.end_of(end - 1), blocks)
        self.claimed.append(piece)
        return piece

    def came(self, piece: Piece, count: int) -> None:
        """Note that `count` more bytes of a piece are in the ring."""
        before, piece.at = piece.at, piece.at + count
        piece.moved = time.monotonic()
        block = before // BLOCK
        while block < piece.blocks.stop and piece.at >= self._file.end_of(block):
            # A piece that began in a block, at the front, has only the rest of it: a successor
            # may begin further back.
            if piece.start <= block * BLOCK:
                self._file.complete(block)
            self.here.add(block)
            block += 1

    def release(self, piece: Piece) -> None:
        """A connection has ended with a piece; what did not come is free. Idempotent."""
        if piece in self.claimed:
            self.claimed.remove(piece)
            self._forget_over(piece.blocks)
            self._taken.difference_update(each for each in piece.blocks if each not in self.here)

    def _forget_over(self, blocks: range) -> None:
        """Forget those of the blocks that the front has passed: nobody needs them any more."""
        self.here.difference_update(
            [each for each in blocks if self._file.end_of(each) <= self.front]
        )

    # The leader.

    def overtaken(self) -> list[Piece]:
        """The pieces of which the partial file has all bytes, from another connection."""
        return [each for each in self.claimed if each.end <= self.front]

    def ready(self) -> int:
        """The offset up to which the bytes after the front are here, as far as one read gives."""
        block = self.front // BLOCK
        if block in self.here:
            return self._file.end_of(block)
        piece = self.at_front()
        return self.front if piece is None else max(piece.at, self.front)

    def at_front(self) -> Piece | None:
        """The piece with the byte at the front."""
        return self._piece_at(self.front)

    def _piece_at(self, offset: int) -> Piece | None:
        return next((each for each in self.claimed if each.start <= offset < each.end), None)

    def advance(self, front: int) -> None:
        """The partial file has so many bytes now."""
        before, self.front = self.front // BLOCK, front
        over = range(before, front // BLOCK if front < self._size else self._file.blocks)
        if over:
            self.here.difference_update(over)
            claimed = {each for piece in self.claimed for each in piece.blocks}
            self._taken.difference_update(set(over) - claimed)

    def lose(self) -> None:
        """The block at the front cannot be read: it is not here."""
        self.here.discard(self.front // BLOCK)
        if self.at_front() is None:
            self._taken.discard(self.front // BLOCK)

    def end_of_gap(self) -> int:
        """Where the next bytes begin, after the front, that are here or on their way."""
        first = self.front // BLOCK
        until = min(first + self._file.slots + 1, self._file.blocks)
        found = next((each for each in range(first, until) if each in self._taken), None)
        return self._size if found is None else max(found * BLOCK, self.front)

    def is_begun(self, offset: int) -> bool:
        """Whether some of the bytes from `offset` on are here."""
        piece = self._piece_at(offset)
        return offset // BLOCK in self.here or (piece is not None and piece.at > offset)
