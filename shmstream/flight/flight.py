"""A flight: one download in progress of one key on this host; this process leads it or follows.

`Flight.join` is what every process calls, as often as it takes to have a reader:

    1 the blob is complete: open it
    2 there is a stream of that name: follow it; has its writer died? try to succeed it, and follow
      in any case, for either we lead now or somebody else does
    3 claim the name, which only one can; look again whether the blob is complete (its flight may
      have ended between 1 and 3); else lead, and follow ourselves

    this process                     another one, which leads
    1 looks in the store: not there
                                     commits: moves the file, stores COMMITTED, removes the name
    2 looks for a stream: none
    3 claims the name, looks again: there it is. Nothing was downloaded twice, nothing failed

                                     claims the name, publishes a little, is killed
    3 cannot claim what can be succeeded: goes to 2, and does that

A thread that has the time may do it itself: `lead`, where there is no flight, and `run` what comes
of it; `follow`, where there is one. Then there is no other thread, and who leads needs no reader.

Reading then goes on until the reader finds its writer dead; it joins anew, at the same position.
All that notice succeed by turns: the kernel gives the lock to one, the others find it taken and
follow. An aborted stream is no flight: whoever asks after that begins afresh.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum

from shmstream.errors import (
    BlobAborted,
    BlobNotFound,
    DamagedBlob,
    DamagedPartial,
    ShmstreamError,
    StreamExists,
    StreamNotFound,
    TooManyFlights,
    WriterDied,
)
from shmstream.events import Event, EventKind
from shmstream.flight.leader import Leader
from shmstream.sources.base import Description, Source
from shmstream.sources.retries import Retries
from shmstream.storage.eviction import Upkeep
from shmstream.storage.layout import Layout, Place
from shmstream.storage.permits import take_permit
from shmstream.storage.record import Record
from shmstream.stream import segment
from shmstream.stream.claims import is_read, reap
from shmstream.stream.control_block import State
from shmstream.stream.digest import digest_of
from shmstream.stream.reader import InFlightCopier
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.system.locks import KernelLock

_MOMENT = 0.05  # s; longer than another process needs between taking a permit and its stream
_PATIENCE = 60.0  # s; how long somebody may hold a name and bring nothing that we see
_SUCCESSION = 1.0  # s; how long a reader without a source waits for somebody to succeed

_log = logging.getLogger("shmstream")

Reader = io.FileIO | InFlightCopier


class Role(StrEnum):
    """What a process is to a blob."""

    STORED = "stored"
    LEADS = "leads"
    FOLLOWS = "follows"


@dataclass(frozen=True)
class Policy:
    """How flights of a store are led; see `Store`."""

    durable: bool
    verify: bool
    retries: Retries
    chunk_size: int
    max_subscribers: int
    max_flights: int | None
    pacing: tuple[int, float]
    upkeep: Upkeep
    tell: Callable[[Event], None]


class Flight:
    """One process's part in bringing the blob of one key."""

    def __init__(
        self,
        layout: Layout,
        place: Place,
        sources: Callable[[], Sequence[Source]],
        policy: Policy,
        *,
        stall_timeout: float | None,
        lingers: bool,
    ) -> None:
        """`sources` is called once it is sure that they are needed."""
        self.place = place
        self.role = Role.STORED
        self._layout = layout
        self._sources = sources
        self._policy = policy
        self.stall_timeout = stall_timeout
        self._lingers = lingers
        self._leader: Leader | None = None

    def join(self) -> Reader:
        """The blob to read, complete or in flight, from its beginning. Blocks for no source.

        Raises:
            BlobNotFound: there is neither, and no source to get it from.
            DamagedBlob: a complete one was to be verified and is wrong, and there is no source.
            StreamExists: somebody has held its name or its partial file for a minute, and there is
                neither a stream to follow, nor does the file grow.
            TooManyFlights: the store's limit is reached, and this is not one of those in progress.
            CannotStart: there is no room for a flight, see its kinds.
        """
        began = time.monotonic()
        patience = 0.0
        size = -1
        while True:
            if (stored := self._stored()) is not None:
                self.role = Role.STORED
                return stored
            if (copier := self._follow(patience)) is not None:
                return copier
            try:
                copier = self._lead()
            except TooManyFlights:  # another process may have the last permit for this very blob
                if (copier := self._follow(_MOMENT)) is None:
                    raise
            except StreamExists:
                # Perhaps it leads where we cannot attach, in a container with another /dev/shm.
                if size != (size := self._layout.size_of(self.place.partial)):
                    began = time.monotonic()
                elif time.monotonic() - began > _PATIENCE:
                    raise
                patience = min(patience + 0.01, 0.5)
                continue
            if copier is not None:
                return copier

    def lead(self) -> Leader | None:
        """Begin the flight, to be `run` at once; None if there is one, or the blob, or no way.

        Raises:
            BlobNotFound, CannotStart: as `join`.
        """
        if not self._lingers or os.path.lexists(self.place.path) or self._is_in_flight():
            return None
        try:
            self._leader = self._begin()
        except (StreamExists, TooManyFlights):
            return None
        if self._leader is not None:
            self.role = Role.LEADS
        return self._leader

    def follow(self) -> InFlightCopier | None:
        """A reader of the flight that somebody alive leads; None if there is none. Never waits.

        It takes its slot when it first waits.
        """
        copier = self._attach(0, subscribes_late=True)
        if copier is not None and copier.is_orphaned:
            copier.close()
            return None
        if copier is not None:
            self.role = Role.FOLLOWS
        return copier

    def _is_in_flight(self) -> bool:
        return os.path.lexists(segment.path_of(self.place.stream))

    def _stored(self) -> io.FileIO | None:
        """The complete blob."""
        stored = self._layout.open(self.place)
        if stored is None:
            return None
        fd, _ = stored
        with ExitStack() as undo:
            file = undo.enter_context(io.FileIO(fd, "rb"))
            if self._policy.verify and not self._is_right(fd):
                return None
            undo.pop_all()
        return file

    def _is_right(self, fd: int) -> bool:
        """Whether the complete blob has its digest. One that has not makes way for another."""
        digest = self.place.digest
        if not self.place.is_given:
            record = Record.read(self.place.record)
            if record is None or record.digest is None:
                return True  # nobody can know
            digest = record.digest
        got = digest_of(fd, self.place.algorithm)
        if got == digest:
            return True
        error = DamagedBlob(self.place.key, self.place.path, f"its digest is {got}")
        if not self._sources():
            raise error
        _log.error("%s; downloading it anew", str(error))
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.place.path), os.fstat(fd)):
                os.unlink(self.place.path)
        return False

    def _follow(self, patience: float) -> InFlightCopier | None:
        """As `_attach`; and if nobody leads, we try to."""
        copier = self._attach(patience)
        if copier is None:
            return None
        try:
            if copier.is_orphaned:
                self._succeed(copier)
        except BaseException:
            copier.close()
            raise
        if self.role != Role.LEADS:
            self.role = Role.FOLLOWS
        return copier

    def _attach(self, patience: float, *, subscribes_late: bool = False) -> InFlightCopier | None:
        """A reader of the stream that is there; None if there is none that anybody should read."""
        if not patience and not self._is_in_flight():
            return None
        try:
            copier = InFlightCopier.attach(
                self.place.stream,
                timeout=patience,
                stall_timeout=self.stall_timeout,
                subscribes_late=subscribes_late,
            )
        except (StreamNotFound, WriterDied, BlobAborted, DamagedPartial):
            return None
        if copier.state == State.ABORTED:
            copier.close()
            return None
        return copier

    def _succeed(self, copier: InFlightCopier) -> None:
        """Lead the flight of `copier`, whose leader died, if nobody is faster.

        Raises:
            BlobNotFound: there is no source here, and nobody else succeeds.
        """
        sources = self._sources()
        if not sources:
            deadline = time.monotonic() + _SUCCESSION
            while copier.is_orphaned:
                if time.monotonic() > deadline:
                    raise BlobNotFound(self.place.key, self._layout.folder)
                time.sleep(0.01)
            return
        try:
            streamer = ResumableStreamer.succeed(
                self.place.stream,
                durable=self._policy.durable,
                publish_bytes=self._policy.pacing[0],
                publish_interval=self._policy.pacing[1],
            )
        except (StreamExists, StreamNotFound):
            return  # others lead; or it has ended: its readers will see
        _log.warning("%s: took over at %d bytes", self.place.key, streamer.appended)
        self._policy.tell(Event(EventKind.TOOK_OVER, self.place.key, streamer.appended))
        held = self._take_permit()  # its readers wait: with one or without
        leader = self._leader_of(streamer, sources, held)
        try:
            leader.start()
        except BaseException:
            leader.discard()
            raise
        self.role, self._leader = Role.LEADS, leader

    def _lead(self) -> InFlightCopier | None:
        """Begin the flight and follow it; None if the blob is complete by now.

        Raises:
            As `_begin`.
        """
        leader = self._begin()
        if leader is None:
            return None
        with ExitStack() as undo:
            undo.callback(leader.discard)
            copier = InFlightCopier.attach(
                self.place.stream, timeout=0, stall_timeout=self.stall_timeout
            )
            undo.callback(copier.close)
            leader.start()
            undo.pop_all()
        self.role, self._leader = Role.LEADS, leader
        return copier

    def _begin(self) -> Leader | None:
        """Begin the flight; None if the blob is complete by now.

        Raises:
            BlobNotFound: there is no source.
            StreamExists: somebody else is at it.
            TooManyFlights: all permits are taken.
        """
        sources = self._sources()
        if not sources:
            if os.path.lexists(self.place.path):  # it has come between two looks
                return None
            raise BlobNotFound(self.place.key, self._layout.folder)
        place, policy = self.place, self._policy
        with ExitStack() as undo:
            held = self._take_permit()
            if held is not None:
                undo.callback(held.close)
            elif policy.max_flights is not None:
                raise TooManyFlights(place.key, policy.max_flights)
            streamer = self._create()
            undo.callback(streamer.close)
            if os.path.lexists(place.path):  # the second look
                return None
            leader = self._leader_of(streamer, sources, held)
            undo.pop_all()
        _log.info("%s: leads", place.key)
        policy.tell(Event(EventKind.LED, place.key))
        return leader

    def _take_permit(self) -> KernelLock | None:
        """A permit for a flight; None if all are taken, or if the store has no limit."""
        limit = self._policy.max_flights
        return None if limit is None else take_permit(self._layout, limit)

    def _create(self) -> ResumableStreamer:
        place, policy = self.place, self._policy
        return ResumableStreamer.create(
            place.path,
            name=place.stream,
            digest=place.digest,
            chunk_size=policy.chunk_size,
            max_subscribers=policy.max_subscribers,
            durable=policy.durable,
            publish_bytes=policy.pacing[0],
            publish_interval=policy.pacing[1],
        )

    def _leader_of(
        self, streamer: ResumableStreamer, sources: Sequence[Source], held: KernelLock | None
    ) -> Leader:
        return Leader(
            streamer,
            self._layout,
            self.place,
            sources,
            retries=self._policy.retries,
            lingers=self._lingers,
            upkeep=self._policy.upkeep,
            tell=self._policy.tell,
            held=held,
        )

    def metadata(self, reader: Reader) -> Description:
        """What the source said of the bytes that `reader` reads, as far as that is still known."""
        if isinstance(reader, InFlightCopier):
            return Description.from_text(reader.metadata)
        return self._layout.metadata(self.place, reader.fileno())

    def finish(self) -> None:
        """If we lead, wait until the leader has cleared up after the end of the stream."""
        if self._leader is not None:
            self._leader.join()

    def leave(self) -> None:
        """After a reader has left, or joined anew: remove what a dead flight may have left."""
        if self._leader is not None and self._leader.is_alive:
            return  # it clears up itself
        with suppress(ShmstreamError, OSError):
            reap(self.place.stream, is_read)
