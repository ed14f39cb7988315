"""`Upstream`: a registry that is asked for what is not here, at one URL.

    authorised   ask with an authorization, and again if the upstream wants another one
    ask          a short answer, read as a whole
    look         what a HEAD tells, without a body; None if only a GET can tell
    glance       what a GET tells, without its body

No refusal of a HEAD is final, except one that asks to wait (429 with `Retry-After`): registries and
the servers that they redirect to answer it with 404, 403 or 400 where they answer a GET with 200.
Neither is a HEAD that is not answered at all for `_LONGEST_HEAD` seconds, because some proxies wait
for a body that does not come.

Some registries answer a request without credentials with 404, 403 or 400, and name their challenge
only under `/v2/`, which every plain client asks first. So if a registry refuses a question that had
no authorization, `Upstream` asks under `/v2/` too, at most every few minutes.

An authorization that was good may be refused later in several ways: with 401 and a challenge, with
401 alone, with 403 (Amazon ECR, after twelve hours) or 400. So each of them has the credentials
looked up anew, once for each question. A 404 may be such a refusal, too, but is mostly what it
says: it has the same done once in a minute for a repository.

An upstream may have `others`: the same images at other URLs. `Repository` asks them in turn.

An upstream may be asked with the credentials of each client (`passes_on`), and with none of ours.
Then each client has an `Upstream` of its own (`for_client`), with its own tokens and `rights`, and
so with its own grants and tags. They share what is of the server: connections, whether it answers,
places for downloads. If it refuses a client with 401, or its token service refuses the client with
401 or 403, it is not asked for the same kind of thing in the same repository for that client for
`_REFUSED_FOR` seconds, so that a wrong password in a loop reaches no server. Other things it may
give: some registries list no tags for strangers, and give them images. A 404 to a client without
credentials is taken for a 401, if the registry challenges under `/v2/`, and the challenge cannot be
answered without credentials. Such a 401 counts for that question alone: other clients without
credentials may get what is public.

Everything here blocks. If the upstream refuses, the `SourceError` has its `status`; if it does not
answer, the error has none.
"""

from __future__ import annotations

import copy
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar
from urllib.parse import quote, unquote, urlencode

from urllib3.util import Url

from shmstream.errors import FailureKind, SourceError
from shmstream.registry.upstream import answers
from shmstream.registry.upstream.credentials import (
    Credential,
    find,
    is_hub,
    rights,
    rights_of,
    variable_of,
)
from shmstream.registry.upstream.tokens import Challenge, Tokens
from shmstream.sources.http_client import (
    WHOLE,
    Client,
    Patience,
    Reply,
    discard,
    origin_of,
    parse,
)
from shmstream.sources.http_tls import TLS, USUAL_TLS
from shmstream.upstreams import request_id
from shmstream.upstreams.allowance import PAUSE, Allowance
from shmstream.upstreams.health import Hold, Reach, is_refusal
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.pace import Pace, Quota
from shmstream.upstreams.questions import USUAL, Bounds, patiently

T = TypeVar("T")
Headers = Mapping[str, str]

_CONNECT = 5.0  # s; for a question, not for a download
_LONGEST_HEAD = 10.0  # s; then a GET is tried
_SHORT = 20.0  # s; for a question that has an older answer
_AGENT = {"user-agent": "shmstream"}
_HUB = "registry-1.docker.io"  # the host with the API of Docker Hub
_USUAL_PORTS = {"http": 80, "https": 443}
_STALE = (400, 401, 403)  # what an authorization is refused with that is valid no longer
_HIDING = (400, 401, 403, 404)  # what a registry may say to a question without an authorization
_CHALLENGED_FOR = 300.0  # s; how long what `/v2/` said is believed
_MOST_ROUNDS = 4  # authorizations for one question
_MOST_STRANGERS = 100
_MOST_CLIENTS = 1024  # credentials of clients that are kept in memory, with their tokens
_MOST_REFUSED = 1024  # repositories
_REFUSED_FOR = 5.0  # s
_SURE = (401, 404, 410, 429, 502, 503, 504)  # whatever range is asked for
_KIND = re.compile(r"/v2/.+/(blobs|manifests)/[^/]+\Z")
_NAME = re.compile(r"/v2/(.+)/(?:blobs|manifests)/")

NO_SUCH_METHOD = (405, 501)
"""Statuses of a server that does not know the method."""


