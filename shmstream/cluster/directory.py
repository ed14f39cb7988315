"""`Directory`: what nodes know of each other, in Redis or Valkey. Bounds how long a call waits.

The directory serves speed, and not correctness: bytes are verified by their digest. So a call that
fails is no error of a download; its caller goes to the upstream by itself, as it would do without a
cluster.

    answers                     the connection is kept while this process has flights
    refuses the connection      `DirectoryAway` at once
    answers, and many wait      all that wait are asked together, as soon as the answer is there
    answers late                each call has 1.5 s for itself, from when it is sent
    does not answer             `DirectoryAway` after 1.5 s, for all that wait
    takes no connection         tried again after 0.6 s, until the 1.5 s are over
    has failed                  `DirectoryAway` at once, for 3 s; then one caller tries
    hangs where no timeout      (a resolver of names): the thread that hangs is left alone, and
      reaches                     `DirectoryAway` is raised at once until it has come back

One connection serves all flights of a process. The first caller starts a thread, and other callers
put their questions into its queue meanwhile:

    caller A                 caller B             caller C            the thread
    puts a question, starts
      the thread, waits
                             puts a question,     the same            asks for A
                               waits
                                                                      gives A its answer; asks for B
                                                                        and C in one go
                                                                      gives them their answers; the
                                                                        queue is empty: ends

So when 64 flights begin at once, they wait for two answers at most, and not for 64, one after
another: in a busy process each of those takes as long as the change from thread to thread. The
renewal of a lease, too, waits for one other answer at most. A call that waits for another one that
takes long may take up to 3 s. Nothing that a library or the system does can make a download wait
for longer, because only that thread calls them.

Needs redis-py, the extra `cluster`.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

from shmstream.cluster import scripts
from shmstream.events import Event, EventKind
from shmstream.system import threads
from shmstream.system.process import register

MOST = 1.5
"""Seconds that a call takes at most, from when it is sent."""
AWAY = 3.0
"""Seconds for which a directory that failed is not asked."""
_ONE_TRY = 0.6  # s; to connect
_AT_ONCE = 256  # questions; more are asked in two goes
_TTL = 3600  # s; a rank of which nothing is heard any more

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
    WRONG = "wrong"
    """From nowhere: the node that gave bytes last has found that they are wrong."""


class Decision(NamedTuple):
    """The answer to `decide`. `leader` has the lease; `why` is the failure of the upstream.

    `generation` is that of the flight, and `at` the time of the directory, as a text.
    """

    verdict: Verdict
    peers: tuple[str, ...] = ()
    leader: str = ""
    why: str = ""
    generation: int = 0
    at: str = "0"


class Had(NamedTuple):
    """What a flight has by now: see `scripts.DECIDE`.

    `generation` is None if all its bytes are of the upstream, and -1 if an earlier process has
    brought some of them. `last` is the node that gave bytes last, since the time `since` of the
    directory; empty if it does not matter what became of that node.
    """

    generation: int | None = None
    last: str = ""
    since: str = "0"


@dataclass(frozen=True)
class Me:
    """The node that asks: its address, and the token of its flight.

    A node with an empty address is nobody's parent, and never leads.
    """

    node: str
    token: str


class _Question:
    """What one caller asks. Guarded by the lock of the directory, but for the answers."""

    def __init__(self, commands: Sequence[_Command]) -> None:
        self.commands = commands
        self.until = 0.0  # when it is given up, once it was sent
        self.is_given_up = False
        self.is_over = threads.Flag()
        self.answers: list[object] = []  # then these or the failure are there
        self.failure: DirectoryAway | None = None


_Command = tuple[object, ...]
"""A command of Redis; one of a script begins with `_Script`."""


class _Script(NamedTuple):
    """A script, in place of the name of a command. Redis knows it by its hash."""

    text: str


@cache
def _hash_of(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


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
        with suppress(ValueError):  # then each call fails, and tells why
            _ = self._maker  # here, because the first flight would wait for it
        self._begin()
        register(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()  # guards all below
        self._connection: Any = None  # of the thread that asks, while there is one
        self._queue: list[_Question] = []
        self._thread: threads.Call | None = None  # it asks
        self._until = 0.0  # when what it asks is given up; 0 when it looks into the queue no more
        self._not_before = 0.0
        self._why = ""
        self._away_until = 0.0  # when it failed last; 0 while it answers
        self._away = self._untold = 0.0  # s; all of it, and what no event has told
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
        had: Had = Had(),  # noqa: B008  it never changes
    ) -> Decision:
        """Where this node gets the rest of `key` from; it joins the flight, if it may.

        `refused` did not answer, or do not have it, and are no parents of anybody for a while.
        `avoid` are not to be named this time; without `+` before its name, a node may be named that
        has the complete blob by now. `source` is the fingerprint of the node's upstream.
        `had` is what the flight has by now.

        Raises:
            DirectoryAway: it does not answer.
        """
        chance = random.randrange(1, 1 << 30)
        more = (int(bool(me.node)), self._fan, chance, " ".join(refused), " ".join(avoid), source)
        generation = "" if had.generation is None else had.generation
        answer = self._call(scripts.DECIDE, key, me, (*more, generation, had.last, had.since))
        try:
            return _decision(answer)
        except ValueError as error:
            raise self._failed(f"an answer that makes no sense: {answer!r:.100}") from error

    def renew(self, held: Sequence[tuple[str, Me]]) -> list[bool]:
        """Keep these leases; False for each that another node has.

        Raises:
            DirectoryAway: it does not answer.
        """
        answers = self._at_once(scripts.RENEW, held, ())
        return [each == 1 or isinstance(each, Exception) for each in answers]

    def leave(self, key: str, me: Me, how: str, text: str = "", generation: int = -1) -> None:
        """Tell how the flight of this node has ended: see `scripts.LEAVE`.

        Raises:
            DirectoryAway: it does not answer.
        """
        assert how in scripts.ENDS
        self._call(scripts.LEAVE, key, me, (how, text, generation))

    def greet(self, me: Me) -> bool:
        """Whether the directory knows this node; from now on it does, for an hour.

        Raises:
            DirectoryAway: it does not answer.
        """
        name = f"shmstream:node:{me.node}"
        return self._one(me.node, ("SET", name, 1, "EX", _TTL, "GET")) is not None

    def announce(self, keys: Sequence[str], me: Me) -> None:
        """Tell that this node has these complete blobs: some hundreds at most at one time.

        Raises:
            DirectoryAway: it does not answer.
        """
        self._at_once(scripts.LEAVE, [(key, me) for key in keys], ("complete", ""))

    # How a call is made.

    def _call(self, script: str, key: str, me: Me, more: Sequence[object]) -> object:
        return self._one(key, self._command(script, key, me, more))

    def _one(self, key: str, command: _Command) -> object:
        [answer] = self._asked(key, [command])
        if isinstance(answer, Exception):
            raise self._failed(f"{type(answer).__name__}: {answer}") from answer
        return answer

    def _at_once(
        self, text: str, of: Sequence[tuple[str, Me]], more: Sequence[object]
    ) -> list[object]:
        """The answers to one script for several digests, or their errors, in one call."""
        commands = [self._command(text, key, me, more) for key, me in of]
        return self._asked(of[0][0], commands) if of else []

    def _command(self, text: str, key: str, me: Me, more: Sequence[object]) -> _Command:
        names = [scripts.name_of(key, each) for each in scripts.KEYS]
        return _Script(text), len(names), *names, me.node, me.token, self._lease, _TTL, *more

    def _asked(self, key: str, commands: Sequence[_Command]) -> list[object]:
        """The answers to these commands; an error of Redis is an answer.

        Raises:
            DirectoryAway: there are none.
        """
        question = _Question(commands)
        self._put(question)
        try:
            return self._wait_for(question)
        finally:
            with self._lock:
                seconds, self._untold = self._untold, 0.0
            has_failed = question.is_given_up or question.failure is not None
            kind = EventKind.UNANSWERED if has_failed else EventKind.ASKED
            self._tell(Event(kind, key, seconds=seconds))

    def _put(self, question: _Question) -> None:
        """Put it into the queue; start the thread that asks, unless it runs.

        Raises:
            DirectoryAway: the directory is not asked just now.
        """
        with self._lock:
            now = time.monotonic()
            if now < self._not_before:
                raise DirectoryAway(self._why)
            if self._is_asking and self._until < now:
                raise self._failed("an earlier call still hangs")
            self.calls += 1
            self._queue.append(question)
            if self._is_asking:
                return
            self._until = now + MOST
            self._thread = threads.Call(self._run, "shmstream-directory")
            try:
                self._thread.start()
            except RuntimeError as error:  # no thread can be started
                questions, self._queue = self._queue, []
                self._give_up(questions, str(error))

    @property
    def _is_asking(self) -> bool:
        """Whether there is a thread that will look into the queue once more."""
        return self._until > 0 and self._thread is not None and self._thread.is_alive()

    def _wait_for(self, question: _Question) -> list[object]:
        while True:
            with self._lock:
                left = (question.until or self._until) - time.monotonic()
            if question.is_over.wait(max(left, 0.0)):
                break
            with self._lock:
                is_late = (question.until or self._until) <= time.monotonic()
                if is_late and not question.is_over.is_set():
                    question.is_given_up = True
                    raise self._failed(f"no answer within {MOST:g} s")
        if question.failure is not None:
            raise question.failure
        return question.answers

    # In the thread that asks.

    def _run(self) -> None:
        while questions := self._take():
            commands = [command for each in questions for command in each.commands]
            try:
                answers = iter(self._ask(commands, time.monotonic() + MOST))
            except Exception as error:  # noqa: BLE001  those that wait get it
                self._give_up(questions, f"{type(error).__name__}: {error}")
                continue
            for each in questions:
                each.answers = [next(answers) for _ in each.commands]
            self._note_answer()
            for each in questions:
                each.is_over.set()

    def _take(self) -> list[_Question]:
        """The questions that are to be asked now. None: the thread ends."""
        with self._lock:
            now = time.monotonic()
            if now < self._not_before:
                for each in self._queue:
                    each.failure = DirectoryAway(self._why)
                    each.is_over.set()
                self._queue.clear()
            taken, self._queue = self._queue[:_AT_ONCE], self._queue[_AT_ONCE:]
            self._until = now + MOST if taken else 0.0
            for each in taken:
                each.until = self._until
            if not taken and self._users <= 0:
                self._drop()
            return taken

    def _give_up(self, questions: list[_Question], reason: str) -> None:
        with self._lock:
            for each in questions:
                if not each.is_given_up:
                    each.failure = self._failed(reason)
                each.is_over.set()

    def _note_answer(self) -> None:
        with self._lock:
            is_back, self._why = bool(self._why), ""
            if is_back:
                self._count_away(is_back=True)
        if is_back:
            _log.warning("the directory of the cluster answers again")
            self._back()

    def _ask(self, commands: Sequence[_Command], until: float) -> list[object]:
        """The answers, all in one go. Redis is told a script that it does not know."""
        answers = self._send(commands, until)
        unknown = [
            n
            for n, each in enumerate(answers)
            if isinstance(each, self._redis.exceptions.NoScriptError)
        ]
        texts = [(_Script(""), *commands[n]) for n in unknown]
        for n, answer in zip(unknown, self._send(texts, until) if texts else [], strict=True):
            answers[n] = answer
        return answers

    def _send(self, commands: Sequence[_Command], until: float) -> list[object]:
        """The answers; tried again for as long as no connection is made in time."""
        redis = self._redis
        while True:
            try:
                return self._exchange(commands)
            except (redis.TimeoutError, TimeoutError):
                pause = random.uniform(0.02, 0.1)
                if time.monotonic() + pause + _ONE_TRY / 2 > until:
                    raise
                time.sleep(pause)

    def _exchange(self, commands: Sequence[_Command]) -> list[object]:
        """Send them over the connection, which is made if there is none; the answers."""
        redis = self._redis
        if self._connection is not None and self._has_ended():
            self._drop()
        if self._connection is None:
            self._connection = self._maker()
        connection, answers = self._connection, list[object]()
        connection.send_packed_command([_packed(commands)])
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except redis.ResponseError as error:
                answers.append(error)
        return answers

    def _has_ended(self) -> bool:
        """Whether Redis has closed the connection since the last call, as when it was restarted."""
        try:
            return bool(self._connection.can_read())  # nothing was asked, so it is the end
        except (self._redis.ConnectionError, OSError):
            return True

    @cached_property
    def _maker(self) -> Callable[[], Any]:
        """Makes a connection: without a client and its pool, which cost as much as four calls."""
        # No greetings: each of them would wait for an answer before the first question is sent.
        brief = {"driver_info": None} if hasattr(self._redis, "DriverInfo") else {}
        pool = self._redis.ConnectionPool.from_url(
            self._url,
            socket_timeout=MOST,
            socket_connect_timeout=_ONE_TRY,
            password=self._password,
            retry=None,
            protocol=2,
            **brief,
        )
        return partial(pool.connection_class, **pool.connection_kwargs)

    # When it does not answer.

    def _count_away(self, *, is_back: bool) -> None:
        """Count the time for which it has been away until now."""
        now = time.monotonic()
        if self._away_until:
            self._away += now - self._away_until
            self._untold += now - self._away_until
        self._away_until = 0.0 if is_back else now

    def _failed(self, reason: str) -> DirectoryAway:
        """Note a failure: the next 3 s nobody asks."""
        with self._lock:
            self.failures += 1
            self._count_away(is_back=False)
            self._not_before = time.monotonic() + AWAY
            is_news, self._why = not self._why, reason
        if is_news:
            told = "the directory of the cluster does not answer: each node goes on by itself: %s"
            _log.warning(told, reason)
        return DirectoryAway(reason)

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
            if self._users <= 0 and not self._is_asking:
                self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

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
        """Close the connection, unless it is in use. The next call makes one. Idempotent."""
        with self._lock:
            if not self._is_asking:
                self._drop()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's, and stays as it is."""
        self._inherited = self._connection
        self._begin()


