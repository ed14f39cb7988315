"""One repository of an upstream: what is asked of it, and what has a digest there as a source.

All of it blocks. What the upstream refuses is a `SourceError` with its `status`; what it does not
answer is one without.

    resolve     HEAD of a manifest: which digest a tag has
    about       HEAD of what has a digest: whether this repository has it
    source      the bytes of what has a digest, for a flight
    tags        a page of its tags
    referrers   what refers to a manifest
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
    """A list as the upstream gives it; `link` is its `Link` header."""

    content: dict[str, Any]
    link: str | None = None


class Repository:
    """The repository of an upstream that a client means by `name`, which is not always its name."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self.upstream = upstream
        self.name: str = upstream.full_name(name)

    def __repr__(self) -> str:
        return f"<Repository {self.name} of {self.upstream.name}>"

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it in this process and on disk.

        One registry may be there under several namespaces, each with credentials of its own.
        """
        return self.upstream.namespace or "", self.upstream.name, self.name

    def url(self, part: str, query: Mapping[str, str] | None = None) -> str:
        """Of a part of it."""
        return self.upstream.url(f"{self.name}/{part}", query)

    def resolve(self, tag: str, accept: str) -> Manifest:
        """Which manifest a tag has now, of those that are acceptable.

        Raises:
            SourceError: the upstream has none, does not give it, or does not answer.
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
            SourceError: it is not in this repository, or the upstream does not say so.
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

        `answered` is called, with the media type, when the upstream has said that this repository
        has it. What is `known` already is not asked for.
        """
        return RepositorySource(self, kind, digest, answered, known)

    def tags(self, query: Mapping[str, str]) -> Listing:
        """The tags of this repository, or the page of them that `query` means.

        Raises:
            SourceError: the upstream does not give them.
        """
        return self._listing("tags/list", query, "application/json")

    def referrers(self, digest: str, query: Mapping[str, str]) -> Listing:
        """The index of what refers to `digest`; an empty one if nothing does.

        An upstream that knows no referrers may have them under a tag made of the digest.

        Raises:
            SourceError: the upstream does not give it.
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
        """A page to log in, with the status 200, is not what a repository has."""
        if told is not None and told.strip().lower().startswith("text/html"):
            reason = "it answers with a page"
            raise SourceError(self.upstream.name, 0, reason, retryable=False, status=404)


class RepositorySource:
    """What has a digest, in one repository; see `Source`. It gets in anew whenever it is opened.

    `was_asked` tells whether it was used at all, `failure` why it was not opened the last time.
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
        self.name: str = repository.url(f"{kind}/{digest}")  # the URL, which has nothing to hide

    def __repr__(self) -> str:
        return f"RepositorySource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        """Begin at `offset`; see `Source.open`.

        Whatever `validator` an earlier answer had, the digest tells more: the same bytes may come
        from another place by now.
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
                error.retryable = False  # the client waits for the first byte: let it know
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
        """What is known, or a HEAD request tells."""
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
    """Of the whole, of which an answer to a range tells it elsewhere."""
    length = headers.get("content-range", "/" + headers.get("content-length", "")).rpartition("/")[
        2
    ]
    return int(length) if length.isascii() and length.isdigit() else None
