"""`Reach`: whether an upstream answers, as this process has seen it.

After an upstream did not answer, it is quiet for as long as that question took. In that time a
request that can be answered from notes does not ask it. If there was not even a connection, no
question is asked in that time: a queue of questions would wait for it one after the other. A
download asks all the same, because its client has nothing else.
"""

from __future__ import annotations

import time

from shmstream.errors import FailureKind, SourceError, escaped

_REMEMBERED = 300.0  # s; how long operators are told of the last failure


class Reach:
    """For the upstream `name`. Any thread may use it, because its answers are only hints."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._problem: str | None = None  # why the last question failed
        self._seen = 0.0  # the time of the problem, on the monotonic clock
        self._quiet_until = 0.0
        self._kind = FailureKind.BROKEN

    def answered(self) -> None:
        """Note that the upstream has answered; a refusal is an answer, too."""
        self._problem, self._quiet_until = None, 0.0

    def failed(self, error: SourceError, began: float) -> None:
        """Note that a question has failed that was asked at `began`, on the monotonic clock."""
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
        """Whether a request that can be answered without the upstream should not ask it."""
        return time.monotonic() < self._quiet_until

    def check(self) -> None:
        """Check that asking makes sense.

        Raises:
            SourceError: a connection has just failed.
        """
        problem = self._problem
        if problem is not None and self._kind.is_without_connection and self.is_quiet:
            raise SourceError(self._name, 0, problem, kind=self._kind)

    @property
    def problem(self) -> str | None:
        """Why the last question failed; None if it succeeded, or was long ago."""
        problem = self._problem
        if problem is None or time.monotonic() - self._seen > _REMEMBERED:
            return None
        return escaped(f"{self._name}: {problem}")
