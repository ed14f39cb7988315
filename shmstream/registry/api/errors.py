"""The answers of the registry that are errors.

A `Refusal` is a status, a code and a body in the form of the distribution specification:

    {"errors": [{"code": "BLOB_UNKNOWN", "message": "...", "detail": {...}}]}

`because` finds the refusal for any error of a store, a flight or an upstream. The address of the
upstream is logged, but not sent to clients. What the upstream itself says of its refusal goes on to
the clients, and so does the beginning of an answer that is not what it should be (`BadAnswer`): it
tells them what is wrong. The text of a refusal never has control characters, also where an upstream
wrote the text, because people read it on terminals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shmstream.asgi.statuses import status_of, status_of_source
from shmstream.errors import ShmstreamError, SourceError, SourceFailed, escaped
from shmstream.registry.upstream.answers import OURS, BadAnswer

VERSION = {"docker-distribution-api-version": "registry/2.0"}
"""A header of every answer: older clients look for it."""

_SOON = 5.0  # s; the Retry-After if the upstream names no time
_PATIENCE = "retry-after"
_LOG_IN = {"www-authenticate": 'Basic realm="the upstream of this cache", charset="UTF-8"'}


class Code(StrEnum):
    """The error codes of the distribution specification, and two more that registries use."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    DENIED = "DENIED"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    UNAUTHORIZED = "UNAUTHORIZED"
    UNAVAILABLE = "UNAVAILABLE"
    UNKNOWN = "UNKNOWN"
    UNSUPPORTED = "UNSUPPORTED"


@dataclass(eq=False)
class Refusal(ShmstreamError):
    """An answer that is an error: `message` is for people, `detail` is what it is about."""

    status: int
    code: Code
    message: str
    detail: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    def body(self) -> bytes:
        """The body: JSON that clients understand."""
        error: dict[str, object] = {"code": self.code, "message": escaped(self.message)}
        if self.detail:
            error["detail"] = {name: escaped(text) for name, text in self.detail.items()}
        return json.dumps({"errors": [error]}).encode()


def because(
    error: ShmstreamError, unknown: Code, detail: Mapping[str, str] | None = None
) -> Refusal:
    """The answer to a request that failed with `error`; `unknown` is the code of a 404."""
    if isinstance(error, Refusal):
        return error
    status, code, message = _meaning(error, unknown)
    headers = {}
    if status == 401:  # the header is required, though only the upstream knows how to get in
        headers.update(_LOG_IN)
    elif status in (429, 503):
        headers |= _patience(error)
    return Refusal(status, code, message, detail or {}, headers)


def _patience(error: ShmstreamError) -> dict[str, str]:
    """The header that tells when to ask again."""
    wait = error.retry_after if isinstance(error, SourceError) else None
    return {_PATIENCE: str(math.ceil(_SOON if wait is None else wait))}


def log_in() -> Refusal:
    """The answer to a client that has told nothing, or no name and password, for the upstream."""
    message = "the upstream wants to know who you are: log in here with what you log in with there"
    return Refusal(401, Code.UNAUTHORIZED, message, headers=_LOG_IN)


def refused_client(
    error: SourceError | SourceFailed, *, has_told: bool, detail: Mapping[str, str] | None = None
) -> Refusal | None:
    """The answer to a client whose own credentials the upstream has refused; None: not for them.

    `has_told`: whether it has told any; if not, it is asked for them, also if the upstream has had
    too many requests of all clients that tell none: with credentials it may get an answer.
    """
    refusing = (401, 403) if has_told else (401, 403, 429)
    if isinstance(error, BadAnswer) or error.status not in refusing:
        return None
    refusal = log_in()
    if error.status == 429:
        message = "the upstream has had too many requests of clients without credentials: log in"
        headers = {**_LOG_IN, **_patience(error)}
        refusal = replace(refusal, message=message, headers=headers)
    elif has_told and error.status == 403:
        refusal = Refusal(403, Code.DENIED, "the upstream does not give it to you")
    elif has_told:
        message = "the upstream wants other credentials than yours"
        refusal = Refusal(401, Code.UNAUTHORIZED, message, headers=_LOG_IN)
    said = f"{refusal.message}: {error.said}" if error.said else refusal.message
    return replace(refusal, message=said, detail=detail or {})


_SAID: dict[int, tuple[int, Code, str]] = {
    401: (401, Code.UNAUTHORIZED, "the upstream wants other credentials than this cache has"),
    403: (403, Code.DENIED, "the upstream does not give it to this cache"),
    429: (429, Code.TOOMANYREQUESTS, "the upstream has had too many requests"),
}


_CODES = frozenset(Code)


_OTHERS: dict[int, tuple[Code, str]] = {
    500: (Code.UNKNOWN, "this cache is not in order"),
    502: (Code.UNAVAILABLE, "the upstream gives other bytes than those of the digest"),
    503: (Code.UNAVAILABLE, "this cache is busy"),
    504: (Code.UNAVAILABLE, "nothing comes from the upstream any more"),
}
"""Code and message for each status that `status_of` may return, besides 404."""


def _meaning(error: ShmstreamError, unknown: Code) -> tuple[int, Code, str]:
    if isinstance(error, BadAnswer):
        return 502, Code.UNAVAILABLE, f"the upstream: {error.reason}"
    if isinstance(error, SourceError | SourceFailed):
        status, code, message = _meaning_of_upstream(error, unknown)
        return status, code, f"{message}: {error.said}" if error.said else message
    status = status_of(error)
    if status == 404:
        return status, unknown, "not known here"
    return status, *_OTHERS[status]


def _meaning_of_upstream(error: SourceError | SourceFailed, unknown: Code) -> tuple[int, Code, str]:
    status = error.status
    if status in (404, 410):
        return 404, unknown, "not known to the upstream"
    if status in _SAID:
        return _SAID[status]
    answered = status_of_source(error)
    if answered == 504:
        return answered, Code.UNAVAILABLE, "the upstream does not answer in time"
    if status is None:
        return answered, Code.UNAVAILABLE, "the upstream cannot be reached, or breaks off"
    message = f"the upstream answers {status}"
    if answered == status and status not in OURS:
        named = error.said.partition(":")[0]
        return answered, Code(named) if named in _CODES else Code.UNSUPPORTED, message
    return 502, Code.UNAVAILABLE, message
