"""Grants: which repository was confirmed to have which digest, so that no other one gives it away.

A store is by digest, and knows no repositories. Whoever may pull from repository B must not get
out of it what repository A brought in, unless B has it, too. So before anything with a digest goes
to a client of B, or B joins its flight, the upstream itself has said that B has it: by the answer
to B's own GET, or to a HEAD. That is a grant. It is a note (notes.py) that all workers share.

A grant is good for `_FRESH`, twelve hours, which is how long the longest-lived of the tokens of
well-known registries are good for: a withdrawal takes effect here no later than it might upstream.
Then the upstream is asked again; where it does not answer, what it last said stands.
"""

from __future__ import annotations

from shmstream.errors import SourceError
from shmstream.registry.notes import Notes
from shmstream.registry.upstream.manifests import media_type as of_manifest
from shmstream.registry.upstream.repository import Repository

_FRESH = 12 * 3600.0  # s
_WITHDRAWN = (401, 403, 404, 410)


class Grants:
    """The grants of a store. Any thread may use it."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def is_known(self, repository: Repository, kind: str, digest: str) -> bool:
        """Whether the upstream need not be asked."""
        note = self._notes.read(_key(repository, kind, digest))
        return note is not None and 0 <= note.age < _FRESH

    def media_type(self, repository: Repository, digest: str) -> str | None:
        """What the upstream said that a manifest is; None if it did not."""
        note = self._notes.read(_key(repository, "manifests", digest))
        return None if note is None else note.text or None

    def record(
        self, repository: Repository, kind: str, digest: str, media_type: str | None = None
    ) -> None:
        """The upstream has said that `repository` has `digest`."""
        self._notes.write(_key(repository, kind, digest), media_type or "")

    def confirm(
        self, repository: Repository, kind: str, digest: str, size: int | None = None
    ) -> None:
        """Ask the upstream; `size` is what it has to have, where that is known. Blocks.

        Raises:
            SourceError: it has not, or does not give it; or it does not answer and never said so.
        """
        key = _key(repository, kind, digest)
        note = self._notes.read(key)
        if note is not None and repository.upstream.reach.is_quiet:
            return
        try:
            about = repository.about(kind, digest)
        except SourceError as error:
            if error.status in _WITHDRAWN:
                self._notes.remove(key)
            elif note is not None:
                return
            raise
        if None not in (size, about.size) and size != about.size:
            reason = f"it has {about.size} bytes there, not {size}"
            raise SourceError(repository.upstream.name, 0, reason, retryable=False, status=404)
        self.record(repository, kind, digest, _media_type(kind, about.media_type))


def _media_type(kind: str, told: str | None) -> str | None:
    return of_manifest(told) if kind == "manifests" else None


def _key(repository: Repository, kind: str, digest: str) -> tuple[str, ...]:
    return (*repository.key, kind, digest)
