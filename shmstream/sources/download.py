"""`Download`: one blob from several sources, asked in turn, and never two contents mixed.

A leader (flight/leader.py) and a client without a flight (flight/pass_through.py) bring a blob in
the same way. Each of them has a *position*: the number of bytes that it has. This is the rule:

    open    ask the source for the bytes from the position on. Ask for all bytes from 0 instead if
            nothing would show that the content has changed: the key is no digest, and the source
            gave no validator
    new     give the bytes after the position. All bytes before it have to be what they were
    fail    ask the same source again, after a pause that grows; then ask the next source; then end
            with `SourceFailed`, which has the last words of each source

Once somebody was told of the content (`binds`), each answer must be of that content:

    the source says                 the key is a digest            the key is a name
    another size                    this source is hopeless        `ContentChanged`: the end
    another validator, where no     the digest guards              `ContentChanged`: the end
      bytes can be compared
    other bytes before the position this source is hopeless        `ContentChanged`: the end

How the bytes before the position are proved is the caller's matter (`Prefix`): a leader compares
them with its file, a client without a flight compares a digest, or has no need to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from shmstream.errors import (
    ContentChanged,
    SizeMismatch,
    SourceError,
    SourceFailed,
    StreamClosed,
)
from shmstream.events import Event, EventKind
from shmstream.sources.base import Description, Feed, Source, open_at
from shmstream.sources.retries import Attempts, Retries

if TYPE_CHECKING:
    from typing_extensions import Buffer

_REPORT = 1 << 20  # bytes; received bytes are reported at least so often, so that rates are visible

_log = logging.getLogger("shmstream")


class Prefix(Protocol):
    """Proves that the bytes before the position, which come again, are what they were."""

    def is_same(self, data: memoryview, offset: int) -> bool:
        """Whether `data` is what was at `offset`. Called in order, from the feed's offset on."""


