"""`Stock` and `StoredBlob`: what a store has at one moment, for people and for metrics."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from shmstream.storage.layout import PIN, Layout
from shmstream.storage.origin import source_of


class StoredBlob(NamedTuple):
    """A complete blob, as it was when the folder was looked at.

    `size` is in bytes, `used` in seconds since 1970. `key` is None for a blob whose key is no
    digest, if its record is lost.
    """

    key: str | None
    path: str
    size: int
    used: float
    is_pinned: bool
    """Whether the blob is not to be evicted."""

    @property
    def source(self) -> str | None:
        """The name of the source that the blob came from; None if it is not known. Looks it up."""
        return source_of(self.path)


@dataclass(frozen=True)
class Stock:
    """The complete blobs of a store: how many, their bytes, and those that were used last."""

    count: int = 0
    size: int = 0
    recent: tuple[StoredBlob, ...] = ()
    """The most recently used first."""


def take_stock(layout: Layout, recent: int) -> Stock:
    """Look at all blobs once; at the keys of `recent` only."""
    found, pinned = _look(layout)
    return Stock(
        count=len(found),
        size=sum(size for _, _, size in found),
        recent=tuple(_stored_blobs(layout, heapq.nlargest(recent, found), pinned)),
    )


def stored_blobs(layout: Layout) -> list[StoredBlob]:
    """The complete blobs, the least recently used first."""
    found, pinned = _look(layout)
    found.sort()
    return _stored_blobs(layout, found, pinned)


_Glance = tuple[float, str, int]  # when a blob was last used, its path, its size


def _look(layout: Layout) -> tuple[list[_Glance], set[str]]:
    """The complete blobs, and the paths of those that are pinned, also of blobs yet to come."""
    found, pinned = [], set()
    for path, kind in layout.names(("blob", "pin")):
        if kind == "pin":
            pinned.add(path.removesuffix(PIN))
        elif (entry := layout.at(path, kind)) is not None and entry.kind == "blob":
            found.append((entry.facts.st_atime, path, entry.facts.st_size))
    return found, pinned


def _stored_blobs(
    layout: Layout, found: Iterable[_Glance], pinned: Container[str]
) -> list[StoredBlob]:
    key_of = layout.key_of
    return [
        StoredBlob(key_of(path), path, size, used, path in pinned) for used, path, size in found
    ]
