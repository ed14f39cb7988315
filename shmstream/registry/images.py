"""`Images`: which images are here, by the names that people know; and what belongs to each.

A store knows digests. A note for each image that clients asked for, or that was pulled for them,
tells its name, its tag and the digest of its manifest; the note's time of change is its last use.
The manifests are in the store, and name everything else: configuration, layers, and of an index
the manifests of its platforms.

    docker.io/library/debian:12     an image by tag; its digest may change
    docker.io/library/debian@...    an image by digest, unless it belongs to one that has a tag

An image is removed with all that no other image here needs. What a process has open stays readable.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shmstream.errors import OutOfResources
from shmstream.registry.references import Reference
from shmstream.registry.upstream import manifests
from shmstream.store import Store
from shmstream.stream.digest import is_digest
from shmstream.system.threads import in_thread
from shmstream.upstreams.notes import Note, Notes

_WRITER = ("shmstream-images", 1)  # a thread
_SOON = 60.0  # s; a use is noted again after so long
_REMEMBERED = 4096  # images whose last note this process remembers


@dataclass(frozen=True)
class Image:
    """An image. `reference`: a tag or a digest; `since`, `used`: in seconds since 1970."""

    name: str
    reference: str
    digest: str
    since: float
    used: float

    @property
    def is_tagged(self) -> bool:
        """Whether it has a tag."""
        return not is_digest(self.reference)

    def __str__(self) -> str:
        return f"{self.name}{':' if self.is_tagged else '@'}{self.reference}"


class Images:
    """The images of a store. Any thread may use it."""

    def __init__(self, store: Store) -> None:
        """Raises `OSError`: the store's folder cannot be written to."""
        self._store = store
        self._notes = Notes(store.folder, "images")
        self._noted: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()  # guards `_noted`

    def note_soon(self, name: str, reference: str, digest: str) -> None:
        """Note that an image is used, unless that was noted a moment ago. Does not block."""
        if self._is_news(name, reference, digest):
            with suppress(OutOfResources):  # no thread can be started: a later use is noted
                in_thread(partial(self._write, name, reference, digest), _WRITER)

    def note(self, name: str, reference: str, digest: str) -> None:
        """Note that an image is used. Writes a file."""
        if self._is_news(name, reference, digest):
            self._write(name, reference, digest)

    def _is_news(self, name: str, reference: str, digest: str) -> bool:
        key, now = (name, reference), time.monotonic()
        with self._lock:
            known, when = self._noted.get(key, ("", 0.0))
            if known == digest and now - when < _SOON:
                return False
            self._noted.pop(key, None)
            while len(self._noted) >= _REMEMBERED:
                del self._noted[next(iter(self._noted))]
            self._noted[key] = digest, now
            return True

    def _write(self, name: str, reference: str, digest: str) -> None:
        known = _image(self._notes.read((name, reference)))
        is_same = known is not None and known.digest == digest
        since = known.since if known is not None and is_same else time.time()
        facts = {"name": name, "reference": reference, "digest": digest, "since": since}
        self._notes.write((name, reference), json.dumps(facts))

    def all(self) -> list[Image]:
        """All images whose manifest is here, the last used ones last. Reads many files."""
        found = [each for each in map(_image, self._notes.all()) if each is not None]
        here = [each for each in found if each.digest in self._store]
        parts: dict[str, set[str]] = {}
        for each in here:
            if each.is_tagged:
                parts.setdefault(each.name, set()).update(self.blobs_of([each.digest]))
        kept = [
            each for each in here if each.is_tagged or each.digest not in parts.get(each.name, ())
        ]
        return sorted(kept, key=lambda each: each.used)

    def matching(self, text: str) -> list[Image]:
        """The images that `text` means: without a tag or digest, all of the repository.

        Raises:
            ValueError: it is no image.
        """
        wanted = Reference.parse(text)
        named = [each for each in self.all() if each.name in wanted.names]
        if wanted.reference is None:
            return named
        return [each for each in named if wanted.reference in (each.reference, each.digest)]

    def blobs_of(self, digests: Iterable[str]) -> set[str]:
        """All that belongs to these manifests, themselves included, as far as it is known here."""
        found: set[str] = set()
        waiting = list(digests)
        while waiting:
            digest = waiting.pop()
            if digest not in found:
                found.add(digest)
                waiting += self._named_by(digest) - found
        return found

    def _named_by(self, digest: str) -> set[str]:
        """The digests in a manifest; none if it is no manifest, or not here."""
        path = Path(self._store.path(digest))
        try:
            # Not `Store.open`: to look at an image is no use of it.
            if path.stat().st_size > manifests.LARGEST:
                return set()
            return manifests.named(manifests.parsed(path.read_bytes()))
        except OSError:  # it is not here, or was evicted meanwhile
            return set()

    def size_of(self, image: Image) -> tuple[int, int]:
        """How many blobs of the image are here, and their bytes together."""
        sizes = []
        for digest in self.blobs_of([image.digest]):
            with suppress(OSError):
                sizes.append(Path(self._store.path(digest)).stat().st_size)
        return len(sizes), sum(sizes)

    def remove(self, doomed: list[Image]) -> list[str]:
        """Remove images, with the blobs that no other image here needs; the digests of these."""
        gone = {(each.name, each.reference) for each in doomed}
        others = [each.digest for each in self.all() if (each.name, each.reference) not in gone]
        needed = self.blobs_of(others)
        removed = [
            digest
            for digest in sorted(self.blobs_of(each.digest for each in doomed) - needed)
            if self._store.remove(digest)
        ]
        with self._lock:
            for key in gone:
                self._noted.pop(key, None)
        for key in gone:
            self._notes.remove(key)
        return removed

    @staticmethod
    def is_outdated(image: Image, unused_for: float | None, kept_for: float | None) -> bool:
        """Whether no client has used it in `unused_for` seconds, or it is older than `kept_for`."""
        now = time.time()
        is_unused = unused_for is not None and now - image.used > unused_for
        return is_unused or (kept_for is not None and now - image.since > kept_for)


def _image(note: Note | None) -> Image | None:
    if note is None:
        return None
    try:
        told = json.loads(note.text)
        name, reference, digest = (told[each] for each in ("name", "reference", "digest"))
        since = float(told["since"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    if not all(isinstance(each, str) for each in (name, reference, digest)):
        return None
    return (
        Image(name, reference, digest, since, time.time() - note.age) if is_digest(digest) else None
    )
