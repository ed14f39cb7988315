"""One repository of an upstream: the questions to it, and its blobs and manifests as sources.

    resolve     HEAD of a manifest: which digest a tag means
    about       HEAD of a digest: whether this repository has it
    source      the bytes of a digest, for a flight
    tags        a page of its tags
    referrers   the artifacts that refer to a manifest

What comes is judged (`answers`) before anybody gets it. So a manifest is read as a whole before it
becomes a feed, and a HEAD whose Content-Type is that of no manifest is followed by a GET.

Everything here blocks. If the upstream refuses, the `SourceError` has its `status`; if it does not
answer, the error has none.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from shmstream.errors import FailureKind, SourceError
from shmstream.registry.upstream import answers, manifests
from shmstream.registry.upstream.answers import BadAnswer, InvalidAnswer
from shmstream.registry.upstream.manifests import Manifest
from shmstream.registry.upstream.upstream import NO_SUCH_METHOD, Upstream
from shmstream.sources.base import Description, Feed
from shmstream.sources.http import HTTPSource
from shmstream.stream.digest import is_digest

_DOWNLOAD = (10.0, 30.0)  # s; to connect, and for the next bytes
_WHOLE = 60.0  # s; for all bytes of a manifest
_LARGEST_LIST = 16 << 20  # bytes
_DOUBTFUL = 16  # manifests that may be asked whether they are referrers, for one request


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
        digest, told = headers.get("docker-content-digest", ""), headers.get("content-type")
        if is_digest(digest) and answers.looks_like_a_manifest(told):
            return Manifest(digest, manifests.media_type(told), _size(headers))
        data, told = self._whole(url, accepting)
        algorithm = digest.partition(":")[0] if is_digest(digest) else "sha256"
        return Manifest(_digest_of(data, algorithm), manifests.media_type(told), len(data))

    def _whole(self, url: str, accepting: Mapping[str, str]) -> tuple[bytes, str | None]:
        """The manifest behind `url`, which was judged, and its Content-Type."""
        headers, data = self.upstream.ask("GET", self.name, url, accepting, manifests.LARGEST)
        told = headers.get("content-type")
        self.judge_manifest(data, told)
        return data, told

    def judge_manifest(self, data: bytes, told: str | None) -> None:
        """Check that `data` is a manifest; `told` is the Content-Type of the answer.

        Raises:
            BadAnswer: it is none.
        """
        try:
            answers.manifest(data, told)
        except InvalidAnswer as error:
            raise self._bad(str(error)) from None

    def _bad(self, reason: str) -> BadAnswer:
        return BadAnswer(self.upstream.name, 0, reason, retryable=False)

    def about(self, kind: str, digest: str, here: int | None = None) -> Description:
        """What the upstream says of `digest` in this repository; `kind` is blobs or manifests.

        `here`: the bytes of it, if they are known here.

        Raises:
            SourceError: the repository does not have it, or the upstream does not tell.
        """
        url, accepting = self.url(f"{kind}/{digest}"), _accepting(kind)
        headers, _ = self.upstream.ask("HEAD", self.name, url, accepting)
        told, named = headers.get("content-type"), headers.get("docker-content-digest", digest)
        size = _size(headers)
        if kind != "manifests":
            if answers.is_page(told) and headers.get("docker-content-digest") != digest:
                raise self.page()
        elif (size or here or 0) > manifests.LARGEST:
            pass  # no client gets it
        elif named != digest or not answers.looks_like_a_manifest(told):
            data, told = self._whole(url, accepting)
            if digest != (got := _digest_of(data, digest.partition(":")[0])):
                raise self._bad(f"its answer is another manifest, {got}")
            size = len(data)
        return Description(size, f'"{digest}"', told)

    def source(
        self,
        kind: str,
        digest: str,
        answered: Callable[[str | None, int | None], None],
        known: Manifest | None = None,
    ) -> RepositorySource:
        """The bytes of `digest`, by GET; `kind` is blobs or manifests.

        `answered` is called with the media type and the size, when the upstream has confirmed that
        this repository has it. With `known`, `describe` asks nobody.
        """
        return RepositorySource(self, kind, digest, answered, known)

    def tags(self, query: Mapping[str, str]) -> Listing:
        """The tags of this repository, or the page of them that `query` means.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """
        return self._listing("tags/list", query, "application/json", answers.tags)

    def referrers(self, digest: str, query: Mapping[str, str]) -> Listing:
        """The index of the artifacts that refer to `digest`; an empty one if there are none.

        An upstream without the referrers API may have the index under a tag made of the digest.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """
        bad: BadAnswer | None = None
        try:
            return self._listing(f"referrers/{digest}", query, manifests.INDEX, answers.index)
        except BadAnswer as error:  # a page for a path that the upstream does not know, perhaps
            bad = error
        except SourceError as error:
            if error.status not in (404, *NO_SUCH_METHOD):
                raise
        try:
            return Listing({"manifests": self._tagged_referrers(digest)})
        except SourceError as error:
            if error.status not in (404, *NO_SUCH_METHOD):
                raise
        if bad is not None:
            raise bad
        return Listing({})

    def _tagged_referrers(self, digest: str) -> list[dict[str, Any]]:
        """The entries of the index under the tag that is made of `digest`, which refer to it.

        Tools that copy images give them such a tag, too. Then the tag means the image itself, and
        the entries of an index are its own images.
        """
        url = self.url(f"manifests/{digest.replace(':', '-')}")
        accepting = _accepting("manifests")
        data, _ = self._whole(url, accepting)
        if _digest_of(data, digest.partition(":")[0]) == digest:
            return []
        entries = manifests.parsed(data).get("manifests") or []
        doubtful = [each for each in entries if not each.get("artifactType")]
        asked = [each["digest"] for each in doubtful[:_DOUBTFUL]]
        proved = {each for each in asked if self._refers(each, digest)}
        return [each for each in entries if each.get("artifactType") or each["digest"] in proved]

    def _refers(self, referrer: str, digest: str) -> bool:
        """Whether the manifest `referrer` says that it refers to `digest`."""
        url, accepting = self.url(f"manifests/{referrer}"), _accepting("manifests")
        try:
            _, data = self.upstream.ask("GET", self.name, url, accepting, manifests.LARGEST)
        except SourceError as error:
            if error.status != 404:
                raise
            return False
        subject = manifests.parsed(data).get("subject")
        return isinstance(subject, dict) and subject.get("digest") == digest

    def _listing(
        self,
        part: str,
        query: Mapping[str, str],
        accept: str,
        judged: Callable[[bytes], dict[str, Any]],
    ) -> Listing:
        url = self.url(part, query)
        headers, data = self.upstream.ask("GET", self.name, url, {"accept": accept}, _LARGEST_LIST)
        try:
            return Listing(judged(data), headers.get("link"))
        except InvalidAnswer as error:
            raise self._bad(str(error)) from None

    def page(self) -> SourceError:
        """The error for a blob that is an HTML page: servers answer so where one has to log in."""
        reason = "it answers with a page"
        return SourceError(self.upstream.name, 0, reason, retryable=False, status=404)


class RepositorySource:
    """A blob or manifest in one repository; see `Source`. Each opening is authorised anew.

    `was_asked`: whether the upstream was asked at all. `failure`: why the last opening failed.
    """

    def __init__(
        self,
        repository: Repository,
        kind: str,
        digest: str,
        answered: Callable[[str | None, int | None], None],
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
        lead to another server with the same bytes. A manifest always begins at 0.
        """
        self.was_asked = True
        headers = _accepting(self._kind)
        if self._kind == "manifests":
            offset = 0

        def call(authorization: dict[str, str]) -> Feed:
            headers_now = {**headers, **authorization}
            source = HTTPSource(self.name, headers=headers_now, timeout=_DOWNLOAD, netrc=False)
            return source.open(offset)

        try:
            feed = self._repository.upstream.authorised(self._repository.name, call)
        except SourceError as error:
            if error.status == 429 and not offset:
                error.retryable = False  # the client waits for the first byte: tell it at once
            self.failure = error
            raise
        self.failure = None
        try:
            if self._kind == "manifests":
                feed = self._manifest(feed)
            elif answers.is_page(feed.media_type) and not feed.offset:
                self._check_page(feed)
        except BaseException as error:
            feed.close()
            if isinstance(error, SourceError):
                self.failure = error
            raise
        self._answered(feed.media_type, feed.size)
        return feed

    def _manifest(self, feed: Feed) -> Feed:
        """A feed of the whole manifest, which was read and judged."""
        if (feed.size or 0) > manifests.LARGEST:
            raise self._too_large()
        whole, deadline = bytearray(), time.monotonic() + _WHOLE
        with feed:
            for data in feed:
                whole += data
                if len(whole) > manifests.LARGEST:
                    raise self._too_large()
                if time.monotonic() > deadline:
                    reason = f"it gives only {len(whole)} bytes of a manifest in {_WHOLE:g} s"
                    raise SourceError(self.name, 0, reason, kind=FailureKind.TIMEOUT)
        manifest = bytes(whole)
        self._repository.judge_manifest(manifest, feed.media_type)
        told = manifests.media_type(feed.media_type)
        return Feed(iter((manifest,)), 0, len(manifest), feed.validator, told)

    def _check_page(self, feed: Feed) -> None:
        """Refuse a page. A blob is one if it begins as a page: some registries call all blobs so.

        Raises:
            SourceError: it is a page.
        """
        first = bytes(next(feed.data, b""))
        if first.lstrip()[:1] == b"<":
            raise self._repository.page()
        feed.data = chain((first,) if first else (), feed.data)
        feed.by_kernel = None

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
        self._answered(media_type, about.size)
        return Description(about.size, about.validator, media_type)


def _accepting(kind: str) -> dict[str, str]:
    if kind == "manifests":
        return {"accept": ", ".join((*manifests.KNOWN, "*/*;q=0.1"))}
    return {"accept": "*/*"}


def _digest_of(data: bytes, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def _size(headers: Mapping[str, str]) -> int | None:
    """The size of the whole; the answer to a range has it in Content-Range."""
    length = headers.get("content-range", "/" + headers.get("content-length", "")).rpartition("/")[
        2
    ]
    return int(length) if length.isascii() and length.isdigit() else None
