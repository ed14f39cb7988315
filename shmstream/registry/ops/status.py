"""What there is to see of a registry at one moment: its flights, its store, what it has saved.

A `Status` looks, and remembers enough of its last looks to tell rates. Looking reads shared memory,
the store's folder (at most once in 30 s) and the workers' counters: it is for a thread, one at a
time, not for an event loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shmstream import __version__
from shmstream.errors import StoreUnusable
from shmstream.registry.ops.metrics import Metrics
from shmstream.registry.settings import Settings
from shmstream.storage.flights import Sight, Watch, followers_of, state_of
from shmstream.storage.layout import Entry, Layout
from shmstream.store import Store

_STORE_EVERY = 30.0  # s; how often all files of the store are counted, if that is quick
_STORE_SOON = 2.0  # s; when there are others
_SHOWN = 50  # flights, and followers of one, at most
_RECENT = 12  # blobs
LEAST_ROOM = 64 << 20
"""Bytes: with less room than that a registry is not ready."""


@dataclass
class _Stock:
    """The complete blobs of the store, as they were when they were counted."""

    counted: float = float("-inf")  # on the monotonic clock
    took: float = 0.0  # s
    commits: float = -1  # how many blobs had been brought by then
    size: int = 0
    blobs: int = 0
    recent: list[tuple[str, Entry]] = field(default_factory=list)


class Status:
    """Looks at a registry. One thread at a time."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        name_of: Callable[[str], str | None],
    ) -> None:
        """`name_of` tells what people call what has a digest."""
        self._name_of = name_of
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._layout = Layout(store.folder)
        self._watch = Watch(store.flights)
        self._stock = _Stock()
        self.folder: str = store.folder

    def gauges(self) -> dict[str, float]:
        """For the metrics: what can be seen instead of counted."""
        flights = self._store.flights()
        others = [follower for flight in flights for follower in followers_of(flight)]
        stock = self._take_stock(commits=None)
        return {
            "shmstream_flights": len(flights),
            "shmstream_followers": len(others),
            "shmstream_lag_bytes": max((each.lag for each in others), default=0),
            "shmstream_store_bytes": stock.size,
            "shmstream_store_blobs": stock.blobs,
            "shmstream_store_limit_bytes": self._settings.max_bytes or 0,
            "shmstream_store_free_bytes": self._room(),
            "shmstream_workers": self._settings.workers,
        }

    def snapshot(self) -> dict[str, Any]:
        """For the status page, as JSON has it: sizes in bytes, rates in bytes a second."""
        sights = self._watch.look()
        totals = self._metrics.totals()
        stock = self._take_stock(totals.commits + totals.evictions)
        now = time.time()
        return {
            "version": __version__,
            "time": now,
            "workers": self._settings.workers,
            "upstreams": [
                {"namespace": each.namespace, "url": each.url} for each in self._settings.upstreams
            ],
            "totals": {
                "served": totals.served,
                "upstream": totals.upstream,
                "saved": totals.saved,
                "requests": totals.requests,
                "hits": totals.hits,
                "clients": totals.clients,
                "takeovers": totals.takeovers,
                "aborts": totals.aborts,
                "evictions": totals.evictions,
            },
            "store": {
                "bytes": stock.size,
                "blobs": stock.blobs,
                "limit": self._settings.max_bytes,
                "room": self._room(),
            },
            "flights": [self._flight(each) for each in sights[:_SHOWN]],
            "more_flights": max(len(sights) - _SHOWN, 0),
            "recent": [
                {
                    "key": key,
                    "name": self._name_of(key),
                    "size": each.size,
                    "age": max(now - each.used, 0.0),
                }
                for key, each in stock.recent
            ],
        }

    def _flight(self, sight: Sight) -> dict[str, Any]:
        flight = sight.flight
        others = followers_of(flight)
        return {
            "key": flight.key,
            "name": None if flight.key is None else self._name_of(flight.key),
            "state": state_of(flight),
            "size": flight.size,
            "published": flight.published,
            "rate": sight.rate,
            "eta": sight.eta,
            "epoch": flight.epoch,
            "leader": None if flight.leader is None else flight.leader.pid,
            "followers": [{"pid": each.identity.pid, "lag": each.lag} for each in others[:_SHOWN]],
            "more_followers": max(len(others) - _SHOWN, 0),
        }

    def problems(self) -> list[str]:
        """Why this registry cannot serve, if it cannot; looks at the disk."""
        folder = self._store.folder
        if not os.path.isfile(os.path.join(folder, ".shmstream")):
            return [f"the store is gone: {folder}"]
        try:
            Layout(folder)
            room = self._room()
        except StoreUnusable as error:
            return [str(error)]
        except OSError as error:
            return [f"the store cannot be looked at: {error.strerror}: {folder}"]
        if room < LEAST_ROOM:
            return [f"the store's file system has only {room >> 20} MiB left: {folder}"]
        return []

    def _room(self) -> int:
        facts = os.statvfs(self._store.folder)
        return facts.f_bavail * facts.f_frsize

    def _take_stock(self, commits: float | None) -> _Stock:
        """Count the blobs anew if that was long ago, or `commits` tells that there are others."""
        stock, now = self._stock, time.monotonic()
        changed = commits is not None and commits != stock.commits
        pause = max(_STORE_SOON if changed else _STORE_EVERY, 50 * stock.took)
        if now - stock.counted > pause:
            entries = self._layout.blobs()
            keyed = ((self._layout.key_of(each.path), each) for each in entries[-_RECENT:])
            self._stock = _Stock(
                counted=now,
                took=time.monotonic() - now,
                commits=stock.commits if commits is None else commits,
                size=sum(each.size for each in entries),
                blobs=len(entries),
                recent=[(key, each) for key, each in keyed if key is not None][::-1],
            )
        return self._stock
