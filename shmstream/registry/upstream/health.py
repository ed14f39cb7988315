"""`Reach`: whether an upstream answers, as this process has seen it.

An upstream that did not answer is left alone for as long as it took to see that: whoever has an
answer without it goes on with that at once. One that could not even be connected to is asked no
other question in that time, so that a queue of them does not wait for it one after the other.
"""

from __future__ import annotations

import time

from shmstream.errors import FailureKind, SourceError

_REMEMBERED = 300.0  # s; how long the last failure is worth telling


class Reach:
    """Of one upstream, whose name is `name`. Any thread may use it: what it says is a hint."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._problem: str | None = None  # of the last question
        self._seen = 0.0  # when, on the monotonic clock
        self._quiet_until = 0.0
        self._kind = FailureKind.BROKEN

    def answered(self) -> None:
        """It has, whatever it was."""
        self._problem, self._quiet_until = None, 0.0

    def failed(self, error: SourceError, began: float) -> None:
        """A question that was asked at `began` (monotonic) has failed; perhaps with an answer."""
        status = error.status
        if status is not None and status != 429 and status < 500:
            self.answered()
            return
        now = time.monotonic()
        self._problem, self._seen = error.reason, now
        # The kind of the error, and not the error, which would keep its connection open.
        self._kind = error.kind
        self._quiet_until = 0.0 if status is not None or not error.retryable else 2 * now - began

    @property
    def is_quiet(self) -> bool:
        """Whether to go on without it, for those who can."""
        return time.monotonic() < self._quiet_until

    def check(self) -> None:
        """See that there is a point in asking.

        Raises:
            SourceError: it has just been seen that nobody can connect.
        """
        problem = self._problem
        if problem is not None and self._kind.is_without_connection and self.is_quiet:
            raise SourceError(self._name, 0, problem, kind=self._kind)

    @property
    def problem(self) -> str | None:
        """Why it could not be had when it was last asked, if that was not long ago."""
        problem = self._problem
        if problem is None or time.monotonic() - self._seen > _REMEMBERED:
            return None
        return f"{self._name}: {problem}"
