"""The demo's writer: a thread that transfers a file to a streamer at a given rate.

The pace is the source's: it hands out a piece when its time has come, as a network would, and the
streamer knows nothing of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from shmstream.stream.writer import BlobStreamer

_PIECE = 64 * 1024  # bytes, at most
_PIECES_A_SECOND = 100  # at least, so that a slow rate is smooth too


class Writer:
    """Transfers the file `source` to `streamer` at `rate` bytes a second; 0 is without limit.

    Leaving it as a context manager stops the transfer, which aborts the stream unless it is
    committed.
    """

    def __init__(self, streamer: BlobStreamer, source: Path, rate: float) -> None:
        self.rate = rate
        self.elapsed = 0.0
        """Seconds from the first look at the source until it was committed."""
        self._streamer = streamer
        self._source = source
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(1, "demo-writer")
        self._transfer: Future[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._transfer = self._executor.submit(self._run)

    def is_done(self) -> bool:
        """Whether the blob is committed.

        Raises:
            Whatever went wrong with the transfer.
        """
        if self._transfer is None or not self._transfer.done():
            return False
        self._transfer.result()
        return True

    def _run(self) -> None:
        began = time.monotonic()
        self._streamer.transfer(self._pieces(began))
        self.elapsed = time.monotonic() - began

    def _pieces(self, began: float) -> Iterator[bytes]:
        piece = min(_PIECE, int(self.rate / _PIECES_A_SECOND) + 1) if self.rate else _PIECE
        given = 0
        with self._source.open("rb") as file:
            while data := file.read(piece):
                given += len(data)
                due = began + given / self.rate if self.rate else 0.0
                pause = min(max(due - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
                if self._stopping.wait(pause):
                    raise InterruptedError("the demo was stopped")
                yield data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._executor.shutdown()
