"""`Store`: one call for a blob that is complete, in flight or absent, from any number of processes.

    store.open           a readable file at once, in every process     flight/flight, flight/blob
    store.aopen          the same for asyncio                          flight/async_blob
    store.create         a writable file, which others read meanwhile  flight/blob_writer
    store.fetch          the path of the whole blob                    flight/blob
    store.fetch_many     the paths of several blobs
    store.snapshot       a folder of blobs with names for people       storage/placing
    store.pass_through   the bytes for one client, nothing is kept     flight/pass_through
    store.flights        the downloads in progress                     storage/flights
    store.blobs, stock   what is complete, listed or counted           storage/stock
    store.turns          one process of the host at a time asks        storage/turns
    store.remove         remove one blob
    store.cancel         end one flight, in whatever process           flight/cancelling
    store.pin, unpin     have one blob stay
    store.evict          make room, the least recently used first      storage/eviction
    store.check          find what is not as it should be              storage/check
    store.gc             remove what dead processes left               storage/gc

A store is a folder (`storage/layout`) and nothing else: it needs no server and no index, and holds
no lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from shmstream import arguments
from shmstream.arguments import flag, function, instance, optional, seconds, text, whole
from shmstream.errors import ShmstreamError, StoreUnusable, is_for_want_of_room
from shmstream.events import Event
from shmstream.flight import cancelling, offers
from shmstream.flight.blob import Blob
from shmstream.flight.blob_writer import BlobWriter
from shmstream.flight.file_follower import FileFollower
from shmstream.flight.flight import Flight, Policy
from shmstream.flight.offers import Offer
from shmstream.flight.pass_through import Passage
from shmstream.flight.producer import Order, Producer
from shmstream.flight.progress import Bar, Listener, Progress, listener
from shmstream.sources.base import check_connections
from shmstream.sources.local import rereadable
from shmstream.sources.retries import Retries
from shmstream.sources.select import AnySource, as_sources, check_source
from shmstream.storage import check, flights, gc
from shmstream.storage.check import Findings
from shmstream.storage.eviction import Upkeep
from shmstream.storage.flights import FlightInfo
from shmstream.storage.folder import default_folder, is_set, trouble
from shmstream.storage.gc import WEEK
from shmstream.storage.layout import Layout, Place
from shmstream.storage.placing import place_file
from shmstream.storage.stock import Stock, StoredBlob, stored_blobs, take_stock
from shmstream.storage.turns import Turns
from shmstream.stream import segment
from shmstream.stream.claims import is_abandoned
from shmstream.stream.pacer import check_pacing
from shmstream.stream.writer import check_layout
from shmstream.system.signals import listening
from shmstream.units import is_size, size

if TYPE_CHECKING:
    from shmstream.cluster.cluster import Cluster
    from shmstream.cluster.node import Node
    from shmstream.flight.async_blob import AsyncBlob, Stored


class Store:
    """A folder of verified blobs, shared by all processes of one user on this host.

    Any number of processes open the same folder. Every method may be called from any thread. A
    store holds nothing open between calls, so it needs no closing and survives a fork.

    Args:
        folder: the path; a missing folder is made, with mode 0700. `~` is the user's home. None:
            the folder that the environment variable SHMSTREAM_STORE names, or `shmstream` in the
            user's cache (`~/.cache`), with the limit in SHMSTREAM_MAX_BYTES, and shared by a group
            if SHMSTREAM_SHARED_GROUP is 1.
        max_bytes: limit of all blobs together, complete or partial, in bytes or as a text such as
            `"10GiB"`; beyond it abandoned partial files go first, then the least recently used
            blobs. None: no limit. A blob in flight is not evicted, nor is the blob that was just
            completed; and an evicted blob stays readable where it is open. A larger blob is not
            kept (`OutOfRoom`).
        durable: sync a blob to the disk before it counts as complete. If False, a crash of the
            machine may leave wrong blobs, which only `check` or `verify` detects.
        verify: hash every complete blob before it is opened, and download a damaged blob anew.
        hash_named: compute the digest of each blob whose key is a name, also if no `digest` was
            given for it. If False, such a blob costs no hashing, its download cannot be resumed
            after a reboot, and `verify` does not look at it before `check` has computed its digest.
            A digest that was given is verified in any case.
        retries: how often sources are tried.
        connections: how many connections one blob may come over from each of its sources, if a
            source does not say that itself. None: 8 for HTTP and object stores if the blob has
            64 MiB or more, else 1. If there are several, and a digest is given, several sources
            are used at once.
        chunk_size: bytes of a chunk; the last chunk is withheld until the digest is verified.
        max_subscribers: readers of one flight at one time.
        publish_bytes: readers of a flight are woken when so many bytes have gathered ...
        publish_interval: ... or so many seconds have passed, whichever is first. The first bytes
            are published at once. A longer interval costs less if many clients read at the tail.
        max_flights: flights of this store on this host at one time, of all processes together.
            One more is refused (`TooManyFlights`). A takeover is not a new flight. None: no limit.
        max_pass_through: clients of this process at one time that are served without a flight, each
            by a download of its own, because there is no room to keep the blob; see `pass_through`.
        shared_group: let all users of the folder's group use the store, and trust them: folders are
            2770, files 0660. Users share blobs and partial files, and only one of all downloads a
            blob; shared memory is each user's own, so a user sees blobs in flight of another one
            only when they are complete. A folder that is there already must have that mode.
        cluster: other nodes that have the same blobs, or have them in flight. One of all nodes
            pulls a digest from its upstream; the others get it from each other. None: none.
        on_event: called with every event of the flights that this process leads, at once and in the
            thread where it happens; it must not block.

    Raises:
        StoreUnusable: others may write to the folder, this user may not, or locks do not work; or
            this process cannot listen for the other nodes of the cluster.
        ImportError: there is a `cluster`, and the extra `cluster` is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int | str | None = None,
        durable: bool = True,
        verify: bool = False,
        hash_named: bool = True,
        retries: Retries | None = None,
        connections: int | None = None,
        chunk_size: int = 65536,
        max_subscribers: int = 1024,
        publish_bytes: int = 1 << 20,
        publish_interval: float = 0.02,
        max_flights: int | None = None,
        max_pass_through: int = 64,
        shared_group: bool = False,
        cluster: Cluster | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if folder is None:
            folder = default_folder()
            max_bytes = os.environ.get("SHMSTREAM_MAX_BYTES") if max_bytes is None else max_bytes
            shared_group = shared_group or is_set("SHMSTREAM_SHARED_GROUP")
        max_bytes = _bytes(max_bytes, "max_bytes")
        told = "at least 1, or None for no limit"
        max_flights = optional(whole, "max_flights", max_flights, told, 1)
        max_pass_through = whole("max_pass_through", max_pass_through, "a number of clients")
        pacing = check_pacing(publish_bytes, publish_interval)
        chunk_size, max_subscribers = check_layout(chunk_size, max_subscribers)
        told = "a shmstream.Retries, such as Retries(attempts=3), or None"
        retries = Retries() if retries is None else instance("retries", retries, Retries, told)
        connections = check_connections(connections)
        durable, verify = flag("durable", durable), flag("verify", verify)
        hash_named = flag("hash_named", hash_named)
        shared_group = flag("shared_group", shared_group)
        _check_parts(folder, cluster, on_event)
        self._layout = Layout(os.path.expanduser(folder), shared_group=shared_group)
        self.folder: str = self._layout.folder
        self.max_bytes: int | None = max_bytes
        self._max_pass_through = max_pass_through
        self._on_event = on_event
        is_listened_to = on_event is not None or cluster is not None
        self._upkeep = Upkeep(self._layout, max_bytes, self._say if is_listened_to else None)
        self._policy = Policy(
            durable=durable,
            verify=verify,
            hash_named=hash_named,
            retries=retries,
            connections=connections,
            chunk_size=chunk_size,
            max_subscribers=max_subscribers,
            max_flights=max_flights,
            pacing=pacing,
            tell=self._say,
            upkeep=self._upkeep,
        )
        self._node: Node | None = None
        if cluster is not None:
            from shmstream.cluster.node import Node

            self._node = Node(cluster, self._layout, self._policy)
            self._policy = replace(self._policy, across=self._node.part, beside=self._node.guest)
            self._node.begin()

    def open(
        self,
        key: str,
        source: AnySource | None = None,
        *,
        digest: str | None = None,
        size: int | None = None,
        progress: Listener = None,
        stall_timeout: float | None = None,
        linger: bool = True,
        wait_for: float = 0.0,
        connections: int | None = None,
    ) -> Blob:
        """The blob of `key`, to read while it arrives: complete, in flight, or from `source`.

        Does not wait for the source. However many processes call this at the same time, one of
        them downloads. If that process dies, another one continues the download; but what another
        process writes (`create`), no other one can continue.

        Args:
            key: a digest, and then the bytes are verified: `sha256:<hex>`, 64 hex digits alone,
                `sha384-<base64>`, ... (`stream/spelling` has them all); or any other text, for
                content whose digest is not known.
            source: an `http(s)` URL, another URL that fsspec knows, a path, a binary file object,
                an iterable of buffers, a `Source`, or a list of these in order of preference. None:
                only a blob that is complete or in flight.
            digest: what the bytes are verified by if the key is a name. A stored blob of that name
                with another digest is not what was asked for: it is downloaded anew.
            size: the bytes that the blob has; more, or fewer, are an error. Otherwise as `digest`.
            progress: called with a `Progress` while this blob is read or waited for, by the thread
                that reads or waits, at most ten times a second. True: shows a bar, by tqdm or rich.
            stall_timeout: seconds without a new byte after which this process goes on without the
                leader, although that is alive, by a download of its own. A read raises
                `WriterStalled` if this process leads or has no source. None: wait for as long as
                the leader lives.
            linger: continue the download to its end when no reader is left.
            wait_for: if the blob is neither complete nor in flight, wait up to so many seconds
                until another process begins it, by `create` or by a download of its own. Only
                then `source` is asked.
            connections: as of `Store`, for this blob, if this process downloads it.

        Raises:
            BlobNotFound: the blob is not here, and there is no source.
            DamagedBlob: a folder or a link lies at its path; or with `verify` the bytes are wrong,
                or it has another `digest` or `size`, and there is no source.
            SizeMismatch: the stored blob has the digest that is the key, and another `size`.
            TooManyFlights: there are `max_flights` flights already.
            CannotStart, StoreError: a flight cannot begin; the subclasses tell why.
            ValueError, TypeError: the key, the source, `digest` or `size` is not valid.
        """
        place = self._layout.place(key, digest, size)
        flight = self._flight(
            place, source, stall_timeout, linger, seconds("wait_for", wait_for), connections
        )
        opens = partial(
            self.open,
            key,
            digest=digest,
            size=size,
            stall_timeout=stall_timeout,
            linger=linger,
            connections=connections,
        )
        return Blob(flight, listener(progress), opens=opens)

    def _flight(
        self,
        place: Place,
        source: Offer | AnySource | None,
        stall_timeout: float | None,
        linger: bool,
        wait_for: float = 0.0,
        connections: int | None = None,
    ) -> Flight:
        policy = self._policy
        _check_reading(source, stall_timeout, linger)
        if connections is not None:
            policy = replace(policy, connections=check_connections(connections))
        return Flight(
            self._layout,
            place,
            source if isinstance(source, Offer) else Offer(source),
            policy,
            stall_timeout=stall_timeout,
            lingers=linger,
            wait_for=wait_for,
        )

    def create(
        self,
        key: str,
        size: int | None = None,
        digest: str | None = None,
        *,
        media_type: str | None = None,
        replace: bool = False,
    ) -> BlobWriter:
        """A writable binary file that is the blob of `key`; others read it while it is written.

        `with store.create(key) as blob: ...` commits at the end, and aborts on an exception. Any
        process that opens the key gets the bytes as they come, also one that waits for it already
        (`wait_for`). Nobody can go on for this process: if it is killed, readers get `WriterDied`,
        and nothing is kept. The limit `max_flights` does not count it.

        Args:
            key: as for `open`; if it is a digest, the bytes must have it.
            size: the bytes that the blob will have, if that is known; more, or fewer, are an error.
            digest: what the bytes of a name must have. Readers get the last chunk only when all
                is verified.
            media_type: such as `text/csv`, for responses over HTTP.
            replace: write it although there is a complete blob, which is replaced at the end.

        Raises:
            BlobExists: it is complete already.
            StreamExists: another process writes or downloads it just now.
            OutOfRoom: the store cannot keep `size` bytes.
            CannotStart, StoreError: it cannot begin; the subclasses tell why.
            ValueError: the key, `size` or `digest` is not valid.
        """
        optional(text, "media_type", media_type, "a text such as 'text/csv', or None")
        replace = flag("replace", replace)
        order = Order(self._layout.place(key, digest, size), media_type, replace)
        return BlobWriter(Producer.begin(self._layout, order, self._policy), self.folder)

    def aopen(
        self,
        key: str,
        source: AnySource | None = None,
        *,
        digest: str | None = None,
        size: int | None = None,
        progress: Listener = None,
        stall_timeout: float | None = None,
        linger: bool = True,
        wait_for: float = 0.0,
        connections: int | None = None,
    ) -> AsyncBlob:
        """`open` for asyncio: `async with store.aopen(key, source) as blob: ...`.

        Arguments and errors are those of `open`. Entering the block raises the errors; only a key
        that is not valid raises here.
        """
        from shmstream.flight.async_blob import AsyncBlob  # it imports asyncio

        place = self._layout.place(key, digest, size)
        if connections is not None:
            check_connections(connections)
        _check_reading(source, stall_timeout, linger)
        sources = Offer(source)

        def flight_for_all(tick: float) -> Flight:
            return self._flight(place, sources, tick, linger, connections=connections)

        def offer() -> None:
            offers.add(place.asked, sources)

        def withdraw() -> None:
            offers.withdraw(sources)

        stored = None if self._policy.verify else partial(self._open_stored, place)
        # Without a source it cannot lead or take over.
        flight = (self.folder, place.key, source is None, place.digest, place.size)
        return AsyncBlob(
            place.key,
            flight,
            place.path,
            stored,
            place.is_given,
            flight_for_all,
            stall_timeout,
            offer,
            withdraw,
            wait_for=seconds("wait_for", wait_for),
            is_begun=partial(self._is_begun, place),
            progress=None if progress is None else listener(progress),
        )

    def _open_stored(self, place: Place, *, again: bool = False) -> Stored | None:
        """The complete blob of a place, if it is known to be what was asked for.

        `again`: some time after the place was made, so the folder is looked at once more.
        """
        fd = -1
        try:
            if again:
                self._layout.look()
            if (stored := self._layout.open(place)) is None:
                return None
            fd, size = stored
            if not self._layout.is_known_right(place, fd):
                return None  # a thread looks at its bytes
            found = (fd, size, self._layout.metadata(place, fd))
            fd = -1  # it is the caller's now
            return found
        except OSError as error:
            raise trouble(error, place.key, self.folder) or error from error
        finally:
            if fd >= 0:
                os.close(fd)

    def _is_begun(self, place: Place) -> bool:
        """Whether the blob is complete, or a live process brings it."""
        if os.path.lexists(place.path) or FileFollower.finds(place):
            return True
        return os.path.exists(segment.path_of(place.stream)) and not is_abandoned(place.stream)

    def fetch(
        self,
        key: str,
        source: AnySource | None = None,
        *,
        digest: str | None = None,
        size: int | None = None,
        progress: Listener = None,
        stall_timeout: float | None = None,
        wait_for: float = 0.0,
        connections: int | None = None,
        link: str | os.PathLike[str] | None = None,
    ) -> str:
        """Wait for the whole blob, and return its path. An eviction may remove it: open it soon.

        Arguments are those of `open`. `link` is a further name for the blob, outside the store. It
        appears when the blob is complete, replaces an older file, and is what this returns. It is a
        reflink where the file system has them, else a hard link (do not write to it: it is the
        store's file), and a copy only on another file system. An eviction does not remove it.

        Raises:
            ShmstreamError: as `open`, and as reading a `Blob`.
            OSError: `link` cannot be written to.
        """
        optional(arguments.path, "link", link)
        wait_for = seconds("wait_for", wait_for)
        place = self._layout.place(key, digest, size)
        flight = self._flight(place, source, stall_timeout, True, wait_for, connections)
        told = listener(progress)
        is_plain = told is None and stall_timeout is None and link is None and not wait_for
        if is_plain and flight.bring():
            return place.path
        with Blob(flight, told, reader=flight.seat) as blob:
            blob.wait()
            if link is None:
                return blob.path
            place_file(blob.view().fd, link)
            return os.path.abspath(os.path.expanduser(link))

    def fetch_many(
        self,
        sources: Mapping[str, AnySource | None],
        *,
        progress: Listener = None,
        stall_timeout: float | None = None,
        at_once: int = 8,
    ) -> dict[str, str]:
        """Wait for several blobs, and return the path of each, by key.

        Args:
            sources: by key, what `open` takes as source.
            progress: as for `open`; called for each blob. True: one bar for all.
            stall_timeout: as for `open`.
            at_once: so many are in flight at one time.

        Raises:
            ShmstreamError: the first blob that fails. What is in flight goes on.
        """
        _require_mapping("sources", sources, "{key: source}")
        paths: dict[str, str] = {}
        for key, blob in self._complete(sources, progress, stall_timeout, at_once):
            paths[key] = blob.path
        return paths

    def snapshot(
        self,
        folder: str | os.PathLike[str],
        files: Mapping[str, tuple[str, AnySource | None]],
        *,
        progress: Listener = None,
        stall_timeout: float | None = None,
        at_once: int = 8,
    ) -> str:
        """A folder with blobs under names for people; its path.

        `store.snapshot("model", {"weights/a.bin": (key, source), ...})`: each file appears when its
        blob is complete, as with `fetch(link=...)`. Other files in the folder stay.

        Args:
            folder: is made if it is missing.
            files: by name, which may have subfolders: key and source, as `open` takes them.
            progress: as for `fetch_many`.
            stall_timeout: as for `open`.
            at_once: so many are in flight at one time.

        Raises:
            ShmstreamError: the first blob that fails.
            ValueError: a name is empty, absolute, or leads out of the folder.
            OSError: a file cannot be written.
        """
        whole("at_once", at_once, "a number of blobs, at least 1", 1)
        folder = os.path.abspath(os.path.expanduser(arguments.path("folder", folder)))
        _require_mapping("files", files, "{name: (key, source)}")
        names: dict[str, list[str]] = {}
        sources: dict[str, AnySource | None] = {}
        for name, pair in files.items():
            _require_pair(name, pair)
            key, source = pair
            names.setdefault(key, []).append(_inside(folder, name))
            if sources.get(key) is None:
                sources[key] = source
        os.makedirs(folder, exist_ok=True)
        for key, blob in self._complete(sources, progress, stall_timeout, at_once):
            for path in names[key]:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                place_file(blob.view().fd, path)
        return folder

    def _complete(
        self,
        sources: Mapping[str, AnySource | None],
        progress: Listener,
        stall_timeout: float | None,
        at_once: int,
    ) -> Iterator[tuple[str, Blob]]:
        """Each blob when it is complete. Their leaders bring them, a few at one time."""
        whole("at_once", at_once, "a number of blobs, at least 1", 1)
        told = listener(progress)
        left = list(sources.items())[::-1]
        with ExitStack() as closing:
            if isinstance(told, Bar):
                closing.callback(told.close)
            running: deque[tuple[str, Blob]] = deque()
            while left or running:
                while left and len(running) < at_once:
                    key, source = left.pop()
                    # Not the bar itself, which the first blob would close.
                    tell = None if told is None else partial(_tell, told)
                    blob = self.open(key, source, progress=tell, stall_timeout=stall_timeout)
                    closing.callback(blob.close)
                    running.append((key, blob))
                key, blob = running.popleft()
                blob.wait()
                yield key, blob
                blob.close()

    def pass_through(
        self,
        key: str,
        source: AnySource | None,
        because: ShmstreamError,
        *,
        stall_timeout: float | None = None,
        anyway: bool = False,
    ) -> Passage:
        """The blob of `key` for one client of a server, straight from the source. Nothing is kept.

        A server calls it when opening or reading the blob has failed with the error `because`, as
        `InFlightResponse` does. Enter the result at once. Does not wait for the source.
        `anyway`: whatever `because` means, for example that the flight of another source broke.

        Raises:
            ShmstreamError: `because` itself, if it does not mean a lack of room, if the source can
                be read only once, or if this process has `max_pass_through` such clients.
        """
        if source is not None and (anyway or is_for_want_of_room(because)):
            place, policy, sources = self._layout.place(key), self._policy, as_sources(source)
            sources = rereadable(sources)
            across = None if anyway or policy.beside is None else policy.beside(place)
            with self._naming_troubles():
                passage = Passage(
                    place, sources, policy.retries, policy.tell, stall_timeout, across
                )
            if passage.begin(self._max_pass_through):
                return passage
        raise because

    def misfit(self, key: str, size: int) -> str | None:
        """Why a blob of `size` bytes cannot be kept as `key`; None if it can, as it seems.

        Lists the folder, and blocks for that, only if the disk has less free space.
        """
        with self._naming_troubles():
            return self._upkeep.misfit(size, self._layout.place(key).path)

    def path(self, key: str) -> str:
        """Where the complete blob of `key` lies, or will lie."""
        return self._layout.place(key).path

    def pin(self, key: str) -> None:
        """Have the blob of `key` stay when room is made, also one that is yet to come. Idempotent.

        Until `unpin` or `remove`. It counts for `max_bytes` all the same.

        Raises:
            StoreUnusable: the store is read-only, or its folder is gone.
        """
        with self._naming_troubles():
            self._layout.pin(self._layout.place(key))

    def unpin(self, key: str) -> bool:
        """Let the blob of `key` go when room is made. False if it was not pinned."""
        with self._naming_troubles():
            return self._layout.remove(self._layout.place(key).pin)

    def is_pinned(self, key: str) -> bool:
        """Whether the blob of `key` stays when room is made."""
        return os.path.lexists(self._layout.place(key).pin)

    def cancel(self, key: str) -> bool:
        """End the flight of `key`, also one of another process. False if there was none.

        Its readers get `BlobAborted`, what came is removed, and the next call begins anew. A
        complete blob stays. Waits until the flight has ended; if the process that leads is stopped,
        5 s at most.
        """
        with self._naming_troubles():
            return cancelling.cancel(self._layout.place(key))

    def remove(self, key: str) -> bool:
        """Remove the complete blob of `key`, also if it is pinned. False if there was none.

        It stays readable where it is open, and a flight of the key goes on.
        """
        with self._naming_troubles():
            place = self._layout.place(key)
            self._layout.remove(place.pin)
            # The record may be that of a flight.
            removed = self._layout.remove_blob(place.path, record=not self.is_in_flight(key))
            if removed and self._node is not None:
                self._node.evicted(place.key)
            return removed

    def __contains__(self, key: object) -> bool:
        """Whether the complete blob of `key` is here."""
        return isinstance(key, str) and os.path.isfile(self._layout.place(key).path)

    def is_in_flight(self, key: str) -> bool:
        """Whether there is a flight of `key` on this host, with a leader or waiting for one."""
        place = self._layout.place(key)
        return os.path.exists(segment.path_of(place.stream)) or FileFollower.finds(place)

    def blobs(self) -> list[tuple[str | None, StoredBlob]]:
        """The complete blobs with their keys, the least recently used first.

        The key is None for a blob whose key is no digest, if its record is lost.
        """
        with self._naming_troubles():
            return [(each.key, each) for each in stored_blobs(self._layout)]

    def stock(self, recent: int = 0) -> Stock:
        """How many complete blobs there are, their bytes, and the `recent` last used ones.

        Lists the folder: half a second for 100,000 blobs, so it is not for an event loop.
        """
        with self._naming_troubles():
            return take_stock(self._layout, recent)

    def room(self) -> int:
        """Bytes that this user can still write to the file system of the folder. Blocks for it.

        Raises:
            OSError: the file system does not tell.
        """
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def problem(self) -> str | None:
        """Why the folder cannot be used as a store any more; None if it can.

        For servers that tell whether they are ready: a disk may go, or its locks may. Takes
        milliseconds, and blocks as long as the file system does, so it is not for an event loop.
        """
        if not self._layout.is_read_only and not os.path.isfile(self._layout.mark):
            return f"the store is gone: {self.folder}"  # the next flight makes it anew, if it can
        try:
            self._layout.restore()
        except StoreUnusable as error:
            return str(error)
        return f"the store is read-only: {self.folder}" if self._layout.is_read_only else None

    def turns(self, longest: float) -> Turns:
        """Turns, for servers: one process of this host at a time does something.

        `longest`: seconds to wait for a turn. Nothing is done here by itself.
        """
        return Turns(self._layout.mark, longest)

    def flights(self) -> list[FlightInfo]:
        """The flights of this store on this host, also those whose leader is dead."""
        return flights.flights(self._layout)

    def evict(self, max_bytes: int | str | None = None) -> list[str]:
        """Remove abandoned partial files, then the least recently used blobs; their paths.

        Until at most `max_bytes` are left: a number of bytes, or a text such as `"10GiB"`; None:
        the store's own limit. A blob that is open somewhere stays readable there.

        Raises:
            ValueError: `max_bytes` is no size, for example a key.
        """
        if isinstance(max_bytes, str) and not is_size(max_bytes):
            raise ValueError(
                f"evict takes the bytes that may stay, such as 0 or '10GiB', not {max_bytes!r}; to "
                "remove the blob of one key, call `store.remove(key)`"
            )
        limit = self.max_bytes if max_bytes is None else _bytes(max_bytes, "max_bytes")
        with self._naming_troubles():
            return [] if limit is None else self._upkeep.evict(limit)

    def _say(self, event: Event) -> None:
        """Call `on_event`. An error of it is logged, and ends no flight."""
        if self._node is not None:
            self._node.saw(event)
        if self._on_event is not None:
            with listening(f"on_event failed at {event}"):
                self._on_event(event)

    def check(self, *, verify: bool | None = None) -> Findings:
        """Find what is not as it should be, in the folder and in shared memory. Repairs nothing.

        Hashes the blobs that were changed, or put there, since they were last verified. A blob that
        is right is sealed (`stream/seal`), and not hashed the next time. So this is cheap, but does
        not detect bytes that the disk itself loses: `verify=True` hashes every blob, `verify=False`
        none.
        """
        with self._naming_troubles():
            return check.check(self._layout, verify=verify)

    def gc(self, *, partial_age: float = WEEK) -> list[str]:
        """Remove what dead processes left, here and in shared memory; the removed names and paths.

        A partial file that a download can continue stays for `partial_age` seconds. Nothing of a
        process that is alive is touched. Cheap, never blocks.
        """
        seconds("partial_age", partial_age)
        with self._naming_troubles():
            return gc.gc(self._layout, partial_age=partial_age)

    @contextmanager
    def _naming_troubles(self) -> Iterator[None]:
        """Raise `StoreUnusable` or `OutOfResources` for an OSError inside."""
        try:
            yield
        except OSError as error:
            raise trouble(error, self.folder, self.folder) or error from error

    def close(self) -> None:
        """Leave the cluster, if the store belongs to one: give nothing to other nodes any more.

        The store can still be used, and gets nothing from other nodes. Without a cluster there is
        nothing to close. Idempotent.
        """
        if self._node is not None:
            self._node.close()

    def __repr__(self) -> str:
        return f"<Store {self.folder}>"


