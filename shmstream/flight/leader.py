"""Leading a flight: one thread brings a blob from its sources into a stream, and never mixes.

    begin      keep what a partial file has, as far as its journal vouches for it; ask a source for
               the rest; publish what was kept
    pump       append what comes, or have the kernel move it; every 16 MiB note a checkpoint in the
               journal
    fail       the same source again, with growing pauses; then the next source, at the same offset;
               then abort with the last word of each, which every reader gets
    commit     verify, move, tell; forget the journal
    close      at the end of this process: hand over, so that a reader in another one goes on

A source that goes on must have the same bytes. With a digest as key its end proves that, and what
can be proved before is (the size, and the bytes themselves where it begins at 0 again). Without,
the validator must be the same; where there is none, the source is read from 0 and its prefix
compared with the file. Other bytes end the flight with `ContentChanged`; the next call begins anew.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from shmstream.errors import ContentChanged, SourceError, StreamClosed
from shmstream.events import Event, EventKind
from shmstream.sources.base import Description, Feed, KernelFeed, Source, open_at
from shmstream.sources.retries import Attempts, Retries
from shmstream.storage.eviction import Upkeep
from shmstream.storage.journal import Journal
from shmstream.storage.layout import Layout, Place, Record
from shmstream.stream.control_block import TERMINAL, Block, State
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.system import threads
from shmstream.system.locks import KernelLock
from shmstream.system.process import register

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHECKPOINT = 16 << 20  # bytes
_WORTH_A_JOURNAL = 64 * 1024  # bytes; to ask for less once more takes no longer than for its rest
_TOLD_AT_ONCE = 1 << 20  # bytes; whoever counts what comes can show how fast that is
_LONELY = 1.0  # s; how long nobody may read before a flight that is not to linger is given up

_log = logging.getLogger("shmstream")


class Leader:
    """Brings the blob of `place` into `streamer`, which it owns, to its commit or abort."""

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
        held: KernelLock | None = None,
    ) -> None:
        """Then `start` it, or `run` it, or `discard` it, which also closes `held`.

        `upkeep` is told what will come, and when it has.
        """
        self.streamer = streamer
        """How far it is; the leader's to change."""
        self._layout = layout
        self._place = place
        self._attempts = Attempts(streamer.name, sources, retries)
        self._upkeep = upkeep
        self._tell = tell
        self._lingers = lingers
        self._held = held
        self._journal = Journal(place.journal, place.algorithm)
        self.metadata = Description()
        """What the source says of the blob, from when its size or a byte is known."""
        self._noted = 0
        self._received = 0  # since that was told
        self._feed: Feed | None = None
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        register(self)

    def start(self) -> None:
        """Lead, in another thread.

        Raises:
            RuntimeError: there is no thread to be had. Discard it.
        """
        if not self._lingers:
            threads.Call(self._end_when_alone, "shmstream-alone").start()
        threads.Call(self.run, "shmstream-flight").start()

    def discard(self) -> None:
        """Let go of all that it owns. Idempotent."""
        if self._over.is_set():
            return
        self._stopping.set()
        with ExitStack() as ending:  # from the last to the first, whatever fails on the way
            ending.callback(self._over.set)
            ending.callback(self._upkeep.ended, self._place.path)
            ending.callback(self.streamer.close)
            if self._held is not None:
                ending.callback(self._held.close)

    def close(self) -> None:
        """Stop, and hand over to whoever reads; the partial file stays. Idempotent.

        If the blob is complete, this waits a moment for the thread to clear up after it.
        """
        self._stopping.set()
        self.streamer.close()
        if (feed := self._feed) is not None:
            feed.close()
        if self.streamer.state in TERMINAL:
            self.join(1.0)

    def abandon(self) -> None:
        """In a forked child: the thread is not here, and the flight is the parent's."""
        self._over = threading.Event()  # that thread may hold the old one
        self._over.set()

    @property
    def is_alive(self) -> bool:
        """Whether the flight has still to end, and its leader to clear up."""
        return not self._over.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for that, at most `timeout` seconds; not at all in the thread that leads."""
        if self._thread is not threading.current_thread():
            self._over.wait(timeout)

    # One flight, from its beginning to its end.

    def run(self) -> None:
        """Lead, in this thread, until the blob is complete, given up, or handed over."""
        self._thread = threading.current_thread()
        place, streamer = self._place, self.streamer
        try:
            feed = self._begin()
            while feed is not None:
                feed = self._pump(feed)
            self._commit()
        except StreamClosed:
            _log.info("%s: handed over at %d bytes", place.key, streamer.appended)
            self._say(EventKind.HANDED_OVER, streamer.appended)
        except BaseException as error:  # noqa: BLE001  whatever it is, every reader is to know it
            self._abort(error)
        finally:
            self.discard()

    def _say(self, kind: EventKind, count: int = 0) -> None:
        self._tell(Event(kind, self._place.key, count))

    def _begin(self) -> Feed | None:
        """The feed that goes on; None if all bytes are there already."""
        streamer = self.streamer
        if streamer.state == State.STREAMING:  # succeeded: everything is in the block
            self.metadata = Description.from_text(streamer.metadata)
            streamer.keeps = self._journal.exists or self._is_worth_a_journal()
            return None if streamer.appended == streamer.size else self._open(self._resumable())
        kept = self._journal.trusted(streamer.descriptor)
        known = self._journal.metadata
        if kept and (self._place.is_given or known.validator):
            self.metadata = known
        else:
            kept = 0
        if kept and kept == known.size:
            feed = None
        else:
            feed = self._open(kept)
            if kept and not self._is_same(feed, kept):
                kept = 0
                if feed.offset:
                    feed.close()
                    feed = self._open(0)
            size = feed.size if feed.size is not None or not kept else known.size
            self.metadata = Description(size, feed.validator, feed.media_type)
        try:
            self._announce(kept)
        except BaseException:
            if feed is not None:
                feed.close()
            raise
        return feed

    def _announce(self, kept: int) -> None:
        """Have everybody know what is coming, and read what is there."""
        streamer, metadata, place = self.streamer, self.metadata, self._place
        streamer.cut(kept)  # first: from then on the journal vouches for what is left
        if kept:
            self._journal.begin(metadata, kept)
        else:
            self._journal.remove()  # another is begun when there are bytes, which readers wait for
        streamer.keeps = kept > 0 or self._is_worth_a_journal()
        if not place.is_given:
            self._write_record(None)
        streamer.set_metadata(metadata.to_text(Block.metadata.capacity))
        if metadata.size is not None:
            self._set_size(metadata.size)
        streamer.resume()
        if kept:
            _log.info("%s: resumed at %d bytes", place.key, kept)
            self._say(EventKind.RESUMED, kept)

    def _write_record(self, digest: str | None) -> None:
        record = Record(self._place.key, digest, self.metadata)
        self._layout.write_record(self._place, record, durable=self.streamer.durable)

    def _is_worth_a_journal(self) -> bool:
        size = self.metadata.size
        return not self._place.is_given or size is None or size > _WORTH_A_JOURNAL

    def _set_size(self, size: int) -> None:
        self._upkeep.expect(size, self._place.path)
        self.streamer.set_size(size)

    def _pump(self, feed: Feed) -> Feed | None:
        """Append all that `feed` has; None when that was the end, else the feed to go on with."""
        streamer = self.streamer
        self._feed = feed
        try:
            with feed:
                self._check_going_on()  # who has ended us meanwhile found no feed to close
                if streamer.size is None and feed.size is not None:
                    self._set_size(feed.size)
                if feed.by_kernel is not None and feed.offset == streamer.appended:
                    position = self._receive(feed.by_kernel)
                else:
                    position = self._append(feed)
            if position < streamer.appended or streamer.appended < (streamer.size or 0):
                raise self._error(f"it ended after {position} bytes", retryable=True)
        except SourceError as error:
            self._fail(error)
            return self._open(self._resumable())
        else:
            return None
        finally:
            self._feed = None
            self._say_received()

    def _receive(self, feed: KernelFeed) -> int:
        """Have the kernel move all of it to the file; where in the blob that has come to."""
        streamer = self.streamer
        try:
            while feed.wait(streamer.due_in(), streamer.publish_bytes):
                self._count(streamer.receive(feed.move))
        except SourceError:
            streamer.pause()
            raise
        return streamer.appended

    def _append(self, feed: Feed) -> int:
        """Append all of it that is new; where in the blob that has come to."""
        streamer, position = self.streamer, feed.offset
        for data in self._buffers(feed):
            with memoryview(data) as view:
                count = view.nbytes
            if position < streamer.appended:
                data = self._compare(data, position)
            position += count
            streamer.append(data)
            self._count(count)
        return position

    def _count(self, received: int) -> None:
        self._received += received
        if self._received >= _TOLD_AT_ONCE:
            self._say_received()
        if self.streamer.keeps and not self._journal.exists:
            self._begin_journal()
        self._note_checkpoint()

    def _commit(self) -> None:
        place, streamer = self._place, self.streamer
        streamer.commit()
        if not place.is_given:
            self._write_record(streamer.digest)
        self._journal.remove()
        _log.info("%s: complete, %d bytes", place.key, streamer.appended)
        self._say(EventKind.COMMITTED, streamer.appended)

    def _abort(self, error: BaseException) -> None:
        place, streamer = self._place, self.streamer
        # Errors are logged as text: a record that is kept must not keep a connection open.
        _log.warning("%s: given up at %d bytes: %s", place.key, streamer.appended, str(error))
        self._say(EventKind.ABORTED, streamer.appended)
        try:
            streamer.abort(error)
        except (StreamClosed, ValueError):  # it has ended meanwhile
            pass
        if not os.path.lexists(place.partial):
            self._journal.remove()
            if not place.is_given and not os.path.lexists(place.path):
                self._layout.remove(place.record)

    def _begin_journal(self) -> None:
        try:
            self._journal.begin(self.metadata)
        except OSError as error:  # then a resume begins at 0
            self.streamer.keeps = False
            _log.warning("%s: no journal: %s", self._place.key, str(error))

    def _note_checkpoint(self) -> None:
        """Now and then, note in the journal how far the file is hashed."""
        streamer = self.streamer
        if (
            streamer.appended - self._noted >= _CHECKPOINT
            and streamer.hashed > self._journal.covers  # else it lags: a little later
        ):
            self._noted = streamer.appended
            if (checkpoint := streamer.digest_so_far()) is not None:
                try:
                    self._journal.note(*checkpoint)
                except OSError as error:  # then a resume after a reboot begins further back
                    _log.warning("%s: no checkpoint: %s", self._place.key, str(error))

    def _say_received(self) -> None:
        received, self._received = self._received, 0
        if received:
            self._say(EventKind.RECEIVED, received)

    def _end_when_alone(self) -> None:
        """Hand over to nobody when nobody has read for a while, also if the source is silent."""
        alone_since: float | None = None
        try:
            while not self._stopping.wait(_LONELY / 4):
                now = time.monotonic()
                if self.streamer.has_readers():
                    alone_since = None
                elif alone_since is None:
                    alone_since = now
                elif now - alone_since >= _LONELY:
                    self.close()
        except StreamClosed:
            return  # it has ended

    # Sources.

    def _resumable(self) -> int:
        """Where to ask a source to go on: at 0 where nothing would show that it has changed."""
        guarded = self._place.is_given or self.metadata.validator
        return self.streamer.appended if guarded else 0

    def _open(self, offset: int) -> Feed:
        """A feed that begins at `offset` or before, from the first source that has one.

        Raises:
            SourceFailed: none has.
            ContentChanged: it is another blob by now.
        """
        while True:
            source = self._attempts.source
            try:
                feed = self._try_open(source, offset)
            except SourceError as error:
                self._fail(error)
                continue
            _log.debug("%s: %s from %d", self._place.key, source.name, feed.offset)
            return feed

    def _try_open(self, source: Source, offset: int) -> Feed:
        validator = self.metadata.validator if offset else None
        if self._place.is_given and not self._attempts.is_first:
            validator = None  # it is the first source's, and the digest guards
        feed = open_at(source, offset, validator)
        try:
            if self.streamer.state == State.STREAMING:
                self._require_same(feed)
            if feed.offset > offset:
                raise self._error(f"it begins at {feed.offset}, not {offset}", retryable=False)
        except BaseException:
            feed.close()
            raise
        return feed

    def _is_same(self, feed: Feed, kept: int) -> bool:
        """Whether the feed goes on with the bytes that were kept."""
        known = self.metadata
        return (
            feed.offset == kept
            and (self._place.is_given or feed.validator == known.validator is not None)
            and (None in (feed.size, known.size) or feed.size == known.size)
        )

    def _require_same(self, feed: Feed) -> None:
        """Refuse a feed that is not of the blob whose bytes were published."""
        size = self.streamer.size
        if None not in (size, feed.size) and size != feed.size:
            raise self._other(f"it has {feed.size} bytes by now, not {size}")
        if feed.offset and not self._place.is_given:
            known = self.metadata.validator
            if feed.validator != known or known is None:
                raise self._other(f"its validator is {feed.validator!r} by now, not {known!r}")

    def _compare(self, data: Buffer, position: int) -> Buffer:
        """What of `data` is new; the rest must be what the file has at `position`."""
        streamer = self.streamer
        with memoryview(data) as whole, whole.cast("B") as view:
            again = min(len(view), streamer.appended - position)
            if os.pread(streamer.descriptor, again, position) != view[:again]:
                raise self._other(f"other bytes than before are at {position}")
            return bytes(view[again:])

    def _other(self, reason: str) -> SourceError | ContentChanged:
        """The error for a source that has another blob: hopeless, or the end of the flight."""
        if self._place.is_given:
            return self._error(reason, retryable=False)
        source = self._attempts.source.name
        return ContentChanged(self.streamer.name, self.streamer.appended, f"{source}: {reason}")

    def _buffers(self, feed: Feed) -> Iterator[Buffer]:
        try:
            yield from feed
        except SourceError:
            raise
        except Exception as error:  # a source is anybody's code
            raise self._error(f"{type(error).__name__}: {error}", retryable=False) from error

    def _error(self, reason: str, *, retryable: bool) -> SourceError:
        name = self._attempts.source.name
        return SourceError(name, self.streamer.appended, reason, retryable)

    def _fail(self, error: SourceError) -> None:
        """Wait, or go on to the next source.

        Raises:
            SourceFailed: there is none.
            StreamClosed: the flight was handed over meanwhile.
        """
        self._check_going_on()  # else it has failed for that, which says nothing of the source
        pause = self._attempts.failed(error, self.streamer.appended)
        if pause is None:
            self._say(EventKind.FAILED_OVER)
            following = self._attempts.source.name
            _log.warning("%s: %s; going on with %s", self._place.key, str(error), following)
            return
        _log.info("%s: %s; again in %.1f s", self._place.key, str(error), pause)
        self._stopping.wait(pause)
        self._check_going_on()

    def _check_going_on(self) -> None:
        if self._stopping.is_set():
            raise StreamClosed(self.streamer.name, "it was handed over")
