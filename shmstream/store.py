"""`Store`: one call for a blob that is complete, in flight or absent, from any number of processes.

    store.open     a readable file at once, whoever downloads        flight.py, blob.py
    store.fetch    the path of the whole blob                        blob.py
    store.pass_through    for one client, with nothing kept          passing.py
    store.evict    make room, the least recently used first          upkeep.py
    store.check    findings of everything that is not as it should   audit.py
    store.gc       remove what dead processes left                   audit.py

A store is a folder (layout.py) and nothing else: no server, no index, no lock to hold.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache

from shmstream.errors import ShmstreamError, is_for_want_of_room
from shmstream.events import Event
from shmstream.flight.async_blob import AsyncBlob, Stored
from shmstream.flight.blob import Blob, Progress
from shmstream.flight.flight import Flight, Policy
from shmstream.flight.pass_through import Passage, again
from shmstream.sources.retries import Retries
from shmstream.sources.select import AnySource, as_sources
from shmstream.storage import check, flights, gc
from shmstream.storage.check import Finding
from shmstream.storage.eviction import Upkeep
from shmstream.storage.flights import FlightInfo
from shmstream.storage.gc import WEEK
from shmstream.storage.layout import Entry, Layout, Place
from shmstream.stream import segment
from shmstream.stream.pacer import check_pacing
from shmstream.system.descriptors import make_room

_log = logging.getLogger("shmstream")


class Store:
    """A folder of verified blobs, shared by all processes of one user on this host.

    Any number of processes open the same folder. Everything may be called from any thread; nothing
    is held open in between, so a store needs no closing and survives a fork.

    Args:
        folder: made if it is not there, with 0700.
        max_bytes: of complete blobs, beyond which the least recently used are evicted. None: no
            limit. A blob in flight, or just complete, is never evicted for itself, and whoever has
            a blob open keeps it.
        durable: have a blob on the disk before it counts as complete. Without, a crash of the
            machine may leave blobs that only `check`, or `verify`, finds to be wrong.
        verify: hash every complete blob before it is opened, and download a damaged one anew.
        retries: how often sources are tried.
        chunk_size: bytes of a chunk; the last one is withheld until the digest is verified.
        max_subscribers: readers of one flight at one time.
        publish_bytes: readers of a flight are woken when so many bytes have gathered ...
        publish_interval: ... or so many seconds have passed, whichever is first. The first bytes
            go out at once. Longer costs less where many read at the live tail.
        max_flights: of this store on this host at one time, whoever leads them; beyond that a new
            one is refused (`TooManyFlights`). A flight that is taken over goes on. None: no limit.
        max_pass_through: clients of this process that are served without a flight at one time, each
            by a download of its own, where there is no room to keep a blob; see `pass_through`.
        on_event: told what happens to the flights that this process leads, as it happens and in
            the thread where it does; it must not block.

    Raises:
        StoreUnusable: the folder is not for this user alone, is not writable, or has no locks.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        durable: bool = True,
        verify: bool = False,
        retries: Retries | None = None,
        chunk_size: int = 65536,
        max_subscribers: int = 1024,
        publish_bytes: int = 1 << 20,
        publish_interval: float = 0.02,
        max_flights: int | None = None,
        max_pass_through: int = 64,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"max_bytes is a number of bytes, or None for no limit: {max_bytes}")
        if max_flights is not None and max_flights < 1:
            raise ValueError(f"max_flights is at least 1, or None for no limit: {max_flights}")
        if max_pass_through < 0:
            raise ValueError(f"max_pass_through is a number of clients: {max_pass_through}")
        check_pacing(publish_bytes, publish_interval)
        make_room()
        self._layout = Layout(folder)
        self.folder: str = self._layout.folder
        self.max_bytes = max_bytes
        self._max_pass_through = max_pass_through
        self._on_event = on_event
        self._upkeep = Upkeep(self._layout, max_bytes, self._say)
        self._policy = Policy(
            durable=durable,
            verify=verify,
            retries=Retries() if retries is None else retries,
            chunk_size=chunk_size,
            max_subscribers=max_subscribers,
            max_flights=max_flights,
            pacing=(publish_bytes, publish_interval),
            tell=self._say,
            upkeep=self._upkeep,
        )

    def open(
        self,
        key: str,
        source: AnySource | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
        stall_timeout: float | None = None,
        linger: bool = True,
    ) -> Blob:
        """The blob of `key`, to read while it arrives: complete, in flight, or from `source`.

        Does not wait for the source. However many processes call this at the same time, one of
        them downloads; if it dies, another goes on where it was.

        Args:
            key: `sha256:<hex>` or `sha512:<hex>`, which the bytes are verified by; or any other
                text, for content whose digest is not known.
            source: an `http(s)` URL, another URL that fsspec knows, a path, a binary file object,
                an iterable of buffers, a `Source`, or a list of these in order of preference. None:
                only what is here already.
            progress: called with a `Progress` while this blob is read or waited for, by the thread
                that does so, ten times a second at most.
            stall_timeout: seconds that a read waits for a leader that lives and brings nothing
                before it raises `WriterStalled`. None: for as long as it lives.
            linger: go on to the end of the download when nobody reads any more.

        Raises:
            BlobNotFound: there is nothing here, and no source.
            DamagedBlob: what is here is no file, or with `verify` other bytes and no source.
            TooManyFlights: it would be one more than `max_flights`.
            CannotStart, StoreError: there is no room for it, or no way; see their kinds.
            ValueError, TypeError: the key or the source is none.
        """
        return Blob(self._flight(self._layout.place(key), source, stall_timeout, linger), progress)

    def _flight(
        self, place: Place, source: AnySource | None, stall_timeout: float | None, linger: bool
    ) -> Flight:
        sources = cache(lambda: [] if source is None else as_sources(source))
        return Flight(
            self._layout,
            place,
            sources,
            self._policy,
            stall_timeout=stall_timeout,
            lingers=linger,
        )

    def aopen(
        self,
        key: str,
        source: AnySource | None = None,
        *,
        stall_timeout: float | None = None,
        linger: bool = True,
    ) -> AsyncBlob:
        """`open` for asyncio: `async with store.aopen(key, source) as blob: ...`.

        Takes and raises what `open` does; it is entering that raises, except for the key.
        """
        place = self._layout.place(key)

        def flight_for_all(tick: float) -> Flight:
            return self._flight(place, source, tick, linger)

        def open_stored() -> Stored | None:
            stored = self._layout.open(place)
            return None if stored is None else (*stored, self._layout.metadata(place, stored[0]))

        stored = None if self._policy.verify else open_stored
        flight = (self.folder, key, source is None)  # who has no source cannot go on without others
        return AsyncBlob(key, flight, place.path, stored, flight_for_all, stall_timeout)

    def fetch(
        self,
        key: str,
        source: AnySource | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
        stall_timeout: float | None = None,
    ) -> str:
        """Wait for the whole blob; its path. A later eviction may remove it: open it soon.

        Raises:
            ShmstreamError: as `open`, and as reading a `Blob`.
        """
        with self.open(key, source, progress=progress, stall_timeout=stall_timeout) as blob:
            blob.wait()
            return blob.path

    def pass_through(
        self,
        key: str,
        source: AnySource | None,
        because: ShmstreamError,
        *,
        stall_timeout: float | None = None,
    ) -> Passage:
        """A way for one client of a server to the blob of `key`, with nothing of it kept.

        For when opening or reading it fails for want of room, as `InFlightResponse` does. Enter it
        at once. Does not wait for the source.

        Raises:
            ShmstreamError: `because`. It has another reason; or the source can be read only once;
                or this process has `max_pass_through` of such clients.
        """
        if source is not None and is_for_want_of_room(because):
            place, policy, sources = self._layout.place(key), self._policy, as_sources(source)
            passage = Passage(place, again(sources), policy.retries, policy.tell, stall_timeout)
            if passage.begin(self._max_pass_through):
                return passage
        raise because

    def __contains__(self, key: object) -> bool:
        """Whether the complete blob of `key` is here."""
        return isinstance(key, str) and os.path.isfile(self._layout.place(key).path)

    def is_in_flight(self, key: str) -> bool:
        """Whether a flight of `key` is in progress on this host, or waits for another leader."""
        return os.path.exists(segment.path_of(self._layout.place(key).stream))

    def blobs(self) -> list[tuple[str | None, Entry]]:
        """The complete blobs with their keys, the least recently used first."""
        return [(self._layout.key_of(each.path), each) for each in self._layout.blobs()]

    def flights(self) -> list[FlightInfo]:
        """The flights of this store on this host, dead or alive."""
        return flights.flights(self._layout)

    def evict(self, max_bytes: int | None = None) -> list[str]:
        """Remove the least recently used blobs until `max_bytes` are left; their paths.

        None: the store's own limit. Whoever has one open goes on reading it.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        return [] if limit is None else self._upkeep.evict(limit)

    def _say(self, event: Event) -> None:
        """Tell the listener; no trouble of his ends a flight."""
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception as error:  # noqa: BLE001  a listener is anybody's code
                _log.error("on_event failed at %s: %s", event, repr(error))

    def check(self, *, verify: bool | None = None) -> list[Finding]:
        """What is not as it should be, in the folder and in shared memory; mends nothing.

        A blob is hashed if it was changed, or put there, since it was last verified, and sealed
        when it is right (seal.py). So this is cheap, but for bytes that a disk loses by itself:
        with `verify=True` every blob is hashed, with False none.
        """
        return check.check(self._layout, verify=verify)

    def gc(self, *, partial_age: float = WEEK) -> list[str]:
        """Remove what dead processes left, here and in shared memory; names and paths of it.

        A partial file that a download can go on with stays for `partial_age` seconds. Nothing that
        is alive is touched. Cheap, never blocks.
        """
        return gc.gc(self._layout, partial_age=partial_age)

    def __repr__(self) -> str:
        return f"<Store {self.folder}>"
