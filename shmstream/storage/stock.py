"""`Stock`: what a store has at one moment, for people and for metrics."""

from __future__ import annotations

from dataclasses import dataclass

from shmstream.storage.layout import Layout


@dataclass(frozen=True)
class StoredBlob:
    """A complete blob: `size` in bytes, `used` in seconds since 1970.

    `key` is None for a blob whose key is no digest, if its record is lost.
    """

    key: str | None
    path: str
    size: int
    used: float


@dataclass(frozen=True)
class Stock:
    """The complete blobs of a store: how many, their bytes, and those that were used last."""

    count: int = 0
    size: int = 0
    recent: tuple[StoredBlob, ...] = ()
    """The most recently used first."""


def take_stock(layout: Layout, recent: int) -> Stock:
    """Look at all blobs once; at the keys of `recent` only."""
    entries = layout.blobs()
    last = entries[-recent:] if recent else []
    return Stock(
        count=len(entries),
        size=sum(each.size for each in entries),
        recent=tuple(
            StoredBlob(layout.key_of(each.path), each.path, each.size, each.used)
            for each in reversed(last)
        ),
    )
