"""The id of the request that is answered just now: in the access log, in errors, at the upstream.

A client or a proxy in front may give an id (`X-Request-Id`); else one is made. The client gets its
own id back. An id that was made is not sent: another worker that goes on with a response has to
make the same head again, byte for byte.

The id goes with the task that answers, and with the questions that this task asks (`singleflight`).
A flight is of many requests; its upstream is told the id of the request that brought the source.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

HEADER = "x-request-id"
"""The header, in small letters."""

_GOOD = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_current: ContextVar[str] = ContextVar("shmstream_request_id", default="")


def begin(given: bytes | None) -> tuple[str, bool]:
    """Begin to answer a request, in a task of its own: its id, and whether the client gave it."""
    is_given = given is not None and _GOOD.fullmatch(given) is not None
    name = given.decode() if given is not None and is_given else new()
    _current.set(name)
    return name, is_given


def new() -> str:
    """An id for a request whose client gave none."""
    return secrets.token_hex(8)


def current() -> str:
    """The id of the request that is answered here; empty if there is none."""
    return _current.get()


def told() -> dict[str, str]:
    """The header with that id, for a server that is asked; empty if there is none."""
    return {HEADER: name} if (name := current()) else {}
