"""`paced`: bytes that come at a given rate, as a network brings them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

_PIECE = 32 * 1024  # bytes, at most
_PIECES_A_SECOND = 100  # at least, so that a slow rate is smooth too


def paced(
    read: Callable[[int], bytes], rate: float, stopping: threading.Event | None = None
) -> Iterator[bytes]:
    """What `read(most)` gives, each piece when its time has come; `rate` is in bytes a second.

    A rate of 0 has no limit.

    Raises:
        InterruptedError: `stopping` was set.
    """
    stopping = threading.Event() if stopping is None else stopping
    piece = min(_PIECE, int(rate / _PIECES_A_SECOND) + 1) if rate else _PIECE
    began, given = time.monotonic(), 0
    while data := read(piece):
        given += len(data)
        due = began + given / rate if rate else 0.0
        pause = min(max(due - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        if stopping.wait(pause):
            raise InterruptedError("the demo was stopped")
        yield data
