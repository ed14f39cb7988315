"""`Download`: one blob from several sources, asked in turn, and never two contents mixed.

A leader (flight/leader.py) and a client without a flight (flight/pass_through.py) bring a blob in
the same way. Each of them has a *position*: the number of bytes that it has. This is the rule:

    open    ask the source for the bytes from the position on. Ask for all bytes from 0 instead if
            nothing would show that the content has changed: the key is no digest, and the source
            gave no validator; or if the answer to a part was of no use (sources/retries.py)
    new     give the bytes after the position. All bytes before it have to be what they were
    count   note what comes. A source that gives next to nothing (`Retries.least_rate`) has failed,
            or it could hold up all that wait for the blob for as long as it likes
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

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from shmstream.errors import (
    ContentChanged,
    DigestMismatch,
    FailureKind,
    OutOfResources,
    SizeMismatch,
    SourceError,
    SourceFailed,
    StreamClosed,
    names,
)
from shmstream.events import Event, EventKind
from shmstream.sources.base import (
    AskAgain,
    Description,
    Feed,
    GaveWrongBytes,
    Source,
    failure_of,
    open_at,
)
from shmstream.sources.retries import Attempts, Retries
from shmstream.system import threads
from shmstream.system.buffers import octets
from shmstream.system.signals import listening

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CRAWLS = 2  # how often a source may be too slow, in a row
_REPORT = 1 << 20  # bytes; received bytes are reported at least so often, so that rates are visible

_PATIENCE = 1.0  # s; for longer, no source fails without a warning

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
        digest: that digest; a source may have a use for it (`expecting`).
        size: the bytes that the blob must have; None: any number.
        compares: whether the caller has a `Prefix`. Without it, of a key that is a name, an answer
            from 0 on must have the same validator, too.
        tell: is told of `RECEIVED` and `FAILED_OVER`.
        end: what a download that was stopped says, such as "it was handed over".
        others: called when no source is left; gives further sources.
        may_be_others: whether there are sources beside these, here or in another process.
        is_wanted: whether somebody reads, so that a source that is away is worth waiting for.
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
        digest: str = "",
        size: int | None = None,
        others: Callable[[], Sequence[Source]] = tuple,
        may_be_others: Callable[[], bool] = lambda: False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.known: Description = Description()
        """What was said of the content; feeds are held to it once `binds` is true."""
        self.binds = False
        """Whether somebody was told of the content, or has bytes of it."""
        self._key = key
        self._name = name
        self._attempts = Attempts(name, sources, retries, others, may_be_others, is_wanted)
        self._is_given = is_given
        self._digest = digest
        self._expecting: dict[int, Source] = {}
        self.compares = compares
        self.crowds: Callable[[SourceError], bool] = lambda _: False
        """Whether a source refuses because of what else was asked of it for this blob."""
        self._tell = tell
        self._end = end
        self._size = size
        self._wrong_size: int | None = None  # that the source had which was asked last
        self._stopping = threads.Flag()
        self._feed: Feed | None = None
        self.disagreed: list[tuple[Source, int]] = []
        """The sources that told another size than the source before them, and that size."""
        self.differed: list[Source] = []
        """The sources that gave other bytes than those before the position."""
        self._failing_since: float | None = None  # without progress, of this source
        self._failing_at = 0
        self._asks_part = False  # whether the source was asked for a part of the blob last
        self._received = 0  # bytes since the last report
        self._retries = retries
        self._since = 0.0  # when the rate began to be measured, on the monotonic clock
        self._came = 0  # bytes since then
        self._crawls = 0  # how often the source was too slow, in a row
        self._last = 0.0  # when the last bytes came, on the monotonic clock
        self._was_silent = False  # one long silence is forgiven, until the rate was good again

    # Asking.

    def open(self, position: int, end: int | None = None) -> Feed:
        """A feed that begins at `position`, or before it if that is all that can be had. Blocks.

        With `end`, no byte from there on is needed; the feed's `end` tells whether it gives more.
        The feed is closed by `close`, by `fail`, and by `stop`.

        Raises:
            SourceFailed: no source has one.
            ContentChanged: the source has another blob by now.
            DigestMismatch: the source has found that what it gave before is wrong.
            StreamClosed: the download was stopped.
        """
        while True:
            source = self._attempts.source
            try:
                begin = self._where_to_begin(position)
                self._feed = feed = self._try_open(source, begin, position, end)
            except SourceError as error:
                self.fail(error, position)
                continue
            self.check_going_on()  # a `stop` before this line found no feed to close
            self._last = time.monotonic()
            if not self._came:  # else it broke off after these bytes: its rate is still measured
                self._since = self._last
            _log.debug("%s: %s from %d", self._key, source.name, feed.offset)
            return feed

    def _where_to_begin(self, position: int) -> int:
        is_guarded = self._is_given or self.known.validator is not None
        return position if is_guarded and not self._attempts.is_whole else 0

    def _try_open(self, source: Source, offset: int, position: int, end: int | None) -> Feed:
        if offset < position or self._attempts.is_whole:
            end = None
        self._asks_part = offset > 0 or end is not None
        validator = self.known.validator if offset else None
        if self._is_given and not self._attempts.is_first:
            validator = None  # the first source gave it, and the digest guards
        feed = open_at(self._knowing(source), offset, validator, end)
        if feed.size == feed.offset and self.known.size in (None, feed.size):
            self._asks_part = False  # it says that nothing is left, and gives no part
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

    def _knowing(self, source: Source) -> Source:
        """The same source, which knows the digest if it has a use for that."""
        expecting: Callable[[str], Source] | None = getattr(source, "expecting", None)
        if expecting is None or not self._is_given or not self._digest:
            return source
        if id(source) not in self._expecting:  # `Attempts` holds it
            self._expecting[id(source)] = expecting(self._digest)
        return self._expecting[id(source)]

    def _require_same(self, feed: Feed, position: int) -> None:
        size, validator = self.known.size, self.known.validator
        if size is not None and feed.size is not None and size != feed.size:
            self.disagreed.append((self._attempts.source, feed.size))
            raise self.other(f"it has {feed.size} bytes by now, not {size}", position, feed)
        unproved = feed.offset > 0 or not self.compares
        if unproved and not self._is_given and feed.validator != validator:
            reason = f"its validator is {feed.validator!r} by now, not {validator!r}"
            raise self.other(reason, position, feed)

    def open_part(self, source: Source, start: int, end: int) -> Feed:
        """A feed of just the bytes from `start` to `end`, of this very content. Blocks.

        For bytes ahead of the position, in any thread. The caller closes the feed. No try is
        counted, and none follows.

        Raises:
            SourceError: the source does not give that part, or not of this content.
        """
        is_first = source is self._attempts.source and self._attempts.is_first
        validator = self.known.validator if is_first or not self._is_given else None
        feed = open_at(self._knowing(source), start, validator, end)
        reason = None
        if feed.offset != start or feed.size is None:
            reason = "it gives no parts"
        elif feed.size != self.known.size:
            reason = f"it has {feed.size} bytes, not {self.known.size}"
        elif not self._is_given and feed.validator != self.known.validator:
            reason = f"its validator is {feed.validator!r}, not {self.known.validator!r}"
        elif (feed.size if feed.end is None else feed.end) != end:
            reason = f"asked for bytes {start}-{end - 1}, it gives bytes to {feed.end}"
        if reason is not None:
            feed.close()
            raise SourceError(source.name, start, reason, retryable=False)
        return feed

    @property
    def guards(self) -> bool:
        """Whether parts can be told from parts of another content."""
        return self._is_given or self.known.validator is not None

    def received(self, count: int) -> None:
        """Note that so many bytes came ahead of the position, whatever their source."""
        self._received += count
        if self._received >= _REPORT:
            self._report()

    @property
    def source(self) -> Source:
        """The source that is asked now."""
        return self._attempts.source

    @property
    def has_another(self) -> bool:
        """Whether another source is left for when this one fails."""
        return self._attempts.has_another

    # Taking.

    def new(self, feed: Feed, position: int, prefix: Prefix | None) -> Iterator[memoryview]:
        """Yield the bytes of `feed` after `position`; an empty buffer for each buffer before it.

        Blocks as long as the source does. Without a `prefix` the bytes before are skipped.

        Raises:
            SourceError: the source broke, ended too early, or has other bytes before `position`.
            ContentChanged: the same, of a key that is a name.
        """
        at = feed.offset
        while (data := self.take(feed, position)) is not None:
            with octets(data) as view:
                count = len(view)
                self.count(count, position)
                again = min(max(position - at, 0), count)
                if again and prefix is not None and not prefix.is_same(view[:again], at):
                    self.differed.append(self._attempts.source)
                    raise self.other(f"other bytes than before are at {at}", position, feed)
                at += count
                position = max(position, at)
                with view[again:] as rest:
                    given = time.monotonic()
                    yield rest
                    taken = time.monotonic() - given  # the taker's time, not the source's
                    self._since += taken
                    self._last += taken
        if at < position:
            raise self.error(f"it ended after {at} bytes", position)

    def take(self, feed: Feed, position: int) -> Buffer | None:
        """The next bytes of `feed`, at `position`, for a caller that looks at them first.

        None at the end. Blocks as long as the source does.

        Raises:
            SourceError: the source broke.
        """
        try:
            data = next(feed.data, None)
        except (SourceError, MemoryError):
            raise
        except BaseException as error:  # a source is code of users
            raise failure_of(self._attempts.source, error, position) from error
        self.check_going_on()  # a stop makes a feed end, too
        return data

    def count(self, received: int, position: int) -> None:
        """Note that so many bytes came from the source; `position` is for the error.

        A server that gathers bytes before it passes them on is silent now and then, and does not
        crawl. So the first long silence does not count; if too few bytes come until the second one,
        that does.

        Raises:
            SourceError: it crawls. These bytes count all the same.
        """
        self._leave_out_held()
        now = time.monotonic()
        silence, self._last = now - self._last, now if received else self._last
        if silence >= self._retries.slow_for and received and not self._was_silent:
            self._was_silent, self._since, self._came = True, now, 0
        self._received += received
        if self._received >= _REPORT:
            self._report()
        self.gauge(received, position)

    def gauge(self, received: int, position: int) -> None:
        """As `count`, for bytes that will be counted later."""
        self._leave_out_held()
        self._came += received
        took = time.monotonic() - self._since
        if took >= self._retries.slow_for:
            self._check_rate(took, position)

    def _leave_out_held(self) -> None:
        """Leave out of the source's time what this side has held the feed back for."""
        if self._feed is not None and (held := self._feed.held()):
            self._since += held
            self._last += held

    def _check_rate(self, took: float, position: int) -> None:
        came, least = self._came, self._retries.least_rate
        self._since, self._came = self._since + took, 0
        if came >= least * took or getattr(self._attempts.source, "is_live", False):
            self._crawls, self._was_silent = 0, False
            return
        self._crawls += 1
        reason = f"it gave only {came} bytes in {took:.0f} s"
        error = self.error(reason, position, retryable=self._crawls < _CRAWLS)
        error.kind = FailureKind.TIMEOUT
        raise error

    def _report(self) -> None:
        received, self._received = self._received, 0
        if received:
            kind = getattr(self._attempts.source, "receives", EventKind.RECEIVED)
            self._tell(Event(kind, self._key, received))

    # Failing.

    def error(self, reason: str, position: int, *, retryable: bool = True) -> SourceError:
        """The error for the source that is asked now."""
        return SourceError(self._attempts.source.name, position, reason, retryable)

    def short(self, position: int) -> SourceError:
        """The error for the source that is asked now: it ended at `position`, before the blob."""
        if self._size is not None:
            self._wrong_size = position
        return self.error(f"it ended after {position} bytes", position)

    def other(self, reason: str, position: int, feed: Feed) -> SourceError | ContentChanged:
        """The error for another blob in `feed`: the source is hopeless, or it is the end.

        It is not the end yet if the source was asked for a part, and does not say that it has other
        content: some servers give the wrong part, or a page. Then it is asked for the whole blob.
        """
        is_wrong_part = self._asks_part and feed.validator in (None, self.known.validator)
        if self._is_given or is_wrong_part:
            return self.error(reason, position, retryable=False)
        return ContentChanged(self._name, position, f"{self._attempts.source.name}: {reason}")

    def fail(self, error: SourceError, position: int) -> None:
        """After `error`: wait, or go on to the next source; `open` then asks again.

        Raises:
            SourceFailed: there is no other source.
            OutOfResources: the same, and the last one failed because this machine lacks something.
            SizeMismatch: the same, and the last source has another size than was asked for.
            DigestMismatch: the source has found that what it gave before is wrong.
            StreamClosed: the download was stopped.
        """
        self.close()
        self.check_going_on(error)  # a stop makes a source fail, which says nothing of the source
        if isinstance(error, AskAgain):
            _log.debug("%s: %s", self._key, error)
            return
        if isinstance(error, GaveWrongBytes):
            reason = f"its bytes are wrong: {error.reason}"
            raise DigestMismatch(self._name, position, reason, self._digest, "") from error
        with_part = self._asks_part and error.offset > 0  # at 0 it was asked for the whole
        try:
            is_crowded = self.crowds(error)
            pause = self._attempts.failed(
                error, position, with_part=with_part, is_crowded=is_crowded
            )
        except SourceFailed as failed:
            if (shortage := _shortage(error, self._name)) is not None:
                raise shortage from error
            if self._size is None or self._wrong_size is None:
                raise
            asked, got = self._size, self._wrong_size
            reason = f"it has {got} bytes, and {asked} were asked for: {failed.reason}"
            raise SizeMismatch(self._name, position, reason, asked, got) from failed
        if pause is None:
            self._tell(Event(EventKind.FAILED_OVER, self._key))
            self._failing_since = None
            self._came = self._crawls = 0
            self._say(logging.WARNING, f"{error}; going on with {self._attempts.source.name}")
            return
        if self._retries.on_retry is not None:
            with listening(f"on_retry failed at {error}"):
                self._retries.on_retry(error)
        now = time.monotonic()
        if self._failing_since is None or position > self._failing_at:
            self._failing_since, self._failing_at = now, position
        is_long = now + pause - self._failing_since >= _PATIENCE
        tries, allowed = self._attempts.tries
        text = f"{error}; that was try {tries} of {allowed}, the next is in {pause:.1f} s"
        self._say(logging.WARNING if is_long else logging.INFO, text, is_retry=True)
        self._stopping.wait(pause)
        if error.retry_after or error.kind.is_without_connection:  # it was told to wait, or away
            self._since += pause
        self.check_going_on(error)

    def _say(self, level: int, text: str, *, is_retry: bool = False) -> None:
        text = text if names(self._key, text) else f"{self._key}: {text}"
        _log.log(level, "%s", text, extra={"is_retry": is_retry})

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


def _shortage(error: BaseException, name: str) -> OutOfResources | None:
    """What this machine lacks, if that is why a source failed: descriptors or memory."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        number = cause.errno if isinstance(cause, OSError) else None
        if number in (errno.EMFILE, errno.ENFILE):
            what = "file descriptors: raise `ulimit -n`, or close some"
            return OutOfResources(name, what, number, str(cause))
        if number in (errno.ENOMEM, errno.ENOBUFS) or isinstance(cause, MemoryError):
            return OutOfResources(name, "memory", errno.ENOMEM, str(cause) or "MemoryError")
        cause = cause.__cause__ or cause.__context__
    return None
