"""`Status`: a registry at one moment: its flights, its store, the bytes that it has saved.

It remembers earlier looks, to tell rates. A look reads shared memory, the workers' counters, and,
at most once in 30 s, the store's folder. So it is for one thread at a time, not for an event loop.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shmstream import __version__
from shmstream.cluster.account import Account, Pull, of_node
from shmstream.registry.ops.history import History
from shmstream.registry.ops.metrics import Metrics, Totals
from shmstream.registry.ops.processes import Processes
from shmstream.registry.settings import Settings
from shmstream.storage.flights import Sight, Watch, followers_of, state_of
from shmstream.storage.stock import Stock
from shmstream.store import Store
from shmstream.upstreams.allowance import Left

_STORE_EVERY = 30.0  # s; pause between two counts of the store's files, if counting is quick
_STORE_SOON = 2.0  # s; pause if blobs have come or gone
_SHOWN = 50  # flights at most, and followers of each
_RECENT = 12  # blobs
LEAST_ROOM = 64 << 20
"""Bytes. With less room on its disk, a registry is not ready."""


@dataclass
class _Counted:
    """The last count of the store's complete blobs."""

    when: float = float("-inf")  # on the monotonic clock
    took: float = 0.0  # s
    commits: float = -1  # how many blobs had come or gone by then
    stock: Stock = field(default_factory=Stock)


class Status:
    """Looks at a registry. One thread at a time."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        name_of: Callable[[str], str | None],
        upstreams: Callable[[], Mapping[str, bool]] = dict,
        left: Callable[[], Mapping[str, Left]] = dict,
    ) -> None:
        """`name_of` returns the name of a digest for people; `upstreams` which of them answer.

        `left` returns, by label, how many more manifests an upstream gives.
        """
        self._upstreams = upstreams
        self._left = left
        self._processes = Processes()
        self._name_of = name_of
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._watch = Watch(store.flights)
        self._counted = _Counted()
        self.folder: str = store.folder
        self.history: History = History(metrics.folder)

    def gauges(self) -> dict[str, float | Mapping[tuple[str, ...], float]]:
        """The gauges of the metrics: values that are looked at, and not counted."""
        flights = self._store.flights()
        others = [follower for flight in flights for follower in followers_of(flight)]
        stock, account = self._take_stock(commits=None), self._account()
        pulls = [] if account is None else account.pulls.values()
        left = self._left()
        return {
            "shmstream_build_info": {(__version__, platform.python_version()): 1.0},
            "shmstream_upstream_up": {
                (name,): float(is_well) for name, is_well in self._upstreams().items()
            },
            "shmstream_upstream_pulls_left": {
                (name,): float(each.count) for name, each in left.items()
            },
            "shmstream_upstream_pulls_limit": {
                (name,): float(each.limit) for name, each in left.items() if each.limit is not None
            },
            **self._processes.look(),
            "shmstream_flights_from_peers": sum(
                each.parent not in ("", "upstream") for each in pulls
            ),
            "shmstream_children": 0 if account is None else _children(account),
            "shmstream_flights": len(flights),
            "shmstream_followers": len(others),
            "shmstream_lag_bytes": max((each.lag for each in others), default=0),
            "shmstream_store_bytes": stock.size,
            "shmstream_store_blobs": stock.count,
            "shmstream_store_limit_bytes": self._settings.max_bytes or 0,
            "shmstream_store_free_bytes": self._store.room(),
            "shmstream_workers": self._settings.workers,
        }

    def snapshot(self) -> dict[str, Any]:
        """The facts of the status page, for JSON: sizes in bytes, rates in bytes a second."""
        sights = self._watch.look()
        totals = self._metrics.totals()
        stock, account = self._take_stock(totals.commits + totals.evictions), self._account()
        now = time.time()
        return {
            "version": __version__,
            "time": now,
            "workers": self._settings.workers,
            "upstreams": [
                {"namespace": each.namespace, "url": each.url} for each in self._settings.upstreams
            ]
            + [{"namespace": each.path, "url": each.url} for each in self._settings.mirrors],
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
                "blobs": stock.count,
                "limit": self._settings.max_bytes,
                "room": self._store.room(),
            },
            "cluster": None if account is None else _of_cluster(account, totals),
            "flights": [self._flight(each, account) for each in sights[:_SHOWN]],
            "more_flights": max(len(sights) - _SHOWN, 0),
            "recent": [
                {
                    "key": each.key,
                    "name": self._name_of(each.key),
                    "size": each.size,
                    "age": max(now - each.used, 0.0),
                }
                for each in stock.recent
                if each.key is not None
            ],
        }

    def note(self) -> None:
        """Note the sums of now for `past`, if no worker has in this period. In any thread."""
        self.history.note(self._sums)

    def _sums(self) -> tuple[float, float]:
        totals = self._metrics.totals()
        return totals.served, totals.upstream

    def past(self) -> list[tuple[float, float, float]]:
        """The last ten minutes: time, bytes to clients, bytes from upstreams, the oldest first."""
        ahead = time.time() - time.monotonic()
        return [
            (round(each.time + ahead, 3), each.served, each.upstream)
            for each in self.history.samples()
        ]

    def _account(self) -> Account | None:
        """What this node has of its cluster; None if it belongs to none."""
        if self._settings.cluster is None:
            return None
        return of_node(self.folder) or Account(self._settings.cluster.advertise)

    def _flight(self, sight: Sight, account: Account | None) -> dict[str, Any]:
        flight, account = sight.flight, account or Account()
        others = followers_of(flight)
        pull = account.pulls.get(flight.key or "", Pull())
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
            "parent": pull.parent or None,
            "from_peers": pull.from_peers,
            "from_upstream": pull.from_upstream,
            "children": list(account.children.get(flight.key or "", ()))[:_SHOWN],
        }

    def problems(self) -> list[str]:
        """Why this registry cannot serve; empty if it can. Looks at the disk."""
        if (problem := self._store.problem()) is not None:
            return [problem]
        try:
            room = self._store.room()
        except OSError as error:
            return [f"the store cannot be looked at: {error.strerror}: {self.folder}"]
        if room < LEAST_ROOM:
            return [f"the store's file system has only {room >> 20} MiB left: {self.folder}"]
        return []

    def _take_stock(self, commits: float | None) -> Stock:
        """The last count; a new one if it is old, or if `commits` tells of other blobs."""
        counted, now = self._counted, time.monotonic()
        changed = commits is not None and commits != counted.commits
        pause = max(_STORE_SOON if changed else _STORE_EVERY, 50 * counted.took)
        if now - counted.when > pause:
            stock = self._store.stock(_RECENT)
            self._counted = _Counted(
                when=now,
                took=time.monotonic() - now,
                commits=counted.commits if commits is None else commits,
                stock=stock,
            )
        return self._counted.stock


def _children(account: Account) -> int:
    return sum(len(each) for each in account.children.values())


def _of_cluster(account: Account, totals: Totals) -> dict[str, Any]:
    """What the status page tells of the cluster; the sums outlive the workers."""
    return {
        "node": account.node,
        "children": _children(account),
        "from_peers": totals.peers,
        "given": totals.given,
        "calls": totals.calls,
        "failures": totals.failures,
        "away": totals.away,
        "trouble": account.trouble,
    }
