"""Passing through: a blob from its sources to one client, if there is no room to keep it.

A flight that has no room ends (`OutOfRoom`), or cannot begin. The sources can still give the blob.
So each client gets it by a download of its own, from its position on, and nothing is kept:

    ask      what the source says of the blob, for the head of an answer
    give     begin to give the bytes from an offset on; iterate to get them as they come
    leave    the client has gone: the thread that waits for the source fails at once

`Download` asks the sources in turn. All bytes that a client gets are of one content. What proves
that depends on the key and on the range, and decides where the source has to begin:

    a digest, up to the end of the blob  the digest of all bytes from 0 on; the bytes that the
                                         client has already are hashed from the flight's file, where
                                         I2 holds for them. The last chunk is withheld until the
                                         digest is right (I5)
    a digest, a part before the end      nothing: the digest is of the whole blob. The client was
                                         told that it gets a part, and does not take it for the
                                         whole
    another key, with a validator        the source still says the same validator
    another key, without a validator     the source is read from 0 on, and the bytes that come again
                                         have the digest of the bytes that came before

To read blocks, so each client has a thread. A process has a limit for such clients. Nothing is read
ahead for a slow client.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from shmstream.errors import (
    DamagedPartial,
    DigestMismatch,
    SourceError,
    WriterStalled,
)
from shmstream.events import Event, EventKind
from shmstream.sources.base import Description, Feed
from shmstream.sources.download import Download
from shmstream.sources.retries import Retries
from shmstream.storage.journal import Journal
from shmstream.stream.partial import remove_partial
from shmstream.stream.spelling import Hash, new_hash
from shmstream.system.locks import file_identity
from shmstream.system.process import PerProcess
from shmstream.system.threads import in_thread

if TYPE_CHECKING:
    from shmstream.sources.base import Source
    from shmstream.storage.layout import Place

T = TypeVar("T")

_CHUNK = 1 << 16  # bytes; the last one is withheld
_STEP = 1 << 18  # bytes; what is read of a file at one time
_THREADS = ("shmstream-pass", 1024)  # the bound of passages is the one that counts

_log = logging.getLogger("shmstream")


class Passage:
    """One client's own way to a blob. An async context manager and iterator; one task uses it.

    A task that is cancelled leaves nothing behind.

    Raises from entering to the end:
        SourceFailed: no source has the blob, or the rest of it.
        ContentChanged, DigestMismatch: the source has another blob by now, or had one all along.
        WriterStalled: no byte came for `stall_timeout` seconds.
    """

    def __init__(
        self,
        place: Place,
        sources: Sequence[Source],
        retries: Retries,
        tell: Callable[[Event], None],
        stall_timeout: float | None,
    ) -> None:
        """Internal: use `Store.pass_through`."""
        self._sources = sources
        self._bytes = OwnBytes(place, sources, retries, tell)
        self._stall_timeout = stall_timeout
        self._lock = threading.Lock()  # held by the thread that is at it
        self._given: Iterator[bytes] = iter(())

    def begin(self, limit: int) -> bool:
        """Whether this is one of at most `limit` passages of this process, until it is left."""
        with _passages.held() as passages:
            if not self._sources or len(passages) >= limit:
                return False
            passages.add(self)
            return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        in_thread(self._finish, _THREADS)  # nobody waits for it: it may be closing a connection

    def _finish(self) -> None:
        try:
            self._bytes.stop()
            with self._lock:
                self._bytes.close()
        finally:
            with _passages.held() as passages:
                passages.discard(self)

    async def ask(self) -> Description:
        """What the source says of the blob."""
        return await self._run(self._bytes.ask)

    def give(self, start: int, end: int | None, known: Description, file: int = -1) -> None:
        """Begin to give the bytes from `start` to `end`; None is the end of the blob.

        `known` is what the client was told of the blob. `file` has the bytes before `start`, which
        the client has already.
        """
        self._given = self._bytes.give(start, end, known, os.dup(file) if file >= 0 else -1)

    async def read(self, known: Description, limit: int) -> bytes:
        """The whole blob; of a longer one at least the first `limit` bytes."""
        self.give(0, known.size, known)
        data = b""
        async for piece in self:
            data += piece
            if len(data) >= limit:
                break
        return data

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while (data := await self._run(self._next)) == b"":
            pass  # something came, and is not for the client
        if data is None:
            raise StopAsyncIteration
        return data

    def _next(self) -> bytes | None:
        return next(self._given, None)

    async def _run(self, call: Callable[[], T]) -> T:
        def alone() -> T:
            with self._lock:
                return call()

        import asyncio

        try:
            async with asyncio.timeout(self._stall_timeout):
                return await in_thread(alone, _THREADS)
        except TimeoutError:
            waited = self._stall_timeout or 0.0
            raise WriterStalled(self._bytes.key, self._bytes.position, waited) from None


class OwnBytes:
    """The bytes of a blob from its sources, for one thread at a time; `stop` is for any thread."""

    def __init__(
        self,
        place: Place,
        sources: Sequence[Source],
        retries: Retries,
        tell: Callable[[Event], None],
    ) -> None:
        self.key: str = place.key
        self.position: int = 0
        """Where the next bytes begin."""
        self._place = place
        self._tell = tell
        self._download = Download(
            place.key,
            place.key,
            Journal(place.journal, place.algorithm).wrong_last(sources),
            retries,
            is_given=place.is_given,
            compares=False,
            tell=tell,
            end="its reader has left",
            size=place.size,
        )
        self._feed: Feed | None = None  # one that was asked and is not used yet
        self._hash: Hash | None = None  # of all before `position`, where that is proof
        self._file = -1

    @property
    def source(self) -> str:
        """The name of the source that was asked last."""
        return self._download.source.name

    # For the passage.

    def ask(self) -> Description:
        """What the first source that has the blob says of it."""
        self._feed = feed = self._download.open(self.position)
        return Description(feed.size, feed.validator, feed.media_type)

    def stop(self) -> None:
        """Make the thread that reads fail; from any thread."""
        self._download.stop()

    def close(self) -> None:
        """Close the feed and the file, when no thread reads any more."""
        self._download.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def give(
        self,
        start: int,
        end: int | None,
        known: Description,
        file: int,
        because: str = "no room",
    ) -> Iterator[bytes]:
        """The bytes from `start` to `end`. Blocks. `because` tells the log why.

        An empty piece means that bytes came which are not for the client.
        """
        self._download.known, self._download.binds, self._file = known, True, file
        told = "%s: %s: it comes straight from its source, from %d on"
        _log.warning(told, self.key, because, start)
        self._tell(Event(EventKind.PASSED_THROUGH, self.key, start))
        return self._give(start, end, known.size, known.validator)

    # One client, from its beginning to its end.

    def _give(
        self, start: int, end: int | None, size: int | None, validator: str | None
    ) -> Iterator[bytes]:
        to_the_end = end is None or end == size
        if to_the_end if self._place.is_given else validator is None:
            self._hash = new_hash(self._place.algorithm)
            self._download.compares = True
            yield from self._hash_file(start)
        else:
            self.position = start
        held = b""
        given = start
        for data in self._arriving():
            here = self.position - len(data)
            held += bytes(data[max(start - here, 0) : None if end is None else max(end - here, 0)])
            free = len(held)
            if to_the_end:
                last = max((self.position if size is None else size) - 1, 0) // _CHUNK * _CHUNK
                free = min(max(last - given, 0), free)
            yield held[:free]
            held = held[free:]
            given += free
            if not to_the_end and self.position >= (end or 0):
                return
        if to_the_end:
            self._verify()
        yield held

    def _hash_file(self, start: int) -> Iterator[bytes]:
        """Hash the bytes before `start`, which the client has from the flight's file.

        If the file has them no longer, nothing can tell what the client has.
        """
        assert self._hash is not None
        while self._file >= 0 and self.position < start:
            data = os.pread(self._file, min(_STEP, start - self.position), self.position)
            if not data:
                path, reason = self._place.partial, "was truncated"
                raise DamagedPartial(self.key, self.position, path, reason)
            self._hash.update(data)
            self.position += len(data)
            yield b""

    def _verify(self) -> None:
        if self._hash is None or not self._place.is_given:
            return
        got, given = f"{self._hash.name}:{self._hash.hexdigest()}", self._place.digest
        if got != given:
            if self._file >= 0:  # a flight would go on with what may be wrong
                remove_partial(self._place.partial, only=file_identity(self._file))
            reason = f"its digest is {got}, not {given}: the bytes are not that blob"
            raise DigestMismatch(self.key, self.position, reason, given, got)

    def _arriving(self) -> Iterator[memoryview]:
        """All bytes from `position` on, from one source after the other.

        `position` is after each buffer when that is given.
        """
        download = self._download
        try:
            while True:
                try:
                    yield from self._new(self._feed_at(self.position))
                except SourceError as error:
                    download.fail(error, self.position)
                else:
                    return
        finally:
            download.close()

    def _feed_at(self, position: int) -> Feed:
        """A feed that has all from `position` on; the one that `ask` got, if it has."""
        feed, self._feed = self._feed, None
        if feed is not None and feed.offset == position:
            return feed
        self._download.close()
        return self._download.open(position)

    def _new(self, feed: Feed) -> Iterator[memoryview]:
        prefix = None if self._hash is None else _Prefix(self._hash, self.position)
        for data in self._download.new(feed, self.position, prefix):
            if self._hash is not None:
                self._hash.update(data)
            self.position += len(data)
            yield data
        size = self._download.known.size
        if size is not None and self.position < size:
            raise self._download.short(self.position)


class _Prefix:
    """Compares the bytes up to `end`, which come again from 0 on, by their digest."""

    def __init__(self, before: Hash, end: int) -> None:
        self._before = before.digest()
        self._again = new_hash(before.name)
        self._at = 0
        self._end = end

    def is_same(self, data: memoryview, offset: int) -> bool:
        """Whether that may be; once `end` is reached, whether it is."""
        if offset != self._at:
            return False
        self._again.update(data)
        self._at += len(data)
        return self._at < self._end or self._again.digest() == self._before


_passages: PerProcess[set[Passage]] = PerProcess(set)  # of this process; a forked child has none
