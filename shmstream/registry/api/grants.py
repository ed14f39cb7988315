"""Grants: which repository has which digest, as its upstream has confirmed.

The store knows digests, and no repositories. A client that may pull from repository B must not get
a blob that repository A brought into the store, unless B has that blob, too. So before B joins a
flight, and before bytes go to a client of B, the upstream itself must have confirmed that B has the
digest: by the answer to B's own GET, or to a HEAD. That confirmation is a grant. It is a note
(`upstreams/notes`) that all workers share, with the media type and the size that the upstream told.
A flight that A leads may be of another size: then A's upstream lies, or B's, and B's clients get
the bytes from B's.

An upstream whose host a client has named may be anybody's, and may confirm whatever it is asked. So
its word is no grant: it must give all bytes of the blob, from the first one on, and they must have
the digest. Until then its clients get the bytes from it, and nothing of what others brought.

A grant is valid for `_FRESH`, twelve hours. The longest-lived tokens of well-known registries live
as long, so access that the upstream withdraws ends here no later than it may end there. After that
the upstream is asked again; if it does not answer, its last answer stays valid.

An upstream that is asked with the credentials of clients (`passes_on`) decides by itself which
client gets what. So the grant of one credential is none for another one, and none for a client
without: the repository's key has the rights of the credential. It is valid for five minutes, as
long as a token of Docker's registry lives: a password that is changed there ends here, too. After
a 429 with `Retry-After` the upstream is asked for no manifest until that time is over, and an older
grant of a manifest counts until then; for blobs the upstream is asked all the same.
"""

from __future__ import annotations

from shmstream.errors import SourceError
from shmstream.registry.upstream.answers import REFUSED, Page
from shmstream.registry.upstream.manifests import media_type as of_manifest
from shmstream.registry.upstream.repository import Repository
from shmstream.upstreams.notes import Notes

_FRESH = 12 * 3600.0  # s
_FRESH_OF_CLIENT = 300.0  # s


class Grants:
    """The grants of a store. Any thread may use it."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def is_known(self, repository: Repository, kind: str, digest: str) -> bool:
        """Whether there is a fresh grant, so that the upstream need not be asked."""
        what = f"{kind}, proved" if repository.upstream.is_guarded else kind
        note = self._notes.read(_key(repository, what, digest))
        fresh = _FRESH_OF_CLIENT if repository.upstream.passes_on else _FRESH
        return note is not None and 0 <= note.age < fresh

    def prove(self, repository: Repository, kind: str, digest: str) -> None:
        """Note that all bytes of `digest` have come from `repository`."""
        self._notes.write(_key(repository, f"{kind}, proved", digest), "")

    def media_type(self, repository: Repository, digest: str) -> str | None:
        """The media type of a manifest, as the upstream said; None if it said none."""
        note = self._notes.read(_key(repository, "manifests", digest))
        return None if note is None else note.text.partition("\n")[0] or None

    def size(self, repository: Repository, kind: str, digest: str) -> int | None:
        """The bytes that it has there, as the upstream said; None if it said nothing."""
        note = self._notes.read(_key(repository, kind, digest))
        size = "" if note is None else note.text.partition("\n")[2]
        return int(size) if size.isascii() and size.isdigit() else None

    def record(
        self,
        repository: Repository,
        kind: str,
        digest: str,
        media_type: str | None = None,
        size: int | None = None,
    ) -> None:
        """Note that the upstream has confirmed that `repository` has `digest`."""
        text = media_type or ""
        self._notes.write(
            _key(repository, kind, digest), text if size is None else f"{text}\n{size}"
        )

    def confirm(
        self,
        repository: Repository,
        kind: str,
        digest: str,
        size: int | None = None,
        accept: str | None = None,
    ) -> None:
        """Ask the upstream for a grant; `size` in bytes, if it is known, must be the same. Blocks.

        `accept`: as for `Repository.about`.

        Raises:
            SourceError: the upstream does not have it or refuses; or it does not answer, and there
                is no older grant.
        """
        key = _key(repository, kind, digest)
        note = self._notes.read(key)
        upstream = repository.upstream
        is_quiet = upstream.is_away if kind == "blobs" else upstream.is_quiet
        if note is not None and is_quiet:
            return
        try:
            about = repository.about(kind, digest, size, accept, has_other=note is not None)
        except SourceError as error:
            if error.status in REFUSED and not isinstance(error, Page):
                self._notes.remove(key)
            elif note is not None:
                return
            raise
        if None not in (size, about.size) and size != about.size:
            if note is not None:  # what it says cannot be, so its last answer counts
                return
            reason = f"it has {about.size} bytes there, not {size}"
            raise SourceError(repository.upstream.name, 0, reason, retryable=False, status=404)
        self.record(repository, kind, digest, _media_type(kind, about.media_type), about.size)


def _media_type(kind: str, told: str | None) -> str | None:
    return of_manifest(told) if kind == "manifests" else None


def _key(repository: Repository, kind: str, digest: str) -> tuple[str, ...]:
    return (*repository.key, kind, digest)
