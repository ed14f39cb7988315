"""Attempts: which of several sources is asked, how often, and after which pause.

    a source fails            the same source again, after a pause that grows; if bytes came since
                              its last failure, its failures are counted from 1 again
    it fails too often        the next source
    no source is left         `SourceFailed`, with the last error of each source

The caller (`download`) waits for the pause, and decides at which offset to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shmstream.errors import SourceError, SourceFailed
from shmstream.sources.base import Source

_LONGEST_RETRY_AFTER = 30.0  # s; a source that asks for more counts as failed


@dataclass(frozen=True)
class Retries:
    """How often a source is tried in a row without any progress, and the pauses in between.

    The last source is tried `attempts` times, a source with another source after it `with_others`
    times. Each pause is twice the pause before, from `first_pause` to `longest_pause` seconds. A
    source that says when to ask again (`Retry-After`, up to 30 s) is given that time.
    """

    attempts: int = 8
    with_others: int = 2
    first_pause: float = 0.1
    longest_pause: float = 2.0


class Attempts:
    """Counts the tries to get one blob from `sources`, in this order.

    `name` is what errors call the blob. For one thread at a time.
    """

    def __init__(self, name: str, sources: Sequence[Source], retries: Retries) -> None:
        self._name = name
        self._sources = sources
        self._retries = retries
        self._current = 0
        self._tries = 0
        self._progress = 0
        self._last_words: dict[str, str] = {}

    @property
    def source(self) -> Source:
        """The source to ask now."""
        return self._sources[self._current]

    @property
    def is_first(self) -> bool:
        """Whether `source` is the first one: no source was given up yet."""
        return self._current == 0

    def failed(self, error: SourceError, offset: int) -> float | None:
        """Note that `source` failed after `offset` bytes of the blob had come in all.

        Returns the seconds after which to ask it again; None if `source` is the next one now.

        Raises:
            SourceFailed: there is no next source.
        """
        retries = self._retries
        self._last_words[error.source] = str(error)
        if offset > self._progress:
            self._progress = offset
            self._tries = 0
        self._tries += 1
        is_last = self._current + 1 == len(self._sources)
        allowed = retries.attempts if is_last else retries.with_others
        growing: float = retries.first_pause * 2 ** min(self._tries - 1, 16)
        pause = max(min(growing, retries.longest_pause), error.retry_after or 0.0)
        if error.retryable and self._tries < allowed and pause <= _LONGEST_RETRY_AFTER:
            return pause
        if is_last:
            reason = "; ".join(self._last_words.values())
            raise SourceFailed(self._name, offset, reason, error.status, error.kind) from error
        self._current += 1
        self._tries = 0
        return None
