"""The value of the header `Authorization` for each repository of an upstream.

    ask                      the first time without the header
    401, WWW-Authenticate    the challenge: `Basic`, or `Bearer` with the realm that gives tokens
    renew                    basic: the credentials themselves; bearer: ask the realm for a token
                             of the scope in the challenge, or that allows pulling from this
                             repository; with credentials if there are any, else anonymously
    ask again                with the header; so are all further questions, until it expires
    refused all the same     the next challenge of the header, if it has several; without a
                             challenge, or with 403, the last one again: credentials and tokens may
                             have been revoked meanwhile

A realm is asked only if the upstream itself has named it (`SourceError.challenge`). If the upstream
speaks https, so must the realm: one on the upstream's own host is asked by https, whatever it is
called. A token is kept in memory, for a little less than its life.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlencode, urljoin

from urllib3.util import Url

from shmstream.errors import SourceError
from shmstream.registry.upstream import answers
from shmstream.registry.upstream.answers import BadAnswer, InvalidAnswer
from shmstream.registry.upstream.credentials import Credential, CredentialsError, Means
from shmstream.sources.base import public
from shmstream.sources.http_client import (
    WHOLE,
    Client,
    Patience,
    authorization,
    discard,
    parse,
)
from shmstream.sources.http_tls import TLS, USUAL_TLS
from shmstream.upstreams.questions import patiently

_DOUBTED_EVERY = 60.0  # s
_MARGIN = 0.1  # part of a token's life, at its end, in which it is not used
_LARGEST_ANSWER = 1 << 20  # bytes
_LONGEST_CHALLENGE = 8192  # characters
_MOST = 10_000  # repositories whose tokens are kept
_CLIENT = "shmstream"
_PATIENCE = Patience(5.0, 60.0, 60.0)
_LONGEST = 60.0  # s; for a token, unless the caller has less time
_NO_POST = (400, 401, 404, 405, 501)  # what services answer that give tokens to a GET only

_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9-]*)(?=[\s,]|$)")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_PARAMETER = re.compile(
    r"[\s,;]*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*"
    r"(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]*))"
    r"\s*(?:[,;]|(?<=\s)|$)"  # some servers separate parameters by spaces alone, or by semicolons
)


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate: the scheme and its parameters, with names in lower case."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header. What is not understood is left out.

    A scheme may have parameters, or one text instead of them (`Negotiate YIIJ...==`).
    """
    text, position, found = header[:_LONGEST_CHALLENGE], 0, []
    while position < len(text):
        scheme = _SCHEME.match(text, position)
        if scheme is None:
            position = text.find(",", position) + 1 or len(text)
            continue
        position = scheme.end()
        parameters: dict[str, str] = {}
        if token := _TOKEN68.match(text, position):
            position = token.end()
        while parameter := _PARAMETER.match(text, position):
            position = parameter.end()
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters[name.lower()] = value
        found.append(Challenge(scheme[1].lower(), parameters))
    return found


