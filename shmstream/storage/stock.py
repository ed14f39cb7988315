"""`Stock` and `StoredBlob`: what a store has at one moment, for people and for metrics."""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass

from shmstream.storage.layout import PIN, Entry, Layout
from shmstream.storage.origin import source_of


@dataclass(frozen=True)
class StoredBlob:
    """A complete blob, as it was when the folder was looked at.

    `size` is in bytes, `used` in seconds since 1970. `key` is None for a blob whose key is no
    digest, if its record is lost.
    """

    key: str | None
    path: str
    size: int
    used: float

    @property
    def source(self) -> str | None:
        """The name of the source that the blob came from; None if it is not known. Looks it up."""
        return source_of(self.path)

    @property
    def is_pinned(self) -> bool:
        """Whether the blob is not to be evicted, as of now."""
        return os.path.lexists(self.path + PIN)


@dataclass(frozen=True)
class Stock:
    """The complete blobs of a store: how many, their bytes, and those that were used last."""

    count: int = 0
    size: int = 0
    recent: tuple[StoredBlob, ...] = ()
    """The most recently used first."""


def take_stock(layout: Layout, recent: int) -> Stock:
    """Look at all blobs once; at the keys of `recent` only."""
    entries = [each for each in layout.entries(("blob",)) if each.kind == "blob"]
    last = heapq.nlargest(recent, entries, key=lambda each: (each.used, each.path))
    return Stock(
        count=len(entries),
        size=sum(each.facts.st_size for each in entries),
        recent=tuple(_stored_blob(layout, each) for each in last),
    )


def stored_blobs(layout: Layout) -> list[StoredBlob]:
    """The complete blobs, the least recently used first."""
    return [_stored_blob(layout, each) for each in layout.blobs()]


def _stored_blob(layout: Layout, entry: Entry) -> StoredBlob:
    path, _, facts = entry
    return StoredBlob(layout.key_of(path), path, facts.st_size, facts.st_atime)
