"""`Cache`: what is kept of one origin, and the rule by which the origin is asked (RFC 9111).

    kept and fresh                    served; the origin is not asked
    in flight, without a lifetime     the same: it is what the origin says just now
    its beginning was sent by a       the same, however stale it is by now: the client gets the
      worker that was killed          rest of what was promised
    kept and stale, with a validator  asked whether it is still that: 304, and it is fresh again
    anything else                     asked for; the answer is kept if that is allowed
    the origin does not answer        what is kept serves, stale as it is, if that is allowed

However many clients want a URL at the same time, through whatever worker, one of them asks: tasks
of one process share a question (`singleflight`), processes wait for their turn (`Store.turns`). The
others follow the flight that has begun by then. An answer that may not be kept is for one client
only, so then each client asks for itself; that is remembered for a while (`_UNKEPT_FOR`), and such
clients do not wait for each other.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from shmstream.errors import OutOfResources, ShmstreamError, SourceError
from shmstream.mirror import freshness
from shmstream.mirror.answer_source import AnswerSource
from shmstream.mirror.entry import LARGEST_BODY, Entry, Shelf, new_key, selecting
from shmstream.mirror.freshness import Wish
from shmstream.mirror.origin import Origin, head_of, is_personal, passed_on
from shmstream.mirror.settings import Mirror
from shmstream.sources.http_client import Reply, discard
from shmstream.store import Store
from shmstream.upstreams.singleflight import Together

if TYPE_CHECKING:
    from shmstream.flight.blob import Blob
    from shmstream.mirror.freshness import Pairs

_UNKEPT_FOR = 60.0  # s
_MOST_UNKEPT = 4096  # URLs
_AWAY = (500, 502, 503, 504)
_FULL = (200,)
_FOR_A_WHILE = (302, 303, 307)  # redirects that may lead elsewhere the next time

_log = logging.getLogger("shmstream")


@dataclass
class Asked:
    """What a client asks for: a URL of the origin, with the fields of its request.

    `is_immutable`: the content of the URL never changes. `arrived`: when the request came, in
    seconds since 1970. `believed`: seconds for which an answer is fresh that does not say so.
    `at_most`: the longest that any answer is. `shares`: whether an answer to credentials may be
    kept for others if the origin says so. `promised`: the ETag of the answer whose
    beginning another process has sent.
    """

    url: str
    request: Mapping[str, str]
    wish: Wish = field(default_factory=lambda: Wish({}))
    is_immutable: bool = False
    believed: float = 0.0
    at_most: float | None = None
    shares: bool = True
    promised: str = ""
    arrived: float = field(default_factory=time.time)

    @property
    def headers(self) -> dict[str, str]:
        """What the origin gets of the request."""
        return passed_on(self.request)

    @property
    def is_personal(self) -> bool:
        """Whether the request tells who asks."""
        return any(is_personal(each) for each in self.request)


@dataclass
class Found:
    """What answers a request. Close it when the answer was sent.

    Attributes:
        how: `hit`, `flight`, `miss` or `stale`, as the metrics have it.
        entry: the answer that is kept; None: it is `reply`, and nothing is kept.
        source: of the body, for a flight.
        reply: the origin's answer, for the client of one task: see `claim`.
        detail: how it was found, for people.
    """

    how: str
    entry: Entry | None = None
    source: AnswerSource | None = None
    reply: Reply | None = None
    detail: str = ""
    _blob: Blob | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _is_claimed: bool = False

    @property
    def status(self) -> int:
        """The status of the answer."""
        if self.entry is not None:
            return self.entry.status
        return 0 if self.reply is None else self.reply.response.status

    @property
    def fields(self) -> Pairs:
        """The head of the answer."""
        if self.entry is not None:
            return self.entry.fields
        return [] if self.reply is None else head_of(self.reply.response)

    def first(self, name: str) -> str | None:
        """The value of the first field of that name."""
        return next(iter(freshness.values(self.fields, name)), None)

    def claim(self) -> Found | None:
        """For each of the tasks that asked together: what answers its request.

        None if that has to be asked for again: an answer that is not kept is for the first task.
        """
        with self._lock:
            is_first, self._is_claimed = not self._is_claimed, True
        if is_first:
            return self
        if self.reply is not None:
            return None
        how = "flight" if self.how == "miss" and self.source is not None else self.how
        return Found(how, self.entry, self.source, detail=self.detail)

    def close(self) -> None:
        """Drop what was not used. The flight goes on. Idempotent. Does not block."""
        blob, self._blob = self._blob, None
        if blob is not None:
            blob.close()
        if self.reply is not None:  # not drained: that could wait for the origin
            self.reply.response.close()
            self.reply.response.release_conn()


class Cache:
    """What is kept of the `origin` of one mirror. For one event loop; `find` is for its tasks."""

    def __init__(self, mirror: Mirror, origin: Origin, store: Store) -> None:
        """Raises:
        OSError: the store's folder cannot be written to.
        """
        self._mirror = mirror
        self.origin: Origin = origin
        self.store: Store = store
        self._shelf = Shelf(store.folder, f"{mirror.path} {mirror.url}")
        self._turns = store.turns(origin.bounds.first_byte)
        self._together = Together(f"shmstream-mirror {mirror.path}")
        self._unkept: dict[str, float] = {}
        self._renewing: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Cancel all questions. Flights go on. Idempotent."""
        for each in self._renewing:
            each.cancel()
        self._together.close()

    def is_immutable(self, path: str) -> bool:
        """Whether the operator says that the content at this path never changes."""
        return any(_matches(path, each) for each in self._mirror.immutable)

    async def find(self, asked: Asked) -> Found:
        """What answers the request: kept, or asked for now.

        Raises:
            SourceError: the origin does not answer, and nothing that is kept may serve.
            ShmstreamError: the store cannot take part.
        """
        if (found := self.kept(asked)) is not None:
            return found
        if asked.wish.is_only_if_kept:
            raise NotKept(asked.url)
        if asked.wish.is_none and (found := self._meanwhile(asked)) is not None:
            return found
        return await self._find(asked)

    async def _find(self, asked: Asked) -> Found:
        headers = asked.headers
        what = (
            asked.url,
            *sorted(headers.items()),
            "no-store" in asked.wish.directives,
            asked.promised,
        )
        found = await self._together.ask(what, partial(self._ask_in_turn, asked))
        while (mine := found.claim()) is None:
            found = await self._together.ask((*what, object()), partial(self._ask, asked, None))
        return mine

    def _meanwhile(self, asked: Asked) -> Found | None:
        """What is kept and may serve while the origin is asked; None if that may not be."""
        entry = self._shelf.find(asked.url, asked.request)
        if entry is None or not entry.may_wait or (how := self._has(entry)) is None:
            return None
        task = asyncio.ensure_future(self._renew(asked))
        self._renewing.add(task)
        task.add_done_callback(self._renewing.discard)
        return self._served(entry, how, asked, "stale-while-revalidate")

    async def _renew(self, asked: Asked) -> None:
        try:
            (await self._find(asked)).close()
        except ShmstreamError as error:
            _log.debug("%s: %s", asked.url, error)

    # What is kept.

    def kept(self, asked: Asked) -> Found | None:
        """What is kept and answers the request. Asks nobody; reads a small file."""
        entry = self._shelf.find(asked.url, asked.request)
        if entry is None or (how := self._has(entry)) is None:
            return None
        arrives = how == "flight" and asked.wish.is_none and freshness.is_silent(entry.fields)
        is_promised = asked.promised != "" and asked.promised == entry.first("etag")
        if not (is_promised or arrives or entry.serves(asked.wish, asked.arrived)):
            return None
        return self._served(entry, how, asked)

    def _served(self, entry: Entry, how: str, asked: Asked, detail: str = "") -> Found:
        source = self._source(asked, entry) if entry.key else None
        return Found(how, entry, source, detail=detail)

    def _source(self, asked: Asked, entry: Entry, reply: Reply | None = None) -> AnswerSource:
        return AnswerSource(self.origin, entry.key, asked.url, asked.headers, reply)

    def _has(self, entry: Entry) -> str | None:
        """`hit` or `flight`, if the body of an entry is complete here, or comes; None if not."""
        if not entry.key or entry.key in self.store:
            return "hit"
        return "flight" if self.store.is_in_flight(entry.key) else None

    # Asking the origin.

    def _ask_in_turn(self, asked: Asked) -> Found:
        if self._is_unkept(asked.url):
            return self._ask(asked, self._shelf.find(asked.url, asked.request))
        turn = self._turns.take(asked.url)
        try:
            if (found := self.kept(asked)) is not None:  # another process was faster
                return found
            return self._ask(asked, self._shelf.find(asked.url, asked.request))
        finally:
            if turn is not None:
                turn.close()

    def _is_unkept(self, url: str) -> bool:
        return time.monotonic() - self._unkept.get(url, float("-inf")) < _UNKEPT_FOR

    def _ask(self, asked: Asked, entry: Entry | None) -> Found:
        """Ask the origin; `entry` is what is kept and stale."""
        here = entry if entry is not None and self._has(entry) is not None else None
        requested = time.time()
        try:
            conditions = {} if here is None else here.validators
            reply = self.origin.ask("GET", asked.url, {**asked.headers, **conditions})
        except SourceError:
            if here is None or not here.may_be_stale:
                raise
            return self._served(here, "stale", asked, "origin-unreachable")
        status = reply.response.status
        if here is not None and status in _AWAY and here.may_be_stale:
            discard(reply.response)
            return self._served(here, "stale", asked, f"origin-answers-{status}")
        fields = head_of(reply.response)
        is_same = here is not None and status in _FULL and here.is_same(fields)
        if here is not None and (is_same or (status == 304 and here.validators)):
            discard(reply.response)
            fresh = here.confirmed(fields, requested, time.time())
            self._keep(asked.url, fresh)
            return self._served(fresh, self._has(fresh) or "hit", asked, "revalidated")
        return self._take(asked, entry, reply, fields, requested)

    def _take(
        self, asked: Asked, entry: Entry | None, reply: Reply, fields: Pairs, requested: float
    ) -> Found:
        """Keep a new answer, if that is allowed; else it is for one client."""
        status = reply.response.status
        heads = [head_of(each) for each in reply.before]
        personal = partial(
            freshness.may_keep, is_personal=asked.is_personal, asked=asked.wish.directives
        )
        may_keep = personal(status, fields) and (asked.shares or not asked.is_personal)
        if asked.is_personal:  # where a redirect led to is not for everybody if the redirect is not
            may_keep = may_keep and all(personal(200, each) for each in heads)
        if not may_keep:
            self._note_unkept(asked.url)
            return Found("miss", reply=reply, detail="not-kept")
        new = Entry(
            status,
            fields,
            selecting(fields, asked.request),
            requested,
            time.time(),
            ttl=asked.believed,
            is_immutable=asked.is_immutable,
            limit=_limit(reply, heads, asked),
        )
        try:
            return self._keep_body(asked, entry, reply, new)
        except BaseException:
            discard(reply.response)
            raise

    def _keep_body(self, asked: Asked, entry: Entry | None, reply: Reply, new: Entry) -> Found:
        self._unkept.pop(asked.url, None)
        if new.status not in _FULL:
            length = getattr(reply.response, "length_remaining", None)
            if length is None or length > LARGEST_BODY:
                return Found("miss", reply=reply, detail="not-kept")
            new = new.with_body(self.origin.read_body(reply, LARGEST_BODY))
            discard(reply.response)
            self._keep(asked.url, new)
            return Found("miss", new)
        is_same = entry is not None and entry.key != "" and entry.is_same(new.fields)
        key = new_key(asked.url, secrets.token_hex(8))
        new = new.of_blob(entry.key if entry is not None and is_same else key)
        source = self._source(asked, new, reply)
        blob = None
        try:
            blob = self.store.open(new.key, source)
            self._keep(asked.url, new)
        except OutOfResources:  # nothing is kept: the client gets it straight from the origin
            source.close()
            source = self._source(asked, new)
        except BaseException:
            source.close()
            raise
        return Found("miss", new, source, _blob=blob)

    def _keep(self, url: str, entry: Entry) -> None:
        """Note an entry; blobs that no entry names any more go."""
        for key in self._shelf.write(url, entry):
            with suppress(ShmstreamError, OSError):  # eviction finds it
                self.store.remove(key)

    def _note_unkept(self, url: str) -> None:
        self._unkept.pop(url, None)
        self._unkept[url] = time.monotonic()
        if len(self._unkept) > _MOST_UNKEPT:
            with suppress(StopIteration, RuntimeError):  # another thread does the same
                self._unkept.pop(next(iter(self._unkept)), None)


@dataclass(eq=False)
class NotKept(ShmstreamError):
    """A client wants what is kept here, and nothing else; and it is not."""

    url: str

    def __str__(self) -> str:
        return "the request says only-if-cached, and it is not kept here"


def _limit(reply: Reply, heads: list[Pairs], asked: Asked) -> float | None:
    """The longest that an answer is fresh, for the redirects that led to it, and for its kind."""
    if asked.is_immutable:
        return None
    limits = [] if asked.at_most is None else [asked.at_most]
    now = time.time()
    for response, fields in zip(reply.before, heads, strict=True):
        if response.status in _FOR_A_WHILE:
            limits.append(freshness.lifetime(fields, now, asked.believed))
    return min(limits, default=None)


def _matches(path: str, pattern: str) -> bool:
    """Whether a path, or its last part, matches a pattern such as `/dists/*` or `*.whl`."""
    name = path if pattern.startswith("/") else path.rpartition("/")[2]
    return fnmatch.fnmatchcase(name, pattern)
