"""Parts of a blob, and several files at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shmstream.flight.blob import Blob

T = TypeVar("T")

_SIDE_BY_SIDE = 16  # files that one call reads at the same time


def read_slice(blob: Blob, size: int | None, start: int | None, end: int | None) -> bytes:
    """The bytes of a slice; of the size only if a bound counts from the end."""
    start = start or 0
    if start < 0 or (end is not None and end < 0):
        if blob.size is not None or size is None:
            size = blob.seek(0, os.SEEK_END)
        start, end, _ = slice(start, end).indices(size)
    blob.seek(start)
    return blob.read() if end is None else blob.read(max(end - start, 0))


def side_by_side(read: Callable[[str], T], paths: Iterable[str]) -> list[T]:
    """What `read` returns for each path; of several paths by several threads.

    Raises:
        Exception: what `read` raises for the first path that fails.
    """
    paths = list(paths)
    if len(paths) < 2:
        return [read(each) for each in paths]
    with ThreadPoolExecutor(min(len(paths), _SIDE_BY_SIDE), "shmstream-files") as pool:
        return list(pool.map(read, paths))
