"""`Upstream`: a registry that is asked for what is not here, at one URL.

    authorised   ask with an authorization, and again if the upstream wants another one
    ask          a short answer, read as a whole
    look         what a HEAD tells, without a body; None if only a GET can tell
    glance       what a GET tells, without its body

No refusal of a HEAD is final: registries and the servers that they redirect to answer it with 404,
403 or 400 where they answer a GET with 200.

Some registries say 404 or 403 to everybody whom they do not know, and name their challenge only
under `/v2/`, which every plain client asks first. So a refusal of a question without an
authorization has us ask there, at most every few minutes.

An authorization that was good may be refused later in several ways: with 401 and a challenge, with
401 alone, with 403 (Amazon ECR, after twelve hours) or 400. So each of them has the credentials
looked up anew, once for each question.

An upstream may have `others`: the same images at other URLs. `Repository` asks them in turn.

Everything here blocks. If the upstream refuses, the `SourceError` has its `status`; if it does not
answer, the error has none.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from urllib.parse import quote, urlencode

from urllib3.util import Url

from shmstream.errors import FailureKind, SourceError
from shmstream.registry import request_id
from shmstream.registry.upstream import answers
from shmstream.registry.upstream.credentials import (
    Credential,
    find,
    is_hub,
    rights,
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
from shmstream.upstreams.health import Reach, is_refusal
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.questions import USUAL, Bounds, patiently

T = TypeVar("T")
Headers = Mapping[str, str]

_CONNECT = 5.0  # s; for a question, not for a download
_SHORT = 20.0  # s; for a question that has an older answer
_AGENT = {"user-agent": "shmstream"}
_HUB = "registry-1.docker.io"  # the host with the API of Docker Hub
_USUAL_PORTS = {"http": 80, "https": 443}
_STALE = (400, 401, 403)  # what an authorization is refused with that is valid no longer
_HIDING = (401, 403, 404)  # what a registry may say to a question without an authorization
_CHALLENGED_FOR = 300.0  # s; how long what `/v2/` said is believed
_MOST_ROUNDS = 4  # authorizations for one question
_MOST_STRANGERS = 100
_SURE = (401, 403, 404, 410, 429, 500, 502, 503, 504)  # whatever range is asked for
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
    ) -> None:
        """Raises:
        ValueError: the URL is not valid.
        """
        self.connections: int = connections
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
        self._is_other = is_other
        self.allow: tuple[str, ...] | None = allow
        self._tell = tell or (lambda _: None)
        self.room: str = room or self.name
        self.title: str = title
        self.is_anonymous: bool = is_anonymous
        self.max_downloads: int | None = max_downloads
        places = None if max_downloads is None else threading.BoundedSemaphore(max_downloads)
        self._places = places
        self.rights: str = ("" if is_anonymous else rights(namespace, os.environ)) + own_rights
        """Tells this upstream from the same registry under another name, with other credentials."""
        self.is_hub: bool = is_hub(self.host) or (namespace is not None and is_hub(namespace))
        self._config = config
        self.bounds: Bounds = bounds
        self._tokens = Tokens(self.name, parts.scheme or "", self._find, tls, is_guarded=is_guarded)
        self._strangers: dict[object, Tokens] = {}
        self._challenge: tuple[float, str | None] = (-_CHALLENGED_FOR, None)  # of `/v2/`, and when
        first_byte = min(bounds.first_byte, bounds.in_all)
        patience = Patience(bounds.connect or _CONNECT, first_byte, bounds.silence)
        self._client = Client(
            self.name, patience, stranger=self.introduce, tls=tls, is_guarded=is_guarded
        )
        self.reach: Reach = Reach(self.name, namespace, notes)

    def __repr__(self) -> str:
        return f"<Upstream {self.name}>"

    def _find(self, repository: str) -> Credential | None:
        if self.is_anonymous:
            return None
        environment = dict(os.environ)
        # A client that may name any host could name one whose variable is that of another.
        if self._is_other or (self.is_guarded and "-" in (self.namespace or "")):
            environment.pop(variable_of(self.namespace), None)
        return find(self.host, self.namespace, self._config, environment, repository)

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

    @property
    def is_quiet(self) -> bool:
        """Whether none of its URLs should be asked what can be answered without them."""
        return all(each.reach.is_quiet for each in (self, *self.others))

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
        """Ask whether it answers. Blocks."""
        began = time.monotonic()
        try:
            reply = self._client.ask("GET", parse(self.url("")), _AGENT)
            discard(reply.response)
            if reply.response.status >= 500:
                raise self._client.refused(reply)
        except SourceError as error:
            self.reach.failed(error, began)
        else:
            self.reach.answered()

    # Authorization.

    def authorised(
        self,
        repository: str,
        call: Callable[[dict[str, str]], T],
        until: float | None = None,
    ) -> T:
        """Call `call` with the headers that authorize this `repository`; what it returns.

        It is called again with new headers if the upstream wants a new authorization, for example
        because a token has expired. `until`: the end of it, on the monotonic clock; None: only the
        time for tokens is bounded.
        """
        began = time.monotonic()
        until = began + self.bounds.in_all if until is None else until
        try:
            found = self._authorised(repository, call, until)
        except SourceError as error:
            error.said = answers.refusal(error.said)
            self.reach.failed(error, began)
            self._tell("refused" if is_refusal(error) else "failed")
            raise
        self.reach.answered()
        self._tell("answered")
        return found

    def _authorised(self, repository: str, call: Callable[[dict[str, str]], T], until: float) -> T:
        authorization = self._tokens.current(repository, until)
        tried: list[Challenge] = []
        for _ in range(_MOST_ROUNDS - 1):
            try:
                return call(_headers(authorization))
            except SourceError as error:
                renewed = self._renewed(repository, error, authorization, tried, until)
                if renewed is None:
                    raise
            authorization = renewed
        return call(_headers(authorization))

    def _renewed(
        self,
        repository: str,
        error: SourceError,
        refused: str | None,
        tried: list[Challenge],
        until: float,
    ) -> str | None:
        """Another authorization after a refusal; None if there is none to be had."""
        renew = partial(self._tokens.renew, repository, refused=refused, tried=tried, until=until)
        if error.status in (401, 403) and error.challenge is not None:
            renewed = renew(error.challenge)
            if renewed is not None:
                return renewed
        if error.status in _STALE and refused is not None:
            return renew(None)
        if error.status in _HIDING and refused is None:
            return renew(self._greeting(until) or "")
        return None

    def _greeting(self, until: float) -> str | None:
        """The challenge of `/v2/`, as it was a few minutes ago at most; None if there is none."""
        then, challenge = self._challenge
        if time.monotonic() - then > _CHALLENGED_FOR:
            challenge = None
            try:
                reply = self._client.ask("GET", parse(self.url("")), _AGENT, until=until)
                if reply.response.status == 401:
                    challenge = self._client.refused(reply).challenge
                discard(reply.response)
            except SourceError:
                return None  # it has answered the question, and may answer this one later
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

        def call(authorization: dict[str, str]) -> tuple[Headers, T]:
            headers_now = {**headers, **authorization}
            reply = self._client.ask(method, parse(url), headers_now, until=until)
            try:
                if reply.response.status not in (*WHOLE, 206):
                    raise self._client.refused(reply)
                return reply.response.headers, read(reply)
            finally:
                discard(reply.response)

        self.reach.check()
        if method == "HEAD":  # its refusal is not final: `look`
            return self.authorised(repository, call, until)
        return patiently(partial(self.authorised, repository, call, until), until)

    def look(
        self, repository: str, url: str, headers: Headers, until: float | None = None
    ) -> Headers | None:
        """The headers that a HEAD is answered with; None if only a GET can tell.

        Raises:
            SourceError: the upstream does not answer at all, or wants to be left alone.
        """
        try:
            return self.ask("HEAD", repository, url, headers, until=until)[0]
        except SourceError as error:
            is_answer = error.status is not None and error.status != 429
            if is_answer or (error.retryable and error.kind is FailureKind.BROKEN):
                return None
            raise

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


def _headers(authorization: str | None) -> dict[str, str]:
    headers = dict(_AGENT)
    if authorization is not None:
        headers["authorization"] = authorization
    if name := request_id.current():
        headers[request_id.HEADER] = name
    return headers
