"""One repository of an upstream: the questions to it, and its blobs and manifests as sources.

    resolve     HEAD of a manifest: which digest a tag means
    about       HEAD of a digest: whether this repository has it
    source      the bytes of a digest, for a flight
    tags        a page of its tags
    referrers   the artifacts that refer to a manifest

Everything here blocks. If the upstream refuses, the `SourceError` has its `status`; if it does not
answer, the error has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shmstream.errors import SourceError
from shmstream.registry.upstream import manifests
from shmstream.registry.upstream.manifests import Manifest
from shmstream.registry.upstream.upstream import NO_SUCH_METHOD, Upstream
from shmstream.sources.base import Description, Feed
from shmstream.sources.http import HTTPSource
from shmstream.stream.digest import is_digest

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DOWNLOAD = (10.0, 30.0)  # s; to connect, and for the next bytes
_LARGEST_LIST = 16 << 20  # bytes


@dataclass(frozen=True)
class Listing:
    """A list of the upstream; `link` is its `Link` header."""

    content: dict[str, Any]
    link: str | None = None


class Repository:
    """The repository that a client calls `name`; the upstream may have a longer name for it."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self.upstream: Upstream = upstream
        self.name: str = upstream.full_name(name)

    def __repr__(self) -> str:
        return f"<Repository {self.name} of {self.upstream.name}>"

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies the repository in this process and on disk.

        One registry may be configured for several namespaces, with credentials of their own.
        """
        return self.upstream.namespace or "", self.upstream.name, self.name

    def url(self, part: str, query: Mapping[str, str] | None = None) -> str:
        """The URL of a part of the repository."""
        return self.upstream.url(f"{self.name}/{part}", query)

    def resolve(self, tag: str, accept: str) -> Manifest:
        """Which manifest a tag means now, among the media types in `accept`.

        Raises:
            SourceError: the upstream has none, refuses, or does not answer.
        """
        url, accepting = self.url(f"manifests/{tag}"), {"accept": accept}
        headers, _ = self.upstream.ask("HEAD", self.name, url, accepting)
        digest, size = headers.get("docker-content-digest", ""), _size(headers)
        if not is_digest(digest):
            headers, data = self.upstream.ask("GET", self.name, url, accepting, manifests.LARGEST)
            digest, size = f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)
        told = headers.get("content-type")
        self._check_media_type(told)
        return Manifest(digest, manifests.media_type(told), size)

    def about(self, kind: str, digest: str) -> Description:
        """What the upstream says of `digest` in this repository; `kind` is blobs or manifests.

        Raises:
            SourceError: the repository does not have it, or the upstream does not tell.
        """
        url = self.url(f"{kind}/{digest}")
        headers, _ = self.upstream.ask("HEAD", self.name, url, _accepting(kind))
        told = headers.get("content-type")
        self._check_media_type(told)
        return Description(_size(headers), f'"{digest}"', told)

    def source(
        self,
        kind: str,
        digest: str,
        answered: Callable[[str | None], None],
        known: Manifest | None = None,
    ) -> RepositorySource:
        """The bytes of `digest`, by GET; `kind` is blobs or manifests.

        `answered` is called with the media type when the upstream has confirmed that this
        repository has it. With `known`, `describe` asks nobody.
        """
        return RepositorySource(self, kind, digest, answered, known)

    def tags(self, query: Mapping[str, str]) -> Listing:
        """The tags of this repository, or the page of them that `query` means.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """
        return self._listing("tags/list", query, "application/json")

    def referrers(self, digest: str, query: Mapping[str, str]) -> Listing:
        """The index of the artifacts that refer to `digest`; an empty one if there are none.

        An upstream without the referrers API may have the index under a tag made of the digest.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """
        fallback = f"manifests/{digest.replace(':', '-')}"
        for part, its_query in ((f"referrers/{digest}", query), (fallback, {})):
            try:
                return self._listing(part, its_query, manifests.INDEX)
            except SourceError as error:
                if error.status not in (404, *NO_SUCH_METHOD):
                    raise
        return Listing({})

    def _listing(self, part: str, query: Mapping[str, str], accept: str) -> Listing:
        url = self.url(part, query)
        headers, data = self.upstream.ask("GET", self.name, url, {"accept": accept}, _LARGEST_LIST)
        content = manifests.parsed(data)
        if not content:
            reason = f"its answer for {part} is no JSON object"
            raise SourceError(self.upstream.name, 0, reason, retryable=False)
        return Listing(content, headers.get("link"))

    def _check_media_type(self, told: str | None) -> None:
        """Refuse an HTML page: some servers answer with a login page and the status 200."""
        if told is not None and told.strip().lower().startswith("text/html"):
            reason = "it answers with a page"
            raise SourceError(self.upstream.name, 0, reason, retryable=False, status=404)


class RepositorySource:
    """A blob or manifest in one repository; see `Source`. Each opening is authorised anew.

    `was_asked`: whether the upstream was asked at all. `failure`: why the last opening failed.
    """

    def __init__(
        self,
        repository: Repository,
        kind: str,
        digest: str,
        answered: Callable[[str | None], None],
        known: Manifest | None,
    ) -> None:
        self._repository = repository
        self._kind = kind
        self._digest = digest
        self._answered = answered
        self._known = known
        self.was_asked: bool = False
        self.failure: SourceError | None = None
        self.name: str = repository.url(f"{kind}/{digest}")  # the URL, which contains no secret

    def __repr__(self) -> str:
        return f"RepositorySource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        """Begin at `offset`; see `Source.open`.

        The `validator` of an earlier answer is ignored: the digest decides, and a redirect may now
        lead to another server with the same bytes.
        """
        self.was_asked = True
        headers = _accepting(self._kind)

        def call(authorization: dict[str, str]) -> Feed:
            headers_now = {**headers, **authorization}
            return HTTPSource(self.name, headers=headers_now, timeout=_DOWNLOAD).open(offset)

        try:
            feed = self._repository.upstream.authorised(self._repository.name, call)
        except SourceError as error:
            if error.status == 429 and not offset:
                error.retryable = False  # the client waits for the first byte: tell it at once
            self.failure = error
            raise
        self.failure = None
        try:
            self._repository._check_media_type(feed.media_type)
            if self._kind == "manifests":
                feed.media_type = manifests.media_type(feed.media_type)
                if (feed.size or 0) > manifests.LARGEST:
                    raise self._too_large()
                feed.data = self._bounded(feed.data, feed.offset)
        except BaseException:
            feed.close()
            raise
        self._answered(feed.media_type)
        return feed

    def _bounded(self, feed: Iterator[Buffer], position: int) -> Iterator[Buffer]:
        for data in feed:
            position += memoryview(data).nbytes
            if position > manifests.LARGEST:
                raise self._too_large()
            yield data

    def _too_large(self) -> SourceError:
        reason = f"it is larger than the {manifests.LARGEST} bytes of a manifest"
        return SourceError(self.name, 0, reason, retryable=False)

    def describe(self) -> Description:
        """What is `known`; without it, what a HEAD request tells."""
        if (known := self._known) is not None:
            return Description(known.size, f'"{known.digest}"', known.media_type)
        self.was_asked = True
        about = self._repository.about(self._kind, self._digest)
        media_type = about.media_type
        if self._kind == "manifests":
            media_type = manifests.media_type(media_type)
        self._answered(media_type)
        return Description(about.size, about.validator, media_type)


def _accepting(kind: str) -> dict[str, str]:
    if kind == "manifests":
        return {"accept": ", ".join((*manifests.KNOWN, "*/*;q=0.1"))}
    return {"accept": "*/*"}


def _size(headers: Mapping[str, str]) -> int | None:
    """The size of the whole; the answer to a range has it in Content-Range."""
    length = headers.get("content-range", "/" + headers.get("content-length", "")).rpartition("/")[
        2
    ]
    return int(length) if length.isascii() and length.isdigit() else None
