"""Attempts: which of several sources is asked, how often, and after which pause.

    a source fails     the same one again, after a pause that grows; one that has brought something
                       since the last time begins to count anew
    again and again    the next source
    there is none      `SourceFailed`, with the last word of each

Who asks waits for himself, and decides where to go on: a leader (leader.py), or a client that is
served without one (passing.py).
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

    The last source is tried `attempts` times, one that has another behind it `with_others` times.
    A pause is twice the one before, from `first_pause` to `longest_pause` seconds; a source that
    says when to come again (`Retry-After`, up to 30 s) is given that time.
    """

    attempts: int = 8
    with_others: int = 2
    first_pause: float = 0.1
    longest_pause: float = 2.0


class Attempts:
    """To get one blob from `sources`, in this order; `name` is what an error calls it."""

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
        """The one to ask."""
        return self._sources[self._current]

    @property
    def is_first(self) -> bool:
        """Whether no source was given up yet."""
        return self._current == 0

    def failed(self, error: SourceError, offset: int) -> float | None:
        """Note that `source` failed, when `offset` bytes had come in all.

        Seconds after which to ask it again; None if it is another one by now.

        Raises:
            SourceFailed: there is no other.
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
