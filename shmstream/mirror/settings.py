"""`Mirror`: one mirror, as the operator configured it: `[[mirror]]` in the file of `serve`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from shmstream import units

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

    Raises:
        ValueError: a setting is not valid.
    """

    path: str
    kind: str
    url: str
    ttl: float | None = None
    immutable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `ValueError`."""
        path = self.path.rstrip("/")
        if not _PATH.fullmatch(path) or any(each in (".", "..") for each in path.split("/")):
            raise ValueError(f"path: begins with a slash, such as /hf, unlike {self.path[:200]!r}")
        if any(path == each or path.startswith(f"{each}/") for each in _OURS):
            raise ValueError(f"path: {path!r} is in use already: {', '.join(_OURS)}")
        object.__setattr__(self, "path", path)
        if self.kind not in KINDS:
            raise ValueError(f"kind: is one of {', '.join(KINDS)}, not {self.kind[:200]!r}")
        object.__setattr__(self, "url", _checked(self.url))
        if self.ttl is not None and not self.ttl >= 0:
            raise ValueError(f"ttl: is at least 0, not {self.ttl}")
        object.__setattr__(self, "immutable", tuple(self.immutable))

    def __str__(self) -> str:
        return f"{self.path} from {self.url}"

    @property
    def believed(self) -> float:
        """`ttl`, or what it is by default."""
        return _TTL[self.kind] if self.ttl is None else self.ttl

    @classmethod
    def from_table(cls, table: object) -> Self:
        """From a table of a TOML file.

        Raises:
            ValueError: a key is missing or unknown, or its value is not valid.
        """
        needed = {"path", "kind", "url"}
        if not isinstance(table, Mapping) or not needed <= set(table) <= set(_READ):
            more = ", ".join(sorted(set(_READ) - needed))
            raise ValueError(f"is a table with path, kind and url; it may have {more}")
        for key, value in table.items():
            try:
                _READ[key](value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        return cls(**{key: _READ[key](value) for key, value in table.items()})  # type: ignore[arg-type]


def _checked(url: str) -> str:
    if "@" in url:  # no message may repeat it
        raise ValueError("url: a user and password do not belong here: clients send their own")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "?" in url or "#" in url or not url.isascii() or re.search(r"\s", url):
        raise ValueError(f"url: {url[:200]!r} is no URL of a server, such as https://host/path")
    return url.rstrip("/")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"is a text, not {value!r}")
    return value


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"is a duration such as '60s', not {value!r}")
    return units.duration(value) if isinstance(value, str) else float(value)


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ValueError(f"is a list of patterns such as '*.whl', not {value!r}")
    return tuple(value)


_READ: Mapping[str, Callable[[object], object]] = {
    "path": _text,
    "kind": _text,
    "url": _text,
    "ttl": _duration,
    "immutable": _patterns,
}
"""How each setting is read from a table."""
