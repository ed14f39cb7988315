"""`Reach`: whether an upstream answers.

After an upstream did not answer, it is quiet for as long as that question took. In that time a
request that can be answered from notes does not ask it. If there was not even a connection, no
question is asked in that time: a queue of questions would wait for it one after the other. A
download asks all the same, because its client has nothing else. This is as this process has seen
it.

What operators are told, all workers share (`notes`): the first answer that any of them gets ends
the problem. If no client asks, whoever looks at the problem has the upstream asked (`wants_probe`).
"""

from __future__ import annotations

import json
import time

from shmstream.errors import FailureKind, SourceError, escaped
from shmstream.upstreams.notes import Notes

_REMEMBERED = 300.0  # s; how long operators are told of the last failure
_LONGEST = 500  # characters of a reason
_TOLD_EVERY = 1.0  # s; a failure that goes on is noted so often
_PROBE_EVERY = 2.0  # s


class Reach:
    """For the upstream `name`. Any thread may use it, because its answers are only hints.

    `namespace` is how clients call the upstream. Without `notes` operators are told nothing.
    """

    def __init__(self, name: str, namespace: str | None = None, notes: Notes | None = None) -> None:
        self._name = name
        self._namespace = namespace
        self._notes = notes
        self._problem: str | None = None  # why the last question failed
        self._told = float("-inf")  # when that was noted, on the monotonic clock
        self._probed = float("-inf")
        self._quiet_until = 0.0
        self._kind = FailureKind.BROKEN

    @property
    def _key(self) -> tuple[str, str]:
        return self._namespace or "", self._name

    def answered(self) -> None:
        """Note that the upstream has answered; a refusal is an answer, too."""
        self._problem, self._quiet_until, self._told = None, 0.0, float("-inf")
        if self._notes is not None and self._notes.read(self._key) is not None:
            self._notes.remove(self._key)

    def failed(self, error: SourceError, began: float) -> None:
        """Note that a question has failed that was asked at `began`, on the monotonic clock."""
        status = error.status
        if is_refusal(error):
            self.answered()
            return
        now = time.monotonic()
        is_news = self._problem != error.reason or now - self._told > _TOLD_EVERY
        self._problem = error.reason
        # The kind of the error, and not the error, which would keep its connection open.
        self._kind = error.kind
        self._quiet_until = 0.0 if status is not None or not error.retryable else 2 * now - began
        if self._notes is not None and is_news:
            self._told = now
            facts = {"reason": error.reason[:_LONGEST], "since": self._since(), "status": status}
            self._notes.write(self._key, json.dumps(facts))

    def _since(self) -> float:
        """When the problem began, in seconds since 1970."""
        known = self._noted()
        return time.time() if known is None else known[1]

    def _noted(self) -> tuple[str, float, bool] | None:
        """The reason of the problem, its beginning, and whether there was an answer at all."""
        note = None if self._notes is None else self._notes.read(self._key)
        if note is None or note.age > _REMEMBERED:
            return None
        try:
            facts = json.loads(note.text)
            return str(facts["reason"]), float(facts["since"]), facts["status"] is not None
        except (ValueError, TypeError, LookupError):
            return None

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
        """Why the last question failed, and for how long; None if it succeeded, or was long ago.

        Reads a file.
        """
        if (noted := self._noted()) is None:
            return None
        reason, since, _ = noted
        name = self._name if self._namespace is None else f"{self._namespace}, {self._name}"
        return escaped(f"{name}: {reason}, for {max(time.time() - since, 0):.0f} s")

    def wants_probe(self) -> bool:
        """Whether to ask the upstream now, because it did not answer, and nobody else asks."""
        now, noted = time.monotonic(), self._noted()
        if noted is None or noted[2] or now - self._probed < _PROBE_EVERY:
            return False
        self._probed = now
        return True


def is_refusal(error: SourceError) -> bool:
    """Whether it is the answer of an upstream that is well."""
    return error.status is not None and error.status != 429 and error.status < 500
