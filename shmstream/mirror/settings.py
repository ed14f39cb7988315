"""`Mirror`: one mirror, as the operator configured it: `[[mirror]]` in the file of `serve`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from shmstream import units
from shmstream.sources.base import check_connections

KINDS = ("http", "huggingface", "pypi")
"""What a mirror may be of."""

_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_OURS = ("/v2", "/healthz", "/readyz", "/metrics", "/events")
_TTL = {"http": 0.0, "huggingface": 0.0, "pypi": 60.0}  # s


@dataclass(frozen=True)
class Mirror:
    """A mirror of a server.

    Attributes:
        path: where clients find it, such as `/hf`.
        kind: `http`, `huggingface` or `pypi`.
        url: of what it mirrors; a path of a client is added to it.
        ttl: seconds for which an answer is believed that does not say how long it is fresh, and at
            most for which a page of a package index is; None: 0, and 60 for a package index.
        immutable: patterns of paths, such as `/dists/*` or `*.whl`, whose content never changes.
        connections: how many connections one file may come over; None: as the store says.

    Raises:
        ValueError: a setting is not valid.
    """

    path: str
    kind: str
    url: str
    ttl: float | None = None
    immutable: tuple[str, ...] = ()
    connections: int | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError`."""
        given = {**vars(self), "immutable": list(self.immutable)}
        for key, read in READ.items():
            if given[key] is not None:
                try:
                    object.__setattr__(self, key, read(given[key]))
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None

    def __str__(self) -> str:
        return f"{self.path} from {self.url}"

    @property
    def believed(self) -> float:
        """`ttl`, or what it is by default."""
        return _TTL[self.kind] if self.ttl is None else self.ttl


def _path(value: object) -> str:
    path = _text(value).rstrip("/")
    if not _PATH.fullmatch(path) or any(each in (".", "..") for each in path.split("/")):
        raise ValueError(f"begins with a slash, such as /hf, unlike {_text(value)[:200]!r}")
    if any(path == each or path.startswith(f"{each}/") for each in _OURS):
        raise ValueError(f"{path!r} is in use already: {', '.join(_OURS)}")
    return path


def _kind(value: object) -> str:
    if (kind := _text(value)) not in KINDS:
        raise ValueError(f"is one of {', '.join(KINDS)}, not {kind[:200]!r}")
    return kind


def _url(value: object) -> str:
    url = _text(value)
    if "@" in url:  # no message may repeat it
        raise ValueError("a user and password do not belong here: clients send their own")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "?" in url or "#" in url or not url.isascii() or re.search(r"\s", url):
        raise ValueError(f"{url[:200]!r} is no URL of a server, such as https://host/path")
    return url.rstrip("/")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"is a text, not {value!r}")
    return value


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"is a duration such as '60s', not {value!r}")
    found = units.duration(value) if isinstance(value, str) else float(value)
    if not found >= 0:
        raise ValueError(f"is at least 0, not {found}")
    return found


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ValueError(f"is a list of patterns such as '*.whl', not {value!r}")
    return tuple(value)


def _connections(value: object) -> int | None:
    try:
        return check_connections(value)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).removeprefix("connections ")) from None


READ: Mapping[str, Callable[[object], object]] = {
    "path": _path,
    "kind": _kind,
    "url": _url,
    "ttl": _duration,
    "immutable": _patterns,
    "connections": _connections,
}
"""How each setting is read from a table."""
