"""Tags: which manifest a tag means, as the upstream last said. All workers share the notes.

    the note is younger than `ttl`     the note is believed
    the note is older, or missing      HEAD: the upstream says which manifest it is now
    the upstream does not answer       a note is used, marked as stale
    the upstream refuses               the notes are removed; but not by what it says to wildcards
    it answers 400, 406, or the like   that is the answer, and the notes stay
    it has no manifest of that digest  the tag means another one by now: ask again (`forget`)

What a tag means depends on the media types that a client accepts, so there are notes of two kinds:

    answer    by what the client accepts, word for word: what the upstream answered to that
    variant   by media type: the manifests of that type that the upstream last answered to anybody

As long as the upstream answers, only answers count. If it does not, whatever client has pulled the
tag before, all others get what they take: a manifest of the type that the upstream chose for this
client, else of another type that the client takes, indexes first. It must be in the store, so a
variant has two manifests: the newest one, and the newest one that was in the store by then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from shmstream.errors import SourceError
from shmstream.registry.api.accept import Accept
from shmstream.registry.upstream import answers, manifests
from shmstream.registry.upstream.answers import REFUSED, Unkept
from shmstream.registry.upstream.manifests import Manifest
from shmstream.registry.upstream.repository import Repository
from shmstream.stream.digest import is_digest
from shmstream.upstreams.notes import Notes

_FOR_EVER = 10 * 365 * 86400.0  # s
_OTHER = "other"  # the variant of all other types
_VARIANTS: tuple[str, ...] = (*manifests.INDEXES, *manifests.IMAGES)


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

    @property
    def is_signed(self) -> bool:
        """Whether the digest is not that of the manifest's bytes, so that no store can keep it."""
        return self.manifest.media_type in manifests.SIGNED


