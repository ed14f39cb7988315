"""`Lanes`: further connections for one blob, which bring bytes ahead of their turn.

The leader begins as ever: one feed, whose bytes go straight to the partial file, so the first byte
comes no later. After a moment it knows what that connection gives. If the rest would take a while,
and the machine itself is not the limit, further connections bring *pieces* (`pieces`) from further
on, into a file beside the partial file (`storage/ahead`). What the readers see grows in order:

    leader                                          connections, each in a thread
    1 appends what its feed gives, up to the first  claim the first free blocks behind that; ask for
      byte that another connection brings           them; write them to the ring; note each block
    2 closes its feed, and appends from the ring    that is complete
    3 waits where the next bytes are not there yet  wake it when they are
    4 where no connection can bring them, asks
      for them itself, as a leader with one
      connection does, up to the next ones that
      are here

The leader never waits for long at 3:

    the piece at the front is late          it would come in less than a third of the time over
                                            another connection: it is taken from this one, and the
                                            next free connection brings the rest
    no connection brings it                 the connection that is furthest ahead gives up its piece
    no connection can                       step 4, which tries again, asks the next source, and
                                            fails as `Download` says

Several connections are of no use if the way to the source is full: then each of them takes from the
others, and the front, which readers wait for, grows more slowly. So the rates are compared once,
while the leader's own feed is still open; if the sum has hardly grown, the others are given up.

A thread looks at all that thirty times a second. It also looks whether the leader's own feed is
late, and then closes it: the leader goes to 2.

Two contents are never mixed: each part must be of the size and validator that are known
(`Download.open_part`). Sources beside the first one are used only if a digest guards the blob; and
each of them first gives some bytes that are here already, which are compared. If the digest is
wrong in the end, those helpers are noted as wrong, and the next flight does without them.

    lane                                       leader, or the thread that stops it
    1 takes the lock `writing` of its piece
                                               2 waits for that lock; sets `is_dropped`
    3 writes; frees the lock
                                               4 closes the feed; gives the blocks to others
    5 sees `is_dropped`: writes nothing more

So the blocks of a piece are never written by two threads, and not at all once `stop` has returned:
then another process may lead, and use the same ring.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from shmstream.errors import OutOfResources, ShmstreamError, SourceError, StreamClosed
from shmstream.flight.pieces import Piece, Pieces
from shmstream.flight.shares import MOST, Share
from shmstream.flight.supply import CROWDED, Supply
from shmstream.sources.base import (
    Feed,
    KernelFeed,
    Source,
    connections_of,
    failure_of,
    name_hash,
)
from shmstream.storage.ahead import BLOCK, AheadFile
from shmstream.system import threads
from shmstream.system.buffers import octets
from shmstream.system.files import says_none

if TYPE_CHECKING:
    from shmstream.sources.download import Download
    from shmstream.stream.resumable_writer import ResumableStreamer

_WINDOW = 256 << 20  # bytes; the ring is no longer
_ROOM = 2  # the ring has so many times its length of free space, at least
_USUAL_ROOM, _USUAL_LEAST = 16, 64  # likewise if nobody has asked for it; and blocks
_WORTH = 2 << 20  # bytes; fewer come over one connection
_SLICE = 0.03  # s; from look to look; the rate of one connection is measured over two of them
_SOON = 0.5  # s; a blob that is complete so soon needs no further connection
_FAST = 128 << 20  # bytes/s; a connection with such a rate needs no others
_JUDGED = 0.6  # s; after that time the rates are compared
_WORTHWHILE = 1.25  # so many times the rate of one connection, at least
_GATHER, _ENOUGH = 0.02, BLOCK  # s, bytes; so long, or so many, bytes gather in a connection
_AT_ONCE = 1 << 20  # bytes
_LOOK = 0.05  # s; from look to look at the piece at the front
_LATE = 0.5  # s
_SILENCE = 4.0  # s; of a slow connection is no sign of anything, if it is no longer
_LONG_SILENCE = 20.0  # s; likewise, of a source that gives much at once
_TOO_SLOW = 3.0  # times as long as another connection needs
_PROOF = 64 << 10  # bytes
_PROVED = 2.0  # s; in which a source begins to give a part, or it counts as silent
_SILENT = "it gave nothing for a while"

_log = logging.getLogger("shmstream")


@dataclass
class _Own:
    """What was seen of the `number`th feed of the leader: where it is, and when it moved last."""

    number: int
    began: float
    start: int
    looked: float
    at: int
    moved: float = 0.0

    def __post_init__(self) -> None:
        self.moved = self.began


@dataclass
class _Judged:
    """When the comparison of rates began, at how many own bytes, and those of the others."""

    when: float
    own: int
    others: int


class Lanes:
    """The connections of one leader. Its thread calls all methods but `stop`, which any may."""

    def __init__(
        self,
        key: str,
        download: Download,
        streamer: ResumableStreamer,
        file: Callable[[], AheadFile],
        asked: int | None,
        most: int | None = None,
    ) -> None:
        """`file` makes the ring's object; `asked`: how many the call or the store says.

        `most`: bytes that the store keeps, of which the ring takes no more than the blob leaves.
        """
        self._key = key
        self._download = download
        download.crowds = self.crowds
        self._streamer = streamer
        self._file_of = file
        self._asked = asked
        self._most_kept = most
        self._lock = threading.Lock()  # guards all below
        self._work = threading.Condition(self._lock)  # for the lanes
        self._news = threading.Condition(self._lock)  # for the leader
        self._file: AheadFile | None = None
        self._pieces: Pieces | None = None
        self._supplies: list[Supply] = []
        self._is_off = False  # no further connections any more, or never
        self._is_stopped = False
        self._own = 0  # 1 while the leader's own feed is open
        self._adopted = 0  # bytes that an earlier leader has received
        self._most = 0  # bytes of a piece
        self._over = threads.Flag()  # ends the thread that looks
        self._is_watched = False
        self._own_is_left = False  # the leader's own feed was closed, because it was late
        self._own_feed: Feed | None = None
        self._own_began_at = 0  # bytes
        # Of the leader's own feed, as the thread that looks sees it:
        self._feeds = 0  # how many there were
        self._own_lump = 0  # bytes that came at once, at most
        self._own_piece: _Own | None = None
        self._rates: list[float] = []  # of the last two slices of time
        self._single = 0.0
        self._began = False
        self._judged: _Judged | None = None
        self._alone = 0.0  # since when no byte came, and no piece was taken from a late connection
        self._given_up: Piece | None = None  # in favour of the piece at the front
        self.helpers: set[str] = set()
        """The sources beside the first one that gave bytes, as hashes of their names."""

    # The leader: before.

    def adopt(self, front: int) -> int | None:
        """Take what an earlier leader has received after `front` bytes, ahead of its turn.

        Returns where the bytes end that are missing first; None if nothing is here.
        """
        size = self._download.known.size
        if size is None or not self._download.guards:
            return None
        file = self._file_of()
        try:
            here = file.adopt(front)
        except OSError as error:
            _log.info("%s: %s cannot be used: %s", self._key, file.path, error.strerror)
            self._is_off = not says_none(error)  # then it stays, perhaps for the next leader
            return None
        if not file.is_open:
            return None
        self._file = file
        self._pieces = pieces = Pieces(file, size, front, here)
        self._adopted = sum(file.end_of(each) - max(each * BLOCK, front) for each in here)
        _log.info("%s: %d bytes are here ahead of their turn", self._key, self._adopted)
        return max(pieces.end_of_gap(), min(front + BLOCK, size)) if here else None

    def forget(self) -> None:
        """What was adopted is of another content: remove it."""
        with self._lock:
            file, self._file, self._pieces = self._file, None, None
        if file is not None:
            self._remove(file)

    def _remove(self, file: AheadFile) -> None:
        """Close and remove a ring. When this flight is handed over, it is the next leader's."""
        file.close()
        self._streamer.while_held(file.remove)

    def prepare(self, sources: Sequence[Source]) -> None:
        """Say which sources may be used at once: the first one, and with a digest the others.

        Called whenever the leader's own feed begins.
        """
        size, first = self._streamer.size, self._download.source
        if self._is_off or self._supplies or size is None or not self._download.guards:
            return
        if not self._is_worthwhile():
            return
        is_given = ":" in self._streamer.expected
        # If the first source gives no parts, the others are not asked.
        for source in sorted(sources, key=lambda each: each is not first):
            is_first = source is first
            if not (is_first or (is_given and self._supplies)):
                break
            most = connections_of(source, self._asked, size)
            share = Share(source) if most is None else None
            if most != 1:
                self._supplies.append(
                    Supply(source, most or MOST, 0.0, is_first=is_first, share=share)
                )
        self._is_off = not self._supplies

    # The leader: while its own feed is open.

    def own_begins(self, feed: Feed) -> None:
        """The leader's own feed is open."""
        with self._lock:
            self._own, self._own_is_left = 1, False
            self._own_feed, self._own_began_at = feed, self._streamer.appended
            self._feeds += 1
            if self._pieces is not None:
                self._advance(self._streamer.appended)
                gap = self._pieces.end_of_gap()
                self._pieces.own_end = None if gap == self._streamer.size else gap
                if feed.end is not None:
                    self._pieces.own_end = feed.end
        if self._supplies and not self._is_watched and self._is_worthwhile():
            self._is_watched = True
            with contextlib.suppress(RuntimeError):  # no thread can be started
                threads.Call(self._watch, "shmstream-lanes").start()

    def _is_worthwhile(self) -> bool:
        return (self._streamer.size or 0) - self._streamer.appended >= _WORTH

    def room(self, lump: int = 0) -> int:
        """Before the leader takes more from its own feed: how many bytes it may take.

        0: the bytes that follow are here, or come over another connection. `lump`: bytes that have
        come at once.
        """
        self._own_lump = max(self._own_lump, lump)
        if self._pieces is None:
            return _AT_ONCE
        front = self._streamer.appended
        self._drop_overtaken(front)
        with self._lock:
            pieces = self._pieces
            end = pieces.own_end
            if end is None:
                return _AT_ONCE
            if front < end:
                return min(end - front, _AT_ONCE)
            if pieces.is_begun(front):
                return 0
            blocking = pieces.at_front()
        if blocking is not None:
            with self._lock:
                if time.monotonic() - blocking.began > _LATE:
                    blocking.supply.was_silent(1, blocking.supply.is_first)
            self._drop(blocking)
        with self._lock:
            gap = pieces.end_of_gap()
            step = -(-(front + 4 * BLOCK) // BLOCK) * BLOCK
            pieces.own_end = None if gap == self._streamer.size else min(gap, step)
            return _AT_ONCE if pieces.own_end is None else pieces.own_end - front

    def _drop_overtaken(self, front: int) -> None:
        """Advance; what the leader's own feed has given is taken from other connections."""
        with self._lock:
            self._advance(front)
            over = [] if self._pieces is None else self._pieces.overtaken()
        for piece in over:
            self._drop(piece)

    def _advance(self, front: int) -> None:
        pieces = self._pieces
        if pieces is not None and front != pieces.front:
            is_new = front // BLOCK != pieces.front // BLOCK
            pieces.advance(front)
            if is_new:
                self._work.notify_all()

    # The thread that looks.

    def _watch(self) -> None:
        while not (self._over.wait(_SLICE) or self._is_off):
            now, front = time.monotonic(), self._streamer.appended
            with self._lock:
                own = self._note_own(now, front)
            if own is None:
                continue
            if not self._began:
                self._measure(now, front)
                continue
            if self._judged is not None:
                self._judge(now, front)
            with self._lock:
                is_late = self._is_same_feed(own) and self._is_own_late(own, now, front)
                self._own_is_left |= is_late
                feed = self._own_feed  # by now the leader may have left it, and opened another
                is_unlimited = self._pieces is not None and self._pieces.own_end is None
                is_time = is_unlimited and self._may_any(now)
            if is_late and feed is not None:
                _log.debug("%s: the first connection is late at %d", self._key, front)
                feed.close()
            elif is_time:
                self._share(front)

    def _is_same_feed(self, own: _Own) -> bool:
        return self._own == 1 and own.number == self._feeds

    def _note_own(self, now: float, front: int) -> _Own | None:
        """What is seen of the leader's own feed; None if there is none, or it has just begun."""
        own = self._own_piece
        if not self._own:
            self._own_piece = None
            return None
        if own is None or own.number != self._feeds:
            self._own_piece = _Own(self._feeds, now, front, now, front)
            self._rates = []
            return None
        self._rates = [*self._rates[-1:], (front - own.at) / max(now - own.looked, 0.001)]
        if front > own.at:
            own.moved = now
        own.at, own.looked = front, now
        return own

    def _measure(self, now: float, front: int) -> None:
        """Begin further connections, if they seem worthwhile."""
        left = (self._streamer.size or 0) - front
        rate = min(self._rates)
        if len(self._rates) < 2 or left < _WORTH or rate >= _FAST or left < rate * _SOON:
            return
        with self._lock:
            if not self._may_any(now):  # other flights have the connections to its server
                return
        self._single = rate
        self._began = True
        try:
            self._begin(front)
        except (ShmstreamError, OSError) as error:
            _log.info("%s: one connection: %s", self._key, str(error))
            self._is_off = True
            return
        self._judged = _Judged(now, front, 0)

    def _begin(self, front: int) -> None:
        file = self._file or self._new_file(front)
        wanted = sum(each.most for each in self._supplies)
        with self._lock:
            if not (is_stopped := self._is_stopped):
                self._open(file, front, wanted)
        if is_stopped:
            if self._file is None:
                self._remove(file)
            return
        self._share(front)
        for supply in self._supplies:
            for _ in range(supply.most):
                with contextlib.suppress(RuntimeError):  # no thread can be started
                    threads.Call(_Lane(self, supply).run, "shmstream-lane").start()
        _log.info("%s: up to %d connections", self._key, wanted)

    def _open(self, file: AheadFile, front: int, wanted: int) -> None:
        self._file = file
        if self._pieces is None:
            self._pieces = Pieces(file, self._streamer.size or 0, front, set())
        self._pieces.lanes = wanted
        self._most = max(file.slots * BLOCK // (2 * wanted), BLOCK)
        for each in self._supplies:
            each.rate = self._single

    def _new_file(self, front: int) -> AheadFile:
        """A ring without bytes.

        Raises:
            StreamClosed: this flight is ending: a ring at that path would be the next leader's, or
                nobody's.
            OSError: there is no space for it.
        """
        file, left = self._file_of(), (self._streamer.size or 0) - front
        facts = os.statvfs(os.path.dirname(file.path))
        spare = facts.f_bavail * facts.f_frsize - left
        is_usual = any(each.share is not None for each in self._supplies)
        room, least = (_USUAL_ROOM, _USUAL_LEAST) if is_usual else (_ROOM, 8)
        slots = min(_WINDOW // BLOCK, spare // room // BLOCK, -(-left // BLOCK) + 1, file.blocks)
        if self._most_kept is not None:
            slots = min(slots, (self._most_kept - (self._streamer.size or 0)) // BLOCK)
            if is_usual:  # other blobs of the store do not go for it
                slots = min(slots, self._most_kept // room // BLOCK)
        if slots < least:
            raise OSError("there is no space for bytes ahead of their turn")
        self._streamer.while_held(partial(self._make, file, slots))
        if not file.is_open:
            raise StreamClosed(self._key, "its flight is ending")
        try:
            file.reserve()
        except BaseException:
            self._remove(file)
            raise
        return file

    def _make(self, file: AheadFile, slots: int) -> None:
        """Make a ring, unless `stop` was called: the commit, which comes later, removes it."""
        with self._lock:
            is_stopped = self._is_stopped
        if not is_stopped:
            file.make(slots)

    def _share(self, front: int) -> None:
        """End the leader's own feed after a while, so that others can bring the bytes behind."""
        with self._lock:
            self._end_own(front)

    def _end_own(self, front: int) -> None:
        pieces = self._pieces
        if pieces is not None and self._own:
            supply = self._supplies[0]
            length = supply.length(self._most)
            if not supply.is_proved and self._file is not None:
                # Its answer may take a while: until then this feed goes on, so far in the ring.
                length = max(length, min(int(supply.rate * _PROVED), self._file.slots * BLOCK // 2))
            end = -(-(front + length) // BLOCK) * BLOCK
            gap = pieces.end_of_gap()
            size = self._streamer.size or 0
            pieces.own_end = min(end, gap) if min(end, gap) < size else None
            self._work.notify_all()

    def _may_any(self, now: float) -> bool:
        return any(each.allowed(now, self._own * each.is_first) > 0 for each in self._supplies)

    def _judge(self, now: float, front: int) -> None:
        """Once: see whether further connections give more in all."""
        before = self._judged
        others = sum(each.gave for each in self._supplies)
        if before is None or not others:
            return
        if not before.others:
            self._judged = _Judged(now, front, others)
            return
        if (took := now - before.when) < _JUDGED:
            return
        self._judged = None
        own = (front - before.own) / took
        in_all = own + (others - before.others) / took
        if in_all < _WORTHWHILE * self._single and own < 0.8 * self._single:
            _log.info("%s: one connection: others make it no faster", self._key)
            self._give_up()

    def _is_own_late(self, own: _Own, now: float, front: int) -> bool:
        """Whether another connection would bring what the leader's own feed is to bring, sooner."""
        if not any(each.is_proved for each in self._supplies) or not self._may_any(now):
            return False
        pieces = self._pieces
        end = self._streamer.size if pieces is None else pieces.own_end or self._streamer.size
        got, left = front - own.start, (end or 0) - front
        return self._is_silent(now - own.moved, self._own_lump, _SILENCE if not got else 0.0) or (
            self._is_slow(now - own.began, got, left)
        )

    def _give_up(self) -> None:
        """No further connections; what came over them stays."""
        with self._lock:
            self._is_off = True
            dropping = list(self._pieces.claimed) if self._pieces is not None else []
            self._work.notify_all()
        for piece in dropping:
            self._drop(piece)
        with self._lock:
            if self._pieces is not None and self._own:
                gap = self._pieces.end_of_gap()
                self._pieces.own_end = None if gap == self._streamer.size else gap

    # The leader: without a feed of its own.

    def own_failed(self, error: SourceError) -> SourceError | None:
        """The leader's own feed broke off; None if other connections go on in its place.

        Else it returns the error that counts as a failure of the source. If the feed was left
        because it was late, and has given nothing, no other connection is waited for while their
        source rests: a source that never gives a byte fails in the end.
        """
        with self._lock:
            supply = self._first()
            if supply is None or self._pieces is None or not supply.is_proved:
                return error
            gave = False
            if self._own_is_left:
                supply.was_late(supply.rate)
                gave = self._streamer.appended > self._own_began_at
                if not gave:
                    error = SourceError(supply.source.name, self._streamer.appended, _SILENT)
            else:
                supply.failed(error, 1, self._key)
            return None if gave or self._can_bring() else error

    def crowds(self, error: SourceError) -> bool:
        """Whether the leader was refused because of further connections; there are none any more.

        Some servers count the requests of a client: with one connection they might have refused
        none. A 503 that tells no time may have any other cause.
        """
        if not self._began or error.status not in CROWDED:
            return False
        if error.status != CROWDED[0] and error.retry_after is None:
            return False
        if not self._is_off:
            _log.info("%s: one connection: %s", self._key, str(error))
            self._give_up()
        return True

    def _first(self) -> Supply | None:
        return next((each for each in self._supplies if each.is_first), None)

    def take_over(self, append: Callable[[memoryview], None]) -> int | None:
        """Append what comes over the other connections, as long as that goes on.

        Returns where the bytes end that the leader has to ask for itself; None: at the end of the
        blob, which may be reached already.

        Raises:
            StreamClosed: the download was stopped.
        """
        if self._pieces is None:
            return None
        self._drop_overtaken(self._streamer.appended)
        with self._lock:
            self._own, self._pieces.own_end = 0, None
            self._work.notify_all()
        size, self._alone = self._streamer.size, time.monotonic()
        with memoryview(bytearray(BLOCK)) as buffer:
            while self._streamer.appended != size:
                self._download.check_going_on()
                if (count := self._read(buffer)) > 0:
                    append(buffer[:count])
                    self._alone = time.monotonic()
                elif not self._wait_for_front():
                    break
        with self._lock:
            self._advance(self._streamer.appended)
            gap = self._pieces.end_of_gap()
            end = None if gap in (size, self._streamer.appended) else gap
            self._own, self._pieces.own_end = 1, end  # no connection claims these bytes now
            too_many = self._one_too_many()
        if too_many is not None:
            self._drop(too_many)
        return end

    def _one_too_many(self) -> Piece | None:
        """The piece that is furthest ahead, if its source bears no connection beside the others."""
        supply, pieces = self._first(), self._pieces
        if supply is None or pieces is None or supply.active + self._own <= supply.most:
            return None
        found = [each for each in pieces.claimed if each.supply is supply]
        return max(found, key=lambda each: each.start, default=None)

    def _read(self, buffer: memoryview) -> int:
        """The bytes at the front, if they are here; how many."""
        with self._lock:
            pieces, file = self._pieces, self._file
            if self._is_stopped or pieces is None or file is None:
                return 0
            self._advance(self._streamer.appended)
            count = min(pieces.ready() - pieces.front, len(buffer))
            if count <= 0:
                return 0
            error = "it was cut off"
            try:
                count = file.read(pieces.front, buffer[:count])
            except OSError as failure:
                count, error = 0, str(failure)
            if not count:
                pieces.lose()
        if not count:
            _log.warning("%s: %s cannot be read: %s", self._key, file.path, error)
            self._give_up()
            return 0
        old = min(count, self._adopted)
        self._adopted -= old
        self._download.received(count - old)
        return count

    def _wait_for_front(self) -> bool:
        """Wait a moment for the bytes at the front; False if no connection can bring them."""
        victims: list[Piece] = []
        with self._lock:
            assert self._pieces is not None
            now = time.monotonic()
            piece = self._pieces.at_front()
            if piece is not None:
                if self._is_late(piece, now):
                    victims = self._late_like(piece, now)
                    self._alone = now  # a connection that is free claims it in a moment
                elif self._pieces.ready() == self._pieces.front:
                    self._news.wait(_LOOK)
            elif not self._can_bring():
                return False
            elif now - self._alone > _LOOK and (furthest := self._furthest(now)) is not None:
                victims = [furthest]
            elif now - self._alone > _LATE:
                return False
            else:
                self._news.wait(_LOOK / 5)
        for each in victims:
            _log.debug("%s: bytes %d- come otherwise", self._key, each.at)
            self._drop(each)
        return True

    def _late_like(self, piece: Piece, now: float) -> list[Piece]:
        """A late piece; if it has no byte, with the others of its source that have none either."""
        supply = piece.supply
        if piece.at > piece.start:
            supply.was_late((piece.at - piece.start) / (now - piece.began))
            return [piece]
        assert self._pieces is not None
        found = [each for each in self._pieces.claimed if each.supply is supply]
        silent = [each for each in found if each.at == each.start and self._is_late(each, now)]
        supply.was_silent(len(silent), 0)
        return silent

    def _is_late(self, piece: Piece, now: float) -> bool:
        supply, got, left = piece.supply, piece.at - piece.start, piece.end - piece.at
        usual = 0.0 if got else self._usual_delay(supply, now)
        return self._is_silent(now - piece.moved, supply.lump, usual) or (
            self._is_slow(now - piece.began, got, left)
        )

    def _usual_delay(self, supply: Supply, now: float) -> float:
        """Seconds that a source may take for the first byte of a piece.

        A source that has given none yet may take as long as the others, if one of them can bring
        the piece now.
        """
        others = [each for each in self._supplies if each.is_proved and each.allowed(now, 0) > 0]
        known = supply.delay or max((each.delay for each in others), default=0.0)
        return _TOO_SLOW * known or _SILENCE

    def _is_silent(self, silence: float, lump: int, usual: float) -> bool:
        """Whether a connection has been silent for longer than one of its kind would be.

        `usual`: for so many seconds it may be anyway.
        """
        best = max(max(each.rate for each in self._supplies), 1.0)
        between = min(4 * _ENOUGH / best, _SILENCE)
        return silence > _LATE + max(between, min(4 * lump / best, _LONG_SILENCE), usual)

    def _is_slow(self, took: float, got: int, left: int) -> bool:
        """Whether another connection would bring what is `left` much sooner."""
        best = max(each.rate for each in self._supplies)
        if took < _LATE or not got or not best:
            return False
        return left > got / took * (_TOO_SLOW * left / best + _LATE)

    def _can_bring(self) -> bool:
        """Whether a connection brings, or will bring, the bytes at the front.

        If the sources bear one connection only, that is the leader's own. The leader asks once for
        all bytes that are left.
        """
        now = time.monotonic()
        if self._is_off or self._is_stopped or not self._began:
            return False
        return sum(each.allowed(now, 0) for each in self._supplies) > 1

    def _furthest(self, now: float) -> Piece | None:
        """The piece that is furthest ahead, of a source that may bring another one at once.

        None if a connection is free, or about to be.
        """
        assert self._pieces is not None
        if self._given_up is not None and not self._given_up.is_over:
            return None
        found = [each for each in self._pieces.claimed if not each.supply.is_resting(now)]
        busy = [each for each in found if each.feed is not None and each.supply.is_proved]
        is_free = any(each.active < each.allowed(now, 0) for each in self._supplies)
        if is_free or not busy:
            return None
        self._given_up = max(busy, key=lambda each: each.start)
        return self._given_up

    # The lanes.

    def claim(self, supply: Supply) -> Piece | None:
        """For a lane: the next piece; waits for one. None at the end. `active` then counts it."""
        with self._lock:
            while not (self._is_stopped or self._is_off or not supply.may_come_again):
                now, pieces = time.monotonic(), self._pieces
                own = self._own * supply.is_first
                is_open = pieces is not None and (not self._own or pieces.own_end is not None)
                # A helper shows first that it has the bytes that are here: there have to be some.
                is_open &= supply.is_proved or supply.is_first or self._streamer.appended > 0
                is_open &= supply.active < supply.allowed(now, own)
                if pieces is not None and is_open and not self._leaves_to_others(supply, now):
                    piece = pieces.claim(supply, supply.length(self._most))
                    if piece is not None:
                        supply.active += 1
                        piece.is_active = True
                        return piece
                is_soon = supply.is_resting(now) or not supply.is_well
                self._work.wait(_LOOK * 2 if is_soon else 1.0)
        return None

    def _leaves_to_others(self, supply: Supply, now: float) -> bool:
        """Whether a source that was late, or failed, leaves pieces to one that is well and free."""
        return not supply.is_well and any(
            each.is_proved and each.is_well and each.active < each.allowed(now, 0)
            for each in self._supplies
        )

    def bring(self, piece: Piece, fd: int) -> None:
        """For a lane: bring a piece into the ring, through `fd`, a descriptor of its own.

        Raises:
            SourceError: the source does not give all of it.
            OSError: the file cannot be written to.
        """
        supply = piece.supply
        if not (supply.is_proved or supply.is_first):
            self._prove(supply)
        if piece.is_dropped:
            return
        feed = self._download.open_part(supply.source, piece.start, piece.end)
        try:
            with self._lock:
                if piece.is_dropped or self._is_stopped:
                    return
                piece.feed, piece.moved = feed, time.monotonic()
            if feed.by_kernel is not None:
                self._move(piece, feed.by_kernel, fd)
            else:
                self._copy(piece, feed, fd)
        finally:
            feed.close()
        if not piece.is_dropped and piece.at < piece.end:
            raise SourceError(supply.source.name, piece.at, "it ended before the end of a part")

    def _prove(self, supply: Supply) -> None:
        """Have a source give bytes that are here already, and compare them.

        Raises:
            SourceError: it gives other ones.
        """
        end = self._streamer.appended
        start = max(end - _PROOF, 0)
        got = bytearray()
        with self._download.open_part(supply.source, start, end) as feed:
            for data in feed:
                got += data
        try:
            is_same = self._streamer.pread(end - start, start) == got
        except (ShmstreamError, OSError) as error:  # the flight is over
            raise SourceError(supply.source.name, start, f"not compared: {error}") from error
        if not is_same:
            reason = f"its bytes at {start} are others than those that are here"
            raise SourceError(supply.source.name, start, reason, retryable=False)

    def _move(self, piece: Piece, feed: KernelFeed, fd: int) -> None:
        while feed.wait(_GATHER, _ENOUGH):
            with piece.writing:
                if piece.is_dropped:
                    return
                position, run = self._locate(piece)
                os.lseek(fd, position, os.SEEK_SET)
                count = feed.move(fd, min(run, piece.end - piece.at, _AT_ONCE))
                self._came(piece, count)

    def _copy(self, piece: Piece, feed: Feed, fd: int) -> None:
        for data in feed:
            with octets(data) as view:
                done = 0
                while done < len(view):
                    with piece.writing:
                        if piece.is_dropped or piece.at == piece.end:
                            return
                        position, run = self._locate(piece)
                        count = os.pwrite(fd, view[done : done + run], position)
                        self._came(piece, count, len(view))
                    done += count

    def _locate(self, piece: Piece) -> tuple[int, int]:
        assert self._file is not None
        position, run = self._file.locate(piece.at)
        return position, min(run, piece.end - piece.at)

    def _came(self, piece: Piece, count: int, lump: int = 0) -> None:
        if not count:
            return
        with self._lock:
            if self._is_stopped or self._pieces is None:
                return
            supply = piece.supply
            supply.gave += count
            supply.lump = max(supply.lump, lump)
            if piece.at == piece.start:
                supply.answered(piece.began)
            self._pieces.came(piece, count)
            if not supply.is_proved:
                supply.is_proved = True
                self._work.notify_all()
                if supply.is_first:
                    self._end_own(self._streamer.appended)  # sooner: others bring the rest now
                else:
                    self.helpers.add(name_hash(supply.source))
            if piece.start <= self._pieces.front <= piece.at:
                self._news.notify_all()

    def broke(self, error: Exception) -> None:
        """For a lane: it cannot go on, for a reason that is none of its source's."""
        _log.warning("%s: one connection: %s: %s", self._key, type(error).__name__, str(error))
        self._give_up()

    def ended(self, piece: Piece, error: SourceError | None) -> None:
        """For a lane: it has ended with a piece."""
        with self._lock:
            try:
                if not (piece.is_dropped or self._is_stopped):
                    self._note_end(piece, error)
            finally:
                self._is_inactive(piece)
                piece.is_over = True
                if self._pieces is not None:
                    self._pieces.release(piece)
                self._work.notify_all()
                self._news.notify_all()

    @staticmethod
    def _is_inactive(piece: Piece) -> None:
        if piece.is_active:
            piece.is_active = False
            piece.supply.active -= 1

    def _note_end(self, piece: Piece, error: SourceError | None) -> None:
        supply = piece.supply
        if error is None:
            supply.brought(piece.end - piece.start, time.monotonic() - piece.began)
        else:
            supply.failed(error, self._own * supply.is_first, self._key)
            # If no source gives parts, the leader's own feed goes on to the end.
            self._is_off |= not any(each.may_come_again for each in self._supplies)

    def reopen(self) -> int | None:
        """For a lane: a descriptor of the ring; None if there is none any more.

        Raises:
            OSError: descriptors have run out.
        """
        with self._lock:
            return None if self._file is None or not self._file.is_open else self._file.reopen()

    def _drop(self, piece: Piece) -> None:
        """Take a piece from its connection. When this returns, nothing more is written for it."""
        with piece.writing:
            piece.is_dropped = True
        with self._lock:
            feed = piece.feed
        if feed is not None:
            feed.close()
        with self._lock:
            self._is_inactive(piece)  # its thread may still wait for the head of an answer
            if self._pieces is not None:
                self._pieces.release(piece)
            self._work.notify_all()

    # The end.

    def stop(self) -> None:
        """Nothing is written any more when this returns; what is here stays. Idempotent."""
        self._over.set()
        self._is_stopped = True  # before the look: other connections look at it before they begin
        if not self._supplies and self._file is None:
            return
        with self._lock:
            dropping = [] if self._pieces is None else list(self._pieces.claimed)
            shares = [each.share for each in self._supplies if each.share is not None]
            self._work.notify_all()
            self._news.notify_all()
        for share in shares:
            share.leave()
        for piece in dropping:  # all of them first: to close a feed may take a while
            with piece.writing:
                piece.is_dropped = True
        for piece in dropping:
            self._drop(piece)
        with self._lock:
            if self._file is not None:
                self._file.close()


class _Lane:
    """One connection to `supply`, in a thread of its own."""

    def __init__(self, lanes: Lanes, supply: Supply) -> None:
        self._lanes = lanes
        self._supply = supply

    def run(self) -> None:
        """Bring piece after piece, to the end."""
        with contextlib.ExitStack() as ending:
            try:
                self._bring_all(ending)
            except Exception as error:  # noqa: BLE001  such as one of the disk; it would go unnoticed
                self._lanes.broke(error)

    def _bring_all(self, ending: contextlib.ExitStack) -> None:
        fd = None
        while (piece := self._lanes.claim(self._supply)) is not None:
            name = self._supply.source.name
            error: SourceError | None = SourceError(name, piece.at, "it was interrupted")
            try:
                if fd is None and (fd := self._lanes.reopen()) is not None:
                    ending.callback(os.close, fd)
                if fd is not None:
                    self._lanes.bring(piece, fd)
                error = None
            except SourceError as failure:
                error = failure
            except (OSError, MemoryError, OutOfResources) as failure:
                error = SourceError(name, piece.at, str(failure))
            except BaseException as failure:  # noqa: BLE001  a source is code of users
                error = failure_of(self._supply.source, failure, piece.at)
            finally:
                self._lanes.ended(piece, error)