def _check_parts(folder: object, cluster: object, on_event: object) -> None:
    """Raises:
    TypeError, ValueError: an argument of `Store` is of a wrong type.
    """
    if not isinstance(folder, bytes):
        arguments.path("folder", folder or ".")  # `Layout` refuses an empty text
    optional(function, "on_event", on_event, "a function that takes an Event, or None")
    if cluster is not None:
        from shmstream.cluster.cluster import Cluster

        instance("cluster", cluster, Cluster, "a shmstream.Cluster, or None")


def _require_mapping(name: str, value: object, what: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a mapping such as {what}, not {value!r:.200}")


def _require_pair(name: object, value: object) -> None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        told = "files is a mapping such as {name: (key, source)}"
        raise TypeError(f"{told}; {name!r:.200} has {type(value).__name__}")


def _check_reading(
    source: Offer | AnySource | None, stall_timeout: float | None, linger: bool
) -> None:
    """Raises:
    TypeError, ValueError: an argument of `open` is of a wrong type, or out of range.
    """
    if stall_timeout is not None:
        seconds("stall_timeout", stall_timeout, "a number of seconds, or None for no limit")
    if linger is not True:
        flag("linger", linger)
    if not (source is None or type(source) is str or isinstance(source, Offer)):
        check_source(source)


def _bytes(given: int | str | None, name: str) -> int | None:
    """A limit in bytes, from a number or a text such as `10GiB`.

    Raises:
        ValueError: it is no size.
        TypeError: it is neither a number nor a text.
    """
    what = "a number of bytes, a text such as '10GiB', or None for no limit"
    if isinstance(given, str):
        if not is_size(given):
            raise ValueError(f"{name} is {what}, not {given!r:.200}")
        return size(given)
    return optional(whole, name, given, what)


def _tell(told: Callable[[Progress], None], progress: Progress) -> None:
    told(progress)


def _inside(folder: str, name: str) -> str:
    """The path of the file of that name in the folder.

    Raises:
        ValueError: the name is empty, absolute, or leads out of the folder.
    """
    parts = text("the name of a file", name, "a text such as 'a/b.bin'").split("/")
    if os.path.isabs(name) or any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file in a folder, such as 'a.bin' or 'a/b.bin'")
    return os.path.join(folder, *parts)