class Tags:
    """The tags of the repositories of all upstreams. Any thread may use it."""

    def __init__(
        self,
        notes: Notes,
        ttl: float,
        is_here: Callable[[str], bool],
        immutable: tuple[str, ...] = (),
    ) -> None:
        """`is_here` tells whether a digest is complete in the store.

        `immutable`: patterns of tags, such as `v*.*.*`, that never change their meaning.
        """
        self._immutable = immutable
        self._notes = notes
        self._ttl = ttl
        self._is_here = is_here

    def is_immutable(self, tag: str) -> bool:
        """Whether the operator says that the tag never changes its meaning."""
        return any(fnmatchcase(tag, each) for each in self._immutable)

    def known(self, repository: Repository, tag: str, accept: Accept) -> Tagged | None:
        """The meaning of a tag from a fresh note; None without one. Does not ask the upstream."""
        found = self._read(_answer(repository, tag, accept))
        if found is None:
            return None
        ttl = _FOR_EVER if self.is_immutable(tag) else self._ttl
        return Tagged(found[0][0], ttl - found[1]) if 0 <= found[1] < ttl else None

    def resolve(self, repository: Repository, tag: str, accept: Accept) -> Tagged:
        """Ask the upstream; if it does not answer, use a note. Blocks.

        Raises:
            SourceError: the upstream has no such tag, or refuses; or it does not answer, and there
                is no note.
        """
        stale = self.stale(repository, tag, accept)
        if stale is not None and repository.upstream.is_quiet:
            return stale
        try:
            manifest = repository.resolve(tag, accept.text, has_other=stale is not None)
        except SourceError as error:
            if error.status in REFUSED:
                self._remove(repository, tag, accept, error.status)
            elif stale is not None and not _is_answer(error):
                return stale
            raise
        self._note(repository, tag, accept, manifest)
        return Tagged(manifest, self._ttl, was_asked=True)

    def forget(self, repository: Repository, tag: str, accept: Accept) -> None:
        """Remove the answer: the upstream has not, or no longer, the manifest that it names."""
        self._notes.remove(_answer(repository, tag, accept))

    # When the upstream does not answer.

    def stale(
        self, repository: Repository, tag: str, accept: Accept, but: str | None = None
    ) -> Tagged | None:
        """What the tag meant for a client that takes `accept`; not the digest `but`. Asks nobody.

        A manifest that is here comes first; a HEAD may be answered with another one.
        """
        candidates = self._candidates(repository, tag, accept)
        found = [each for each in candidates if each[0].digest != but]
        here = (each for each in found if self._is_here(each[0].digest))
        manifest, age = next(here, found[0] if found else (None, 0.0))
        return None if manifest is None else Tagged(manifest, min(self._ttl - age, -1.0))

    def _candidates(
        self, repository: Repository, tag: str, accept: Accept
    ) -> Iterator[tuple[Manifest, float]]:
        """Manifests and their ages in seconds; the best one first."""
        answer = self._read(_answer(repository, tag, accept))
        names = sorted(_VARIANTS, key=accept.weight, reverse=True)  # stable: indexes stay first
        chosen = [] if answer is None else [_name(answer[0][0].media_type)]
        for name in dict.fromkeys((*chosen, *names, _OTHER)):
            found, age = self._read(_variant(repository, tag, name)) or ([], 0.0)
            for each in found:
                if accept.weight(each.media_type or "") > 0 or name in chosen:
                    yield each, age
        if answer is not None:
            yield answer[0][0], answer[1]

    # Notes.

    def _note(self, repository: Repository, tag: str, accept: Accept, manifest: Manifest) -> None:
        self._write(_answer(repository, tag, accept), [manifest])
        key = _variant(repository, tag, _name(manifest.media_type))
        found = self._read(key)
        earlier = [] if found is None else found[0]
        kept = [each for each in earlier if self._is_here(each.digest)]
        different = [each for each in kept if each.digest != manifest.digest]
        self._write(key, [manifest, *different[:1]])
        if manifest.media_type in manifests.IMAGES:
            for name in manifests.INDEXES:
                if accept.weight(name) > 0:  # it would have been an index, if there still was one
                    self._notes.remove(_variant(repository, tag, name))

    def _remove(self, repository: Repository, tag: str, accept: Accept, status: int | None) -> None:
        """Remove all that the upstream's refusal is about: what this client takes.

        A 404 is about the types that the client names. Many registries understand no wildcards,
        and say 404 to a client that names none, though other clients get the manifest.
        """
        named = accept.named if status == 404 else _VARIANTS
        for name in _VARIANTS:
            if name in named and accept.weight(name) > 0:
                self._notes.remove(_variant(repository, tag, name))
        if named:
            self._notes.remove(_variant(repository, tag, _OTHER))
        self._notes.remove(_answer(repository, tag, accept))

    def _write(self, key: tuple[str, ...], told: list[Manifest]) -> None:
        self._notes.write(key, json.dumps([asdict(each) for each in told]))

    def _read(self, key: tuple[str, ...]) -> tuple[list[Manifest], float] | None:
        """The manifests of a note, at least one, and its age; None if it has none."""
        note = self._notes.read(key)
        if note is None:
            return None
        try:
            told = json.loads(note.text)
        except (ValueError, RecursionError):
            return None
        found = [_manifest(each) for each in (told if isinstance(told, list) else [told])]
        good = [each for each in found if each is not None]
        return (good, note.age) if good else None


def _is_answer(error: SourceError) -> bool:
    """Whether a client gets the error though there is an older answer."""
    return answers.is_no(error.status) or isinstance(error, Unkept)


def _answer(repository: Repository, tag: str, accept: Accept) -> tuple[str, ...]:
    return (*repository.key, tag, accept.text)


def _variant(repository: Repository, tag: str, name: str) -> tuple[str, ...]:
    return (*repository.key, tag, "variant", name)


def _name(media_type: str | None) -> str:
    """The name of the variant that manifests of this type belong to."""
    return media_type if media_type in _VARIANTS else _OTHER


def _manifest(facts: object) -> Manifest | None:
    if not isinstance(facts, dict):
        return None
    digest, size = facts.get("digest"), facts.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        return None
    known_size = size if type(size) is int and size >= 0 else None
    return Manifest(digest, manifests.media_type(facts.get("media_type")), known_size)
