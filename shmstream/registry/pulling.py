"""`Puller`: brings whole images into the store before a client asks: `shmstream pull`, `preload`.

It is one more process that pulls through the store, so it shares flights with the registry's
workers, and leaves the same notes: what the tag means, and that the repository has each digest.
Everything is asked of the upstreams that the settings name, with their credentials.

    1 resolve   the digest of the tag
    2 manifest  an index: the manifests of the wanted platforms; else the image itself
    3 blobs     configuration and layers, a few at a time

Everything here blocks.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shmstream.errors import SourceError
from shmstream.registry.api.accept import Accept
from shmstream.registry.api.grants import Grants
from shmstream.registry.api.routes import locate, route
from shmstream.registry.api.tags import Tags
from shmstream.registry.images import Images
from shmstream.registry.references import Reference
from shmstream.registry.settings import Settings
from shmstream.registry.upstream import manifests
from shmstream.registry.upstream.choice import Upstreams
from shmstream.registry.upstream.manifests import Manifest
from shmstream.registry.upstream.repository import Repository, RepositorySource
from shmstream.store import Store
from shmstream.system.threads import side_by_side
from shmstream.upstreams.counts import Counts
from shmstream.upstreams.notes import Notes

ALL = "all"
"""Every platform of an index."""

_BLOBS = ("shmstream-pull", 4)  # at one time
_LATEST = "latest"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True)
class Pulled:
    """An image that is here as a whole. `fetched`: how many of its `blobs` were not here before."""

    image: str
    digest: str
    blobs: int
    fetched: int


def this_platform() -> str:
    """The platform of this host, as registries write it: linux/amd64."""
    machine = platform.machine()
    return f"linux/{_MACHINES.get(machine, machine)}"


class Puller:
    """Pulls images into one store. Any thread may use it."""

    def __init__(self, settings: Settings, store: Store, counts: Counts | None = None) -> None:
        """Raises `OSError`: the store's folder cannot be written to."""
        self._store = store
        self._counts = counts or Counts()
        self._upstreams = Upstreams(settings, Notes(store.folder, "reach"), self._counts.asked)
        self._grants = Grants(Notes(store.folder, "grants"))
        self._tags = Tags(
            Notes(store.folder, "tags"),
            settings.tag_ttl,
            store.__contains__,
            settings.immutable_tags,
        )
        self._images = Images(store)

    def pull(self, image: str, platforms: Iterable[str] = ()) -> Pulled:
        """Bring an image, for these platforms (`linux/arm64`, `all`); none: for this host's.

        Raises:
            ValueError: it is no image, or has no such platform.
            TypeError: `platforms` is a text, or a dict.
            ShmstreamError: it cannot be pulled; a `Refusal` if no upstream is configured for it.
        """
        if isinstance(platforms, str | Mapping):
            told = "platforms is a list such as ['linux/arm64']"
            raise TypeError(f"{told}, not {platforms!r:.200}")
        wanted = Reference.parse(image)
        repository = self._repository(wanted)
        reference = wanted.reference or _LATEST
        found = self._resolved(repository, reference)
        before: list[bool] = []
        manifest = self._manifest(repository, found, before)
        blobs = {found.digest}
        for each in self._chosen(manifest, set(platforms) or {this_platform()}, image):
            blobs |= self._content(repository, each, before)
        blobs |= self._blobs(repository, manifests.named(manifest) if _is_image(manifest) else (),
                             before)  # fmt: skip
        self._images.note(repository.image, reference, found.digest)
        return Pulled(f"{repository.image}{'@' if ':' in reference else ':'}{reference}",
                      found.digest, len(blobs), before.count(False))  # fmt: skip

    def _repository(self, wanted: Reference) -> Repository:
        path = f"/v2/{wanted.name}/manifests/{wanted.reference or _LATEST}"
        is_plain = self._upstreams.get(None) is None and "." not in wanted.name.split("/")[0]
        query = b"ns=docker.io" if is_plain else b""  # as Docker does
        upstream, name = locate(self._upstreams, route("GET", path.encode(), query))
        return Repository(upstream, name)

    def _resolved(self, repository: Repository, reference: str) -> Manifest:
        if ":" in reference:
            return Manifest(reference)
        accept = Accept.of(())
        if self._tags.is_immutable(reference):
            known = self._tags.known(repository, reference, accept)
            if known is not None and known.manifest.digest in self._store:
                return known.manifest
        tagged = self._tags.resolve(repository, reference, accept)
        if tagged.is_stale:
            reason = "it does not answer, so nobody knows what the tag means now"
            raise SourceError(repository.upstream.name, 0, reason)
        return tagged.manifest

    def _content(self, repository: Repository, digest: str, before: list[bool]) -> set[str]:
        """All of the image that a manifest in an index is; the digests."""
        manifest = self._manifest(repository, Manifest(digest), before)
        return {digest, *self._blobs(repository, manifests.named(manifest), before)}

    def _manifest(
        self, repository: Repository, about: Manifest, before: list[bool]
    ) -> dict[str, Any]:
        source = self._source(repository, "manifests", about.digest)
        before.append(about.digest in self._store)
        if before[-1]:
            self._confirm(repository, "manifests", about.digest)
        with self._store.open(about.digest, source) as blob:
            return manifests.parsed(blob.read(manifests.LARGEST))

    def _blobs(
        self, repository: Repository, digests: Iterable[str], before: list[bool]
    ) -> set[str]:
        def fetch(digest: str) -> str:
            is_here = digest in self._store
            if is_here:
                self._confirm(repository, "blobs", digest)
            self._store.fetch(digest, self._source(repository, "blobs", digest))
            before.append(is_here)
            return digest

        return set(side_by_side(fetch, digests, _BLOBS))

    def _source(self, repository: Repository, kind: str, digest: str) -> RepositorySource:
        def answered(media_type: str | None, size: int | None) -> None:
            self._counts.comes_from(digest, repository.upstream.title)
            self._grants.record(repository, kind, digest, media_type, size)

        return repository.source(kind, digest, answered)

    def _confirm(self, repository: Repository, kind: str, digest: str) -> None:
        """Have the upstream say that it has it, as it would have to for a client."""
        if not self._grants.is_known(repository, kind, digest):
            self._grants.confirm(repository, kind, digest)

    @staticmethod
    def _chosen(index: Mapping[str, Any], platforms: set[str], image: str) -> list[str]:
        """The manifests of an index for these platforms; none if it is no index.

        Raises:
            ValueError: there are none for one of them.
        """
        if _is_image(index):
            return []
        entries = [each for each in index.get("manifests") or () if isinstance(each, dict)]
        offered = [(each["digest"], set(_platform(each))) for each in entries]
        known = {name for _, names in offered for name in names}
        if missing := platforms - known - {ALL}:
            there = ", ".join(sorted(known)) or "none that it names"
            raise ValueError(f"{image} is not for {', '.join(sorted(missing))}, but for {there}")
        return [digest for digest, names in offered if ALL in platforms or names & platforms]


def _is_image(manifest: Mapping[str, Any]) -> bool:
    return "manifests" not in manifest


def _platform(entry: Mapping[str, Any]) -> list[str]:
    """How the platform of an entry is written, with and without its variant."""
    told = entry.get("platform")
    if not isinstance(told, dict):
        return []
    system, machine, variant = (told.get(each) for each in ("os", "architecture", "variant"))
    plain = f"{system}/{machine}"
    return [plain, f"{plain}/{variant}"] if variant else [plain]