@dataclass
class _Held:
    """The authorization for one repository. A thread that renews it holds the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    value: str | None = None
    until: float = 0.0
    challenge: Challenge | None = None  # which led to it
    doubted: float = float("-inf")  # when a 404 was last taken for its refusal

    def current(self) -> str | None:
        return self.value if time.monotonic() < self.until else None


class Tokens:
    """The authorizations for the repositories of one upstream. Any thread may use it."""

    def __init__(
        self,
        name: str,
        scheme: str,
        find: Callable[[str], Credential | None],
        tls: TLS = USUAL_TLS,
        *,
        is_guarded: bool = False,
    ) -> None:
        """`scheme` of the upstream: http or https; `find` looks up a repository's credential.

        `is_guarded`: a client has named the upstream, so no realm may be at a private address.
        """
        self._is_guarded = is_guarded
        self._tls = tls
        self._name = name
        self._home = parse(name) if "://" in name else None
        self._scheme = scheme
        self._find = find
        self._lock = threading.Lock()  # guards all below
        self._held: dict[str, _Held] = {}
        self._usual: Challenge | None = None

    def _of(self, repository: str) -> _Held:
        with self._lock:
            held = self._held.pop(repository, None) or _Held()
            self._held[repository] = held  # at the end: the most recently used
            while len(self._held) > _MOST:
                del self._held[next(iter(self._held))]
            return held

    def current(self, repository: str, until: float | None = None) -> str | None:
        """The authorization for the next question; None while the upstream has asked for none.

        If an earlier question needed a token, a missing token is fetched at once. Blocks for that,
        not longer than `until`.
        """
        held, usual = self._of(repository), self._usual
        if (value := held.current()) is not None or usual is None:
            return value
        try:
            return self._renewed(held, repository, held.challenge or usual, None, until)
        except SourceError:  # the upstream may have another realm by now, and will name it
            self._usual = None
            return None

    def are_doubted(self, repository: str) -> bool:
        """Whether a 404 may mean that an authorization is valid no longer; once in a minute."""
        held, now = self._of(repository), time.monotonic()
        with self._lock:
            if now - held.doubted < _DOUBTED_EVERY:
                return False
            held.doubted = now
        return True

    def renew(
        self,
        repository: str,
        header: str | None,
        refused: str | None = None,
        tried: list[Challenge] | None = None,
        until: float | None = None,
    ) -> str | None:
        """A new authorization after a refusal; None if none helps.

        `header` has the challenges; without it, the challenge counts that has led to what was
        `refused`. `tried` has the challenges that were tried for the same question; these are added
        to it. `until`: the end of it, on the monotonic clock.

        Raises:
            SourceError: no realm can be asked, or gives a token.
        """
        held = self._of(repository)
        tried = [] if tried is None else tried
        failure: SourceError | None = None
        for challenge in self._offered(held, header):
            if challenge in tried:
                continue
            tried.append(challenge)
            try:
                renewed = self._renewed(held, repository, challenge, refused, until)
            except SourceError as error:
                failure = failure or error
                continue
            if renewed is not None and renewed != refused:
                usual = {name: each for name, each in challenge.parameters.items()
                         if name != "scope"}  # fmt: skip
                self._usual = Challenge(challenge.scheme, usual)
                return renewed
        if failure is not None:
            raise failure
        return None

    @staticmethod
    def _offered(held: _Held, header: str | None) -> list[Challenge]:
        """The challenges that can be answered, the best ones first."""
        if header is None:
            return [] if held.challenge is None else [held.challenge]
        known = [each for each in challenges(header) if each.scheme in ("bearer", "basic")]
        return sorted(known, key=lambda each: each.scheme, reverse=True)

    def _renewed(
        self,
        held: _Held,
        repository: str,
        challenge: Challenge,
        refused: str | None,
        until: float | None,
    ) -> str | None:
        until = time.monotonic() + _LONGEST if until is None else until
        with held.lock:
            current = held.current()
            if current is not None and current != refused:
                return current  # another thread has renewed it
            try:
                credential = self._find(repository)
            except CredentialsError as error:
                raise self._failed(str(error)) from error
            if challenge.scheme == "basic":
                value, life = self._basic(credential), float("inf")
            elif credential is not None and credential.means is Means.TOKEN:
                value, life = authorization(credential.secret), float("inf")
            else:
                value, life = self._token(repository, challenge, credential, until)
            held.value, held.until = value, time.monotonic() + life * (1 - _MARGIN)
            held.challenge = challenge
            return value

    def _basic(self, credential: Credential | None) -> str | None:
        if credential is None or credential.means is not Means.PASSWORD:
            return None
        try:
            return authorization((credential.user, credential.secret))
        except ValueError as error:
            raise self._failed(str(error)) from error

    def _token(
        self, repository: str, challenge: Challenge, credential: Credential | None, until: float
    ) -> tuple[str, float]:
        """A token for pulling, and its life in seconds."""
        url = self._realm(challenge)
        usual = f"repository:{repository}:pull" if repository else ""  # none: only to log in
        scope = challenge.parameters.get("scope") or usual
        service = {name: each for name, each in challenge.parameters.items() if name == "service"}
        if credential is not None and credential.means is Means.IDENTITY:
            form = {"grant_type": "refresh_token", "client_id": _CLIENT, "scope": scope, **service}
            form["refresh_token"] = credential.secret
            try:
                return self._asked(url, until, "POST", {}, urlencode(form).encode())
            except SourceError as error:
                if error.status not in _NO_POST:
                    raise
            password = credential.password or credential.secret
            credential = Credential(credential.user, password)
        fields = [("scope", each) for each in scope.split()] + list(service.items())
        headers = {}
        if credential is not None and (known := self._basic(credential)) is not None:
            headers["authorization"] = known
            fields.append(("account", credential.user))  # some services ask for it
        query = f"{url.query}&" if url.query else ""
        return self._asked(url._replace(query=query + urlencode(fields)), until, "GET", headers)

    def _realm(self, challenge: Challenge) -> Url:
        """The URL of the service that gives tokens; it may be told relative to the upstream's."""
        realm = challenge.parameters.get("realm", "")
        if realm and self._home is not None:
            realm = urljoin(f"{self._home.url}/v2/", realm)
        try:
            url = parse(realm)._replace(auth=None, fragment=None)
        except ValueError as error:
            raise self._failed(f"its challenge names no realm: {error}") from error
        if self._scheme == "https" != url.scheme:
            if self._home is None or url.host != self._home.host:
                raise self._failed("it wants credentials to be sent without https")
            # A registry behind a server that speaks TLS for it names itself so, without knowing.
            url = url._replace(scheme="https", port=self._home.port)
        return url

    def _asked(
        self,
        url: Url,
        until: float,
        method: str,
        headers: dict[str, str],
        body: bytes | None = None,
    ) -> tuple[str, float]:
        """What the service at `url` gives; it is asked again if its failure may pass."""
        name = public(url.url)
        client = Client(
            name, _PATIENCE, named_by=self._home, tls=self._tls, is_guarded=self._is_guarded
        )
        headers = {"accept": "application/json", "user-agent": _CLIENT, **headers}
        if body is not None:
            headers["content-type"] = "application/x-www-form-urlencoded"

        def once() -> tuple[str, float]:
            reply = client.ask(method, url, headers, body=body, until=until)
            try:
                status = reply.response.status
                if status in WHOLE:
                    return self._understood(client.read(reply, _LARGEST_ANSWER))
                if status in (401, 403, 429) or status >= 500 or (body and status in _NO_POST):
                    raise client.refused(reply)
                raise self._failed(f"its realm answers {status}")
            finally:
                discard(reply.response)

        return patiently(once, until)

    def _understood(self, answer: bytes) -> tuple[str, float]:
        try:
            token, life = answers.token(answer)
        except InvalidAnswer as error:
            reason = f"its realm gives no token: {error}"
            raise BadAnswer(self._name, 0, reason, retryable=False) from None
        return authorization(token), life

    def _failed(self, reason: str) -> SourceError:
        return SourceError(self._name, 0, reason, retryable=False)
