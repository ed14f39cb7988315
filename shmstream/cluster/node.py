"""`Node`: what one process has of its node: the directory, the endpoint, the leases.

A store makes it. The endpoint begins to listen when the store is made, and in a forked child with
the first flight there. It ends with the process, or when the store is closed or freed.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from inspect import ismethod
from typing import Any

from shmstream.cluster import peer
from shmstream.cluster.account import Account, Ledger, Pull
from shmstream.cluster.announcer import Announcer
from shmstream.cluster.cluster import Cluster
from shmstream.cluster.directory import MOST, Directory, DirectoryAway, Me
from shmstream.cluster.endpoint import PATIENCE, Endpoint
from shmstream.cluster.lease import Leases
from shmstream.cluster.part import Part
from shmstream.cluster.peer import Asker
from shmstream.cluster.signing import Guard, check_secret
from shmstream.errors import ShmstreamError, StoreUnusable
from shmstream.events import Event, EventKind
from shmstream.flight.blob import Blob
from shmstream.flight.flight import Flight, Policy
from shmstream.flight.offers import Offer
from shmstream.storage.eviction import Upkeep
from shmstream.storage.layout import Layout, Place, digest_at
from shmstream.system import threads
from shmstream.system.process import register

_AT_ONCE = 100  # blobs that are announced in one call

_log = logging.getLogger("shmstream")


@dataclass(frozen=True)
class Here:
    """Opens blobs that are complete or in flight on this host, for the endpoint."""

    layout: Layout
    policy: Policy

    def __call__(self, digest: str) -> Blob:
        """The blob, to read for `PATIENCE` seconds at a time.

        Raises:
            BlobNotFound: it is neither complete nor in flight.
            ValueError: that is no digest.
        """
        place = self.layout.place(digest)
        if place.is_named:
            raise ValueError("only a digest is known to other nodes")
        flight = Flight(
            self.layout,
            place,
            Offer(None),
            self.policy,
            stall_timeout=PATIENCE,
            lingers=True,
            ahead=True,
        )
        return Blob(flight, goes_past=False)


def _say_nothing(_event: Event) -> None:
    """What is given to peers begins no flight."""


def weakly(tell: Callable[[Event], None]) -> Callable[[Event], None]:
    """Calls a method for as long as its object lives: a store that is dropped ends its node."""
    known = weakref.WeakMethod(tell) if ismethod(tell) else lambda: tell

    def tell_it(event: Event) -> None:
        if (there := known()) is not None:
            there(event)

    return tell_it


def weak(node: Node) -> Callable[[], None]:
    """Calls `announce` of a node for as long as the node lives."""
    known = weakref.ref(node)

    def announce() -> None:
        if (there := known()) is not None:
            there.announce()

    return announce


class Node:
    """The node of the store in `layout`, as this process sees it. Any thread may call it."""

    def __init__(self, cluster: Cluster, layout: Layout, policy: Policy) -> None:
        """Raises:
        OSError: a certificate cannot be read.
        ImportError: the extra `cluster` is not installed.
        """
        peer.require()
        self._cluster = cluster
        self._layout = layout
        self._tell_store = weakly(policy.tell)
        upkeep = Upkeep(layout, None, _say_nothing)
        self._policy = replace(
            policy, verify=False, across=None, beside=None, tell=_say_nothing, upkeep=upkeep
        )  # nothing of the store: a store that is dropped ends its node
        secret, contexts = check_secret(cluster.secret), cluster.contexts()
        self._address = cluster.advertise or ""
        self.directory: Directory = Directory(
            cluster.url,
            lease=cluster.lease,
            fan=cluster.fan,
            password=cluster.password,
            back=weak(self),
            tell=self._tell_store,
        )
        self.leases: Leases = Leases(cluster.lease, self.directory.renew)
        self.asker: Asker = Asker(self._address, secret, contexts[1] if contexts else None)
        self.endpoint: Endpoint | None = None
        if cluster.address is not None:
            guard = Guard(secret, self._address, layout.folder)
            server = contexts[0] if contexts else None
            here = Here(layout, self._policy)
            self.endpoint = Endpoint(cluster.address, guard, here, cluster.max_peers, server)
        known = weakref.ref(self)

        def look() -> Account:
            return Account() if (node := known()) is None else node.account()

        def introduce(tells_all: bool) -> bool:
            return (node := known()) is None or node.introduce(tells_all=tells_all)

        self._ledger = Ledger(layout.folder, look)
        self._announcer = Announcer(layout.folder, introduce)
        if self.endpoint is not None:
            self.endpoint.wake = self._ledger.wake
        self._begin()
        register(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._telling: set[threads.Call] = set()
        self._is_closed = False
        self._is_registered = False  # all that a flight needs, in this process
        self._is_deaf = False
        self._owes = False  # what is here was not told to the end
        self._pulls: dict[str, Part] = {}  # of the flights that this process leads
        self._bytes: dict[str, dict[EventKind, int]] = {}  # of these flights
        self._sums: dict[EventKind, int] = {}

    def begin(self) -> None:
        """Listen for peers.

        Raises:
            StoreUnusable: this process cannot listen on that address.
        """
        if self.endpoint is None:
            return
        try:
            self.endpoint.start()
            self._announcer.start()
        except (OSError, RuntimeError) as error:  # the second: no thread can be started
            number = error.errno if isinstance(error, OSError) else None
            told = os.strerror(number) if number else str(error)
            host, port = self._cluster.address or ("", 0)
            reason = f"its node cannot listen on {host or '*'}:{port} for the cluster: {told}"
            raise StoreUnusable(self._layout.folder, reason) from error

    def part(self, place: Place) -> Part | None:
        """The part in a new flight; None if its key is a name, which stays on this host."""
        if place.is_named or self._is_closed:
            return None
        if not self._is_registered:  # again, because a forked child begins with nothing registered
            for each in (self, self.directory, self.leases):
                register(each)
            self._is_registered = True
        address = self._address
        if self.endpoint is not None:
            try:
                self.begin()  # a forked child does not listen yet
            except StoreUnusable as error:
                address = ""
                if not self._is_deaf:
                    _log.error("%s", error)
                self._is_deaf = True
        return Part(self, place.key, address)

    def guest(self, place: Place) -> Part | None:
        """The part in a download that keeps nothing, or goes past a leader of this host.

        None as for `part`.
        """
        if place.is_named or self._is_closed:
            return None
        return Part(self, place.key, "", besides=self._address)

    def began(self, part: Part) -> None:
        """The flight of a part asks for its first bytes. Guests are not told of."""
        if not part.is_guest:
            with self._lock:
                self._pulls[part.key] = part
                self._bytes[part.key] = {}
            self._ledger.wake()

    def ended(self, part: Part) -> None:
        """The flight of a part has ended."""
        with self._lock:
            if self._pulls.get(part.key) is part:
                del self._pulls[part.key], self._bytes[part.key]
        self._ledger.wake()

    def moved(self) -> None:
        """A part has another parent."""
        self._ledger.wake()

    # What is told of it.

    def saw(self, event: Event) -> None:
        """An event of this process's store."""
        if event.kind is EventKind.EVICTED:
            self.evicted(event.key)
        elif event.kind in (EventKind.RECEIVED, EventKind.FROM_PEER):
            with self._lock:
                for sums in (self._sums, self._bytes.get(event.key)):
                    if sums is not None:
                        sums[event.kind] = sums.get(event.kind, 0) + event.count

    def account(self) -> Account:
        """What this process has of the cluster just now."""
        children: dict[str, tuple[str, ...]] = {}
        given = 0
        if self.endpoint is not None:
            for digest, count in self.endpoint.count().items():
                self._tell_store(Event(EventKind.GIVEN, digest, count))
            children, given = self.endpoint.children, self.endpoint.given
        with self._lock:
            pulls = {
                key: Pull(
                    part.parent,
                    self._bytes[key].get(EventKind.FROM_PEER, 0),
                    self._bytes[key].get(EventKind.RECEIVED, 0),
                )
                for key, part in self._pulls.items()
            }
            sums = dict(self._sums)
        directory = self.directory
        return Account(
            self._address,
            pulls,
            children,
            sums.get(EventKind.FROM_PEER, 0),
            sums.get(EventKind.RECEIVED, 0),
            given,
            directory.calls,
            directory.failures,
            round(directory.away, 3),
            directory.trouble,
        )

    def announce(self) -> None:
        """The directory is back: if it is empty, tell what is complete here. Does not wait."""
        if self._address:
            self.tell(partial(self.introduce, tells_all=False))

    def introduce(self, *, tells_all: bool) -> bool:
        """Greet the directory; tell it what is complete here, if it does not know this node.

        Returns whether the directory answers.
        """
        me = Me(self._address, "")
        self.directory.use()
        try:
            if self.directory.greet(me) and not (tells_all or self._owes):
                return True
            self._owes = True
            blobs = (digest_at(each.path) for each in self._layout.blobs())
            keys = [each for each in blobs if each is not None]
            for start in range(0, len(keys), _AT_ONCE):
                self.directory.announce(keys[start : start + _AT_ONCE], me)
            self._owes = False
        except (DirectoryAway, OSError, ShmstreamError) as error:
            _log.debug("what this node has is not told: %s", str(error))
            return False
        finally:
            self.directory.let_go()
        return True

    def evicted(self, key: str) -> None:
        """Tell that the complete blob is here no more. Does not wait."""
        if self._address and ":" in key:
            self.tell(partial(self._tell_evicted, key))

    def _tell_evicted(self, key: str) -> None:
        self.directory.use()
        try:
            self.directory.leave(key, Me(self._address, ""), "evicted")
        except DirectoryAway:
            pass  # a node that asks this one for the blob finds that it is gone
        finally:
            self.directory.let_go()

    def tell(self, call: Callable[[], object]) -> None:
        """Make a call of the directory in another thread; this process waits for it at its end."""

        def run() -> None:
            try:
                call()
            finally:
                with self._lock:
                    self._telling.discard(calling)

        calling = threads.Call(run, "shmstream-tell")
        with self._lock:
            self._telling.add(calling)
        try:
            calling.start()
        except RuntimeError:  # no thread can be started, as at the end of the interpreter
            run()

    def close(self) -> None:
        """Give nothing to peers. Waits some seconds at most for what is to be told. Idempotent."""
        self._announcer.close()
        with self._lock:
            self._is_closed = True
            telling = list(self._telling)
        for each in telling:
            each.join(MOST)
        if self.endpoint is not None:
            self.endpoint.close()
        self.account()  # tells what was given last
        self._ledger.close()
        self.directory.close()

    def abandon(self) -> None:
        """In a forked child: what is being told is the parent's."""
        self._begin()

    def __del__(self) -> None:
        if getattr(self, "endpoint", None) is not None:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._cluster, self._layout, self._policy)
