"""`Accept`: the media types that a client takes, as its header says (RFC 9110, 12.5.1).

The upstream chooses among them, so it gets the text as the client wrote it: the order counts for
some registries, the q-values for others. If the upstream is away, `weight` tells which of the known
manifests of a tag this client takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from shmstream.registry.upstream import manifests

_LONGEST = 4096  # characters; what is beyond is left out
_ANY = "*/*"
_ENTRY = re.compile(r'(?:"[^"]*"|[^,])+')  # a comma in quotes ends no entry


@dataclass(frozen=True)
class Accept:
    """`text` is the value of the header that the upstream gets."""

    text: str

    @classmethod
    def of(cls, lines: Iterable[str]) -> Self:
        """From the lines of the header. A client without the header takes everything."""
        text = ", ".join(each.strip() for each in lines if each.strip(" \t,"))
        if len(text) > _LONGEST:
            text = text[:_LONGEST].rpartition(",")[0]
        return cls(text or ", ".join((*manifests.KNOWN, f"{_ANY};q=0.1")))

    @cached_property
    def _weights(self) -> dict[str, float]:
        """The weight of each media range."""
        found = (_weighed(each) for each in _ENTRY.findall(self.text) if each.strip())
        return dict(reversed(list(found)))  # of a range that is named twice, the first counts

    @property
    def named(self) -> list[str]:
        """The media types that the client names, without wildcards."""
        return [each for each in self._weights if "*" not in each]

    def weight(self, media_type: str) -> float:
        """How much the client likes the media type, from 0 (does not take it) to 1."""
        plain = media_type.lower()
        ranges = (plain, f"{plain.partition('/')[0]}/*", _ANY)
        return next((self._weights[each] for each in ranges if each in self._weights), 0.0)


def _weighed(entry: str) -> tuple[str, float]:
    """A media range without its parameters, and its weight."""
    name, *parameters = entry.split(";")
    weight = 1.0
    for each in parameters:
        key, _, value = each.partition("=")
        if key.strip().lower() == "q":
            weight = _number(value)
    return name.strip().lower(), weight


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 1.0
    return min(max(number, 0.0), 1.0) if math.isfinite(number) else 1.0