class Download:
    """One blob from several sources. One thread uses it; `stop` may be called by any thread.

    Args:
        key: the blob's key, for events and logs.
        name: what errors call the blob.
        sources: asked in this order.
        retries: how often a source is tried.
        is_given: whether the digest is known in advance, which guards the content.
        size: the bytes that the blob must have; None: any number.
        compares: whether the caller has a `Prefix`. Without it, of a key that is a name, an answer
            from 0 on must have the same validator, too.
        tell: is told of `RECEIVED` and `FAILED_OVER`.
        end: what a download that was stopped says, such as "it was handed over".
    """

    def __init__(
        self,
        key: str,
        name: str,
        sources: Sequence[Source],
        retries: Retries,
        *,
        is_given: bool,
        compares: bool,
        tell: Callable[[Event], None],
        end: str,
        size: int | None = None,
    ) -> None:
        self.known: Description = Description()
        """What was said of the content; feeds are held to it once `binds` is true."""
        self.binds = False
        """Whether somebody was told of the content, or has bytes of it."""
        self._key = key
        self._name = name
        self._attempts = Attempts(name, sources, retries)
        self._is_given = is_given
        self.compares = compares
        self._tell = tell
        self._end = end
        self._size = size
        self._wrong_size: int | None = None  # that the source had which was asked last
        self._stopping = threading.Event()
        self._feed: Feed | None = None
        self._received = 0  # bytes since the last report

    # Asking.

    def open(self, position: int) -> Feed:
        """A feed that begins at `position`, or before it if that is all that can be had. Blocks.

        The feed is closed by `close`, by `fail`, and by `stop`.

        Raises:
            SourceFailed: no source has one.
            ContentChanged: the source has another blob by now.
            StreamClosed: the download was stopped.
        """
        while True:
            source = self._attempts.source
            try:
                self._feed = feed = self._try_open(source, self._where_to_begin(position), position)
            except SourceError as error:
                self.fail(error, position)
                continue
            self.check_going_on()  # a `stop` before this line found no feed to close
            _log.debug("%s: %s from %d", self._key, source.name, feed.offset)
            return feed

    def _where_to_begin(self, position: int) -> int:
        return position if self._is_given or self.known.validator is not None else 0

    def _try_open(self, source: Source, offset: int, position: int) -> Feed:
        validator = self.known.validator if offset else None
        if self._is_given and not self._attempts.is_first:
            validator = None  # the first source gave it, and the digest guards
        feed = open_at(source, offset, validator)
        try:
            self._wrong_size = None
            if self._size is not None and feed.size not in (None, self._size):
                self._wrong_size = feed.size
                reason = f"it says that it has {feed.size} bytes"
                raise self.error(reason, position, retryable=False)
            if self.binds:
                self._require_same(feed, position)
            if feed.offset > offset:
                reason = f"it begins at {feed.offset}, not {offset}"
                raise self.error(reason, position, retryable=False)
        except BaseException:
            feed.close()
            raise
        return feed

    def _require_same(self, feed: Feed, position: int) -> None:
        size, validator = self.known.size, self.known.validator
        if None not in (size, feed.size) and size != feed.size:
            raise self.other(f"it has {feed.size} bytes by now, not {size}", position)
        unproved = feed.offset > 0 or not self.compares
        if unproved and not self._is_given and feed.validator != validator:
            reason = f"its validator is {feed.validator!r} by now, not {validator!r}"
            raise self.other(reason, position)

    # Taking.

    def new(self, feed: Feed, position: int, prefix: Prefix | None) -> Iterator[memoryview]:
        """Yield the bytes of `feed` after `position`; an empty buffer for each buffer before it.

        Blocks as long as the source does. Without a `prefix` the bytes before are skipped.

        Raises:
            SourceError: the source broke, ended too early, or has other bytes before `position`.
            ContentChanged: the same, of a key that is a name.
        """
        at = feed.offset
        for data in self._buffers(feed, position):
            with memoryview(data) as raw, raw.cast("B") as view:
                count = len(view)
                self.count(count)
                again = min(max(position - at, 0), count)
                if again and prefix is not None and not prefix.is_same(view[:again], at):
                    raise self.other(f"other bytes than before are at {at}", position)
                at += count
                position = max(position, at)
                with view[again:] as rest:
                    yield rest
        self.check_going_on()  # a stop makes a feed end, too
        if at < position:
            raise self.error(f"it ended after {at} bytes", position)

    def _buffers(self, feed: Feed, position: int) -> Iterator[Buffer]:
        try:
            yield from feed
        except SourceError:
            raise
        except Exception as error:  # a source is anybody's code
            reason = f"{type(error).__name__}: {error}"
            raise self.error(reason, position, retryable=False) from error

    def count(self, received: int) -> None:
        """Note that so many bytes came from the source."""
        self._received += received
        if self._received >= _REPORT:
            self._report()

    def _report(self) -> None:
        received, self._received = self._received, 0
        if received:
            self._tell(Event(EventKind.RECEIVED, self._key, received))

    # Failing.

    def error(self, reason: str, position: int, *, retryable: bool = True) -> SourceError:
        """The error for the source that is asked now."""
        return SourceError(self._attempts.source.name, position, reason, retryable)

    def short(self, position: int) -> SourceError:
        """The error for the source that is asked now: it ended at `position`, before the blob."""
        if self._size is not None:
            self._wrong_size = position
        return self.error(f"it ended after {position} bytes", position)

    def other(self, reason: str, position: int) -> SourceError | ContentChanged:
        """The error for another blob: the source is hopeless, or it is the end."""
        if self._is_given:
            return self.error(reason, position, retryable=False)
        return ContentChanged(self._name, position, f"{self._attempts.source.name}: {reason}")

    def fail(self, error: SourceError, position: int) -> None:
        """After `error`: wait, or go on to the next source; `open` then asks again.

        Raises:
            SourceFailed: there is no other source.
            SizeMismatch: the same, and the last source has another size than was asked for.
            StreamClosed: the download was stopped.
        """
        self.close()
        self.check_going_on(error)  # a stop makes a source fail, which says nothing of the source
        try:
            pause = self._attempts.failed(error, position)
        except SourceFailed as failed:
            if self._size is None or self._wrong_size is None:
                raise
            asked, got = self._size, self._wrong_size
            reason = f"it has {got} bytes, and {asked} were asked for: {failed.reason}"
            raise SizeMismatch(self._name, position, reason, asked, got) from failed
        if pause is None:
            self._tell(Event(EventKind.FAILED_OVER, self._key))
            following = self._attempts.source.name
            _log.warning("%s: %s; going on with %s", self._key, str(error), following)
            return
        _log.info("%s: %s; again in %.1f s", self._key, str(error), pause)
        self._stopping.wait(pause)
        self.check_going_on(error)

    # Ending.

    def stop(self) -> None:
        """Make the thread that uses this fail soon with `StreamClosed`. From any thread."""
        self._stopping.set()
        if (feed := self._feed) is not None:
            feed.close()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for a `stop`, at most so long; whether it came. From any thread."""
        return self._stopping.wait(seconds)

    def check_going_on(self, cause: BaseException | None = None) -> None:
        """Raises:
        StreamClosed: the download was stopped.
        """
        if self._stopping.is_set():
            raise StreamClosed(self._name, self._end) from cause

    def close(self) -> None:
        """Close the feed, and report what came from it. Idempotent."""
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()
        self._report()