class Upstream:
    """A registry, as the operator configured it. `name` is its URL.

    Args:
        url: http or https, perhaps with a path before `/v2/`.
        namespace: the name that clients use; None for the upstream of requests without one.
        config: the path of a Docker config.json with credentials.
        bounds: how long it may take to answer.
        notes: where all workers note whether it answers.
        connections: how many connections one blob may come over.
        client_key: it gets the credentials of clients, and none of ours; what is noted for one of
            them is noted under a hash of the credentials with this key.
        pace: how many bytes a second of blobs come from it; None for no limit.
        quota: by its rights, how many manifests may be got from it; None for no limit.
        prefix: what stands before the names of repositories there, as at a proxy for several
            registries: `dockerhub-proxy`.
        tls: which certificates to trust, and which one to show.
        is_anonymous: it is never given credentials.
        max_downloads: downloads from it at one time, of this process; None for no limit.
        is_guarded: a client has named its host, so it must not be at a private address.
        own_rights: tells what it is allowed to from what other upstreams at its URL are.
        others: the same images at other URLs.
        is_other: it is one of the others: credentials in the environment are not for it.
        room: the name of the threads that ask it; None: its own.
        title: its label in metrics.
        allow: the names of the clients that may pull from it, as in the settings.
        tell: is called with the outcome of each question: answered, refused, failed.
    """

    def __init__(
        self,
        url: str,
        namespace: str | None = None,
        config: str | None = None,
        bounds: Bounds = USUAL,
        notes: Notes | None = None,
        *,
        prefix: str = "",
        tls: TLS = USUAL_TLS,
        is_anonymous: bool = False,
        max_downloads: int | None = None,
        is_guarded: bool = False,
        own_rights: str = "",
        others: tuple[Upstream, ...] = (),
        is_other: bool = False,
        room: str | None = None,
        title: str = "",
        allow: tuple[str, ...] | None = None,
        tell: Callable[[str], None] | None = None,
        connections: int = 1,
        client_key: bytes | None = None,
        pace: Pace | None = None,
        quota: Callable[[str], Quota] | None = None,
    ) -> None:
        """Raises:
        ValueError: the URL is not valid.
        """
        self._client_key = client_key
        self._credential: Credential | None = None  # of a client
        self._clients: dict[str, Upstream] = {}  # by their rights
        self._lock = threading.Lock()  # guards `_clients` and `_refused`
        self._refused: dict[tuple[str, str], tuple[float, SourceError]] = {}
        self.connections: int = connections if pace is None else 1  # more would bring no more
        self.pace: Pace | None = pace
        self._notes = notes
        parts = parse(url)
        if is_hub(parts.host or ""):
            parts = parts._replace(host=_HUB)
        self._base = parts._replace(path=(parts.path or "").rstrip("/"))
        self.name: str = self._base.url
        if parts.port == _USUAL_PORTS[parts.scheme or ""]:
            parts = parts._replace(port=None)
        self.host: str = parts.netloc or ""
        self.address: tuple[str | None, int] = origin_of(parts)[1:]
        self.namespace = namespace
        self.prefix: str = prefix
        self.tls: TLS = tls
        self.is_guarded: bool = is_guarded
        self.others: tuple[Upstream, ...] = others
        self.is_other: bool = is_other
        self.allow: tuple[str, ...] | None = allow
        self._tell = tell or (lambda _: None)
        self.room: str = room or self.name
        self.title: str = title
        self.is_anonymous: bool = is_anonymous
        self.max_downloads: int | None = max_downloads
        places = None if max_downloads is None else threading.BoundedSemaphore(max_downloads)
        self._places = places
        has_ours = not is_anonymous and client_key is None
        self.rights: str = (rights(namespace, os.environ) if has_ours else "") + own_rights
        """Tells this upstream from the same registry under another name, with other credentials."""
        self.is_hub: bool = is_hub(self.host) or (namespace is not None and is_hub(namespace))
        self._config = config
        self.bounds: Bounds = bounds
        self._tokens = self._new_tokens()
        self._strangers: dict[object, Tokens] = {}
        self._challenge: tuple[float, str | None] = (-_CHALLENGED_FOR, None)  # of `/v2/`, and when
        first_byte = min(bounds.first_byte, bounds.in_all)
        patience = Patience(bounds.connect or _CONNECT, first_byte, bounds.silence)
        self._client = Client(
            self.name, patience, stranger=self.introduce, tls=tls, is_guarded=is_guarded
        )
        self.reach: Reach = Reach(self.name, namespace, notes, is_clients=self.passes_on)
        self.hold: Hold = Hold(self.name, self.rights, notes)
        self.allowance: Allowance = Allowance(self.name, self.rights, notes, is_ours=not is_guarded)
        self._quota_of = quota
        self._quota = None if quota is None else quota(self.rights)

    def __repr__(self) -> str:
        return f"<Upstream {self.name}>"

    def _find(self, repository: str) -> Credential | None:
        if self.is_anonymous or self.passes_on:
            return self._credential
        environment = dict(os.environ)
        # A client that may name any host could name one whose variable is that of another.
        if self.is_other or (self.is_guarded and "-" in (self.namespace or "")):
            environment.pop(variable_of(self.namespace), None)
        return find(self.host, self.namespace, self._config, environment, repository)

    def _new_tokens(self) -> Tokens:
        scheme = self._base.scheme or ""
        return Tokens(self.name, scheme, self._find, self.tls, is_guarded=self.is_guarded)

    # Clients' own credentials.

    @property
    def passes_on(self) -> bool:
        """Whether it is asked with the credentials of clients, and with none of this cache."""
        return self._client_key is not None

    def for_client(self, credential: Credential | None) -> Upstream:
        """The upstream as a client with that credential may ask it; always the same object.

        This object is for a client that has none.
        """
        if self._client_key is None or credential is None:
            return self
        name = rights_of(credential, self._client_key)
        with self._lock:
            found = self._clients.pop(name, None) or self._with(credential, name)
            self._clients[name] = found  # at the end: the one that was asked for last
            while len(self._clients) > _MOST_CLIENTS:
                del self._clients[next(iter(self._clients))]
        return found

    def _with(self, credential: Credential, name: str) -> Upstream:
        made = copy.copy(self)
        made._credential = credential
        made.rights = self.rights + name
        made.others = tuple(each.for_client(credential) for each in self.others)
        made._tokens = made._new_tokens()
        made.hold = Hold(self.name, made.rights, self._notes)
        made.allowance = Allowance(self.name, made.rights, self._notes, is_ours=False)
        made._quota = None if self._quota_of is None else self._quota_of(made.rights)
        made._lock, made._clients, made._refused = threading.Lock(), {}, {}
        return made

    def check_login(self) -> None:
        """Ask whether it knows the client at all. Blocks.

        Raises:
            SourceError: it refuses, or does not answer.
        """
        self.ask("GET", "", self.url(""), {})

    def _check_refused(self, repository: str, kind: str) -> None:
        """Raises `SourceError`: the client was refused that a moment ago."""
        with self._lock:
            until, refusal = self._refused.get((repository, kind), (0.0, None))
        if refusal is not None and time.monotonic() < until:
            raise replace(refusal)

    def _note_refused(self, repository: str, kind: str, error: SourceError) -> None:
        """Note a refusal of this client. Only facts are kept: the error would keep a connection."""
        if not self.passes_on:
            return
        status = error.status
        facts = SourceError(error.source, 0, error.reason, retryable=False, status=status)
        facts.said = error.said
        now = time.monotonic()
        with self._lock:
            self._refused = {name: told for name, told in self._refused.items() if told[0] > now}
            self._refused.pop((repository, kind), None)
            while len(self._refused) >= _MOST_REFUSED:
                del self._refused[next(iter(self._refused))]
            self._refused[repository, kind] = now + _REFUSED_FOR, facts

    def full_name(self, name: str) -> str:
        """The upstream's own name for the repository that a client calls `name`."""
        full = self.plain_name(name)
        return f"{self.prefix}/{full}" if self.prefix else full

    def plain_name(self, name: str) -> str:
        """The same without the prefix."""
        return f"library/{name}" if self.is_hub and "/" not in name else name

    @property
    def label(self) -> str:
        """The registry's name for people: the namespace, or the host."""
        return "docker.io" if self.is_hub else self.namespace or self.host

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """The URL of a part of its API."""
        text = f"{self._base.url}/v2/{quote(path, safe='/:')}"
        return f"{text}?{urlencode(query)}" if query else text

    def _path_of(self, url: str) -> str:
        """What is behind `/v2/` in a URL of its API, without the query."""
        return unquote(url.removeprefix(self.url("")).partition("?")[0])

    @property
    def is_quiet(self) -> bool:
        """Whether none of its URLs should be asked what can be answered without them."""
        return all(each.rests for each in (self, *self.others))

    @property
    def is_away(self) -> bool:
        """Whether no question about a blob makes sense, because none of its URLs has answered."""
        return all(each.reach.is_quiet for each in (self, *self.others))

    @property
    def rests(self) -> bool:
        """Whether this URL has just failed, or wants to be left alone."""
        return self.reach.is_quiet or self.hold.left > 0

    @contextmanager
    def place(self) -> Iterator[Callable[[], None]]:
        """Wait for a place among the downloads from this URL; what gives it back, once.

        An error inside gives it back, too. Blocks no longer than for a first byte.

        Raises:
            SourceError: there was none in time.
        """
        places = self._places
        if places is None:
            yield _nothing
            return
        if not places.acquire(timeout=self.bounds.first_byte):
            reason = f"all {self.max_downloads} places for downloads from it are taken"
            raise SourceError(self.name, 0, reason, kind=FailureKind.TIMEOUT)
        given = threading.Lock()

        def give_back() -> None:
            if given.acquire(blocking=False):
                places.release()

        try:
            yield give_back
        except BaseException:
            give_back()
            raise

    def probe(self) -> None:
        """Ask again for what has failed; without credentials of a client. Blocks."""
        began, path = time.monotonic(), self.reach.failed_path
        try:
            self._ask_again(path or "", self.until())
        except SourceError as error:
            # A 5xx for one thing does not mean that the upstream fails altogether.
            is_of_one = self._is_own_5xx(error) and self._answers()
            self.reach.failed(error, began, path, is_probe=True, lasts=not is_of_one)
            self.hold.note(error)
        else:
            self.reach.answered()

    def _ask_again(self, path: str, until: float) -> None:
        """Ask for the head of what is at `path` behind `/v2/`, with a token if it wants one.

        Raises:
            SourceError: it fails again, or refuses.
        """
        try:
            self._knock("HEAD", path, until)
        except SourceError as error:
            if not self._is_own_5xx(error):
                raise
            self._knock("GET", path, until)

    def _is_own_5xx(self, error: SourceError) -> bool:
        """Whether it is the answer of this server, not of its token service."""
        return error.source == self.name and (error.status or 0) >= 500

    def _knock(self, method: str, path: str, until: float) -> None:
        """Ask, and read nothing of the body."""
        url, repository = parse(self.url(path)), _repository_of(path)
        wanted = {"accept": "*/*"} | ({} if method == "HEAD" else {"range": "bytes=0-0"})
        kind = _kind_of(self.url(path))

        def call(authorization: dict[str, str]) -> None:
            reply = self._client.ask(method, url, wanted | authorization, until=until)
            try:
                if reply.response.status not in (*WHOLE, 206):
                    raise self._client.refused(reply)
                given()
            finally:
                discard(reply.response)

        with self._counted(counts=kind == "manifests" and method == "GET") as given:
            self._authorised(repository, kind, call, until)

    def _answers(self) -> bool:
        """Whether it answers at `/v2/`. Blocks."""
        try:
            reply = self._client.ask("GET", parse(self.url("")), _AGENT, until=self.until())
        except SourceError:
            return False
        discard(reply.response)
        return reply.response.status < 500

    # Authorization.

    def authorised(
        self,
        repository: str,
        url: str,
        call: Callable[[dict[str, str]], T],
        until: float | None = None,
        *,
        is_final: bool = True,
    ) -> T:
        """Call `call` with the headers that authorize this `repository`; what it returns.

        It is called again with new headers if the upstream wants a new authorization, for example
        because a token has expired. `url`: what it asks for. `until`: the end of it, on the
        monotonic clock; None: only the time for tokens is bounded. `is_final`: whether a refusal is
        the answer.

        Raises:
            SourceError: it refuses, or does not answer.
        """
        began, kind = time.monotonic(), _kind_of(url)
        until = began + self.bounds.in_all if until is None else until
        try:
            found = self._authorised(repository, kind, call, until)
        except SourceError as error:
            error.said = answers.refusal(error.said)
            self.reach.failed(error, began, self._path_of(url))
            self.hold.note(error)
            self._tell("refused" if is_refusal(error) else "failed")
            if is_final and error.status == 401 and not isinstance(error, answers.Hidden):
                self._note_refused(repository, kind, error)
            raise
        self.reach.answered()
        self._tell("answered")
        return found

    def _authorised(
        self, repository: str, kind: str, call: Callable[[dict[str, str]], T], until: float
    ) -> T:
        authorization = self._tokens.current(repository, until)
        tried: list[Challenge] = []
        for _ in range(_MOST_ROUNDS - 1):
            try:
                return call(_headers(authorization))
            except SourceError as error:
                renewed = self._renewed(repository, kind, error, authorization, tried, until)
                if renewed is None:
                    if self._hides(error, authorization):
                        raise answers.Hidden(self.name, 0, error.reason, said=error.said) from error
                    raise
            authorization = renewed
        return call(_headers(authorization))

    def _renewed(
        self,
        repository: str,
        kind: str,
        error: SourceError,
        refused: str | None,
        tried: list[Challenge],
        until: float,
    ) -> str | None:
        """Another authorization after a refusal; None if there is none to be had."""

        def renew(header: str | None) -> str | None:
            try:
                return self._tokens.renew(repository, header, refused, tried, until)
            except SourceError as failure:
                if failure.status in (401, 403):  # of the token service, for HEAD and GET
                    if self._hides(error, refused):
                        return None
                    failure.said = answers.refusal(failure.said)
                    self._note_refused(repository, kind, failure)
                raise

        if error.status in (401, 403) and error.challenge is not None:
            renewed = renew(error.challenge)
            if renewed is not None:
                return renewed
        if refused is not None and self._may_be_stale(repository, error, tried):
            return renew(None) or renew(self._greeting(until) or "")
        is_of_strangers = error.status == 429 and self._credential is not None
        if refused is None and (error.status in _HIDING or is_of_strangers):
            return renew(self._greeting(until) or "")
        return None

    def _may_be_stale(self, repository: str, error: SourceError, tried: list[Challenge]) -> bool:
        """Whether the authorization may be refused because it is valid no longer."""
        if error.status != 404 or tried:  # else it is a new one
            return error.status in _STALE
        return self._tokens.are_doubted(repository)

    def _hides(self, error: SourceError, authorization: str | None) -> bool:
        """Whether a 404 may hide something from a client without credentials: `/v2/` wants some."""
        has_told = authorization is not None or self._credential is not None
        is_challenged = bool(self._challenge[1])
        return self.passes_on and not has_told and error.status == 404 and is_challenged

    def _greeting(self, until: float) -> str | None:
        """The challenge of `/v2/`, as it was a few minutes ago at most; None if there is none."""
        then, challenge = self._challenge
        if time.monotonic() - then > _CHALLENGED_FOR:
            challenge = None
            try:
                reply = self._client.ask("GET", parse(self.url("")), _AGENT, until=until)
                status = reply.response.status
                if status == 401:
                    challenge = self._client.refused(reply).challenge
                discard(reply.response)
            except SourceError:
                return None  # it has answered the question, and may answer this one later
            if status == 429 or status >= 500:  # likewise
                return None
            self._challenge = time.monotonic(), challenge
        return challenge

    def introduce(self, url: Url, challenge: str) -> str | None:
        """An anonymous authorization for a server that a redirect led to, and that asks for one.

        None if there is none to be had: then its refusal is the answer.
        """
        place = origin_of(url)
        tokens = self._strangers.get(place)
        if tokens is None:
            while len(self._strangers) >= _MOST_STRANGERS:
                self._strangers.pop(next(iter(self._strangers)), None)
            name = url._replace(auth=None, path="", query=None, fragment=None).url
            trusted = self.tls.for_others()
            guarded = self.is_guarded
            tokens = Tokens(name, url.scheme or "", lambda _: None, trusted, is_guarded=guarded)
            self._strangers[place] = tokens
        repository = _NAME.search(url.path or "")
        until = time.monotonic() + self.bounds.in_all
        try:
            return tokens.renew(repository[1] if repository else "", challenge, until=until)
        except SourceError:
            return None

    # Questions.

    @contextmanager
    def admitted(
        self, repository: str, kind: str = "", method: str = "GET"
    ) -> Iterator[Callable[[], None]]:
        """Begin a question; if it gets a manifest, count it. `kind`: blobs, manifests or neither.

        The caller calls the yielded function when the upstream has given a manifest; else the count
        is given back. A hold is for no blobs: registries do not count blobs. A 429 that tells no
        time begins a hold, too, if the upstream has told that no more manifests are left.

        Raises:
            SourceError: it has refused this client a moment ago; or 429: it wants no question just
                now, or the operator wants no more manifests.
        """
        self._check_refused(repository, kind)
        if kind != "blobs":
            self.hold.check()
        try:
            with self._counted(counts=kind == "manifests" and method == "GET") as given:
                yield given
        except SourceError as error:
            is_untimed = error.status == 429 and error.retry_after is None
            if kind == "manifests" and is_untimed and self.allowance.is_used_up:
                error.retry_after = PAUSE
                self.hold.note(error)
            raise

    @contextmanager
    def _counted(self, *, counts: bool) -> Iterator[Callable[[], None]]:
        """Count a manifest against `max_pulls`, if it `counts`; give it back if none came."""
        quota = self._quota
        if quota is None or not counts:
            yield _nothing
            return
        if (left := quota.take()) > 0:
            reason = "as many manifests were got from it as `max_pulls` allows"
            raise SourceError(self.name, 0, reason, retryable=False, retry_after=left, status=429)
        given = threading.Event()
        try:
            yield given.set
        finally:
            if not given.is_set():
                quota.give_back()

    def until(self, *, has_other: bool = False) -> float:
        """When a question that is asked now has to be answered, on the monotonic clock.

        `has_other`: there is an older answer, which is better than to wait for long.
        """
        longest = min(self.bounds.in_all, _SHORT) if has_other else self.bounds.in_all
        return time.monotonic() + longest

    def ask(
        self,
        method: str,
        repository: str,
        url: str,
        headers: Headers,
        limit: int = 0,
        until: float | None = None,
    ) -> tuple[Headers, bytes]:
        """The headers, and at most `limit` bytes of the body, of a good answer.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """

        def read(reply: Reply) -> bytes:
            return self._client.read(reply, limit) if limit else b""

        return self._ask(method, repository, url, headers, read, until)

    def _ask(
        self,
        method: str,
        repository: str,
        url: str,
        headers: Headers,
        read: Callable[[Reply], T],
        until: float | None,
    ) -> tuple[Headers, T]:
        until = self.until() if until is None else until
        kind = _kind_of(url)

        def call(authorization: dict[str, str]) -> tuple[Headers, T]:
            headers_now = {**headers, **authorization}
            reply = self._client.ask(
                method, parse(url), headers_now, until=until, is_verified=kind == "blobs"
            )
            try:
                if kind == "manifests":
                    self.allowance.note(reply.first.status, reply.first.headers)
                if reply.response.status not in (*WHOLE, 206):
                    raise self._client.refused(reply)
                given()
                return reply.response.headers, read(reply)
            finally:
                discard(reply.response)

        self.reach.check()
        with self.admitted(repository, kind, method) as given:
            authorised = partial(self.authorised, repository, url, call, until)
            if method == "HEAD":  # its refusal is not final: `look`
                return authorised(is_final=False)
            return patiently(authorised, until)

    def look(
        self, repository: str, url: str, headers: Headers, until: float | None = None
    ) -> Headers | None:
        """The headers that a HEAD is answered with; None if only a GET can tell.

        Raises:
            SourceError: it cannot be reached, or wants to be left alone.
        """
        now = time.monotonic()
        left = (self.until() if until is None else until) - now
        bound = now + min(left / 2, _LONGEST_HEAD)  # the rest is for a GET
        try:
            return self.ask("HEAD", repository, url, headers, until=bound)[0]
        except SourceError as error:
            is_asked_to_wait = error.status == 429 and error.retry_after is not None
            if is_asked_to_wait or error.kind.is_without_connection:
                raise
            if isinstance(error, answers.BadAnswer):  # of the token service
                raise
            return None

    def glance(
        self, repository: str, url: str, headers: Headers, until: float | None = None
    ) -> tuple[Headers, bytes]:
        """The headers that a GET is answered with, and the first byte: it asks for no more.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """
        ranged = {**headers, "range": "bytes=0-0"}
        try:
            return self._ask("GET", repository, url, ranged, self._client.first, until)
        except SourceError as error:
            if error.status is None or error.status in _SURE:
                raise
        return self._ask("GET", repository, url, headers, self._client.first, until)


def _nothing() -> None:
    pass


def _kind_of(url: str) -> str:
    """What is asked for at `url`: blobs, manifests, or neither."""
    found = _KIND.search(url)
    return found[1] if found else ""


def _repository_of(path: str) -> str:
    """The repository of a path behind `/v2/`: of `a/b/manifests/c` it is `a/b`."""
    return path.rsplit("/", 2)[0] if path.count("/") > 1 else ""


def _headers(authorization: str | None) -> dict[str, str]:
    headers = dict(_AGENT)
    if authorization is not None:
        headers["authorization"] = authorization
    return headers | request_id.told()
