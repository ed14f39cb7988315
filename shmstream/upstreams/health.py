"""`Reach`: whether an upstream answers; `Hold`: whether it wants to be left alone for a while.

After an upstream did not answer, it is quiet for as long as that question took. In that time a
request that can be answered from notes does not ask it. If there was not even a connection, no
question is asked in that time: a queue of questions would wait for it one after the other. A
download asks all the same, because its client has nothing else. This is as this process has seen
it.

What operators are told, all workers share (`notes`):

    a question fails             that is a problem, and the note says what was asked
    any question is answered     the problem ends, whichever worker has asked
    no client asks               a page that shows the problem has what failed asked again
                                 (`probes`): that may be the upstream, or its token service
    it fails again               the problem goes on; but a 5xx for one thing, of an upstream that
                                 answers otherwise, is told for `_REMEMBERED` at most
    429                          it is asked again when its `Retry-After` is over

An upstream that answers 429 with `Retry-After` gets no further question until that time is over,
from any worker, but for blobs. Questions that notes can answer are answered by these; all others
are refused with what is left of the time. Registries count by account, so each `rights` has a hold
of its own. If that account is a client's (`is_clients`), its 429 is no problem of the upstream.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from shmstream.errors import FailureKind, SourceError, escaped
from shmstream.upstreams.notes import Notes

_REMEMBERED = 300.0  # s; how long operators are told of the last failure, if nothing is known since
_LONGEST_HOLD = 24 * 3600.0  # s
_PAUSE = 60.0  # s; after a 429 that tells no time
_LONGEST = 500  # characters of a reason
_LONGEST_PATH = 800  # characters; of a longer one only that it failed is noted
_TOLD_EVERY = 1.0  # s; a failure that goes on is noted so often
_PROBE_EVERY = 2.0  # s
_PART = 10  # of the time that a problem lasts: what fails for long is asked for more rarely
_PROBE_RARELY = 30.0  # s


@dataclass(frozen=True)
class _Problem:
    """Why questions fail. All times are in seconds since 1970.

    `since`: when it began. `until`: how long it is told. `rests_until`: when it may be asked again.
    `path`: what was asked, without a query; None if that is not known.
    """

    reason: str
    since: float
    until: float
    rests_until: float
    path: str | None


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
        self._quiet_until = 0.0
        self._kind = FailureKind.BROKEN
        self._probing = threading.Lock()  # held from `begin_probe` to `end_probe`
        self.probed: float = float("-inf")
        """When the last probe began, on the monotonic clock."""

    @property
    def _key(self) -> tuple[str, str]:
        return self._namespace or "", self._name

    def answered(self) -> None:
        """Note that the upstream has answered; a refusal is an answer, too."""
        self._problem, self._quiet_until, self._told = None, 0.0, float("-inf")
        if self._notes is not None and self._notes.read(self._key) is not None:
            self._notes.remove(self._key)

    def failed(
        self,
        error: SourceError,
        began: float,
        path: str | None = None,
        *,
        is_probe: bool = False,
        lasts: bool = True,
    ) -> None:
        """Note that a question has failed that was asked at `began`, on the monotonic clock.

        `path`: what was asked, without a query: a probe asks for it. `lasts`: whether a probe that
        fails has the problem told for longer. A problem that has ended meanwhile, no probe begins.
        """
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
        if self._notes is None or not is_news:
            return
        known = self._noted()
        if not is_probe or (lasts and known is not None):
            self._told = now
            self._note(self._notes, known, error, path)

    def _note(
        self, notes: Notes, known: _Problem | None, error: SourceError, path: str | None
    ) -> None:
        now = time.time()
        rest = min(error.retry_after or _PAUSE, _LONGEST_HOLD) if error.status == 429 else 0.0
        problem = _Problem(
            error.reason[:_LONGEST],
            since=now if known is None else known.since,
            until=now + rest + _REMEMBERED,
            rests_until=now + rest,
            path=path if len(path or "") <= _LONGEST_PATH else None,
        )
        notes.write(self._key, json.dumps(asdict(problem)))

    def _noted(self) -> _Problem | None:
        note = None if self._notes is None else self._notes.read(self._key)
        try:
            facts = json.loads("" if note is None else note.text)
            reason, path = str(facts["reason"]), facts["path"]
            since, until, rests = (float(facts[name]) for name in ("since", "until", "rests_until"))
        except (ValueError, TypeError, LookupError):
            return None
        path = path if isinstance(path, str) else None
        return _Problem(reason, since, until, rests, path) if time.time() < until else None

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

    @property
    def failed_path(self) -> str | None:
        """What was asked when a question failed last; None if that is not known. Reads a file."""
        noted = self._noted()
        return None if noted is None else noted.path

    def begin_probe(self) -> bool:
        """Whether to ask the upstream now, because it has failed. If so, call `end_probe` then.

        Only one caller is told so at one time, and at most every two seconds.
        """
        if not self._probing.acquire(blocking=False):
            return False
        if not self._wants_probe():
            self._probing.release()
            return False
        self.probed = time.monotonic()
        return True

    def _wants_probe(self) -> bool:
        noted, now = self._noted(), time.time()
        if noted is None or now < noted.rests_until:
            return False
        pause = min(max((now - noted.since) / _PART, _PROBE_EVERY), _PROBE_RARELY)
        return time.monotonic() - self.probed >= pause

    def end_probe(self) -> None:
        """After `begin_probe`: the probe has ended, in whatever way."""
        self._probing.release()


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
