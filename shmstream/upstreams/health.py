"""`Reach`: whether an upstream answers; `Hold`: whether it wants to be left alone for a while.

After an upstream did not answer, it is quiet for as long as that question took. In that time a
request that can be answered from notes does not ask it. If there was not even a connection, no
question is asked in that time: a queue of questions would wait for it one after the other. A
download asks all the same, because its client has nothing else. This is as this process has seen
it.

What operators are told, all workers share (`notes`): the first answer that any of them gets ends
the problem. If no client asks, a page that shows the problem asks the upstream for `/v2/`
(`wants_probe`). An answer to that ends the problem of an upstream that did not answer, or that had
failed at `/v2/` itself. A 5xx for one repository lasts until that repository is asked for again.

An upstream that answers 429 with `Retry-After` gets no further question until that time is over,
from any worker, but for blobs. Questions that notes can answer are answered by these; all others
are refused with what is left of the time. Registries count by account, so each `rights` has a hold
of its own. If that account is a client's (`is_clients`), its 429 is no problem of the upstream.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from shmstream.errors import FailureKind, SourceError, escaped
from shmstream.upstreams.notes import Notes

_REMEMBERED = 300.0  # s; how long operators are told of the last failure
_LONGEST_HOLD = 24 * 3600.0  # s
_LONGEST = 500  # characters of a reason
_TOLD_EVERY = 1.0  # s; a failure that goes on is noted so often
_PROBE_EVERY = 2.0  # s


@dataclass(frozen=True)
class _Problem:
    """Why questions fail, and since when, in seconds since 1970.

    `probes_tell`: whether the answer to a probe ends it. `status`: of the last answer, if any.
    """

    reason: str
    since: float
    status: int | None
    probes_tell: bool


class Reach:
    """For the upstream `name`. Any thread may use it, because its answers are only hints.

    `namespace` is how clients call the upstream. Without `notes` operators are told nothing.
    `is_clients`: the upstream is asked with the credentials of clients, so it counts by client.
    """

    def __init__(
        self,
        name: str,
        namespace: str | None = None,
        notes: Notes | None = None,
        *,
        is_clients: bool = False,
    ) -> None:
        self._is_clients = is_clients
        self._name = name
        self._namespace = namespace
        self._notes = notes
        self._problem: str | None = None  # why the last question failed
        self._told = float("-inf")  # when that was noted, on the monotonic clock
        self._probed = float("-inf")
        self._probed_in_vain = 0.0  # the beginning of a problem that no probe ends
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

    def probed(self) -> None:
        """Note that the upstream has answered a probe, which may tell nothing of what failed."""
        known = self._noted()
        if known is None or known.probes_tell:
            self.answered()
        else:
            self._probed_in_vain = known.since

    def failed(self, error: SourceError, began: float, *, is_probe: bool = False) -> None:
        """Note that a question has failed that was asked at `began`, on the monotonic clock."""
        status = error.status
        if is_refusal(error) or (self._is_clients and status == 429):
            self.answered()
            return
        now = time.monotonic()
        is_news = is_probe or self._problem != error.reason or now - self._told > _TOLD_EVERY
        self._problem = error.reason
        # The kind of the error, and not the error, which would keep its connection open.
        self._kind = error.kind
        self._quiet_until = 0.0 if status is not None or not error.retryable else 2 * now - began
        if self._notes is not None and is_news:
            self._told = now
            known = self._noted()
            since = time.time() if known is None else known.since
            tell = status is None or is_probe or (known is not None and known.probes_tell)
            problem = _Problem(error.reason[:_LONGEST], since, status, tell)
            self._notes.write(self._key, json.dumps(asdict(problem)))

    def _noted(self) -> _Problem | None:
        note = None if self._notes is None else self._notes.read(self._key)
        if note is None or note.age > _REMEMBERED:
            return None
        try:
            facts = json.loads(note.text)
            reason, since, status = str(facts["reason"]), float(facts["since"]), facts["status"]
            return _Problem(reason, since, status, facts["probes_tell"] is True)
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
        name = self._name if self._namespace is None else f"{self._namespace}, {self._name}"
        age = max(time.time() - noted.since, 0)
        return escaped(f"{name}: {noted.reason}, for {age:.0f} s")

    def wants_probe(self, *, also_5xx: bool = True) -> bool:
        """Whether to ask the upstream now, because it has failed, and nobody else asks.

        `also_5xx`: also if it has answered, with a status of 500 or more.
        """
        now, noted = time.monotonic(), self._noted()
        if noted is None or noted.status == 429 or noted.since == self._probed_in_vain:
            return False
        if noted.status is not None and not also_5xx:
            return False
        if now - self._probed < _PROBE_EVERY:
            return False
        self._probed = now
        return True


class Hold:
    """For the upstream `name`, asked with these `rights`. Any thread may use it.

        this worker                 another worker
        1 asks; gets 429, 60 s      1 asks at the same time: that cannot be helped
        2 notes the end of it       2 gets 429, too, and notes it: the later end counts
        3 does not ask              3 reads the note before it asks, and does not ask

    A note that is lost costs one question. The end is by the clock of the day, because workers come
    and go; if the clock is set back, no hold is longer than a day.
    """

    def __init__(self, name: str, rights: str, notes: Notes | None) -> None:
        self._name = name
        self._key = ("held", rights, name)
        self._notes = notes
        self._until = 0.0  # in seconds since 1970, as far as this process knows

    def note(self, error: SourceError) -> None:
        """Note what the upstream has answered, if it is that."""
        if error.status != 429 or not error.retry_after:
            return
        until = time.time() + min(error.retry_after, _LONGEST_HOLD)
        if until > time.time() + self.left:
            self._until = until
            if self._notes is not None:
                self._notes.write(self._key, f"{until:.3f}")

    @property
    def left(self) -> float:
        """For how many seconds it is not asked; 0 if it may be. Reads a file."""
        now = time.time()
        note = None if self._notes is None else self._notes.read(self._key)
        if note is not None:
            with suppress(ValueError):
                self._until = max(self._until, float(note.text))
        left = self._until - now
        return left if 0 < left <= _LONGEST_HOLD else 0.0

    def check(self) -> None:
        """Check that it may be asked.

        Raises:
            SourceError: 429, with what is left of its `Retry-After`.
        """
        if (left := self.left) > 0:
            reason = f"it wants no requests for {left:.0f} s"
            raise SourceError(self._name, 0, reason, retryable=False, retry_after=left, status=429)


def is_refusal(error: SourceError) -> bool:
    """Whether it is the answer of an upstream that is well."""
    return error.status is not None and error.status != 429 and error.status < 500
