"""Parts of a blob, as fsspec asks for them."""

from __future__ import annotations

import os

from shmstream.flight.blob import Blob


def read_slice(blob: Blob, size: int | None, start: int | None, end: int | None) -> bytes:
    """The bytes of a slice; of the size only if a bound counts from the end."""
    start = start or 0
    if start < 0 or (end is not None and end < 0):
        if blob.size is not None or size is None:
            size = blob.seek(0, os.SEEK_END)
        start, end, _ = slice(start, end).indices(size)
    blob.seek(start)
    return blob.read() if end is None else blob.read(max(end - start, 0))
