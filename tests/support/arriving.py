"""A blob that a thread streams while a test reads it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shmstream import BlobStreamer, InFlightCopier


@contextmanager
def arriving(path: str, data: bytes, size: int | None = None) -> Iterator[InFlightCopier]:
    """A copier of `data`, which a thread streams in pieces of 50,000 bytes."""
    with BlobStreamer.create(path, size=size, publish_interval=0) as streamer:
        pieces = (data[start : start + 50_000] for start in range(0, len(data), 50_000))
        with InFlightCopier.attach(streamer.name) as copier:
            pump = threading.Thread(target=streamer.transfer, args=(pieces,))
            pump.start()
            try:
                yield copier
            finally:
                pump.join()
