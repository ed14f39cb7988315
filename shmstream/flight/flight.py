"""`Flight`: the part of this process in the one download of a key on this host.

Every process calls `Flight.join`. It repeats these steps until it has a reader, or an error:

    1 if the blob is complete, open it
    2 if there is a stream of that name and its writer lives, follow it. Otherwise, if a live
      process writes the partial file, that process has another /dev/shm: follow the file
      (`file_follower`). Otherwise, if there is a stream, its writer has died: try to take over,
      then follow, because now either this process leads or another process does
    3 claim the name, which only one process can. The others go to 2: they have made nothing yet.
      Look again whether the blob is complete, because its flight may have ended between 1 and 3;
      if not, make the sources, lead, and follow the own stream

    this process                     another process, which leads
    1 looks in the store: no blob
                                     commits: moves the file, stores COMMITTED, removes the name
    2 looks for a stream: none
    3 claims the name, looks again: the blob is there. Nothing was downloaded twice, nothing failed

If the other process is killed:

    this process                     another process
                                     claims the name, publishes some bytes, is killed
    3 cannot claim the name, because a stream without a leader has it: goes to 2, and takes over

If a third process has committed:

    this process                     another process
                                     claims the name, looks again: the blob is there
    2 attaches to that stream
                                     hands over, because this process reads
    2 finds no leader, takes over a stream without a byte, and looks again, too

A thread that has the time may lead by itself: if there is no flight, it calls `lead` and runs the
`Leader` that it gets; if there is one, it calls `follow`. Then no other thread is started, and a
leader needs no reader. A caller that wants the whole blob, and no byte before its end, calls
`bring`: it waits for the leader's thread, and takes no slot and no doorbell for that.

Reading goes on until the reader finds its writer dead. Then the reader joins anew, at the same
position. All readers notice the death at the same moment, and one is enough to take over. So each
lets the first reader go first (`InFlightCopier.await_successor`), and reads on in the same stream
if that reader has taken over. If it has not in time, all try: the kernel gives the lock to one of
them, and the others find it taken and follow. An aborted stream is no flight: the next `join`
begins a new one. If a producer (`producer`) dies, its stream is no flight either: no other process
has the rest of the bytes, so no process takes over. A leader whose sources have failed may hand
over to a reader with other sources (`last_words`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from shmstream.errors import (
    BlobAborted,
    BlobNotFound,
    DamagedBlob,
    DamagedPartial,
    DigestMismatch,
    Explained,
    SizeMismatch,
    SourceFailed,
    StoreUnusable,
    StreamClosed,
    StreamExists,
    StreamNotFound,
    TooManyFlights,
    WriterDied,
    is_for_want_of_room,
)
from shmstream.events import Event, EventKind
from shmstream.flight import offers
from shmstream.flight.across import Across
from shmstream.flight.beside import Beside
from shmstream.flight.file_follower import FileFollower
from shmstream.flight.guarded import GuardedCopier, Unproved, attach
from shmstream.flight.last_words import LastWords
from shmstream.flight.leader import Leader
from shmstream.flight.naming import name_key, naming
from shmstream.flight.offers import Offer
from shmstream.flight.pass_through import OwnBytes
from shmstream.flight.stored_file import StoredFile
from shmstream.sources.base import Description, Source
from shmstream.sources.retries import Retries
from shmstream.sources.select import fingerprint
from shmstream.storage.eviction import Upkeep
from shmstream.storage.folder import trouble
from shmstream.storage.layout import Layout, Place
from shmstream.storage.permits import take_permit
from shmstream.storage.record import Record
from shmstream.stream import segment
from shmstream.stream.claims import reap_unread
from shmstream.stream.control_block import TERMINAL, State
from shmstream.stream.described_writer import DescribedStreamer
from shmstream.stream.digest import digest_of
from shmstream.stream.reader import InFlightCopier
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.stream.stream import Stream, writer_of
from shmstream.system.files import is_hollow
from shmstream.system.locks import KernelLock
from shmstream.system.process import Identity

_MOST_ANEW = 8  # flights, one after the other, that one reader begins or follows: see `leader`
_MOMENT = 0.05  # s; longer than a process needs between taking a permit and creating its stream
_PATIENCE = 60.0  # s; how long a process may hold a name without making the stream
FIRST_LOOK, LAST_LOOK = 0.005, 0.1  # s; from look to look for a flight that has not begun
SUCCESSION = 1.0  # s; how long a reader without a source waits until another process takes over
_HOPE = 10.0  # s; the same if a live process that has a source reads the stream: it may be slow
_TURN = 0.02  # s; how long a reader waits for the reader that may take over first

_log = logging.getLogger("shmstream")

S = TypeVar("S", bound=DescribedStreamer)
Reader = StoredFile | InFlightCopier | FileFollower | Beside


class Role(StrEnum):
    """The part of this process: it found the blob stored, leads its flight, or follows."""

    STORED = "stored"
    LEADS = "leads"
    FOLLOWS = "follows"


@dataclass(frozen=True)
class Policy:
    """How the flights of a store are led; see the arguments of `Store`."""

    durable: bool
    verify: bool
    retries: Retries
    chunk_size: int
    max_subscribers: int
    max_flights: int | None
    pacing: tuple[int, float]
    upkeep: Upkeep
    tell: Callable[[Event], None]
    across: Callable[[Place], Across | None] | None = None
    beside: Callable[[Place], Across | None] | None = None
    """The same, for a reader that has a download of its own."""
    connections: int | None = None
    hash_named: bool = True

    def begin(self, kind: type[S], layout: Layout, place: Place) -> S:
        """A new stream of that kind for a blob.

        Raises:
            As `BlobStreamer.create`.
        """
        layout.make_shelf(place)
        streamer = kind.create(
            place.path,
            name=place.stream,
            digest=place.digest,
            chunk_size=self.chunk_size,
            max_subscribers=self.max_subscribers,
            durable=self.durable,
            publish_bytes=self.pacing[0],
            publish_interval=self.pacing[1],
        )
        if not self.hash_named:
            streamer.leave_unhashed()
        return streamer


class Flight:
    """The part of this process in the flight of one key."""

    def __init__(
        self,
        layout: Layout,
        place: Place,
        sources: Offer,
        policy: Policy,
        *,
        stall_timeout: float | None,
        lingers: bool,
        wait_for: float = 0.0,
        ahead: bool = False,
    ) -> None:
        """The sources are made only when a source is needed.

        The first `join` waits up to `wait_for` seconds until another process begins the flight.
        `ahead`: what is read goes to another host; see `InFlightCopier.attach`.
        """
        self.place: Place = place
        self.role: Role = Role.STORED
        self._layout = layout
        self.sources = sources
        self._policy = policy
        self.stall_timeout = stall_timeout
        self._lingers = lingers
        self._wait_for = wait_for
        self._ahead = ahead
        self._leader: Leader | None = None
        self._better = ""  # the source with which the next flight is to begin: see `SourceFailed`
        self._anew = 0  # flights after one whose size was wrong, as it seems
        self.found_damage: bool = False
        """Whether another program changed the file of a dead leader, as the last `join` found."""
        self.seat: InFlightCopier | None = None
        """What reads the flight that `bring` led, if the blob is to come in another way."""
        self.before: Reader | None = None
        """The reader whose leader ended, for `join`, which returns this reader if its stream goes
        on; or if its flight was aborted meanwhile: then the reader raises why."""

    def _naming(self) -> Explained:
        """Have errors inside name the key; and an error of the system say what is lacking."""
        return Explained(self._explain)

    def _explain(self, error: BaseException) -> None:
        """Have `error` name the key; raise the error that says what this machine lacks, if any."""
        name_key(error, self.place)
        if not isinstance(error, OSError | RuntimeError | MemoryError):
            return
        if (named := trouble(error, self.place.key, self._layout.folder)) is not None:
            raise named from error

    def join(self) -> Reader:
        """A reader of the blob, complete or in flight, from its beginning. Waits for no source.

        The first call may wait for another process to begin the flight.

        Raises:
            BlobNotFound: the blob is not here and not in flight, and there is no source.
            DamagedBlob: `verify` is set, the complete blob is wrong, and there is no source.
            StreamExists: another process has held the name for a minute without making the stream.
            TooManyFlights: the store's limit is reached, and this flight is not in progress.
            CannotStart, StoreUnusable: a flight cannot begin; see the subclasses of the first.
        """
        self._forget_ended_leader()
        self.found_damage = False
        with self._naming():
            is_ours = not self._better or offers.has(self.place.asked, self._better)
            reader = self._go_on() or (self._join() if is_ours else self._join_another())
        self._better = ""
        return reader

    def _join_another(self) -> Reader:
        """As `_join`; another process has the source with which to begin.

        Raises:
            BlobNotFound: it has not begun in time.
        """
        self._wait_for = SUCCESSION
        if (found := self._wait_for_another_to_begin()) is None:
            raise BlobNotFound(self.place.key, self._layout.folder, SUCCESSION)
        return found

    def _join(self) -> Reader:
        waited = self._wait_for
        if (found := self._wait_for_another_to_begin()) is not None:
            return found
        began = time.monotonic()
        patience = 0.0
        while True:
            if (reader := self._find(patience)) is not None:
                return reader
            try:
                reader = self._lead()
            except BlobNotFound as error:
                reader = self._find_what_begins(error, waited)
            except TooManyFlights:  # another process may be beginning this very flight
                if (reader := self._follow(_MOMENT)) is None:
                    raise
            except StreamExists as error:
                if time.monotonic() - began > _PATIENCE:
                    error.writer = error.writer or writer_of(self.place.stream)
                    raise
                time.sleep(patience)  # a stream may stay that is neither to be followed nor begun
                patience = min(patience + 0.01, 0.5)
                continue
            if reader is not None:
                return reader

    def _go_on(self) -> Reader | None:
        """The reader whose leader died, if its stream goes on: with another leader, or this one.

        A reader of the partial file instead, if the leader is in another container. None if the
        stream has ended, or no process goes on with it.
        """
        copier = self.before
        if not isinstance(copier, InFlightCopier) or self._has_it():
            return None
        copier.await_successor(_TURN)
        if copier.state in TERMINAL:
            return None
        copier.stall_timeout = self.stall_timeout
        reader = self._lead_or_follow(copier)
        if reader is copier and (copier.is_orphaned or copier.state in TERMINAL):
            return None
        return reader

    def _find(self, patience: float) -> Reader | None:
        """A reader of the blob if it is complete or in flight."""
        if (stored := self._stored()) is not None:
            if not self._has_brought_it:
                self.role = Role.STORED
            return stored
        offers.add(self.place.asked, self.sources)
        return self._follow(patience) or self._follow_file() or _if_aborted(self.before)

    @property
    def _has_brought_it(self) -> bool:
        """Whether this process has led the flight to its end, perhaps before it had a reader."""
        leader = self._leader if self.role is Role.LEADS else None
        return leader is not None and leader.streamer.state == State.COMMITTED

    def _wait_for_another_to_begin(self) -> Reader | None:
        """A reader of the blob as soon as another process has begun it; None if none has in time.

        No process rings before there is a stream, so this looks, more and more rarely.
        """
        until, self._wait_for = time.monotonic() + self._wait_for, 0.0
        pause = FIRST_LOOK
        while (left := until - time.monotonic()) > 0:
            try:
                if (reader := self._find(0.0)) is not None:
                    return reader
            except BlobNotFound:  # its leader died, and no other process has gone on with it
                pass
            time.sleep(min(pause, left))
            pause = min(pause * 1.2, LAST_LOOK)
        return None

    def _find_what_begins(self, error: BlobNotFound, waited: float) -> Reader:
        """A reader of the flight that another process begins just now.

        That process has claimed the name, and is making the stream, as it was when `_find` looked:

            this process, without a source      a process that begins the flight
                                                claims the name
            1 looks: no stream that is made
                                                makes the stream
            2 waits while one is being made
            3 looks again

        Raises:
            BlobNotFound: `error`, if no process begins it.
        """
        error.waited = waited
        if not self._is_in_flight():
            raise error
        with suppress(StreamNotFound, WriterDied):
            Stream.attach(self.place.stream, SUCCESSION, begun=True).close()
        if (reader := self._find(0.0)) is None:
            raise error
        return reader

    def _forget_ended_leader(self) -> None:
        if self._leader is not None and not self._leader.is_alive:
            self._leader, self.role = None, Role.FOLLOWS

    def lead(self) -> Leader | None:
        """Begin the flight; the caller runs the leader at once. None if `join` is needed instead.

        That is so if there is a flight or a complete blob, if no permit is free, or if the flight
        is to end when its last reader leaves.

        Raises:
            BlobNotFound, CannotStart, StoreUnusable: as `join`.
        """
        if not self._lingers or self._has_it() or self._is_in_flight():
            return None
        offers.add(self.place.asked, self.sources)
        try:
            with self._naming():
                self._leader = self._begin()
        except (StreamExists, TooManyFlights):
            return None
        if self._leader is not None:
            self.role = Role.LEADS
            self._leader.takes_a_seat = True
        return self._leader

    def bring(self) -> bool:
        """Have the blob in the store: look for it, or lead its flight and wait for the end.

        False if only a reader can tell when the blob is here, and the caller has to read the `seat`
        or else to `join`: another process leads, now or after this process has handed over, there
        is no source, or no permit is free.

        Raises:
            As `join`, and as reading a `Blob`.
        """
        with ExitStack() as leaving:
            leaving.callback(self.withdraw)
            if self._is_stored() or self._lead_to_the_end():
                return True
            leaving.pop_all()
        return False

    def _is_stored(self) -> bool:
        with self._naming():
            stored = self._stored()
        if stored is not None:
            stored.close()
        return stored is not None

    def _lead_to_the_end(self) -> bool:
        try:
            leader = self.lead()
        except BlobNotFound:  # a process with another /dev/shm may bring it
            return False
        if leader is None:
            return False
        with self._naming(), ExitStack() as undo:
            undo.callback(leader.discard)
            leader.start()
            undo.pop_all()
        try:
            with naming(self.place):
                leader.join_stream()
        except BaseException:  # of a signal handler: the flight goes on, and nobody reads it here
            leader.takes_a_seat = False
            if leader.seat is not None:
                leader.seat.close()
            raise
        if leader.streamer.state == State.COMMITTED:
            return True
        self.seat = leader.seat
        if self.seat is None:
            with naming(self.place):
                raise leader.streamer.error or leader.failure or self._handed_over()
        return False

    def _handed_over(self) -> StreamClosed:
        return StreamClosed(self.place.key, "its flight was handed over: this process ends")

    def follow(self) -> InFlightCopier | None:
        """A reader of the flight, if a live process leads it; else None. Never waits.

        The reader takes its slot when it first waits.
        """
        offers.add(self.place.asked, self.sources)
        with self._naming():
            copier = self._attach(0, subscribes_late=True)
        if copier is not None and copier.is_orphaned:
            copier.close()
            return None
        if copier is not None:
            self._now_follows()
        return copier

    def _now_follows(self) -> None:
        self.role = Role.FOLLOWS
        self.sources.get_ready()

    def _is_in_flight(self) -> bool:
        return os.path.lexists(segment.path_of(self.place.stream))

    def _stored(self) -> StoredFile | None:
        """The complete blob, opened; None if there is none, or if it is wrong and was removed."""
        stored = self._layout.open(self.place)
        if stored is None:
            return None
        fd, _ = stored
        with ExitStack() as undo:
            file = undo.enter_context(StoredFile(fd))
            if self._policy.verify and not self._is_right(fd):
                return None
            if self.place.expects and not self._is_asked_for(fd):
                return None
            undo.pop_all()
        return file

    def _has_it(self) -> bool:
        """Whether there is a complete blob, and it is the one that was asked for."""
        place = self.place
        if not (place.is_named and place.expects):
            return os.path.lexists(place.path)
        if (stored := self._layout.open(place)) is None:
            return False
        try:
            return self._layout.objection(place, stored[0]) is None
        finally:
            os.close(stored[0])

    def _is_asked_for(self, fd: int) -> bool:
        """Whether the complete blob has the digest and the size that were asked for.

        If not, it stays until a source has answered.

        Raises:
            SizeMismatch: it has the digest that is its key, so the size is wrong.
            DamagedBlob: it is another one, and there is no source.
        """
        place = self.place
        if (reason := self._layout.objection(place, fd)) is None:
            return True
        size = os.fstat(fd).st_size
        if not place.is_named and place.size is not None:
            raise SizeMismatch(place.key, size, reason, place.size, size)
        if not self.sources():
            raise DamagedBlob(place.key, place.path, reason)
        _log.warning("%s: %s; downloading it anew", place.key, reason)
        return False

    def _is_right(self, fd: int) -> bool:
        """Whether the complete blob has its digest. If not, and there is a source, remove it.

        Raises:
            DamagedBlob: it has another digest, and there is no source.
        """
        digest = self.place.digest
        if self.place.is_named:
            record = Record.read(self.place.record)
            if record is None or record.digest is None:
                return True  # its digest was never known
            digest = record.digest
        got = "not known, because it has large holes"
        if not is_hollow(fd):
            got = digest_of(fd, digest.partition(":")[0])
        if got == digest:
            return True
        error = DamagedBlob(self.place.key, self.place.path, f"its digest is {got}")
        if not self.sources():
            raise error
        _log.error("%s; downloading it anew", str(error))
        try:
            if os.path.samestat(os.stat(self.place.path), os.fstat(fd)):
                os.unlink(self.place.path)
        except FileNotFoundError:
            pass
        except OSError:  # it cannot be removed, as from a read-only disk
            raise error from None
        return False

    def _follow(self, patience: float) -> InFlightCopier | FileFollower | None:
        """As `_attach`; if the leader has died, try to succeed first."""
        copier = self._attach(patience)
        if copier is None:
            return None
        with ExitStack() as undo:
            undo.callback(copier.close)
            reader = self._lead_or_follow(copier)
            if reader is copier:
                undo.pop_all()
        if reader is None:
            self.leave()  # this may have been the last reader of a stream without a leader
        return reader

    def _lead_or_follow(self, copier: InFlightCopier) -> InFlightCopier | FileFollower | None:
        """`copier`, after this process has tried to succeed its leader if that has died.

        Or a reader of the file, if the leader is in another container. None if nobody can go on.
        """
        if copier.is_orphaned:
            follower = self._follow_file(copier)
            if follower is None and copier.is_orphaned and not copier.is_resumable:
                return None  # its producer has died
            if follower is None and not self._has_it():
                follower = self._succeed(copier)
            if follower is not None:
                return follower
            if copier.is_orphaned and self._has_it():
                return None  # it was complete before that stream was begun, or when its leader died
            if copier.is_orphaned and copier.was_written_to:
                self.found_damage = True
                return None  # nobody can go on with that file: a new flight has to begin
        if self.role != Role.LEADS:
            self._now_follows()
        return copier

    def _follow_file(self, orphan: InFlightCopier | None = None) -> FileFollower | None:
        """A reader of the partial file, if a live process without a stream here writes it.

        `orphan` reads the stream that is here, whose writer has died. A process of this container
        has a stream for as long as it writes the file:

            this process                     another process of this container
            1 looks for a stream: none,
              or its writer is dead
                                             claims the name, or succeeds; locks the file
            2 finds the file locked
            3 looks for a stream again:
              there is one, and it lives
        """
        follower = FileFollower.follow(self.place, self.stall_timeout)
        if follower is None:
            return None
        if self._is_in_flight() if orphan is None else orphan.has_successor:
            follower.close()
            return None
        _log.info("%s: follows its file: a process with another /dev/shm leads", self.place.key)
        self._now_follows()
        return follower

    def _attach(self, patience: float, *, subscribes_late: bool = False) -> InFlightCopier | None:
        """A reader of the stream; None if there is no stream, or if it has ended without our blob.

        Its leader may still be clearing up, which takes a moment.
        """
        if not patience and not self._is_in_flight():
            return None
        try:
            copier = attach(
                self.place,
                patience,
                stall_timeout=self.stall_timeout,
                subscribes_late=subscribes_late,
                sources=offers.crew(self.place.asked),
                ahead=self._ahead,
            )
        except (StreamNotFound, WriterDied, BlobAborted, DamagedPartial):
            return None
        is_unproved = isinstance(copier, GuardedCopier) and copier.is_unproved
        if is_unproved or copier.state == State.ABORTED:
            copier.close()
            return None
        return copier

    def _succeed(self, copier: InFlightCopier) -> FileFollower | None:
        """Lead the flight of `copier`, whose leader died, unless another process is faster.

        If this process has no source to try, it waits for another one, and returns a reader of the
        file if that process is in another container. If no other process succeeds, it ends the
        flight with the last words of its leader.

        Raises:
            BlobNotFound: this process has no source, no other process succeeds, and the leader left
                no last words.
        """
        if not self._untried(copier.last_words):
            must_end, follower = self._wait_for_another(copier)
            if not must_end:
                return follower
        quiet_for = copier.quiet_for
        try:
            streamer = ResumableStreamer.succeed(
                self.place.stream,
                durable=self._policy.durable,
                publish_bytes=self._policy.pacing[0],
                publish_interval=self._policy.pacing[1],
            )
        except (StreamExists, StreamNotFound):
            return None  # another process leads, or the stream has ended: the copier will see it
        with ExitStack() as undo:
            undo.callback(streamer.close)  # another process may be able to lead
            if not self._policy.hash_named:
                streamer.leave_unhashed()
            if streamer.state == State.OPENING and self._has_it():  # the second look of its leader
                return None
            words = LastWords.from_text(streamer.last_words)
            if not (sources := self._untried(streamer.last_words)):
                self._end(streamer, words)
                return None
            permit = self._take_permit()  # without a permit, too: the readers of the flight wait
            if permit is not None:
                undo.callback(permit.close)
            leader = self._leader_of(streamer, sources, permit, words)
            undo.callback(leader.discard)
            streamer.forget_last_words()
            _log.warning("%s: took over at %d bytes", self.place.key, streamer.appended)
            self._policy.tell(
                Event(EventKind.TOOK_OVER, self.place.key, streamer.appended, seconds=quiet_for)
            )
            leader.start()
            undo.pop_all()
        self.role, self._leader = Role.LEADS, leader
        return None

    def _untried(self, last_words: bytes) -> Sequence[Source]:
        """The sources with which this process can go on after a leader with these last words."""
        words = LastWords.from_text(last_words)
        if words is None:
            return self.sources()
        return offers.untried(self.place.asked, words.tried)

    def _wait_for_another(self, copier: InFlightCopier) -> tuple[bool, FileFollower | None]:
        """Wait for another process to succeed. Returns two things.

        The first: whether to end the flight, because no process succeeds and there are last words.
        The second: a reader of the file, if a process in another container leads.

        Raises:
            BlobNotFound: no process succeeds, and there are no last words.
        """
        began, here = time.monotonic(), Identity.mine()
        while not copier.has_successor and copier.is_orphaned:
            words = LastWords.from_text(copier.last_words)
            crews = {0, offers.crew(self.place.asked)}
            if words is not None:
                self._offer_nothing(copier)
                crews |= words.crews
            readers = copier.subscribers()
            may_be = any(each.identity != here and each.sources not in crews for each in readers)
            if words is not None and not may_be:
                return True, None
            if time.monotonic() - began > (_HOPE if may_be else SUCCESSION):
                if words is None:
                    raise BlobNotFound(self.place.key, self._layout.folder)
                return True, None
            time.sleep(0.01)
            if (follower := self._follow_file(copier)) is not None:
                return False, follower
        self.offer(copier)
        return False, None

    def _offer_nothing(self, copier: InFlightCopier) -> None:
        """Let no other process wait for this one, which has no source that was not tried."""
        for reader in (copier, self.before):
            if isinstance(reader, InFlightCopier):
                reader.offer(0)

    def _end(self, streamer: ResumableStreamer, words: LastWords | None) -> None:
        """End the flight with the last words of its leader; without any, hand it over again."""
        if words is not None:  # else the caller closes it
            self._leader_of(streamer, [], None, words).end(words.error)

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
            copier = attach(self.place, 0, stall_timeout=self.stall_timeout)
            undo.callback(copier.close)
            leader.start()
            undo.pop_all()
        self.role, self._leader = Role.LEADS, leader
        return copier

    def _begin(self) -> Leader | None:
        """Begin the flight; None if the blob is complete by now.

        Raises:
            BlobNotFound: there is no source.
            StreamExists: another process holds the name or the partial file.
            TooManyFlights: no flight permit is free.
            StoreUnusable: the store is read-only.
        """
        if not (self.sources.are_given or self._better):
            if os.path.lexists(self.place.path):  # it was completed after the first look
                return None
            raise BlobNotFound(self.place.key, self._layout.folder)
        if self._layout.is_read_only:
            reason = "it is read-only: what is complete can be opened, and nothing can be kept"
            raise StoreUnusable(self._layout.folder, reason)
        try:
            return self._claim()
        except FileNotFoundError:  # somebody has removed a folder of the store
            self._layout.restore()
            place = self.place
            given = place.digest if place.is_given else None
            self.place = self._layout.place(place.key, given, place.size)
            return self._claim()

    def _sources_in_order(self) -> Sequence[Source]:
        """The sources of this reader; before them, that of any reader here with which to begin."""
        own = self.sources()
        if not self._better:
            return own
        here = offers.untried(self.place.asked, ())
        first = [each for each in here if fingerprint(each) == self._better]
        return first + [each for each in own if fingerprint(each) != self._better]

    def _claim(self) -> Leader | None:
        """As `_begin`: claim the name; make what a leader needs only if no process was faster."""
        place, policy = self.place, self._policy
        with ExitStack() as undo:
            permit = self._take_permit()
            if permit is not None:
                undo.callback(permit.close)
            elif policy.max_flights is not None:
                raise TooManyFlights(place.key, policy.max_flights)
            streamer = self._policy.begin(ResumableStreamer, self._layout, self.place)
            undo.callback(streamer.close)
            if self._has_it():  # the second look
                return None
            if not (sources := self._sources_in_order()):
                raise BlobNotFound(place.key, self._layout.folder)
            leader = self._leader_of(streamer, sources, permit)
            undo.callback(leader.discard)
            _log.info("%s: leads", place.key)
            policy.tell(Event(EventKind.LED, place.key))
            undo.pop_all()
        return leader

    def _take_permit(self) -> KernelLock | None:
        """One of the `max_flights` permits; None if none is free, or if there is no limit."""
        limit = self._policy.max_flights
        return None if limit is None else take_permit(self._layout, limit)

    def _leader_of(
        self,
        streamer: ResumableStreamer,
        sources: Sequence[Source],
        permit: KernelLock | None,
        words: LastWords | None = None,
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
            permit=permit,
            words=words,
            across=None if self._policy.across is None else self._policy.across(self.place),
            connections=self._policy.connections,
        )

    def offer(self, reader: Reader) -> None:
        """Tell the leader which sources the readers of this process have by now."""
        if isinstance(reader, InFlightCopier):
            reader.offer(offers.crew(self.place.asked))

    def go_past(self, old: Reader) -> StoredFile | Beside | None:
        """A reader that goes on where `old` is, without the leader; None if there can be none.

        The leader is another process, which makes no progress. It may wake up at any moment. Until
        `has_gone_past` is called, this process still follows it.

        Raises:
            ShmstreamError: no source of this process has the blob, or has other bytes by now.
        """
        if self.role != Role.FOLLOWS or isinstance(old, StoredFile | Beside):
            return None
        if self.place.is_named and self.place.expects:
            return None  # another blob may have the name: it is replaced by a leader alone
        if (stored := self._stored()) is not None:  # another process went past the leader
            return stored
        if not self.sources():
            return None
        policy, place = self._policy, self.place
        known = self.metadata(old)
        if known.size is None:
            known = replace(known, size=old.size)
        try:
            ended, sources = policy.upkeep.ended, self.sources()
            return Beside.begin(
                place, self._own_bytes, sources, known, old, ended, durable=policy.durable
            )
        except OSError as error:
            if is_for_want_of_room(error):  # then a server gives it to each client without keeping
                raise BlobAborted.because(error, place.key, old.published) from error
            _log.warning("%s: cannot go past its leader: %s", place.key, str(error))
            return None

    def has_gone_past(self, fresh: StoredFile | Beside) -> None:
        """What `go_past` gave has the bytes that were read, and is read from now on."""
        if isinstance(fresh, StoredFile):
            self.role = Role.STORED

    def _own_bytes(self, sources: Sequence[Source]) -> OwnBytes:
        place, policy = self.place, self._policy
        across = None if policy.beside is None else policy.beside(place)
        return OwnBytes(place, sources, policy.retries, policy.tell, across)

    def metadata(self, reader: Reader) -> Description:
        """What the source said about the bytes that `reader` reads, as far as it is still known."""
        if isinstance(reader, InFlightCopier):
            return Description.from_text(reader.metadata)
        if isinstance(reader, FileFollower | Beside):
            return reader.description
        return self._layout.metadata(self.place, reader.fileno())

    def may_join_after(self, error: BlobAborted | Unproved, reader: Reader) -> bool:
        """Whether the next flight may bring what that of `reader` did not: see `leader`.

        So it may if this one was of something else, or of another size than a source says.
        """
        if self._is_foreign(error):
            return True
        if self._anew >= _MOST_ANEW:
            return False
        is_another = isinstance(reader, GuardedCopier) and reader.is_of_another
        if is_another and self.sources.fingerprints:
            self._anew += 1
            return True
        if isinstance(error, SourceFailed) and error.better:
            self._anew += 1
            self._better = error.better
            return True
        return False

    def _is_foreign(self, error: BlobAborted | Unproved) -> bool:
        """Whether the flight has ended for somebody who asked for something else."""
        if isinstance(error, Unproved):
            return True
        if not self.place.is_named or self.role != Role.FOLLOWS:
            return False
        if isinstance(error, DigestMismatch):
            return error.expected != self.place.digest
        return isinstance(error, SizeMismatch) and error.expected != self.place.size

    def withdraw(self) -> None:
        """The reader is closed: its sources are no more for the flight's other readers."""
        offers.withdraw(self.sources)

    def begin_anew(self) -> None:
        """In a forked child: what leads, if this flight does, is the parent's."""
        self._leader, self.role = None, Role.STORED

    def finish(self) -> None:
        """If this process leads, wait until the leader has cleared up after the stream's end."""
        if self._leader is not None:
            self._leader.join()

    def leave(self) -> None:
        """After a reader has left, or joined anew: remove the stream if its leader is dead.

        This is also tried if this process leads. Then the lock of the leader keeps the stream; but
        a leader that hands over may have seen this reader, and so have left the stream to it.
        """
        reap_unread(self.place.stream)


def _if_aborted(reader: Reader | None) -> InFlightCopier | None:
    """The reader, if its stream was aborted; else None."""
    if isinstance(reader, InFlightCopier) and reader.state == State.ABORTED:
        return reader
    return None
