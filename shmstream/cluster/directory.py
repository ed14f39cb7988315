"""`Directory`: what nodes know of each other, in Redis or Valkey. Never waits longer than 1.5 s.

The directory serves speed, and not correctness: bytes are verified by their digest. So a call that
fails is no error of a download; its caller goes to the upstream by itself, as it would do without a
cluster.

    answers                     the connection is kept while this process has flights
    refuses the connection      `DirectoryAway` at once
    answers, and many wait      each waits for its turn, as long as it answers several a second
    answers late, or not        tried again after 0.6 s, with jitter; `DirectoryAway` after 1.5 s
    has failed                  `DirectoryAway` at once, for 3 s; then one caller tries
    hangs where no timeout      (a resolver of names): the thread that hangs is left alone, and
      reaches                     `DirectoryAway` is raised at once until it has come back

Each call is made in a thread of its own, so that nothing that a library or the system does can make
a download wait for longer. One connection serves all flights of a process, one call after another:
a call takes less than a millisecond.

Needs redis-py, the extra `cluster`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from shmstream.cluster import scripts
from shmstream.events import Event, EventKind
from shmstream.system import threads
from shmstream.system.process import register

MOST = 1.5
"""Seconds that a call takes at most."""
AWAY = 3.0
"""Seconds for which a directory that failed is not asked."""
_ONE_TRY = 0.6  # s
_BRISK = 8  # calls that are answered in `MOST` seconds: then others wait for their turn ...
_QUEUE = 10.0  # ... and at most so many seconds
_TTL = 3600  # s; a rank of which nothing is heard any more
_PREFIX = "shmstream"

_log = logging.getLogger("shmstream")


class DirectoryAway(Exception):
    """The directory does not answer now. The message says why."""


class Verdict(StrEnum):
    """Where a node gets the rest of a blob from."""

    LEAD = "lead"
    """From the upstream: it has the lease."""
    PEERS = "peers"
    """From one of these nodes."""
    WAIT = "wait"
    """From a node that it does not want now; no other one has it."""
    FAILED = "failed"
    """From nowhere: the upstream has failed for all."""


class Decision(NamedTuple):
    """The answer to `decide`. `leader` has the lease; `why` is the failure of the upstream."""

    verdict: Verdict
    peers: tuple[str, ...] = ()
    leader: str = ""
    why: str = ""


@dataclass(frozen=True)
class Me:
    """Who asks: the address of the node, and the token of its flight. An empty address: nobody's
    parent, and never the leader.
    """

    node: str
    token: str


class _Answers(NamedTuple):
    """What one call has come to, for the thread that waits for it."""

    good: list[object]
    bad: list[Exception]


def _do_nothing() -> None:
    """What is done when the directory comes back, if nobody wants more."""


def _say_nothing(_event: Event) -> None:
    """What is told if nobody listens."""


class Directory:
    """The directory behind `url`. Any thread may call it; a forked child, too.

    Args:
        url: as redis-py has it: `redis://`, `rediss://` (TLS), `unix://`.
        lease: seconds for which the lease lasts if it is not renewed.
        fan: how many children a node has in the tree.
        password: if the url has none.
        back: called when the directory answers again; it must not call the directory itself.
        tell: called with an event for each call, in the thread that has made the call.

    Raises:
        ImportError: redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float = 3.0,
        fan: int = 2,
        password: str | None = None,
        back: Callable[[], None] = _do_nothing,
        tell: Callable[[Event], None] = _say_nothing,
    ) -> None:
        self._redis = load_redis()  # here, because to import it takes longer than a call may
        self._url = url
        self._password = password
        self._back = back
        self._tell = tell
        self._lease = round(lease * 1000)
        self._fan = fan
        self.calls: int = 0
        """How many calls were made."""
        self.failures: int = 0
        """How many of them failed."""
        self._answered = 0
        self._begin()
        register(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()  # held for one call; guards all below
        self._client: Any = None
        self._known: dict[str, Any] = {}
        self._not_before = 0.0
        self._why = ""
        self._away_until = 0.0  # when it failed last; 0 while it answers
        self._away = self._untold = 0.0  # s; all of it, and what no event has told
        self._running: threads.Call | None = None
        self._users = 0

    # The calls.

    def decide(
        self,
        key: str,
        me: Me,
        *,
        refused: Sequence[str] = (),
        avoid: Sequence[str] = (),
        source: str = "",
    ) -> Decision:
        """Where this node gets the rest of `key` from; it joins the flight, if it may.

        `refused` did not answer, or do not have it, and are no parents of anybody for a while.
        `avoid` are not to be named this time. `source` is the fingerprint of the node's upstream.

        Raises:
            DirectoryAway: it does not answer.
        """
        chance = random.randrange(1, 1 << 30)
        more = (int(bool(me.node)), self._fan, chance, " ".join(refused), " ".join(avoid), source)
        answer = self._call(scripts.DECIDE, key, me, more)
        try:
            verdict, second, *peers = (each.decode() for each in answer)  # type: ignore[attr-defined]
            verdict = Verdict(verdict)
        except (TypeError, ValueError, AttributeError) as error:
            raise self._failed(f"an answer that makes no sense: {answer!r:.100}") from error
        if verdict is Verdict.FAILED:
            return Decision(verdict, why=second)
        return Decision(verdict, tuple(peers), second)

    def renew(self, held: Sequence[tuple[str, Me]]) -> list[bool]:
        """Keep these leases; False for each that another node has.

        Raises:
            DirectoryAway: it does not answer.
        """
        answers = self._at_once(scripts.RENEW, held, ())
        return [each == 1 or isinstance(each, Exception) for each in answers]

    def leave(self, key: str, me: Me, how: str, text: str = "") -> None:
        """Tell how the flight of this node has ended: see `scripts.LEAVE`.

        Raises:
            DirectoryAway: it does not answer.
        """
        assert how in scripts.ENDS
        self._call(scripts.LEAVE, key, me, (how, text))

    def greet(self, me: Me) -> bool:
        """Whether the directory knows this node; from now on it does, for an hour.

        Raises:
            DirectoryAway: it does not answer.
        """
        name = f"{_PREFIX}:node:{me.node}"
        return (
            self._asked(me.node, lambda client: client.set(name, 1, ex=_TTL, get=True)) is not None
        )

    def announce(self, keys: Sequence[str], me: Me) -> None:
        """Tell that this node has these complete blobs: some hundreds at most at one time.

        Raises:
            DirectoryAway: it does not answer.
        """
        self._at_once(scripts.LEAVE, [(key, me) for key in keys], ("complete", ""))

    # How a call is made.

    def _call(self, script: str, key: str, me: Me, more: Sequence[object]) -> object:
        names, arguments = self._of(key, me, more)
        return self._asked(key, lambda _: self._script(script)(keys=names, args=arguments))

    def _at_once(
        self, text: str, of: Sequence[tuple[str, Me]], more: Sequence[object]
    ) -> list[object]:
        """The answers to one script for several digests, or their errors, in one call."""

        def ask(client: Any) -> object:
            script = self._script(text)
            with client.pipeline(transaction=False) as pipeline:
                for key, me in of:
                    names, arguments = self._of(key, me, more)
                    script(keys=names, args=arguments, client=pipeline)
                return pipeline.execute(raise_on_error=False)

        answers = self._asked(of[0][0], ask) if of else []
        if not isinstance(answers, list) or len(answers) != len(of):
            raise DirectoryAway(f"an answer that makes no sense: {answers!r:.100}")
        return answers

    def _of(self, key: str, me: Me, more: Sequence[object]) -> tuple[list[str], list[object]]:
        """The keys and the arguments of a script."""
        names = [f"{_PREFIX}:{{{key}}}:{name}" for name in scripts.KEYS]
        return names, [me.node, me.token, self._lease, _TTL, *more]

    def _script(self, text: str) -> Any:
        if text not in self._known:
            self._known[text] = self._client.register_script(text)
        return self._known[text]

    def _asked(self, key: str, request: Callable[[Any], object]) -> object:
        """What `request` returns, which is called with the client of Redis."""
        if not self._take_turn():
            raise DirectoryAway(self._why or "other calls take all the time")
        failures, was_asked = self.failures, False
        try:
            if time.monotonic() < self._not_before:
                raise DirectoryAway(self._why)
            if self._running is not None and self._running.is_alive():
                raise self._failed("an earlier call still hangs")
            self.calls += 1
            was_asked = True
            return self._in_time(lambda until: self._ask(request, until))
        finally:
            has_failed, seconds, self._untold = self.failures > failures, self._untold, 0.0
            self._lock.release()
            if was_asked:
                kind = EventKind.UNANSWERED if has_failed else EventKind.ASKED
                self._tell(Event(kind, key, seconds=seconds))

    def _take_turn(self) -> bool:
        """Take the lock; False if the calls of others take too long."""
        until = time.monotonic() + _QUEUE
        while True:
            seen = self._answered
            if self._lock.acquire(timeout=MOST):
                return True
            if self._answered - seen < _BRISK or time.monotonic() > until:
                return False

    def _count_away(self, *, is_back: bool) -> None:
        """Count the time for which it has been away until now."""
        now = time.monotonic()
        if self._away_until:
            self._away += now - self._away_until
            self._untold += now - self._away_until
        self._away_until = 0.0 if is_back else now

    def _in_time(self, ask: Callable[[float], object]) -> object:
        """What `ask` returns, if it does so in time."""
        answers, until = _Answers([], []), time.monotonic() + MOST

        def run() -> None:
            try:
                answers.good.append(ask(until))
            except Exception as error:  # noqa: BLE001  the thread that waits judges it
                answers.bad.append(error)

        self._running = threads.Call(run, "shmstream-directory")
        try:
            self._running.start()
        except RuntimeError as error:  # no thread can be started
            self._running = None
            raise self._failed(str(error)) from error
        self._running.join(max(until - time.monotonic(), 0.0))
        if answers.good:
            self._answered += 1
            if self._why:
                _log.warning("the directory of the cluster answers again")
                self._why = ""
                self._count_away(is_back=True)
                self._back()
            return answers.good[0]
        if answers.bad:
            cause = answers.bad[0]
            raise self._failed(f"{type(cause).__name__}: {cause}") from cause
        raise self._failed(f"no answer within {MOST:g} s")

    def _failed(self, reason: str) -> DirectoryAway:
        """Note a failure: the next 3 s nobody asks."""
        self.failures += 1
        self._count_away(is_back=False)
        self._not_before = time.monotonic() + AWAY
        if not self._why:
            told = "the directory of the cluster does not answer: each node goes on by itself: %s"
            _log.warning(told, reason)
        self._why = reason
        return DirectoryAway(reason)

    def _ask(self, request: Callable[[Any], object], until: float) -> object:
        """Ask, and ask again after a time-out, until the time is over."""
        redis = self._redis
        if self._client is None:
            self._client = redis.Redis.from_url(
                self._url,
                socket_timeout=_ONE_TRY,
                socket_connect_timeout=_ONE_TRY,
                max_connections=1,
                password=self._password,
                retry=None,
            )
        while True:
            try:
                return request(self._client)
            except (redis.TimeoutError, TimeoutError):
                pause = random.uniform(0.02, 0.1)
                if time.monotonic() + pause + _ONE_TRY / 2 > until:
                    raise
                time.sleep(pause)

    # For as long as flights need it.

    def use(self) -> None:
        """A flight begins, for which calls will be made. Call `let_go` at its end."""
        with self._lock:
            self._users += 1

    def let_go(self) -> None:
        """A flight has ended. With the last one the connection is closed: Redis takes 10,000 only,
        and a cluster may have more processes.
        """
        with self._lock:
            self._users -= 1
            if self._users <= 0:
                self._drop()

    def _drop(self) -> None:
        client, self._client = self._client, None
        self._known.clear()
        if client is not None and (self._running is None or not self._running.is_alive()):
            client.close()

    @property
    def trouble(self) -> str:
        """Why the directory does not answer; empty while it does."""
        return self._why

    @property
    def away(self) -> float:
        """Seconds for which it did not answer."""
        until = self._away_until
        return self._away + (time.monotonic() - until if until else 0.0)

    def close(self) -> None:
        """Close the connection. The next call makes another one. Idempotent."""
        if self._lock.acquire(timeout=MOST):
            self._drop()
            self._lock.release()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's, and stays as it is."""
        self._inherited = self._client
        self._begin()


def load_redis() -> Any:
    """The module of redis-py.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import redis
    except ImportError as error:
        raise ImportError("a cluster needs redis-py: pip install 'shmstream[cluster]'") from error
    return redis
