"""Leading a flight: one thread brings a blob from its sources into a stream, and never mixes.

    begin      keep the bytes of the partial file for which its journal vouches; ask a source for
               the rest; publish the bytes that were kept
    pump       append the bytes that come, or have the kernel move them; note a checkpoint in the
               journal every 16 MiB. Other connections may bring bytes ahead of their turn
               (`lanes`), which are appended when it is their turn
    fail       ask again, or ask the next source, at the same offset (sources/download.py); if there
               is none, ask those of other readers of this process (`offers`); hand over to a reader
               in another process that has another source (`last_words`); or abort with the last
               words of each source, which every reader gets
    commit     verify the blob, move it to its name, tell the readers; remove the journal
    cancel     abort, because the partial file was removed (`cancelling`)
    close      when this process ends: hand over, so that a reader in another process goes on

A source that goes on must have the same bytes: see `Download`. Where it begins at 0 again, the
leader compares what comes with the partial file. Other bytes end the flight with `ContentChanged`;
the next call begins anew.

A source that gave a wrong blob (of another digest or size) is noted in the journal, and asked last
by each later flight of the key. If the blob is no longer than a chunk, nothing of it was published,
because the last chunk is withheld. So if there is another source, of the leader or of a reader,
such a blob is verified before its size is told, and the next source is asked at once.

A source may tell a wrong size, and then crawl or fall silent. Readers were told that size, so this
flight cannot become one of another size. If its sources have failed, and with a digest as key a
later source says that the blob has another size, one of the two is wrong, and only the digest can
tell which. Then the flight ends, and a new one begins with that later source:

    leader L                     reader F, which has source B    reader G, which has L's source A
    1 A tells a size, crawls
    2 asks B (as its own, or
      hands over to F): B
      tells another size
    3 notes A as wrong; aborts
      with B in the error
                                 4 sees B in the error: begins   4 sees B in the error; offers
                                   a new flight with B             no B: waits for a flight, 1 s
                                 5 compares what was read with   5 follows it, and compares, too
                                   the new bytes, and reads on

    F is killed before 4: G raises the error.

    B breaks, too, and A is asked for the rest: A tells another size, but was noted after B: the
    flight ends with the errors of both, and no other one begins.

If all bytes were here already, and only the size was wrong, the new flight asks no source. If more
bytes came than B says that there are, and they are many, they stay for a later call: nothing shows
that B is right.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain

from shmstream.errors import (
    BlobAborted,
    DigestMismatch,
    OutOfRoom,
    ShmstreamError,
    SizeMismatch,
    SourceError,
    SourceFailed,
    StreamClosed,
    escaped,
    is_refusal,
    names,
)
from shmstream.events import Event, EventKind
from shmstream.flight import offers
from shmstream.flight.across import Across
from shmstream.flight.cancelling import REASON, watch
from shmstream.flight.guarded import attach
from shmstream.flight.lanes import Lanes
from shmstream.flight.last_words import LastWords
from shmstream.flight.naming import told
from shmstream.flight.space import Space
from shmstream.sources.base import Description, Feed, KernelFeed, Source, name_hash
from shmstream.sources.download import Download
from shmstream.sources.retries import Retries
from shmstream.sources.select import fingerprint
from shmstream.storage.ahead import AheadFile
from shmstream.storage.eviction import Upkeep
from shmstream.storage.journal import WORTH_A_JOURNAL, Journal
from shmstream.storage.layout import Layout, Place
from shmstream.storage.origin import note_source
from shmstream.storage.record import Record
from shmstream.stream.control_block import TERMINAL, Block, State
from shmstream.stream.digest import digest_of
from shmstream.stream.reader import InFlightCopier
from shmstream.stream.resumable_writer import AT_ONCE, ResumableStreamer
from shmstream.stream.spelling import new_hash
from shmstream.system import greenlets, threads
from shmstream.system.locks import KernelLock
from shmstream.system.process import Identity, register
from shmstream.system.signals import interrupts
from shmstream.system.steps import all_of

_CHECKPOINT = 16 << 20  # bytes
_NOTES = 1 << 16  # bytes; space for record and journal
_LONELY = 1.0  # s; how long nobody may read before a flight that is not to linger is given up
_LOOK = 0.25  # s; from look to look whether the stream has ended before the thread that leads

_log = logging.getLogger("shmstream")


def _at_most(room: int, move: Callable[[int, int], int], fd: int, limit: int) -> int:
    return move(fd, min(limit, room))


class Leader:
    """Brings the blob of `place` into `streamer`, to its commit or abort. Owns the streamer."""

    failure: BaseException | None = None
    """Why it has ended without the blob, as this process knows it."""
    _fits: int | None = None  # a size that can be kept, as was just seen
    _is_whole = False  # whether all bytes are here, and only the size is wrong

    def __init__(
        self,
        streamer: ResumableStreamer,
        layout: Layout,
        place: Place,
        sources: Sequence[Source],
        *,
        retries: Retries,
        lingers: bool,
        upkeep: Upkeep,
        tell: Callable[[Event], None],
        permit: KernelLock | None = None,
        words: LastWords | None = None,
        across: Across | None = None,
        connections: int | None = None,
    ) -> None:
        """The caller then calls `start`, `run` or `discard`; each gives `permit` back in the end.

        `permit` is a flight permit, if the store limits its flights. `upkeep` makes room for the
        bytes that come, and is told when the flight has ended. With `lingers` False, the flight
        ends after 1 s without a reader. `words` are those of the leader before. `across` is what
        the flight is part of beyond this host. `connections`: how many the blob may come over, if
        its sources do not say that themselves.
        """
        self.streamer = streamer
        """The stream; only the leader changes it."""
        state = streamer.state
        self._layout = layout
        self._place = place
        # Of a name, the flight that is taken over may verify another digest than this place.
        self._digest, self._is_given = streamer.expected, ":" in streamer.expected
        self._algorithm = self._digest.partition(":")[0]
        self._journal = Journal(place.journal, self._algorithm)
        self._sources = sources
        self._across = across
        self._wrapped: dict[int, Source] = {}  # what `across` has wrapped, by the wrapper's id
        self._download = Download(
            place.key,
            streamer.name,
            self._across_hosts(self._journal.wrong_last(sources)),
            retries,
            is_given=self._is_given,
            digest=self._digest,
            size=place.size if state == State.OPENING else None,
            compares=True,
            tell=tell,
            end="it was handed over",
            others=self._others_here,
            may_be_others=self._may_ask_another,
            is_wanted=self._is_wanted,
        )
        self._lanes = Lanes(
            place.key, self._download, streamer, self._ahead_file, connections, upkeep.max_bytes
        )
        self._has_given_way = False
        self._read_block(state)
        self._heed(words, state)
        self.takes_a_seat: bool = False
        """Whether to keep a reader of the stream after giving way, for a caller without one."""
        self.seat: InFlightCopier | None = None
        """That reader, which the caller closes."""
        self._upkeep = upkeep
        self._tell = tell
        self._lingers = lingers
        self._permit = permit
        self._noted = 0
        self._space = Space(streamer, upkeep, place.path)
        self._cancelled: BlobAborted | None = None
        self._over = threads.Flag()
        self._thread: threading.Thread | None = None
        streamer.vouch_by(self._vouch)
        streamer.warn_by(self._tell_across)  # a reader may begin another flight at once
        register(self)
        watch(self)

    def _read_block(self, state: State) -> None:
        """If this has succeeded another leader, know what that leader was told by its source.

        This is done first, because `_vouch` may be called at any moment.
        """
        streamer = self.streamer
        if state == State.STREAMING:
            known = Description.from_text(streamer.metadata)
            size = streamer.size if known.size is None else known.size
            self._download.known = replace(known, size=size)

    def _heed(self, words: LastWords | None, state: State) -> None:
        """Begin with what the leader before knew."""
        self._tried = {fingerprint(each) for each in self._sources}
        self._crews: frozenset[int] = frozenset()
        self._better = ""  # see `SourceFailed`
        self._described_by = ""  # the source that told the size, as a hash of its name
        self._sized_by: Source | None = None  # that source, if it is one of ours
        self._is_handed_over = words is not None
        self._is_first = state == State.OPENING  # nobody has told the size before
        if words is not None:
            self._tried |= words.tried
            self._crews, self._described_by = words.crews, words.first
            self._better = words.error.better if isinstance(words.error, SourceFailed) else ""

    def start(self) -> None:
        """Lead in another thread.

        Raises:
            RuntimeError: no thread can be started. The caller calls `discard`.
        """
        if not self._lingers:
            threads.Call(self._end_when_alone, "shmstream-alone").start()
        threads.Call(self.run, "shmstream-flight").start()

    def discard(self) -> None:
        """Close everything that the leader owns. Idempotent."""
        if self._over.is_set():
            return
        all_of(
            self._stop,
            *(() if self._permit is None else (self._permit.close,)),
            self.streamer.close,
            partial(self._upkeep.ended, self._place.path),
            self._over.set,
        )

    def close(self) -> None:
        """Stop, so that a reader in another process can succeed. The partial file stays.

        If the blob is complete, this waits up to 1 s for the leader's thread to clear up.
        Idempotent.
        """
        self._stop()
        self.streamer.close()
        if self.streamer.state in TERMINAL:
            self.join(1.0)

    def _stop(self) -> None:
        """Have the thread that leads fail soon; no connection writes any more."""
        try:
            self._download.stop()
        finally:
            self._lanes.stop()

    def _ahead_file(self) -> AheadFile:
        streamer = self.streamer
        return AheadFile(self._place.ahead, streamer.identity, self.metadata, self._digest)

    @property
    def is_over(self) -> bool:
        """Whether this has ended, and cleared up."""
        return self._over.is_set()

    @property
    def is_cut_off(self) -> bool:
        """Whether the partial file was removed or replaced."""
        return self.streamer.is_cut_off

    def cancel(self) -> None:
        """Give the blob up. From any thread."""
        streamer = self.streamer
        self._cancelled = BlobAborted(streamer.name, streamer.appended, REASON)
        try:
            streamer.abort(self._cancelled)
        finally:
            self._stop()

    def abandon(self) -> None:
        """In a forked child: the flight, and the thread that leads it, are the parent's."""
        self._over = threads.Flag()  # that thread may hold the old one
        self._over.set()

    @property
    def metadata(self) -> Description:
        """What the source says of the blob, from when its size or a byte is known."""
        return self._download.known

    @property
    def is_alive(self) -> bool:
        """Whether this leads a flight that is still going on, or still clears up after it."""
        return not (self._over.is_set() or self._has_given_way)

    def join(self, timeout: float | None = None) -> None:
        """Wait until `is_alive` is False, at most `timeout` seconds.

        In the thread that leads it returns at once.
        """
        if self._thread is not threading.current_thread():
            self._over.wait(timeout)

    def join_stream(self) -> None:
        """Wait until the stream has ended, as a reader of it does; after a commit, as `join`.

        While the source is silent, the stream may end before the thread that leads notices it:
        the flight is cancelled, this process closes all, or another program cuts the shared memory
        off.
        """
        while not self._over.wait(_LOOK):
            if self.streamer.has_ended:
                break
        if self.streamer.state == State.COMMITTED:
            self.join()

    # One flight, from its beginning to its end.

    def run(self) -> None:
        """Lead in this thread, until the blob is complete, given up, or handed over."""
        self._thread = threading.current_thread()
        place, streamer = self._place, self.streamer
        try:
            try:
                feed = self._begin()
                while feed is not None:
                    feed = self._pump(feed)
            finally:
                try:
                    self._download.close()
                finally:
                    self._lanes.stop()
            self._commit()
        except BaseException as error:
            self.failure = error
            if self._cancelled is not None:
                self._tell_across(self._cancelled)
                self._abort(self._cancelled)
            elif isinstance(error, StreamClosed) or interrupts(error):
                self._tell_across(error)
                _log.info("%s: handed over at %d bytes", place.key, streamer.appended)
                self._say(EventKind.HANDED_OVER, streamer.appended)
            elif not self._gives_way(error):
                # First: a node that reads from here asks why as soon as the flight has ended.
                self._tell_across(error)
                self._sit_down(error)
                self._abort(error)
            if interrupts(error):
                raise
        else:
            self._tell_across(None)
        finally:
            self.discard()

    def end(self, error: BaseException) -> None:
        """Abort the flight for the reason that an earlier leader had; close everything."""
        try:
            self.streamer.keeps = self._journal.is_begun or self._place.is_named
            self._abort(error)
        finally:
            self.discard()

    def _others_here(self) -> list[Source]:
        """The sources of other readers in this process that were not tried yet."""
        found = offers.untried(self._place.asked, self._tried)
        self._tried.update(fingerprint(each) for each in found)
        self._sources = [*self._sources, *found]
        return self._across_hosts(found)

    def _across_hosts(self, sources: Sequence[Source]) -> list[Source]:
        across = self._across
        if across is None:
            return list(sources)
        wrapped = [across.source(each) for each in sources]
        self._wrapped.update(zip(map(id, wrapped), sources, strict=True))
        return wrapped

    def _tell_across(self, error: BaseException | None) -> None:
        if self._across is not None:
            self._across.ended(error)

    def _is_wanted(self) -> bool:
        """Whether a source that is away is worth waiting for: there are readers without another."""
        has_readers = offers.has_readers(self._place.asked) or self.streamer.has_readers()
        return has_readers and not self._have_others_sources()

    def _known_crews(self) -> frozenset[int]:
        """Readers that offer just these sources have nothing new; the leader may be no reader."""
        return self._crews | {0, offers.crew(self._place.asked), offers.crew_of(self._tried)}

    def _have_others_sources(self) -> bool:
        """Whether a reader in another process has a source that was not asked."""
        if not (readers := self.streamer.readers()):
            return False
        here, crews = Identity.mine(), self._known_crews()
        return not all(each.identity == here or each.sources in crews for each in readers)

    def _may_ask_another(self) -> bool:
        """Whether another source is left, or a reader has other sources."""
        if self._download.has_another or offers.untried(self._place.asked, self._tried):
            return True
        try:
            return self._have_others_sources()
        except (ShmstreamError, OSError):  # the flight is ending
            return False

    def _gives_way(self, error: BaseException) -> bool:
        """Hand over if a reader in another process has other sources; whether it has."""
        if not isinstance(error, SourceFailed | OutOfRoom):
            return False
        streamer, crews = self.streamer, self._known_crews()
        if isinstance(error, OutOfRoom) and streamer.state != State.OPENING:
            return False  # readers were told its size; before that, another one may tell another
        if isinstance(error, SourceFailed):
            error.better = self._find_better()
        try:
            if self._is_whole or not self._have_others_sources():
                return False
            if self.takes_a_seat:
                self.seat = attach(self._place, 0)
            words = LastWords(error, frozenset(self._tried), crews, self._describer())
            text = words.to_text(Block.error.capacity)
            self._has_given_way = True  # first: then readers of this process join again
            streamer.give_way(text)
        except (ShmstreamError, OSError, ValueError) as trouble:
            self._has_given_way = False
            if self.seat is not None:
                self.seat.close()
                self.seat = None
            _log.debug("%s: cannot give way: %s", self._place.key, str(trouble))
            return False
        self._tell_across(StreamClosed(streamer.name, "it was handed over"))
        reason = f"handed over to a process with another source: {error.reason}"
        _log.warning("%s: %s", self._place.key, reason)
        self._say(EventKind.HANDED_OVER, streamer.appended)
        return True

    def _describer(self) -> str:
        """The source that told the size, as a hash of its name; empty if it is not known."""
        known = self._journal.first or self._described_by
        return known or (name_hash(self._download.source) if self._is_first else "")

    def _find_better(self) -> str:
        """The fingerprint of a source that says that the blob has another size; empty without one.

        A source that was noted as wrong after the one that told the size is not better.
        """
        if not self._is_given or (self._across is not None and self._across.used_peers):
            return ""
        rank = {each: number for number, each in enumerate(self._journal.wrong, 1)}
        most, have = rank.get(self._describer(), 0), self.streamer.appended
        for source, size in self._download.disagreed:
            if size == have:
                self._is_whole = self._is_whole or self._all_is_here()
            is_worth_it = size >= have or have <= _CHECKPOINT
            is_another = self._is_whole or not self._has_told_the_size(source)
            if is_worth_it and is_another and rank.get(name_hash(source), 0) <= most:
                self._better = fingerprint(self._wrapped.get(id(source), source))
                break
        return self._better

    def _has_told_the_size(self, source: Source) -> bool:
        """Whether it is the source that told the size of the flight; it tells another one now."""
        if self._sized_by is not None:
            return source is self._sized_by
        was_asked = not self._is_handed_over  # after last words only sources that were not asked
        return was_asked and name_hash(source) == self._describer()

    def _all_is_here(self) -> bool:
        """Whether the bytes that came are the whole blob; if so, the journal says that they are."""
        streamer = self.streamer
        known = replace(self.metadata, size=streamer.appended)
        begin = self._journal.begin
        try:
            with streamer.reading() as fd:
                if digest_of(fd, self._algorithm) != self._digest:
                    return False
            streamer.while_held(lambda: begin(known, streamer.appended, streamer.descriptor))
        except (ShmstreamError, OSError) as error:  # then they are asked for again
            _log.warning("%s: it is not known whether all is here: %s", self._place.key, str(error))
            return False
        streamer.keeps = True
        return True

    def _sit_down(self, error: BaseException) -> None:
        """Keep a reader of the stream, for a caller without one, if a new flight is to begin."""
        if self.takes_a_seat and isinstance(error, SourceFailed) and error.better:
            with suppress(ShmstreamError, OSError):  # then the caller raises the error
                self.seat = attach(self._place, 0)

    def _say(self, kind: EventKind, count: int = 0) -> None:
        self._tell(Event(kind, self._place.key, count))

    def _begin(self) -> Feed | None:
        """The feed of the bytes that are missing; None if all bytes are there already."""
        streamer, download = self.streamer, self._download
        if not self._is_first:  # succeeded: everything is in the block
            download.binds = True
            streamer.keeps = self._journal.is_begun or self._is_worth_a_journal()
            self._lanes.adopt(streamer.appended)
            return self._go_on()
        kept, known = self._trusted(), self._journal.metadata
        if kept and self._may_keep(kept):
            download.known = known
        else:
            kept = 0
        if kept and kept == known.size:
            feed = None
        else:
            feed = self._open(kept, self._lanes.adopt(kept) if kept else None)
            if kept and not self._is_same(feed, kept):
                kept = 0
                self._lanes.forget()
                is_whole = not feed.offset and feed.size is not None and feed.size == known.size
                if not is_whole:  # a part, or what may be one
                    download.close()
                    feed = self._open(0)
            self._sized_by = download.source
            self._described_by = name_hash(download.source)
            size = feed.size if feed.size is not None or not kept else known.size
            size = self._place.size if size is None else size
            download.known = Description(size, feed.validator, feed.media_type)
        self._announce(kept)
        download.binds = True
        return feed

    def _trusted(self) -> int:
        """How many bytes of the partial file its journal proves."""
        if not self._journal.vouches:
            return 0
        with self.streamer.reading() as fd:
            kept, there = self._journal.trusted(fd), os.fstat(fd).st_size
        if kept < there:
            _log.warning(
                "%s: uses %d of %d bytes that are here: nothing proves the others",
                self._place.key, kept, there,
            )  # fmt: skip
        return kept

    def _may_keep(self, kept: int) -> bool:
        """Whether the first `kept` bytes of the partial file may be of what was asked for."""
        asked, known = self._place.size, self._journal.metadata
        is_right_size = asked is None or (known.size in (None, asked) and kept <= asked)
        return is_right_size and (not self._place.is_named or known.validator is not None)

    def _open(self, kept: int, end: int | None = None) -> Feed:
        """A feed that begins at `kept`, or at 0 if that is all that can be had; see `open`.

        If another source may be asked, a source whose blob can never fit counts as failed.

        Raises:
            OutOfRoom: no other source has the blob.
        """
        misfit: OutOfRoom | None = None
        try:
            while True:
                feed, download = self._open_right(kept, end), self._download
                if feed.size is None:
                    return feed
                reason = self._upkeep.misfit(feed.size, self._place.path)
                if reason is None:
                    self._fits = feed.size
                    return feed
                if self._across is not None and self._across.is_lie(feed.size):
                    download.close()
                    continue
                if not self._may_ask_another():
                    return feed
                misfit = OutOfRoom(self.streamer.name, 0, reason)
                download.fail(download.error(reason, 0, retryable=False), kept)
        except SourceFailed as failed:
            if misfit is None:
                raise
            raise misfit from failed

    def _open_right(self, kept: int, end: int | None) -> Feed:
        """As `_open`; a whole blob of one chunk is verified first if there is another source."""
        download, most = self._download, self.streamer.chunk_size
        while True:
            feed = download.open(kept, end)
            if not self._is_given or feed.offset or (feed.size or 0) > most:
                return feed
            if kept <= most and not self._may_ask_another():  # else it may be a page
                return feed
            data = bytearray()
            try:
                while len(data) <= most and (piece := download.take(feed, len(data))) is not None:
                    data += piece
                    download.gauge(memoryview(piece).nbytes, len(data))
                if len(data) > most:
                    return replace(feed, data=chain([data], feed.data), by_kernel=None)
                if len(data) < (feed.size or 0):
                    raise download.error(f"it ended after {len(data)} bytes", kept)
                if (got := self._digest_of(data)) == self._digest:
                    return replace(feed, data=iter([data]), size=len(data), by_kernel=None)
                if not kept:  # else it may be a page, for want of ranges
                    self._blame(name_hash(download.source))
                reason = f"its digest is {got}, not {self._digest}"
                raise download.error(reason, kept, retryable=False)
            except SourceError as error:
                download.fail(error, kept)

    def _digest_of(self, data: bytes | bytearray) -> str:
        running = new_hash(self._algorithm)
        running.update(data)
        return f"{self._algorithm}:{running.hexdigest()}"

    def _blame_for(self, error: BaseException) -> None:
        """If a source gave a wrong blob, note which one.

        If several sources gave a part, it is the source of the first byte: then the next flight
        begins with another one.
        """
        is_resized = isinstance(error, SourceFailed) and bool(error.better)
        if len(self._sources) < 2 and not is_resized:
            return
        if self._across is not None and self._across.used_peers:
            return  # another node of the cluster may have given the wrong bytes
        current = name_hash(self._download.source)
        if isinstance(error, SizeMismatch):
            if self._is_given or self._place.size is not None:
                self._blame(current)
        elif not self._is_given:
            return
        elif isinstance(error, DigestMismatch) and self._lanes.helpers:
            for each in sorted(self._lanes.helpers):  # the next flight does without them
                self._blame(each)
        elif isinstance(error, DigestMismatch):
            self._blame(self._describer() or current)
        elif (is_resized or self._download.disagreed) and (first := self._describer()):
            self._blame(first)

    def _blame(self, source: str) -> None:
        """Note that a source gave a wrong blob; `source` is the hash of its name."""
        if self._journal.wrong[-1:] == [source]:
            return
        known = {name_hash(each): each.name for each in self._sources}
        name = known.get(source, "a source of an earlier process")
        _log.warning("%s: %s gave a wrong blob; it is asked last now", self._place.key, name)
        with suppress(OSError):  # then it is asked in its turn
            self.streamer.while_held(partial(self._journal.blame, source))

    def _is_same(self, feed: Feed, kept: int) -> bool:
        """Whether the feed goes on after the `kept` bytes, with the same content."""
        known = self.metadata
        return (
            feed.offset == kept
            and (not self._place.is_named or feed.validator == known.validator is not None)
            and (None in (feed.size, known.size) or feed.size == known.size)
        )

    def _announce(self, kept: int) -> None:
        """Tell all readers what the blob is, and publish the `kept` bytes."""
        streamer, metadata, place = self.streamer, self.metadata, self._place
        if metadata.size is not None and metadata.size != self._fits:
            self._space.require_fit(metadata.size)
        keeps = kept > 0 or self._is_worth_a_journal()
        if keeps:
            self._upkeep.make_room(_NOTES)
        streamer.cut(kept)  # first: from then on the journal vouches for what is left
        # Another journal is begun when there are bytes, which readers wait for.
        streamer.while_held(partial(self._begin_journal_with, kept))
        streamer.keeps = keeps
        if place.is_named and place.expects:
            with self._layout.replacing(place.path):
                self._layout.remove(place.path)  # it is not what was asked for: `Flight` has looked
                self._write_record(None)
        elif place.is_named:
            self._write_record(None)
        if place.size is not None:
            streamer.withhold()
        streamer.set_metadata(metadata.to_text(Block.metadata.capacity))
        if metadata.size is not None:
            streamer.set_size(metadata.size)
        streamer.resume()
        if kept:
            _log.info("%s: resumed at %d bytes", place.key, kept)
            self._say(EventKind.RESUMED, kept)

    def _begin_journal_with(self, kept: int) -> None:
        if kept:
            self._journal.begin(self.metadata, kept, self.streamer.descriptor)
        else:
            self._journal.forget()

    def _write_record(self, digest: str | None) -> None:
        record = Record(self._place.key, digest, self.metadata)
        record.write(self._place.record, durable=self.streamer.durable)

    def _is_worth_a_journal(self) -> bool:
        size = self.metadata.size
        return self._place.is_named or size is None or size > WORTH_A_JOURNAL

    def _pump(self, feed: Feed) -> Feed | None:
        """Append the bytes of `feed`; None after the last byte of the blob, else the next feed."""
        streamer, download = self.streamer, self._download
        if not streamer.appended:
            self._journal.first = name_hash(download.source)
        try:
            if streamer.size is None and feed.size is not None:
                self._space.require_fit(feed.size)
                streamer.set_size(feed.size)
                download.known = replace(download.known, size=feed.size)
            self._lanes.prepare(self._right_sources())
            self._lanes.own_begins(feed)
            if feed.by_kernel is not None and feed.offset == streamer.appended:
                is_left = self._receive(feed.by_kernel)
            else:
                is_left = self._append(feed)
            if is_left or (feed.end == streamer.appended != streamer.size):
                download.close()
                return self._go_on()
            if streamer.appended < (streamer.size or 0):
                if self._place.size is not None and len(self._sources) > 1:
                    self._blame(name_hash(download.source))  # it says that this is all
                raise self._short(feed)
        except SourceError as error:
            if (failure := self._lanes.own_failed(error)) is None:
                download.close()
            else:
                download.fail(failure, streamer.appended)
            return self._go_on()
        return None

    def _short(self, feed: Feed) -> SourceError:
        """The error of a source that has ended before the blob, by the size that was told."""
        download, have = self._download, self.streamer.appended
        if feed.size is None and self._is_given and self._all_is_here():
            self._is_whole = True
            download.disagreed.append((download.source, have))
            reason = (
                f"its {have} bytes are the whole blob; another source told {self.streamer.size}"
            )
            return download.error(reason, have, retryable=False)
        return download.short(have)

    def _go_on(self) -> Feed | None:
        """Append what came ahead of its turn; then the feed of what follows, or None at the end."""
        streamer = self.streamer
        end = self._lanes.take_over(self._take)
        if streamer.appended == streamer.size:
            return None
        return self._download.open(streamer.appended, end)

    def _take(self, data: memoryview) -> None:
        """Append bytes that came ahead of their turn."""
        self._space.take(len(data))
        self.streamer.append(data)
        self._keep_journal()
        greenlets.give_way()

    def _right_sources(self) -> list[Source]:
        """The sources that may be used at once: none that once gave a wrong blob."""
        if self._across is not None:
            return []
        current, wrong = self._download.source, self._journal.wrong
        return [each for each in self._sources if each is current or name_hash(each) not in wrong]

    def _receive(self, feed: KernelFeed) -> bool:
        """Have the kernel move all bytes of the feed to the file.

        Returns True if the bytes that follow come over other connections.
        """
        streamer = self.streamer
        try:
            while feed.wait(streamer.due_in(), streamer.publish_bytes):
                if not (room := self._lanes.room()):
                    streamer.pause()
                    return True
                self._space.take(AT_ONCE)
                count = streamer.receive(partial(_at_most, room, feed.move))
                self._download.count(count, streamer.appended)
                self._keep_journal()
        except SourceError:
            streamer.pause()
            raise
        self._download.check_going_on()  # a stop makes a feed end, too
        return False

    def _append(self, feed: Feed) -> bool:
        """Append the bytes of the feed that are new; see `_receive`."""
        for data in self._download.new(feed, self.streamer.appended, self):
            if data:
                if not self._lanes.room(len(data)):
                    return True
                self._take(data)
            else:
                greenlets.give_way()
        return False

    def is_same(self, data: memoryview, offset: int) -> bool:
        """Whether the partial file has `data` at `offset`."""
        return self.streamer.pread(len(data), offset) == data

    def _keep_journal(self) -> None:
        """Note in the journal what is here by now.

        Another thread may be closing the streamer just now. Then it is that thread's journal, and
        afterwards another process's:

            this thread                       the thread that closes (`_vouch`)
            1 writes a journal without seal
              beside the old one
                                              1 begins the journal, and seals it
            2 gives it its name: the seal is
              lost
        """
        if self.streamer.keeps and not self._journal.is_begun:
            self.streamer.while_held(self._begin_journal_once)
        self._note_checkpoint()

    def _vouch(self) -> None:
        """Begin the journal if there is none, and seal the file.

        The streamer calls this if it ends early, and keeps the file.
        """
        self._begin_journal_once()
        try:
            self._journal.seal(self.streamer.descriptor)
        except OSError as error:  # then less can be trusted
            _log.warning("%s: no seal: %s", self._place.key, str(error))

    def _begin_journal_once(self) -> None:
        if self.streamer.keeps and not self._journal.is_begun:
            self._begin_journal()

    def _commit(self) -> None:
        place, streamer = self._place, self.streamer
        streamer.commit()
        # From here on the blob is complete: nothing may end as an abort any more.
        name = self._download.source.name
        streamer.while_held(lambda: note_source(streamer.descriptor, name))
        try:
            if place.is_named:
                self._write_record(streamer.digest)
            self._journal.remove()
            self._remove_ahead()
        except OSError as error:  # `check` completes the record, and `gc` removes the journal
            _log.warning("%s: complete, but not all is noted: %s", place.key, str(error))
        _log.info("%s: complete, %d bytes", place.key, streamer.appended)
        self._say(EventKind.COMMITTED, streamer.appended)

    def _remove_ahead(self) -> None:
        """Remove the file of what came ahead of its turn, also to an earlier leader.

        A failure is logged; `gc` removes it then.
        """
        path = self._place.ahead
        try:
            self._layout.remove(path)
        except OSError as error:
            _log.warning("%s cannot be removed: %s", path, error.strerror)

    def _abort(self, error: BaseException) -> None:
        place, streamer = self._place, self.streamer
        # Errors are logged as text: a record that is kept must not keep a connection open.
        reason = escaped(error.reason) if isinstance(error, BlobAborted) else told(error, place)
        name = "" if names(place.key, reason) else f"{place.key}: "
        if not streamer.appended and is_refusal(error):
            _log.info("%sthe source does not give it: %s", name, reason)
            self._say(EventKind.REFUSED)
        else:
            _log.warning("%sgiven up at %d bytes: %s", name, streamer.appended, reason)
            self._say(EventKind.ABORTED, streamer.appended)
        self._blame_for(error)
        try:
            streamer.abort(error)
        except (StreamClosed, ValueError):  # it has ended meanwhile
            pass
        if not os.path.lexists(place.partial):
            self._remove_ahead()
            self._journal.forget()
            if place.is_named and not os.path.lexists(place.path):
                with suppress(OSError):  # else `gc` removes it; or it is no record
                    self._layout.remove(place.record)

    def _begin_journal(self) -> None:
        try:
            self._journal.begin(self.metadata)
        except OSError as error:  # then a resume begins at 0
            self.streamer.keeps = False
            _log.warning("%s: no journal: %s", self._place.key, str(error))

    def _note_checkpoint(self) -> None:
        """Every 16 MiB, note in the journal how far the file is hashed."""
        streamer = self.streamer
        if (
            streamer.appended - self._noted >= _CHECKPOINT
            and streamer.hashed > self._journal.covers  # else it lags: a little later
        ):
            self._noted = streamer.appended
            if (checkpoint := streamer.digest_so_far()) is not None:
                try:
                    streamer.while_held(partial(self._journal.note, *checkpoint))
                except OSError as error:  # then a resume after a reboot begins further back
                    _log.warning("%s: no checkpoint: %s", self._place.key, str(error))

    def _end_when_alone(self) -> None:
        """End the flight after 1 s without a reader, even while the source is silent."""
        alone_since: float | None = None
        try:
            while not self._download.wait(_LONELY / 4):
                now = time.monotonic()
                if self.streamer.has_readers():
                    alone_since = None
                elif alone_since is None:
                    alone_since = now
                elif now - alone_since >= _LONELY:
                    self.close()
        except StreamClosed:
            return  # it has ended
