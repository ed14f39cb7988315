"""Passing through: a blob from its sources to one client, if there is no room to keep it.

A flight that has no room ends (`OutOfRoom`), or cannot begin. The sources can still give the blob.
So each client gets it by a download of its own, from its position on, and nothing is kept:

    ask      what the source says of the blob, for the head of an answer
    give     begin to give the bytes from an offset on; iterate to get them as they come
    leave    the client has gone: the thread that waits for the source fails at once

`Download` asks the sources in turn. All bytes that a client gets are of one content. What proves
that depends on the key and on the range, and decides where the source has to begin:

    a digest, the whole blob             the digest of all bytes from 0 on; the bytes that the
                                         client has already are hashed from the flight's file, where
                                         I2 holds for them. The last chunk is withheld until the
                                         digest is right (I5)
    a digest, a part                     nothing: the digest is of the whole blob. The client was
                                         told that it gets a part, and does not take it for the
                                         whole
    another key, with a validator        the source still says the same validator
    another key, without a validator     the source is read from 0 on, and the bytes that come again
                                         have the digest of the bytes that came before

A range that does not begin at 0 is a part, also if it ends where the blob ends.

To read blocks, so each client has a thread. A process has a limit for such clients. Nothing is read
ahead for a slow client. A source is asked for no more bytes than the client wants: what a server
sends in vain counts at the upstream, too. A client that asks for all bytes behind an offset may
want only some of them, and hang up then; containerd does so. Its source is asked for pieces that
grow with what the client has taken, so little is asked for in vain. As soon as the beginnings of
several ranges tell how much such clients take, the source is asked for just that, and for no more
until the client had the time to hang up.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from shmstream.errors import (
    DamagedPartial,
    DigestMismatch,
    OutOfResources,
    SourceError,
    WriterStalled,
)
from shmstream.events import Event, EventKind
from shmstream.sources.base import Description, Feed, describe
from shmstream.sources.download import Download
from shmstream.sources.retries import Retries
from shmstream.storage.journal import Journal
from shmstream.stream.partial import remove_partial
from shmstream.stream.spelling import Hash, new_hash
from shmstream.system.locks import file_identity
from shmstream.system.process import PerProcess
from shmstream.system.threads import in_thread

if TYPE_CHECKING:
    from shmstream.flight.across import Across
    from shmstream.sources.base import Source
    from shmstream.storage.layout import Place

T = TypeVar("T")

_CHUNK = 1 << 16  # bytes; the last one is withheld
_STEP = 1 << 18  # bytes; what is read of a file at one time
_SMALLEST, _LARGEST = 1 << 16, 8 << 20  # bytes; a piece for a client that may hang up soon
_SHARE = 16  # a piece is so small a part of what the client has taken
_REMEMBERED = 1024  # blobs of which this process knows that it has passed them through
_ENOUGH = 16  # beginnings of ranges, to tell how much clients take at one time
_TAKING = 0.004  # s; a client on a fast network takes a piece in that time
_HANGING_UP = 0.2  # s; a client that has what it wants needs less to hang up
_THREADS = ("shmstream-pass", 1024)  # never reached: `max_pass_through` limits earlier

_log = logging.getLogger("shmstream")


class Passage:
    """One client's own way to a blob. One task uses it, or one thread.

    A context manager and an iterator, for `async with` and for `with`. A task that is cancelled
    leaves nothing behind.

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
        across: Across | None = None,
    ) -> None:
        """Internal: use `Store.pass_through`."""
        self._sources = sources
        self._bytes = OwnBytes(place, sources, retries, tell, across)
        self._stall_timeout = stall_timeout
        self._lock = threading.Lock()  # held by the thread that is at it
        self._given: Iterator[bytes] = iter(())

    def begin(self, limit: int) -> bool:
        """Whether this is one of at most `limit` passages of this process, until it is left."""
        with _passages.lock:
            passages = _passages.value
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
        try:
            in_thread(self._finish, _THREADS)  # nobody waits for it: it may close a connection
        except OutOfResources:  # no thread can be started: then it is closed here
            self._finish()

    def _finish(self) -> None:
        try:
            self._bytes.stop()
            with self._lock:
                self._bytes.close()
        finally:
            with _passages.lock:
                passages = _passages.value
                passages.discard(self)

    # For a thread.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish()

    def ask_now(self, *, for_part: bool = False) -> Description:
        """As `ask`. Blocks as long as the source does."""
        with self._lock:
            return self._bytes.ask(for_part=for_part)

    def __iter__(self) -> Iterator[bytes]:
        """The bytes that `give` has begun to give. Blocks as long as the source does."""
        while True:
            with self._lock:
                data = self._next()
            if data is None:
                return
            if data:  # else something came, and is not for the client
                yield data

    # For a task.

    async def ask(self, *, for_part: bool = False) -> Description:
        """What the source says of the blob; `for_part`: without asking for its bytes, if it can."""
        return await self._run(partial(self._bytes.ask, for_part=for_part))

    def give(
        self,
        start: int,
        end: int | None,
        known: Description,
        file: int = -1,
        *,
        first: int = 0,
        in_pieces: bool = False,
    ) -> None:
        """Begin to give the bytes from `start` to `end`; None is the end of the blob.

        `known` is what the client was told of the blob. `file` has the bytes before `start`, which
        the client has already, from `first` on. `in_pieces`: the client may hang up soon.
        """
        mine = os.dup(file) if file >= 0 else -1
        given = self._bytes.give(start, end, known, mine, first=first, in_pieces=in_pieces)
        self._given = given

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
        across: Across | None = None,
    ) -> None:
        """`across` is what the download is part of beyond this host."""
        self.key: str = place.key
        self.position: int = 0
        """Where the next bytes begin."""
        self._place = place
        self._tell = tell
        self._across = across
        ordered = Journal(place.journal, place.algorithm).wrong_last(sources)
        asked = ordered if across is None else [across.source(each) for each in ordered]
        self._given = dict(zip(map(id, asked), ordered, strict=True))
        self._download = Download(
            place.key,
            place.key,
            asked,
            retries,
            is_given=place.is_given,
            digest=place.digest,
            compares=False,
            tell=tell,
            end="its reader has left",
            size=place.size,
        )
        self._sources = sources
        self._feed: Feed | None = None  # one that was asked and is not used yet
        self._start = 0  # of the range that is given
        self._stop: int | None = None  # behind its last byte; None if that is not known
        self._in_pieces = False
        self._gives_more = False  # whether the feed goes on behind the range
        self._hash: Hash | None = None  # of all before `position`, where that is proof
        self._file = -1
        self._mismatch: DigestMismatch | None = None

    @property
    def source(self) -> str:
        """The name of the source that was asked last."""
        return self._download.source.name

    @property
    def disagreed(self) -> list[Source]:
        """The sources that told another size than is known, or gave other bytes than are there."""
        download = self._download
        found = [*(source for source, _ in download.disagreed), *download.differed]
        return list({id(each): self._given.get(id(each), each) for each in found}.values())

    # For the passage.

    def ask(self, *, for_part: bool = False) -> Description:
        """What the first source that has the blob says of it."""
        if for_part:
            with suppress(SourceError):  # then the bytes are asked for, and tell why
                told = describe(self._sources)
                if told is not None and told.size is not None:
                    return told
        self._feed = feed = self._download.open(self.position)
        return Description(feed.size, feed.validator, feed.media_type)

    def stop(self) -> None:
        """Make the thread that reads fail; from any thread."""
        self._download.stop()

    def close(self) -> None:
        """Close the feed and the file, when no thread reads any more."""
        self._download.close()
        if self._across is not None:
            self._across.ended(self._mismatch)
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
        *,
        first: int = 0,
        in_pieces: bool = False,
    ) -> Iterator[bytes]:
        """The bytes from `start` to `end`, of those from `first` on. Blocks.

        `because` tells the log why. An empty piece means that bytes came which are not for the
        client.
        """
        self._download.known, self._download.binds, self._file = known, True, file
        told = "%s: %s: it comes straight from its source, from %d on"
        is_news = _note(self.key, first if in_pieces else 0)
        level = logging.WARNING if is_news else logging.INFO
        _log.log(level, told, self.key, because, start)
        self._tell(Event(EventKind.PASSED_THROUGH, self.key, start))
        self._start, self._stop = start, known.size if end is None else end
        self._in_pieces = in_pieces
        is_whole = first == 0 and (end is None or end == known.size)
        return self._give(start, end, known, is_whole=is_whole)

    # One client, from its beginning to its end.

    def _give(
        self, start: int, end: int | None, known: Description, *, is_whole: bool
    ) -> Iterator[bytes]:
        size = known.size
        if is_whole if self._place.is_given else known.validator is None:
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
            if is_whole:
                last = max((self.position if size is None else size) - 1, 0) // _CHUNK * _CHUNK
                free = min(max(last - given, 0), free)
            yield held[:free]
            held = held[free:]
            given += free
            if not is_whole and self._gives_more and self.position >= (end or 0):
                return
        if is_whole:
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
            self._mismatch = DigestMismatch(self.key, self.position, reason, given, got)
            raise self._mismatch

    def _arriving(self) -> Iterator[memoryview]:
        """All bytes from `position` on, from one source after the other.

        `position` is after each buffer when that is given.
        """
        download = self._download
        try:
            while True:
                try:
                    feed = self._feed_at(self.position)
                    self._gives_more = feed.end is None and self._stop is not None
                    yield from self._new(feed)
                except SourceError as error:
                    download.fail(error, self.position)
                else:
                    if feed.end is None or self.position >= (self._stop or 0):
                        return
        finally:
            download.close()

    def _feed_at(self, position: int) -> Feed:
        """A feed that has all from `position` on; the one that `ask` got, if it has."""
        feed, self._feed = self._feed, None
        if feed is not None and feed.offset == position:
            return feed
        self._download.close()
        return self._download.open(position, self._end_of_piece(position))

    def _end_of_piece(self, position: int) -> int | None:
        """Where the bytes end that the source is asked for next; None: where the blob ends."""
        stop, known = self._stop, self._download.known
        is_guarded = self._place.is_given or known.validator is not None
        if stop is not None and self._in_pieces and is_guarded:
            share = (position - self._start) // _SHARE
            piece = position + min(max(share, _SMALLEST), _LARGEST)
            stride, is_sure = _stride(self.key)
            until = self._start + stride
            if position > self._start:
                self._download.wait(_HANGING_UP if position == until else _TAKING)
                self._download.check_going_on()
            if position < until:
                piece = until if is_sure else min(piece, until)
            stop = min(stop, piece)
        return None if stop == known.size else stop

    def _new(self, feed: Feed) -> Iterator[memoryview]:
        prefix = None if self._hash is None else _Prefix(self._hash, self.position)
        for data in self._download.new(feed, self.position, prefix):
            if self._hash is not None:
                self._hash.update(data)
            self.position += len(data)
            yield data
        expected = self._download.known.size if feed.end is None else feed.end
        if expected is not None and self.position < expected:
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


def _note(key: str, start: int) -> bool:
    """Note that a range of the blob begins at `start`; whether it is the first one, as it seems."""
    with _starts.lock:
        starts = _starts.value
        is_first = key not in starts
        known = starts.setdefault(key, set())
        if start and len(known) < _ENOUGH:
            known.add(start)
        if len(starts) > _REMEMBERED:
            del starts[next(iter(starts))]
    return is_first


def _stride(key: str) -> tuple[int, bool]:
    """The bytes that clients seem to take of the blob at one time, or 0; and whether it is sure."""
    with _starts.lock:
        known = tuple(_starts.value.get(key, ()))
    stride = math.gcd(*known)
    return (stride, len(known) > 1) if stride >= _SMALLEST else (0, False)


_starts: PerProcess[dict[str, set[int]]] = PerProcess(dict)
"""By key, where ranges without an end began, besides 0. Clients that take a blob in pieces begin at
multiples of these."""
_passages: PerProcess[set[Passage]] = PerProcess(set)  # of this process; a forked child has none
