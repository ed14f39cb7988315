"""Attempts: which of several sources is asked, how often, and after which pause.

    a source fails            the same source again, after a pause that grows; if bytes came since
                              its last failure, its failures are counted from 1 again
    it fails too often        the next source
    a part is of no use       if a source was asked for a part of the blob, and its answer can never
                              be used, it is asked for the whole blob at once
    no source is left         each source that failed with a part only is asked for the whole blob;
                              then the caller may have found other sources
    it was asked too often    by further connections for the same blob, and no other source is left:
                              it is asked again when it says, until no byte has come for 5 minutes.
                              So these connections cost no reader the blob
    there are none            if bytes of the blob are here, and somebody reads them, the last
                              source is waited for (`Retries.outage`): it may be away for a while,
                              and the readers have nobody else. Then `SourceFailed`, with the last
                              error of each source

The caller (`download`) waits for the pause, and decides at which offset to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shmstream.arguments import function, optional, seconds, whole
from shmstream.errors import SourceError, SourceFailed
from shmstream.sources.base import Source

_LONGEST_SAID = 256  # characters of what the last source said
_LONGEST_RETRY_AFTER = 30.0  # s; a source that asks for more counts as failed
_LONGEST_CROWDED = 30.0  # s; likewise a pause, if it does not tell how long
_CROWDED_FOR = 300.0  # s; so long a source may refuse because of our further connections


@dataclass(frozen=True)
class Retries:
    """How often a source is tried in a row without any progress, and the pauses in between.

    The last source is tried `attempts` times, a source with another source after it `with_others`
    times. Each pause is twice the pause before, from `first_pause` to `longest_pause` seconds. A
    source that says when to ask again (`Retry-After`, up to 30 s) is given that time. Before a
    source is given up that was asked for the rest of a blob only, it is asked for the whole blob.

    In the middle of a blob, with readers, the last source is asked again for `outage` seconds since
    it last gave a byte, however often that is.

    A source that gives fewer than `least_rate` bytes a second, over `slow_for` seconds, crawls. It
    is asked again once, because another connection may be faster; if it crawls again, it counts as
    failed. Sources that are `is_live` may be slow: what they give is made just then. 0: all may be.

    `on_retry` is called with each failure after which the same source is asked again.
    """

    attempts: int = 8
    with_others: int = 2
    first_pause: float = 0.1
    longest_pause: float = 2.0
    least_rate: float = 1024.0
    slow_for: float = 15.0
    outage: float = 0.0
    on_retry: Callable[[SourceError], None] | None = None

    def __post_init__(self) -> None:
        """Raises:
        TypeError, ValueError: a number is of a wrong type, or out of range.
        """
        for name in ("attempts", "with_others"):
            whole(name, getattr(self, name), "a number of tries, at least 1", 1)
        for name in ("first_pause", "longest_pause", "slow_for", "outage"):
            seconds(name, getattr(self, name))
        seconds("least_rate", self.least_rate, "a number of bytes a second; 0: any rate is enough")
        optional(function, "on_retry", self.on_retry, "a function that takes a SourceError")


@dataclass
class _Turn:
    """A source in the order in which sources are asked.

    `is_last`: no source is left to ask for a part. `is_whole`: this one is asked for the whole.
    `is_slow`: it was silent, or crawled, when it was asked for the whole.
    """

    source: Source
    is_last: bool = False
    is_whole: bool = False
    is_slow: bool = False


class Attempts:
    """Counts the tries to get one blob from `sources`, in this order.

    `name` is what errors call the blob. `others` is called when no source is left, and gives
    further sources. `may_be_others` tells whether `others` gives any, or another process has some.
    If so, a source that is silent is tried no more often than if these were in the list.
    `is_wanted` tells whether somebody reads. For one thread at a time.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[Source],
        retries: Retries,
        others: Callable[[], Sequence[Source]] = tuple,
        may_be_others: Callable[[], bool] = lambda: False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._name = name
        self._is_wanted = is_wanted
        self._failing_since: float | None = None  # without progress, of whatever source
        self._is_waiting = False  # for the last source: all were asked as often as they may be
        self._turns: list[_Turn] = []
        self._add(sources)
        self._others = others
        self._may_be_others = may_be_others
        self._is_hurried = False  # the source was silent, and there are others
        self._retries = retries
        self._current = 0
        self._tries = 0
        self._progress = 0
        self._last_words: dict[str, tuple[str, int]] = {}  # and how often each source failed

    def _add(self, sources: Sequence[Source]) -> None:
        self._turns += [_Turn(each, each is sources[-1]) for each in sources]

    @property
    def source(self) -> Source:
        """The source to ask now."""
        return self._turns[self._current].source

    @property
    def tries(self) -> tuple[int, int]:
        """How often `source` has failed in a row without progress, and how often it may."""
        return self._tries, self._allowed(self._turns[self._current])

    def _allowed(self, turn: _Turn) -> int:
        retries = self._retries
        return retries.attempts if turn.is_last and not self._is_hurried else retries.with_others

    @property
    def has_another(self) -> bool:
        """Whether a source is left for when `source` fails."""
        return self._current + 1 < len(self._turns)

    @property
    def is_whole(self) -> bool:
        """Whether to ask `source` for the whole blob, because a part was of no use."""
        return self._turns[self._current].is_whole

    @property
    def is_first(self) -> bool:
        """Whether `source` is the first one: no source was given up yet."""
        return self._current == 0

    def failed(
        self,
        error: SourceError,
        offset: int,
        *,
        with_part: bool = False,
        is_crowded: bool = False,
    ) -> float | None:
        """Note that `source` failed after `offset` bytes of the blob had come in all.

        `with_part`: it was asked for the bytes behind an offset, and might give the whole blob.
        `is_crowded`: it refuses because it was asked too often, for this blob.
        Returns the seconds after which to ask it again; None if `source` is the next one now.

        Raises:
            SourceFailed: there is no next source.
        """
        now = time.monotonic()
        turn = self._turns[self._current]
        self._note(error, offset, now)
        crawls = error.kind.is_timeout and not error.retryable
        if is_crowded and not self.has_another:
            pause = self._pause_of_crowd(error)
            if self._is_within(_CROWDED_FOR, now + pause):
                return pause
        turn.is_slow |= error.kind.is_timeout and not with_part
        self._is_hurried = error.kind.is_timeout and self._may_be_others()
        with_part = with_part and not turn.is_whole and not (crawls and turn.is_slow)
        if with_part and not error.retryable and not crawls:
            turn.is_whole, self._tries = True, 0
            return 0.0
        pause = self._pause(error)
        if error.retryable and self._tries < self._allowed(turn) and pause <= _LONGEST_RETRY_AFTER:
            return pause
        if not self._is_waiting:
            if with_part and not error.kind.is_without_connection:
                self._turns.append(_Turn(turn.source, is_whole=True))
            if self._current + 1 == len(self._turns):
                self._add(self._others())
            if self._current + 1 < len(self._turns):
                self._current += 1
                self._tries = 0
                return None
        if error.retryable and offset and self._may_wait(now + pause):
            self._wait_for(turn.source)
            return pause
        said = error.said[:_LONGEST_SAID]
        raise SourceFailed(
            self._name, offset, self._reason(), error.status, error.kind, said
        ) from error

    def _note(self, error: SourceError, offset: int, now: float) -> None:
        _, failures = self._last_words.get(error.source, ("", 0))
        self._last_words[error.source] = str(error), failures + 1
        if offset > self._progress:
            self._progress = offset
            self._tries, self._failing_since, self._is_waiting = 0, None, False
        if self._failing_since is None:
            self._failing_since = now
        self._tries += 1

    def _may_wait(self, until: float) -> bool:
        """Whether somebody wants the blob, and its sources may be away until then."""
        return self._is_within(self._retries.outage, until) and self._is_wanted()

    def _is_within(self, time: float, until: float) -> bool:
        """Whether `until` is less than `time` seconds after the last progress."""
        since = until if self._failing_since is None else self._failing_since
        return until - since < time

    def _wait_for(self, source: Source) -> None:
        """From now on, ask this source only, for the rest of the blob if it can give that."""
        self._is_waiting = True
        self._current = next(n for n, each in enumerate(self._turns) if each.source is source)

    def _reason(self) -> str:
        return "; ".join(
            text if count == 1 else f"{text} (it failed {count} times)"
            for text, count in self._last_words.values()
        )

    def _pause_of_crowd(self, error: SourceError) -> float:
        return error.retry_after or min(self._growing(), _LONGEST_CROWDED)

    def _pause(self, error: SourceError) -> float:
        retries = self._retries
        return max(min(self._growing(), retries.longest_pause), error.retry_after or 0.0)

    def _growing(self) -> float:
        pause: float = self._retries.first_pause * 2 ** min(self._tries - 1, 16)
        return pause
