"""Passing through: a blob from its sources to one client, where there is no room to keep it.

A flight that has no room ends (`OutOfRoom`), or cannot begin. The sources can still give the blob,
so each client is given it by a download of its own, from where it is, and nothing is kept:

    ask      what the source says of the blob, for the head of an answer
    give     begin to give its bytes from some offset on; iterating has them, as they come
    fail     as with a leader: the same source again, then the next one (attempts.py)
    leave    the client has gone: whatever the thread waits for fails at once

What a client gets is of one content. What proves that decides where the source has to begin:

    a digest, and all up to the end      every byte from 0 on is hashed: those that the client has
                                         already from the flight's file, where I2 holds for them;
                                         the last chunk is withheld until the digest is right (I5)
    a digest, and a part before the end  nothing: the digest is of the whole. Nobody who was told
                                         so takes a part for the whole
    another key, with a validator        the source still says the same one
    another key, without                 it is read from 0 on, and what comes again has the digest
                                         of what came before

Reading blocks, so it is done by a thread, one for each client; there is a bound to how many clients
a process has at one time. A client that is slow is waited for with nothing read ahead.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from shmstream.errors import (
    ContentChanged,
    DamagedPartial,
    DigestMismatch,
    SourceError,
    StreamClosed,
    WriterStalled,
)
from shmstream.events import Event, EventKind
from shmstream.sources.base import Description, Feed, checked, explain, open_at
from shmstream.sources.local import FileSource, IterableSource
from shmstream.sources.retries import Attempts, Retries
from shmstream.stream.partial import remove_partial
from shmstream.system import process
from shmstream.system.locks import file_identity
from shmstream.system.threads import in_thread

if TYPE_CHECKING:
    from shmstream.sources.base import Source
    from shmstream.storage.layout import Place

T = TypeVar("T")

_CHUNK = 1 << 16  # bytes; the last one is withheld
_STEP = 1 << 18  # bytes; what is read of a file at one time
_TOLD_AT_ONCE = 1 << 20  # bytes
_THREADS = ("shmstream-pass", 1024)  # the bound of passages is the one that counts

_log = logging.getLogger("shmstream")


def again(sources: Sequence[Source]) -> list[Source]:
    """Those that every client can read for itself: an iterable or a file object is everybody's."""
    return [each for each in sources if not isinstance(each, FileSource | IterableSource)]


