"""The value of the header `Authorization` for each repository of an upstream.

    ask                      the first time without the header
    401, WWW-Authenticate    the challenge: `Basic`, or `Bearer` with the realm that gives tokens
    renew                    basic: the credentials themselves; bearer: ask the realm for a token
                             that allows pulling from this repository, with credentials if there
                             are any, else anonymously
    ask again                with the header; so are all further questions, until it expires

A realm is asked only if the upstream itself has named it (`SourceError.challenge`). If the upstream
speaks https, so must the realm. A token is kept in memory, for a little less than its life.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlencode

from shmstream.errors import SourceError
from shmstream.registry.upstream import answers
from shmstream.registry.upstream.answers import BadAnswer, InvalidAnswer
from shmstream.registry.upstream.credentials import Credential, CredentialsError, Means
from shmstream.sources.base import public
from shmstream.sources.http_client import (
    Client,
    authorization,
    discard,
    parse,
)

_MARGIN = 0.1  # part of a token's life, at its end, in which it is not used
_LARGEST_ANSWER = 1 << 20  # bytes
_LONGEST_CHALLENGE = 8192  # characters
_MOST = 10_000  # repositories whose tokens are kept
_CLIENT = "shmstream"

_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9-]*)(?=[\s,]|$)")
_PARAMETER = re.compile(
    r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]*))\s*(?:,|$)"
)


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate: the scheme and its parameters, with names in lower case."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header, up to the first that is not understood."""
    text, position, found = header[:_LONGEST_CHALLENGE], 0, []
    while scheme := _SCHEME.match(text, position):
        position = scheme.end()
        parameters = {}
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

    def current(self) -> str | None:
        return self.value if time.monotonic() < self.until else None


class Tokens:
    """The authorizations for the repositories of one upstream. Any thread may use it."""

    def __init__(self, name: str, scheme: str, find: Callable[[], Credential | None]) -> None:
        """`scheme` of the upstream: http or https; `find` looks up its credential."""
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

    def current(self, repository: str) -> str | None:
        """The authorization for the next question; None while the upstream has asked for none.

        If an earlier question needed a token, a missing token is fetched at once. Blocks for that.
        """
        held, usual = self._of(repository), self._usual
        if (value := held.current()) is not None or usual is None:
            return value
        try:
            return self._renewed(held, repository, usual)
        except SourceError:  # the upstream may have another realm by now, and will name it
            self._usual = None
            return None

    def renew(self, repository: str, header: str, refused: str | None) -> str | None:
        """A new authorization after a refusal with the challenges in `header`; None if none helps.

        `refused` is the authorization that was refused.

        Raises:
            SourceError: the realm cannot be asked, or gives no token.
        """
        offered = {each.scheme: each for each in reversed(challenges(header))}
        chosen = offered.get("bearer") or offered.get("basic")
        if chosen is None:
            return None
        held = self._of(repository)
        renewed = self._renewed(held, repository, chosen, refused)
        if renewed is None or renewed == refused:
            return None
        self._usual = chosen
        return renewed

    def _renewed(
        self, held: _Held, repository: str, challenge: Challenge, refused: str | None = None
    ) -> str | None:
        with held.lock:
            current = held.current()
            if current is not None and current != refused:
                return current  # another thread has renewed it
            try:
                credential = self._find()
            except CredentialsError as error:
                raise self._failed(str(error)) from error
            if challenge.scheme == "basic":
                value, life = self._basic(credential), float("inf")
            elif credential is not None and credential.means is Means.TOKEN:
                value, life = authorization(credential.secret), float("inf")
            else:
                value, life = self._token(repository, challenge, credential)
            held.value, held.until = value, time.monotonic() + life * (1 - _MARGIN)
            return value

    def _basic(self, credential: Credential | None) -> str | None:
        if credential is None or credential.means is not Means.PASSWORD:
            return None
        try:
            return authorization((credential.user, credential.secret))
        except ValueError as error:
            raise self._failed(str(error)) from error

    def _token(
        self, repository: str, challenge: Challenge, credential: Credential | None
    ) -> tuple[str, float]:
        """A token for pulling, and its life in seconds."""
        realm = challenge.parameters.get("realm", "")
        try:
            url = parse(realm)._replace(auth=None, fragment=None)
        except ValueError as error:
            raise self._failed(f"its challenge names no realm: {error}") from error
        if self._scheme == "https" != url.scheme:
            raise self._failed("it wants credentials to be sent without https")
        fields = {"scope": f"repository:{repository}:pull"}
        if "service" in challenge.parameters:
            fields["service"] = challenge.parameters["service"]
        client = Client(public(realm), named_by=self._home)
        headers = {"accept": "application/json", "user-agent": _CLIENT}
        if credential is not None and credential.means is Means.IDENTITY:
            fields |= {"grant_type": "refresh_token", "client_id": _CLIENT}
            fields["refresh_token"] = credential.secret
            headers["content-type"] = "application/x-www-form-urlencoded"
            reply = client.ask("POST", url, headers, body=urlencode(fields).encode())
        else:
            if credential is not None:
                headers["authorization"] = self._basic(credential) or ""
            given = f"{url.query}&" if url.query else ""
            reply = client.ask("GET", url._replace(query=given + urlencode(fields)), headers)
        try:
            status = reply.response.status
            if status in (401, 403, 429) or status >= 500:
                raise client.refused(reply)
            if status != 200:
                raise self._failed(f"its realm answers {status}")
            return self._understood(client.read(reply, _LARGEST_ANSWER))
        finally:
            discard(reply.response)

    def _understood(self, answer: bytes) -> tuple[str, float]:
        try:
            token, life = answers.token(answer)
        except InvalidAnswer as error:
            reason = f"its realm gives no token: {error}"
            raise BadAnswer(self._name, 0, reason, retryable=False) from None
        return authorization(token), life

    def _failed(self, reason: str) -> SourceError:
        return SourceError(self._name, 0, reason, retryable=False)
