"""`Allowance`: how many more manifests an upstream gives to one account, as it tells itself.

Docker Hub counts the manifests that an account gets in a time; without credentials, an address. Its
answers about manifests tell how many are left, also those to HEAD, which it does not count:

    ratelimit-limit: 100;w=21600          100 in 21,600 s
    ratelimit-remaining: 76;w=21600       76 of them are left

All workers share what was told last (`notes`). It is believed for the time that it tells; without
one for five minutes.

    few are left     a tenth at most: one warning in the log. The next one comes when there were
                     more than a fifth again, or when nothing was known
    none is left     for a minute after that was told, a tag whose older meaning is known is not
                     asked for by GET; and a 429 without `Retry-After` means a minute

A note that is lost costs a warning or a question. Two workers that are told of few at the same time
may both warn.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from shmstream.upstreams.notes import Note, Notes

PAUSE = 60.0
"""Seconds for which an upstream is spared after it has told that nothing is left."""

_TOLD = re.compile(r"\s*(\d{1,12})\s*(?:;\s*w\s*=\s*(\d{1,9})\s*)?(?:[;,].*)?", re.ASCII)
_BELIEVED = 300.0  # s; if the upstream tells no time
_FEW, _PLENTY = 10, 5  # parts of the limit

_log = logging.getLogger("shmstream")


@dataclass(frozen=True)
class Left:
    """`count` of `limit` manifests are left, of those that are given in `seconds`."""

    count: int
    limit: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Left | None:
        """What the headers of an answer tell; None if they tell nothing that is understood."""
        remaining = _TOLD.fullmatch(headers.get("ratelimit-remaining", ""))
        if remaining is None:
            return None
        limit = _TOLD.fullmatch(headers.get("ratelimit-limit", ""))
        seconds = remaining[2] or (limit and limit[2])
        return cls(int(remaining[1]), limit and int(limit[1]), float(seconds) if seconds else None)

    @property
    def is_little(self) -> bool:
        """Whether people should know that there may soon be none; False without a limit."""
        return self.limit is not None and self.count * _FEW <= self.limit

    @property
    def is_plenty(self) -> bool:
        """Whether that may be told anew when it is little again."""
        return self.limit is None or self.count * _PLENTY > self.limit


class Allowance:
    """For the upstream `name`, asked with these `rights`. Any thread may use it.

    `is_ours`: people are warned; else it is that of a client, or of a host that a client has named.
    """

    def __init__(
        self, name: str, rights: str, notes: Notes | None, *, is_ours: bool = True
    ) -> None:
        self._name = name
        self._key = ("left", rights, name)
        self._notes = notes
        self._is_ours = is_ours
        self._lock = threading.Lock()  # guards all below, and each change of the note
        self._own = ""  # as the note, for this process alone: if there are no notes
        self._when = 0.0  # when it was told, on the monotonic clock

    def note(self, status: int, headers: Mapping[str, str]) -> None:
        """Note what the `headers` of an answer about a manifest tell, if they do.

        A refusal tells nothing: with wrong credentials there is no account.
        """
        left = Left.of(headers) if status < 400 or status == 429 else None
        if left is None:
            return
        with self._lock:
            _, was_warned, _ = self._noted()
            is_warned = left.is_little or (was_warned and not left.is_plenty)
            if is_warned and not was_warned and self._is_ours:
                self._warn(left)
            facts = [left.count, left.limit, left.seconds, is_warned]
            self._own, self._when = json.dumps(facts), time.monotonic()
            if self._notes is not None:
                self._notes.write(self._key, self._own)

    def _warn(self, left: Left) -> None:
        span = "" if left.seconds is None else f" in {left.seconds:g} s"
        _log.warning(
            "%s: of the %d manifests that it gives%s, %d are left. It may give more with"
            " credentials, and max_pulls spreads them over the time",
            self._name, left.limit, span, left.count,
        )  # fmt: skip

    def _noted(self) -> tuple[Left | None, bool, float]:
        """What was told last, whether people were warned then, and its age. Reads a file.

        None if nothing was told, or too long ago.
        """
        note = Note(self._own, time.monotonic() - self._when)
        if self._notes is not None:
            note = self._notes.read(self._key) or Note("", 0.0)
        try:
            count, limit, seconds, is_warned = json.loads(note.text)
        except (ValueError, TypeError):
            return None, False, 0.0
        if note.age >= (seconds or _BELIEVED):
            return None, False, 0.0
        return Left(count, limit, seconds), is_warned, note.age

    @property
    def left(self) -> Left | None:
        """How many are left; None if the upstream has not told, or told it too long ago."""
        return self._noted()[0]

    @property
    def is_used_up(self) -> bool:
        """Whether it has told a moment ago that none is left."""
        left, _, age = self._noted()
        return left is not None and left.count == 0 and age < PAUSE
