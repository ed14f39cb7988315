"""What RFC 9111 says of one answer: may it be kept, how long is it fresh, when may it serve?

    may_keep      may a cache that many clients share keep it at all?
    lifetime      for how many seconds after its beginning is it fresh?
    Age           how old it was when it came, and how old it is now
    may_be_stale  may it serve though it is stale, because the origin does not answer?

Nothing here asks, waits or reads a file. There is no guess of a lifetime from Last-Modified: the
files of a mirror belong together, and a guess would mix old files with new ones. So an answer
without a lifetime of its own is asked for again each time, and costs a 304.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shmstream.asgi.headers import read_date

Pairs = list[tuple[str, str]]
"""Header fields in order; names are in lower case."""

FOR_EVER = 1 << 31
"""Seconds; the longest lifetime, which is also that of an immutable answer."""

_DIRECTIVE = re.compile(r"""([!#$%&'*+.^_`|~\w-]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s,;"]*))?""")
_NUMBER = re.compile(r"\d+", re.ASCII)
_DATE = re.compile(  # as RFC 9110 has it (5.6.7): of today, of RFC 850, of asctime
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"
    r"|[A-Z][a-z]{5,8}, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}",
    re.IGNORECASE | re.ASCII,
)
_YEAR = 365 * 24 * 3600
_KEPT_BY_DEFAULT = frozenset((200,))
"""Statuses of answers that are kept without a lifetime, because they can be asked for again."""
_NEVER = frozenset((206, 304))
_UNDERSTOOD = frozenset((200, 203, 204, 300, 301, 302, 303, 307, 308, 400, 403, 404, 405, 410, 414,
                         451, 500, 501, 502, 503, 504))  # fmt: skip
_FOR_ANYBODY = ("public", "s-maxage", "must-revalidate")
"""Directives with which the answer to a request with credentials may be kept."""
_STRICT = ("must-revalidate", "proxy-revalidate", "s-maxage", "no-cache")


def control(fields: Iterable[str]) -> dict[str, str]:
    """The directives of Cache-Control, in lower case; of one that comes twice, the first counts."""
    found: dict[str, str] = {}
    for name, value in _DIRECTIVE.findall(", ".join(fields)):
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.setdefault(name.lower(), value)
    return found


def values(fields: Pairs, name: str) -> list[str]:
    """The values of the fields of that name."""
    return [value for each, value in fields if each == name]


def seconds(text: str | None) -> int | None:
    """The seconds of a directive; None without it. What is no number of seconds counts as 0."""
    if text is None:
        return None
    return min(int(text[:12]), FOR_EVER) if _NUMBER.fullmatch(text) else 0


def may_keep(
    status: int, fields: Pairs, *, is_personal: bool, asked: Mapping[str, str] = {}
) -> bool:
    """Whether a shared cache may keep the answer to a GET.

    `is_personal`: the request had credentials. `asked`: the directives of the request.
    """
    told = control(values(fields, "cache-control"))
    is_understood = status in _UNDERSTOOD
    refuses = "no-store" in told and not ("must-understand" in told and is_understood)
    if "must-understand" in told and not is_understood:
        refuses = True
    if status < 200 or status in _NEVER or refuses or "no-store" in asked or "private" in told:
        return False
    if values(fields, "set-cookie"):  # it is for one client
        return False
    if is_personal and not any(each in told for each in _FOR_ANYBODY):
        return False
    if "*" in ",".join(values(fields, "vary")):
        return False
    return status in _KEPT_BY_DEFAULT or _own_lifetime(fields, told, 0.0) is not None


def lifetime(fields: Pairs, received: float, otherwise: float = 0.0) -> float:
    """Seconds for which the answer is fresh; `otherwise` if it does not say.

    `received`: when it came, in seconds since 1970.
    """
    told = control(values(fields, "cache-control"))
    if "no-cache" in told:
        return 0.0
    own = _own_lifetime(fields, told, received)
    if own is None:
        return float(_YEAR) if "immutable" in told else otherwise
    return own


def is_silent(fields: Pairs) -> bool:
    """Whether the answer says nothing of how long it is fresh."""
    told = control(values(fields, "cache-control"))
    return "no-cache" not in told and _own_lifetime(fields, told, 0.0) is None


def _own_lifetime(fields: Pairs, told: Mapping[str, str], received: float) -> float | None:
    for name in ("s-maxage", "max-age"):
        if (found := seconds(told.get(name))) is not None:
            return float(found)
    if expires := values(fields, "expires"):
        is_date = len(set(expires)) == 1 and _DATE.fullmatch(expires[0].strip())
        until = read_date(expires[0]) if is_date else None
        if until is None:
            return 0.0  # what is no date is in the past
        return max(float(until) - date_of(fields, received), 0.0)
    return None


def date_of(fields: Pairs, received: float) -> float:
    """When the answer was made, as it says; else when it was `received`."""
    found = values(fields, "date")
    read = read_date(found[0]) if found else None
    return received if read is None else float(read)


def age_at_first(fields: Pairs, requested: float, received: float) -> float:
    """How old the answer was when it came (RFC 9111, 4.2.3). Times in seconds since 1970."""
    told = values(fields, "age")
    number = _NUMBER.fullmatch(told[0].partition(",")[0].strip()) if told else None
    age = min(int(number[0][:12]), FOR_EVER) if number else 0
    apparent = max(received - date_of(fields, received) - 1, 0.0)  # a date has whole seconds
    return max(apparent, age + max(received - requested, 0.0) if age else 0.0)


def may_be_stale(fields: Pairs, staleness: float) -> bool:
    """Whether the answer may serve because its origin does not answer, or answers 5xx.

    `staleness`: for how many seconds it is not fresh any more. `stale-if-error` bounds that.
    """
    told = control(values(fields, "cache-control"))
    if (allowed := seconds(told.get("stale-if-error"))) is not None:
        return staleness <= allowed
    return not any(each in told for each in _STRICT)


def may_wait(fields: Pairs, staleness: float) -> bool:
    """Whether the answer may serve though it is stale, while it is asked for again (RFC 5861)."""
    told = control(values(fields, "cache-control"))
    return staleness <= (seconds(told.get("stale-while-revalidate")) or -1)


@dataclass(frozen=True)
class Wish:
    """What a request says of the answer that it takes: its directives (RFC 9111, 5.2.1)."""

    directives: Mapping[str, str]

    @classmethod
    def of(cls, fields: Pairs) -> Wish:
        """From the fields of a request; Pragma counts where there is no Cache-Control."""
        if told := values(fields, "cache-control"):
            return cls(control(told))
        is_old = "no-cache" in control(values(fields, "pragma"))
        return cls({"no-cache": ""} if is_old else {})

    def takes(self, age: float, left: float, *, is_strict: bool) -> bool:
        """Whether the client takes an answer of that `age` that is fresh for `left` more seconds.

        `is_strict`: the answer forbids to serve it when it is stale.
        """
        if "no-cache" in self.directives:
            return False
        oldest, least = self._number("max-age"), self._number("min-fresh")
        if oldest is not None and age > oldest:
            return False
        if left > 0 or self.directives.get("max-stale") is None or is_strict:
            return left > (least or 0)
        longest = self._number("max-stale") if self.directives["max-stale"] else FOR_EVER
        return -left <= (longest or 0)

    def _number(self, name: str) -> int | None:
        return seconds(self.directives.get(name))

    @property
    def is_none(self) -> bool:
        """Whether it says nothing that this cache knows."""
        return not set(self.directives) & {"no-cache", "no-store", "max-age", "min-fresh"}

    @property
    def is_only_if_kept(self) -> bool:
        """Whether the client wants nothing that would have to be asked for."""
        return "only-if-cached" in self.directives


def is_strict(fields: Pairs) -> bool:
    """Whether the answer may never serve when it is stale, not even if a client takes that."""
    told = control(values(fields, "cache-control"))
    return any(each in told for each in _STRICT)