class Passage:
    """One client's own way to a blob. An async context manager and iterator; one task uses it.

    Being cancelled leaves nothing behind.

    Raises from entering to the end:
        SourceFailed: no source has it, or the rest of it.
        ContentChanged, DigestMismatch: it is another blob by now, or was never this one.
        WriterStalled: nothing came for `stall_timeout`.
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
        self._bytes = _Bytes(place, sources, retries, tell)
        self._stall_timeout = stall_timeout
        self._lock = threading.Lock()  # held by the thread that is at it
        self._given: Iterator[bytes] = iter(())

    def begin(self, limit: int) -> bool:
        """Be one of at most `limit` in this process, until it is left; whether that can be."""
        with _lock:
            if not self._sources or len(_passages) >= limit:
                return False
            _passages.add(self)
            return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bytes.stopping.set()
        in_thread(self._finish, _THREADS)  # nobody waits for it: it may be closing a connection

    def _finish(self) -> None:
        try:
            self._bytes.stop()
            with self._lock:
                self._bytes.close()
        finally:
            with _lock:
                _passages.discard(self)

    async def ask(self) -> Description:
        """What the source says of the blob."""
        return await self._run(self._bytes.ask)

    def give(self, start: int, end: int | None, known: Description, file: int = -1) -> None:
        """Begin to give the bytes from `start` to `end`, None for the end of the blob.

        `known` is what the client was told of the blob. What it has of it already is in `file`.
        """
        self._given = self._bytes.give(start, end, known, os.dup(file) if file >= 0 else -1)

    async def read(self, known: Description, limit: int) -> bytes:
        """All of the blob; at least `limit` bytes where it has more."""
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

        try:
            async with asyncio.timeout(self._stall_timeout):
                return await in_thread(alone, _THREADS)
        except TimeoutError:
            waited = self._stall_timeout or 0.0
            raise WriterStalled(self._bytes.key, self._bytes.position, waited) from None


class _Bytes:
    """The bytes of a blob from its sources, for one thread at a time; `stop` is for any."""

    def __init__(
        self,
        place: Place,
        sources: Sequence[Source],
        retries: Retries,
        tell: Callable[[Event], None],
    ) -> None:
        self.key = place.key
        self.position = 0
        """Where what is read next begins."""
        self.stopping = threading.Event()
        self._place = place
        self._attempts = Attempts(place.key, sources, retries)
        self._tell = tell
        self._known: Description | None = None
        self._hash: hashlib._Hash | None = None  # of all before `position`, where that is proof
        self._feed: Feed | None = None
        self._file = -1
        self._received = 0

    # From outside.

    def ask(self) -> Description:
        """What the first source that has it says of the blob."""
        feed = self._open()
        return Description(feed.size, feed.validator, feed.media_type)

    def stop(self) -> None:
        """Have the thread that reads fail; from any thread."""
        self.stopping.set()
        if (feed := self._feed) is not None:
            feed.close()

    def close(self) -> None:
        """Let go of everything, when no thread reads any more."""
        self._let_go()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def give(self, start: int, end: int | None, known: Description, file: int) -> Iterator[bytes]:
        """The bytes from `start` to `end`; an empty piece where others had to be read. Blocks."""
        self._known, self._file = known, file
        _log.warning("%s: no room: a client gets it from its source, from %d on", self.key, start)
        self._tell(Event(EventKind.PASSED_THROUGH, self.key, start))
        return self._give(start, end, known.size, known.validator)

    # One client, from its beginning to its end.

    def _give(
        self, start: int, end: int | None, size: int | None, validator: str | None
    ) -> Iterator[bytes]:
        to_the_end = end is None or end == size
        if to_the_end if self._place.is_given else validator is None:
            self._hash = hashlib.new(self._place.algorithm)
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
        """Hash all before `start`, which the client has from the flight's file, if from anywhere.

        If the file has it no longer, nothing can tell what the client has.
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
        """All from `position` on, which is then behind what was given, from whichever source."""
        try:
            while True:
                try:
                    yield from self._new(self._feed_at(self.position))
                except SourceError as error:
                    self._fail(error)
                else:
                    return
        finally:
            self._let_go()
            self._say_received()

    def _new(self, feed: Feed) -> Iterator[memoryview]:
        """What of a feed is behind `position`; all before has to be what it was."""
        assert self._known is not None
        at, target = feed.offset, self.position
        before = None if self._hash is None else hashlib.new(self._hash.name)
        explained = partial(explain, name=self._attempts.source.name)
        for data in checked(feed.data, at, self._known.size, explained):
            view = memoryview(data).cast("B")
            self._count(len(view))
            if at < target:
                old, view = view[: target - at], view[target - at :]
                at += len(old)
                if before is not None and self._hash is not None:
                    before.update(old)
                    if at == target and before.digest() != self._hash.digest():
                        raise self._other("other bytes than before are in it")
            if self._hash is not None:
                self._hash.update(view)
            self.position += len(view)
            at += len(view)
            yield view
        if at < target:
            raise self._error(f"it ended after {at} bytes")

    def _count(self, received: int) -> None:
        self._received += received
        if self._received >= _TOLD_AT_ONCE:
            self._say_received()

    def _say_received(self) -> None:
        received, self._received = self._received, 0
        if received:
            self._tell(Event(EventKind.RECEIVED, self.key, received))

    # Sources.

    def _feed_at(self, position: int) -> Feed:
        """A feed that has all from `position` on; what was asked is used where it does."""
        if self._feed is not None and self._feed.offset != position:
            self._let_go()
        return self._open() if self._feed is None else self._feed

    def _open(self) -> Feed:
        """A feed that begins at `position`, or at 0 if that is all that can be had.

        Raises:
            SourceFailed: no source has one.
            ContentChanged: it is another blob by now.
        """
        while True:
            try:
                self._feed = feed = self._try_open(self._attempts.source)
            except SourceError as error:
                self._fail(error)
                continue
            if self.stopping.is_set():
                raise self._left()
            return feed

    def _try_open(self, source: Source) -> Feed:
        known, is_given = self._known, self._place.is_given
        validator = None if known is None else known.validator
        offset = self.position if is_given or validator is not None else 0
        if offset == 0 or (is_given and not self._attempts.is_first):
            validator = None  # it is the first source's, and the digest guards
        feed = open_at(source, offset, validator)
        try:
            if feed.offset not in (0, offset):
                raise self._error(f"it begins at {feed.offset}, not {offset}", retryable=False)
            if known is not None:
                self._require_same(feed, known)
        except BaseException:
            feed.close()
            raise
        return feed

    def _require_same(self, feed: Feed, known: Description) -> None:
        """Refuse a feed that is not of the blob that the client was told of."""
        if None not in (known.size, feed.size) and known.size != feed.size:
            raise self._other(f"it has {feed.size} bytes by now, not {known.size}")
        if not self._place.is_given and feed.validator != known.validator:
            raise self._other(f"its validator is {feed.validator!r}, not {known.validator!r}")

    def _other(self, reason: str) -> SourceError | ContentChanged:
        """The error for a source that has another blob: hopeless, or the end."""
        if self._place.is_given:
            return self._error(reason, retryable=False)
        name = self._attempts.source.name
        return ContentChanged(self.key, self.position, f"{name}: {reason}")

    def _error(self, reason: str, *, retryable: bool = True) -> SourceError:
        return SourceError(self._attempts.source.name, self.position, reason, retryable)

    def _left(self) -> StreamClosed:
        return StreamClosed(self.key, "its client has left")

    def _fail(self, error: SourceError) -> None:
        """Wait, or go on to the next source.

        Raises:
            SourceFailed: there is none.
            StreamClosed: the client has left.
        """
        self._let_go()
        if self.stopping.is_set():
            raise self._left() from error
        pause = self._attempts.failed(error, self.position)
        if pause is None:
            self._tell(Event(EventKind.FAILED_OVER, self.key))
        elif self.stopping.wait(pause):
            raise self._left() from error

    def _let_go(self) -> None:
        if (feed := self._feed) is not None:
            self._feed = None
            feed.close()


# Of this process: in a forked child, they are the parent's.

_passages: set[Passage] = set()
_lock = threading.Lock()


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _passages.clear()


process.after_fork(_forget)
