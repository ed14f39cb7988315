"""`Entry`: an answer that is kept: its head, and where its body is. `Shelf`: all that are kept.

    a note by URL     the entries of that URL, at most `_MOST`, which differ in what their `Vary`
                      names. It is a note of `upstreams/notes`: all workers share it, and it may be
                      lost, which costs one question
    a blob by key     the body of an answer with the status 200, a named blob of the store. The key
                      is new for each content, so a client that reads the old one is not disturbed
    in the note       the body of any other answer, which is short

The note is written when the head of the answer is there and the flight of its body has begun. So
any worker that reads it joins that flight.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Self

from shmstream.mirror import freshness
from shmstream.mirror.freshness import Pairs, Wish, values
from shmstream.sources.base import public
from shmstream.upstreams.notes import Notes

LARGEST_BODY = 16 << 10
"""Bytes; the longest body that is kept in a note."""
LARGEST_NOTE = 1 << 18
"""Bytes of a note: of a few heads, and of such bodies."""
_MOST = 6  # entries of one URL
_MOST_URLS = 1_000_000  # of all mirrors; beyond, the oldest are forgotten
_ASKED_ANYWAY = ("accept-encoding",)  # the mirror itself asks for `identity` whatever a client says
_OF_THE_BODY = frozenset(("content-encoding", "content-type", "content-range", "content-length"))
_REFRESHED = 7 * 24 * 3600.0  # s; an older note is written again when it is used


@dataclass(frozen=True)
class Entry:
    """One answer that is kept.

    Attributes:
        status: of the answer.
        fields: its head, without what belongs to one connection.
        vary: hashes of what the request said in the fields that `Vary` names.
        requested, received: when it was asked for, and when its head came; seconds since 1970.
        key: of the blob that is its body; empty: the body is `body`.
        body: the bytes, in base64.
        ttl: how long it is fresh if it does not say.
        is_immutable: whether it is fresh for ever.
        limit: the longest that it is fresh, because a redirect that led to it may lead elsewhere
            then; None for no limit.
    """

    status: int
    fields: Pairs
    vary: Mapping[str, str]
    requested: float
    received: float
    key: str = ""
    body: str = ""
    ttl: float = 0.0
    is_immutable: bool = False
    limit: float | None = None
    _age: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        """How old it was when it came."""
        age = freshness.age_at_first(self.fields, self.requested, self.received)
        object.__setattr__(self, "_age", age)

    @property
    def age(self) -> float:
        """Seconds since the origin made it or last confirmed it."""
        return self._age + max(time.time() - self.received, 0.0)

    @property
    def left(self) -> float:
        """For how many more seconds it is fresh; negative once it is stale."""
        if self.is_immutable:
            return float(freshness.FOR_EVER)
        lifetime = freshness.lifetime(self.fields, self.received, self.ttl)
        return (lifetime if self.limit is None else min(lifetime, self.limit)) - self.age

    def serves(self, wish: Wish, arrived: float) -> bool:
        """Whether it answers a request that `arrived` then, without a question to the origin.

        An answer that came after the request is what the origin would have told this client.
        """
        if self.received >= arrived:
            return True
        strict = freshness.is_strict(self.fields)
        return wish.takes(self.age, self.left, is_strict=strict)

    @property
    def may_be_stale(self) -> bool:
        """Whether it serves while the origin does not answer."""
        return freshness.may_be_stale(self.fields, -self.left)

    @property
    def may_wait(self) -> bool:
        """Whether it serves while it is asked for again."""
        return freshness.may_wait(self.fields, -self.left)

    def first(self, name: str) -> str | None:
        """The value of the first field of that name."""
        return next(iter(values(self.fields, name)), None)

    @property
    def validators(self) -> dict[str, str]:
        """The fields that ask whether the content is still this; empty if nothing can tell."""
        found = {
            "if-none-match": self.first("etag"),
            "if-modified-since": self.first("last-modified"),
        }
        return {name: value for name, value in found.items() if value is not None}

    def is_same(self, fields: Pairs) -> bool:
        """Whether an answer with these fields has this very content."""
        mine, other = self.first("etag"), next(iter(values(fields, "etag")), None)
        return mine is not None and mine == other and not mine.startswith("W/")

    def confirmed(self, fields: Pairs, requested: float, received: float) -> Self:
        """The entry after a 304 with these fields, which replace those of the same name."""
        out = _OF_THE_BODY | {"set-cookie"}
        new = [(name, value) for name, value in fields if name not in out]
        replaced = {name for name, _ in new} | {"age"}
        kept = [(name, value) for name, value in self.fields if name not in replaced]
        return replace(self, fields=kept + new, requested=requested, received=received)

    def of_blob(self, key: str) -> Self:
        """The entry with the blob of `key` as its body."""
        return replace(self, key=key)

    def with_body(self, data: bytes) -> Self:
        """The entry with these few bytes as its body."""
        return replace(self, body=base64.b64encode(data).decode())

    def data(self) -> bytes:
        """The body that the note has."""
        return base64.b64decode(self.body)


def selecting(fields: Pairs, request: Mapping[str, str]) -> dict[str, str]:
    """What the `request` says in the fields that the `Vary` of an answer names."""
    names = [each.strip().lower() for each in ",".join(values(fields, "vary")).split(",")]
    return {
        name: _plain(request.get(name, "")) for name in names if name and name not in _ASKED_ANYWAY
    }


def _plain(value: str) -> str:
    """A value as notes have it: its SHA-256, because it may be a password."""
    text = ",".join(each.strip() for each in value.split(","))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() if text else ""


class Shelf:
    """The entries of one mirror, by URL. Any thread and any process may use it."""

    def __init__(self, store: str, mirror: str) -> None:
        """`store` is the folder of the store.

        Raises:
            OSError: the folder of the notes cannot be made.
        """
        self._notes = Notes(store, "mirror", largest=LARGEST_NOTE, most=_MOST_URLS)
        self._mirror = mirror

    def read(self, url: str) -> list[Entry]:
        """The entries of a URL, the newest first."""
        if (note := self._notes.read((self._mirror, url))) is None:
            return []
        try:
            found = [
                Entry(**{**each, "fields": [(str(a), str(b)) for a, b in each["fields"]]})
                for each in json.loads(note.text)
            ]
        except (ValueError, TypeError, LookupError, RecursionError):  # of another version
            return []
        if note.age > _REFRESHED:
            self._notes.write((self._mirror, url), note.text)
        return found

    def find(self, url: str, request: Mapping[str, str]) -> Entry | None:
        """The newest entry of the URL that is for such a request."""
        for each in self.read(url):
            if all(_plain(request.get(name, "")) == value for name, value in each.vary.items()):
                return each
        return None

    def write(self, url: str, entry: Entry) -> list[str]:
        """Keep an entry; returns the keys of blobs that no entry names any more."""
        before = self.read(url)
        kept = [each for each in before if each.vary != entry.vary][: _MOST - 1]
        now = [entry, *kept]
        self._notes.write((self._mirror, url), json.dumps([_facts(each) for each in now]))
        named = {each.key for each in now}
        return [each.key for each in before if each.key and each.key not in named]


def _facts(entry: Entry) -> dict[str, object]:
    facts = asdict(entry)
    del facts["_age"]
    return facts


def new_key(url: str, token: str) -> str:
    """The key of a blob for a new content of `url`; it tells people where the blob is from."""
    return f"{public(url)} {token}"