def _in_words(command: _Command) -> Sequence[object]:
    """The command, as Redis has it: a script by its hash, or, the second time, by its text."""
    first, *rest = command
    if not isinstance(first, _Script):
        return command
    if first.text:
        return ("EVALSHA", _hash_of(first.text), *rest)
    script, *rest = rest
    assert isinstance(script, _Script)
    return ("EVAL", script.text, *rest)


def _packed(commands: Sequence[_Command]) -> bytes:
    """The commands as they are sent. redis-py makes the same bytes with ten times as many calls."""
    lines = list[bytes]()
    for command in commands:
        words = [str(each).encode() for each in _in_words(command)]
        lines.append(b"*%d\r\n" % len(words))
        lines += [b"$%d\r\n%b\r\n" % (len(each), each) for each in words]
    return b"".join(lines)


def _decision(answer: object) -> Decision:
    """What the answer to `scripts.DECIDE` says.

    Raises:
        ValueError: it makes no sense.
    """
    if not (isinstance(answer, list) and all(isinstance(each, bytes) for each in answer)):
        raise ValueError("it is no list of texts")
    verdict, second, *more = [each.decode() for each in answer]
    if verdict in (Verdict.FAILED, Verdict.WRONG):
        return Decision(Verdict(verdict), why=second)
    generation, at, *peers = more
    return Decision(Verdict(verdict), tuple(peers), second, "", int(generation), at)


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
