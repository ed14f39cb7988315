"""`Producer`: leads a flight without a source: a program of this process writes the blob.

    begin      look whether the blob is complete; claim the stream's name, which only one process
               can; look again; note what is known of the blob
    append     have space for the bytes, append them
    commit     verify the blob, move it to its name, tell the readers; remove the journal
    abort      tell every reader the reason; remove the partial file

Nobody but this process has the rest of the blob. So a stream of a producer is never taken over:

    producer                     consumer                          another producer, or a consumer
                                                                     that has a source
    is killed
                                 finds no writer, and that the
                                   stream is not resumable: joins
                                   again, for a second             finds no writer: removes the
                                 a) there is no stream of that       dead stream and its partial
                                    name: `WriterDied`               file, begins from 0
                                 b) there is: reads on, if the
                                    bytes before its position are
                                    the same; else `ContentChanged`

The partial file has no lasting value: it is removed with the stream, by the last reader or by
the next process that begins a stream. The journal is only for consumers in other containers, who
follow the file (`file_follower`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmstream.errors import (
    BlobAborted,
    BlobExists,
    OutOfRoom,
    ShmstreamError,
    StoreUnusable,
    StreamClosed,
)
from shmstream.events import Event, EventKind
from shmstream.flight.cancelling import REASON, watch
from shmstream.flight.naming import naming, told
from shmstream.flight.space import Space
from shmstream.sources.base import UNKNOWN, Description
from shmstream.storage.folder import trouble
from shmstream.storage.journal import Journal
from shmstream.storage.record import Record
from shmstream.stream.control_block import Block, State
from shmstream.stream.described_writer import DescribedStreamer
from shmstream.system.process import register

if TYPE_CHECKING:
    from shmstream.flight.flight import Policy
    from shmstream.storage.layout import Layout, Place

_log = logging.getLogger("shmstream")


@dataclass(frozen=True)
class Order:
    """What is to be produced. `replaces`: although the blob is complete already."""

    place: Place
    media_type: str | None
    replaces: bool


class Producer:
    """Brings the bytes that a program writes into the store. Any thread may call its methods."""

    def __init__(
        self, streamer: DescribedStreamer, layout: Layout, order: Order, policy: Policy
    ) -> None:
        """Internal: use `begin`. Owns `streamer`."""
        self.place: Place = order.place
        self.streamer: DescribedStreamer = streamer
        self._layout = layout
        self._policy = policy
        self._space = Space(streamer, policy.upkeep, self.place.path)
        self._about = Description(self.place.size, None, order.media_type)
        self._journal = Journal(self.place.journal, self.place.algorithm)
        self._has_ended = False
        self._process = os.getpid()
        register(self)
        watch(self)

    @classmethod
    def begin(cls, layout: Layout, order: Order, policy: Policy) -> Producer:
        """Claim the key; readers find the stream from now on.

        Raises:
            BlobExists: the blob is complete already.
            StreamExists: another process produces or downloads it just now.
            OutOfRoom: the store cannot keep so many bytes.
            StoreUnusable: the store is read-only.
            CannotStart: the subclasses tell why.
        """
        place = order.place
        if layout.is_read_only:
            raise StoreUnusable(layout.folder, "it is read-only: nothing can be created in it")
        _require_absence(layout, order)
        if place.size is not None and (why := policy.upkeep.misfit(place.size, place.path)):
            raise OutOfRoom(place.key, 0, why)
        with ExitStack() as undo, naming(place):
            try:
                try:
                    streamer = policy.begin(DescribedStreamer, layout, place)
                except FileNotFoundError:  # somebody has removed a folder of the store
                    layout.restore()
                    streamer = policy.begin(DescribedStreamer, layout, place)
                undo.callback(streamer.close)
                _require_absence(layout, order)  # the second look
                producer = cls(streamer, layout, order, policy)
                undo.callback(producer.close)
                producer._announce()
            except (OSError, RuntimeError, MemoryError) as error:
                raise trouble(error, place.key, layout.folder) or error from error
            undo.pop_all()
        _log.info("%s: is produced", place.key)
        policy.tell(Event(EventKind.LED, place.key))
        return producer

    def _announce(self) -> None:
        place, streamer = self.place, self.streamer
        if place.is_named:
            if Record.read(place.record) is None or not os.path.lexists(place.path):
                self._write_record(None)  # a record whose blob was evicted
            streamer.move_within(self._replacing)
        self._journal.begin(self._about)
        streamer.set_metadata(self._about.to_text(Block.metadata.capacity))
        if place.size is not None:
            streamer.set_size(place.size)
            streamer.withhold()
        self._space.take(0 if place.size is None else min(place.size, 1))

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """Take back what is recorded of an older blob before the new one has its place.

        Between the rename and the new record, the new blob would count as the old one.
        """
        place = self.place
        with self._layout.replacing(place.path):
            if Record.read(place.record) != Record(place.key, None, self._about):
                unknown = Record(place.key, None, UNKNOWN)
                unknown.write(place.record, durable=self.streamer.durable)
            yield

    def append(self, data: bytes | bytearray | memoryview, count: int) -> None:
        """Append the `count` bytes of `data`. A failure aborts.

        Raises:
            BlobAborted: it was given up: there are more bytes than its size, no room, ...
            OutOfResources, DamagedPartial, OSError: they cannot be written.
            StreamClosed: it has ended.
        """
        self.require_going_on()
        try:
            self._space.take(count)
            self.streamer.append(data)
        except (ShmstreamError, OSError, MemoryError) as error:
            self.abort(error)
            raise

    def require_going_on(self) -> None:
        """Require that more can be appended.

        Raises:
            BlobAborted: it was given up, and this is why.
            StreamClosed: it was committed or closed.
        """
        if (error := self.streamer.error) is not None:
            raise error
        if self._has_ended or self.streamer.state == State.COMMITTED:
            raise StreamClosed(self.place.key, "it was committed or closed")

    def commit(self) -> None:
        """Complete the blob, and tell the readers.

        Raises:
            DigestMismatch, SizeMismatch, DamagedPartial, OSError: it cannot be; it is aborted.
        """
        place, streamer = self.place, self.streamer
        self.require_going_on()
        try:
            streamer.commit()
        except (ShmstreamError, OSError, EOFError) as error:
            self.abort(error)
            raise
        try:
            if place.is_named:
                self._write_record(streamer.digest)
            self._journal.remove()
        except OSError as error:  # `check` completes the record, and `gc` removes the journal
            _log.warning("%s: complete, but not all is noted: %s", place.key, str(error))
        _log.info("%s: complete, %d bytes", place.key, streamer.appended)
        self._policy.tell(Event(EventKind.COMMITTED, place.key, streamer.appended))
        self.close()

    def abort(self, reason: str | BaseException) -> None:
        """Give the blob up: its readers get the reason, and nothing of it is kept. Idempotent."""
        place, streamer = self.place, self.streamer
        if self._has_ended or os.getpid() != self._process or streamer.closed:
            return
        if streamer.state == State.COMMITTED:
            return
        why = reason if isinstance(reason, str) else told(reason, place)
        name = "" if isinstance(reason, BlobAborted) else f"{place.key}: "
        _log.warning("%sgiven up at %d bytes: %s", name, streamer.appended, why)
        self._policy.tell(Event(EventKind.ABORTED, place.key, streamer.appended))
        streamer.abort(reason)
        self._forget()
        self.close()

    @property
    def is_over(self) -> bool:
        """Whether it was committed or aborted."""
        return self._has_ended

    @property
    def is_cut_off(self) -> bool:
        """Whether its partial file was removed or replaced."""
        return self.streamer.is_cut_off

    def cancel(self) -> None:
        """Abort, because its partial file was removed."""
        self.abort(REASON)

    def _forget(self) -> None:
        self._journal.forget()
        if self.place.is_named and not os.path.lexists(self.place.path):
            with suppress(OSError):  # else `gc` removes it
                self._layout.remove(self.place.record)

    def close(self) -> None:
        """Abort unless it has ended; give back everything. Idempotent."""
        if self._has_ended or os.getpid() != self._process:
            return
        if self.streamer.state not in (State.COMMITTED, State.ABORTED):
            self.abort("its producer closed it without commit")
        with ExitStack() as ending:
            self._has_ended = True
            ending.callback(self._policy.upkeep.ended, self.place.path)
            ending.callback(self.streamer.close)

    def abandon(self) -> None:
        """In a forked child: the stream is the parent's."""
        self._has_ended = True

    def _write_record(self, digest: str | None) -> None:
        record = Record(self.place.key, digest, self._about)
        record.write(self.place.record, durable=self.streamer.durable)


def _require_absence(layout: Layout, order: Order) -> None:
    if not order.replaces and os.path.lexists(order.place.path):
        raise BlobExists(order.place.key, layout.folder)
