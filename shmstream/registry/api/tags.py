"""Tags: which manifest a tag means, as the upstream last said. All workers share the notes.

    the note is younger than `ttl`     the note is believed
    the note is older, or missing      HEAD: the upstream says which manifest it is now
    the upstream does not answer       the note is used, marked as stale
    the upstream refuses               the note is removed
    it has no manifest of that digest  the tag means another one by now: ask again (`forget`)

The meaning of a tag depends on the media types that a client accepts, so these are part of the
note's key.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from shmstream.errors import SourceError
from shmstream.registry.notes import Note, Notes
from shmstream.registry.upstream import manifests
from shmstream.registry.upstream.manifests import Manifest
from shmstream.registry.upstream.repository import Repository
from shmstream.stream.digest import is_digest

_REFUSED = (401, 403, 404, 410)
_MOST_TYPES = 32


@dataclass(frozen=True)
class Tagged:
    """The manifest of a tag, and for how many more seconds that is believed.

    `left` is negative if the upstream could not be asked.
    """

    manifest: Manifest
    left: float
    was_asked: bool = False

    @property
    def is_stale(self) -> bool:
        """Whether the tag may mean another manifest by now."""
        return self.left < 0


def acceptable(header: str) -> str:
    """The media types that a client accepts, sorted; all known types if it names none."""
    types = {each.partition(";")[0].strip().lower() for each in header.split(",")} - {""}
    return ", ".join(sorted(types)[:_MOST_TYPES] or manifests.KNOWN)


class Tags:
    """The tags of the repositories of all upstreams. Any thread may use it."""

    def __init__(self, notes: Notes, ttl: float) -> None:
        self._notes = notes
        self._ttl = ttl

    def known(self, repository: Repository, tag: str, accept: str) -> Tagged | None:
        """The meaning of a tag from a fresh note; None without one. Does not ask the upstream."""
        note = self._notes.read(_key(repository, tag, accept))
        manifest = None if note is None else _manifest(note)
        if note is None or manifest is None or not 0 <= note.age < self._ttl:
            return None
        return Tagged(manifest, self._ttl - note.age)

    def resolve(self, repository: Repository, tag: str, accept: str) -> Tagged:
        """Ask the upstream; if it does not answer, use the note. Blocks.

        Raises:
            SourceError: the upstream has no such tag, or refuses; or it does not answer, and there
                is no note.
        """
        key = _key(repository, tag, accept)
        note = self._notes.read(key)
        noted = None if note is None else _manifest(note)
        stale = Tagged(noted, min(self._ttl - note.age, -1.0)) if note and noted else None
        if stale is not None and repository.upstream.reach.is_quiet:
            return stale
        try:
            manifest = repository.resolve(tag, accept, has_other=stale is not None)
        except SourceError as error:
            if error.status in _REFUSED:
                self._notes.remove(key)
            elif stale is not None:
                return stale
            raise
        self._notes.write(key, json.dumps(asdict(manifest)))
        return Tagged(manifest, self._ttl, was_asked=True)

    def forget(self, repository: Repository, tag: str, accept: str) -> None:
        """Remove the note: the upstream has not, or no longer, the manifest that it names."""
        self._notes.remove(_key(repository, tag, accept))


def _key(repository: Repository, tag: str, accept: str) -> tuple[str, ...]:
    return (*repository.key, tag, accept)


def _manifest(note: Note) -> Manifest | None:
    facts = manifests.parsed(note.text.encode())
    digest, size = facts.get("digest"), facts.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        return None
    known_size = size if type(size) is int and size >= 0 else None
    return Manifest(digest, manifests.media_type(facts.get("media_type")), known_size)
