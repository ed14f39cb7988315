"""One repository of an upstream: the questions to it, and its blobs and manifests as sources.

    resolve     which digest a tag means: by HEAD, or by GET where HEAD does not tell
    about       whether this repository has a digest; likewise
    source      the bytes of a digest, for a flight
    tags        a page of its tags
    referrers   the artifacts that refer to a manifest

What comes is judged (`answers`) before anybody gets it. So a manifest is read as a whole before it
becomes a feed, and a HEAD whose Content-Type is that of no manifest is followed by a GET. So is a
HEAD without a length, or with another length than that of the bytes that are here: some registries
answer it with 0. A blob needs no Content-Type, because it has a digest.

If the upstream has several URLs, a question is asked at one after the other, until one of them
gives what is asked for; those that have just failed come last. A refusal is no end of it, because a
mirror may not have everything. If none gives it, a failure to answer counts more than a refusal:
nobody knows then that it is not there. A download that breaks off goes on at another URL.

Everything here blocks. If the upstream refuses, the `SourceError` has its `status`; if it does not
answer, the error has none.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from shmstream.errors import FailureKind, SourceError
from shmstream.registry.upstream import answers, manifests
from shmstream.registry.upstream.answers import BadAnswer, InvalidAnswer, Page, Unkept
from shmstream.registry.upstream.manifests import Manifest
from shmstream.registry.upstream.upstream import NO_SUCH_METHOD, Upstream
from shmstream.sources.base import Description, Feed
from shmstream.sources.http import HTTPSource
from shmstream.sources.http_coding import coding_of
from shmstream.stream.digest import is_digest
from shmstream.upstreams import request_id

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_CONNECT = 10.0  # s; for a download
_WHOLE = 60.0  # s; for all bytes of a manifest
_LARGEST_LIST = 16 << 20  # bytes
_LARGEST_PAGE = 4 << 20  # bytes
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)  # more digits are no number of bytes
_LONGEST_OF_TAG = 64  # characters of a digest in the tag of its referrers (OCI distribution)
_DOUBTFUL = 16  # manifests that may be asked whether they are referrers, for one request


@dataclass(frozen=True)
class Listing:
    """A list of the upstream; `link` is its `Link` header."""

    content: dict[str, Any]
    link: str | None = None


@dataclass(frozen=True)
class Passed:
    """A manifest as the upstream answers it to one client. `digest` is what the upstream says."""

    data: bytes
    media_type: str
    digest: str | None


class Repository:
    """The repository that a client calls `name`; the upstream may have a longer name for it."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self.upstream: Upstream = upstream
        self.name: str = upstream.full_name(name)
        self.image: str = f"{upstream.label}/{upstream.plain_name(name)}"
        """Its name for people, with the registry that has it: docker.io/library/debian."""
        self._others = [Repository(each, name) for each in upstream.others]

    def __repr__(self) -> str:
        return f"<Repository {self.name} of {self.upstream.name}>"

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies the repository in this process and on disk.

        One registry may be configured for several namespaces. What clients of one of them have
        pulled is there for the others, unless the namespaces have credentials of their own.
        """
        return self.upstream.rights, self.upstream.name, self.name

    def in_turn(self, last: Repository | None = None) -> list[Repository]:
        """This repository at all URLs, in their order; those that rest, and `last`, at the end."""
        if not self._others:
            return [self]
        return sorted((self, *self._others), key=lambda each: (
            each is last, each.upstream.rests
        ))  # fmt: skip

    def _of_any(self, ask: Callable[[Repository, bool], T]) -> T:
        """What `ask` returns for the first URL that has it; the flag says whether more follow.

        Raises:
            SourceError: no URL has it.
        """
        failures: list[SourceError] = []
        turns = self.in_turn()
        for each in turns:
            try:
                return ask(each, each is not turns[-1])
            except Unkept:
                raise
            except SourceError as error:
                failures.append(error)
        raise self.weightiest(failures)

    def weightiest(self, failures: list[SourceError]) -> SourceError:
        """The failure that tells most: one that is no refusal, else the last one.

        Of the refusals of a client's credentials, one that asks for other ones, because with those
        the client may get it.
        """
        silent = [each for each in failures if each.status not in answers.REFUSED]
        asking = [each for each in failures if each.status == 401 and self.upstream.passes_on]
        return (silent or asking or failures[-1:])[0]

    def url(self, part: str, query: Mapping[str, str] | None = None) -> str:
        """The URL of a part of the repository."""
        return self.upstream.url(f"{self.name}/{part}", query)

    def resolve(self, tag: str, accept: str, *, has_other: bool = False) -> Manifest:
        """Which manifest a tag means now, among the media types in `accept`.

        `has_other`: there is an older answer, which is better than to wait for long.

        Raises:
            SourceError: the upstream has none, refuses, or does not answer.
        """
        return self._of_any(
            lambda each, more: each._resolve(tag, accept, has_other=has_other, is_last=not more)
        )

    def _resolve(self, tag: str, accept: str, *, has_other: bool, is_last: bool) -> Manifest:
        url, accepting = self.url(f"manifests/{tag}"), {"accept": accept}
        until = self.upstream.until(has_other=has_other or not is_last)
        headers = self.upstream.look(self.name, url, accepting, until) or {}
        digest, told = headers.get("docker-content-digest", ""), headers.get("content-type")
        if is_digest(digest) and answers.looks_like_a_manifest(told) and (size := _size(headers)):
            return Manifest(digest, manifests.media_type(told), size)
        if has_other and self.upstream.allowance.is_used_up:
            reason = "no more manifests are left, as it tells"
            raise SourceError(self.upstream.name, 0, reason, retryable=False, status=429)
        data, headers = self._whole(url, accepting, until)
        named = headers.get("docker-content-digest", "")
        algorithm = (named if is_digest(named) else digest).partition(":")[0]
        got = _digest_of(data, algorithm if is_digest(named) or is_digest(digest) else "sha256")
        if is_digest(named) and named != got:
            raise Unkept(self.upstream.name, 0, f"it calls a manifest {named} that is {got}")
        return Manifest(got, manifests.media_type(headers.get("content-type")), len(data))

    def passed(self, reference: str, accept: str) -> Passed:
        """The manifest of a tag or digest, for a client that accepts `accept`, as it is.

        Raises:
            SourceError: the upstream has none, refuses, or does not answer.
        """
        return self._of_any(lambda each, _: each._passed(reference, accept))

    def _passed(self, reference: str, accept: str) -> Passed:
        url = self.url(f"manifests/{reference}")
        headers, data = self.upstream.ask(
            "GET", self.name, url, {"accept": accept}, manifests.LARGEST
        )
        told = headers.get("content-type")
        self.judge_manifest(data, told)
        declared = manifests.media_type(told) or manifests.declared(manifests.parsed(data))
        digest = headers.get("docker-content-digest", "")
        return Passed(data, declared or manifests.UNTOLD, digest if is_digest(digest) else None)

    def _whole(
        self, url: str, accepting: Mapping[str, str], until: float | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """The manifest behind `url`, which was judged, and the headers of the answer."""
        headers, data = self.upstream.ask(
            "GET", self.name, url, accepting, manifests.LARGEST, until
        )
        self.judge_manifest(data, headers.get("content-type"))
        return data, headers

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

    def about(
        self,
        kind: str,
        digest: str,
        here: int | None = None,
        accept: str | None = None,
        *,
        has_other: bool = False,
    ) -> Description:
        """What the upstream says of `digest` in this repository; `kind` is blobs or manifests.

        `here`: the bytes of it, if they are known here. `accept`: what the client of a manifest
        accepts. `has_other`: as for `resolve`.

        Raises:
            SourceError: the repository does not have it, or the upstream does not tell.
        """
        return self._of_any(
            lambda each, more: each._about(kind, digest, here, accept, has_other=has_other or more)
        )

    def _about(
        self, kind: str, digest: str, here: int | None, accept: str | None, *, has_other: bool
    ) -> Description:
        url, accepting = self.url(f"{kind}/{digest}"), _accepting(kind, accept)
        until = self.upstream.until(has_other=has_other)
        headers = self.upstream.look(self.name, url, accepting, until)
        if kind != "manifests":
            return self._about_blob(url, digest, headers, here, until)
        if headers is not None:
            told, size = headers.get("content-type"), _size(headers)
            is_too_large = max(size or 0, here or 0) > manifests.LARGEST  # no client gets it
            is_right = _is_manifest(headers, digest) and size and here in (None, size)
            if is_too_large or is_right:
                return Description(size, f'"{digest}"', told)
        data, headers = self._whole(url, accepting, until)
        if digest != (got := _digest_of(data, digest.partition(":")[0])):
            raise self._bad(f"its answer is another manifest, {got}")
        return Description(len(data), f'"{digest}"', headers.get("content-type"))

    def _about_blob(
        self,
        url: str,
        digest: str,
        headers: Mapping[str, str] | None,
        here: int | None,
        until: float,
    ) -> Description:
        """What HEAD has told in `headers`, if that can be true; else what GET tells."""
        accepting = _accepting("blobs")
        if headers is None or _is_doubtful(headers, digest, here):
            headers, first = self.upstream.glance(self.name, url, accepting, until)
            may_be_page = first == b"<" or coding_of(headers.get("content-encoding")) is not None
            if may_be_page and _is_called_page(headers, digest):
                self._check_no_page(url, digest, _size(headers), until)
        return Description(_size(headers), f'"{digest}"', headers.get("content-type"))

    def _check_no_page(self, url: str, digest: str, size: int | None, until: float) -> None:
        """Refuse what is called a page, unless it is the blob, or larger than any page."""
        if (size or 0) > _LARGEST_PAGE:
            return
        accepting = _accepting("blobs")
        _, data = self.upstream.ask("GET", self.name, url, accepting, _LARGEST_PAGE, until)
        if _digest_of(data, digest.partition(":")[0]) != digest:
            raise self.page()

    def source(
        self,
        kind: str,
        digest: str,
        answered: Callable[[str | None, int | None], None],
        known: Manifest | None = None,
        proved: Callable[[], None] | None = None,
        accept: str | None = None,
    ) -> RepositorySource:
        """The bytes of `digest`, by GET; `kind` is blobs or manifests.

        `answered` is called with the media type and the size, when the upstream has confirmed that
        this repository has it. With `known`, `describe` asks nobody. `proved` is called when all
        bytes have come from it, in one piece, and have the digest. `accept`: what the client of a
        manifest accepts.
        """
        return RepositorySource(self, kind, digest, answered, known, proved, accept)

    def tags(self, query: Mapping[str, str]) -> Listing:
        """The tags of this repository, or the page of them that `query` means.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """
        return self._of_any(
            lambda each, _: each._listing("tags/list", query, "application/json", answers.tags)
        )

    def referrers(self, digest: str, query: Mapping[str, str]) -> Listing:
        """The index of the artifacts that refer to `digest`; an empty one if there are none.

        An upstream without the referrers API may have the index under a tag made of the digest. To
        the API it answers 404 then, another refusal, or a page.

        Raises:
            SourceError: the upstream refuses, or does not answer.
        """
        return self._of_any(lambda each, _: each._referrers(digest, query))

    def _referrers(self, digest: str, query: Mapping[str, str]) -> Listing:
        try:
            return self._listing(f"referrers/{digest}", query, manifests.INDEX, answers.index)
        except SourceError as error:
            if not _may_lack_referrers(error):
                raise
            refusal = error
        try:
            return Listing({"manifests": self._tagged_referrers(digest)})
        except SourceError as error:
            if error.status not in (404, *NO_SUCH_METHOD):
                raise
        if isinstance(refusal, BadAnswer) or refusal.status in (401, 403):
            raise refusal
        return Listing({})

    def _tagged_referrers(self, digest: str) -> list[dict[str, Any]]:
        """The entries of the index under the tag that is made of `digest`, which refer to it.

        Tools that copy images give them such a tag, too. Then the tag means the image itself, and
        the entries of an index are its own images.
        """
        algorithm, _, encoded = digest.partition(":")
        url = self.url(f"manifests/{algorithm}-{encoded[:_LONGEST_OF_TAG]}")
        accepting = _accepting("manifests")
        data, _ = self._whole(url, accepting)
        if _digest_of(data, algorithm) == digest:
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
            if answers.is_page(headers.get("content-type")) and accept == manifests.INDEX:
                raise self.page() from None
            raise self._bad(str(error)) from None

    def page(self) -> SourceError:
        """The error for an HTML page: servers answer so where one has to log in."""
        return Page(self.upstream.name, 0, "it answers with a page")


class RepositorySource:
    """A blob or manifest in one repository; see `Source`. Each opening is authorised anew.

    `was_asked`: whether the upstream was asked at all. `failure`: why the last opening failed.
    `began`: whether its bytes were opened from the first one on.
    """

    def __init__(
        self,
        repository: Repository,
        kind: str,
        digest: str,
        answered: Callable[[str | None, int | None], None],
        known: Manifest | None,
        proved: Callable[[], None] | None = None,
        accept: str | None = None,
    ) -> None:
        self._accept = accept
        self._proved = proved
        self.began: bool = False
        self._has_had = False  # whether a part of it has come from this upstream before
        self._repository = repository
        self._kind = kind
        self._digest = digest
        self._answered = answered
        self._known = known
        self.was_asked: bool = False
        self.failure: SourceError | None = None
        self._request_id = request_id.told()
        self._are_encoded: dict[Repository, bool | None] = {}
        self._last: Repository | None = None  # the URL that gave the rest of the blob last
        self.name: str = repository.url(f"{kind}/{digest}")  # the URL, which contains no secret

    def __repr__(self) -> str:
        return f"RepositorySource({self.name!r})"

    @property
    def identity(self) -> str:
        """The URL, and whose credentials it is asked with: others may do better there."""
        return f"{self._repository.upstream.rights} {self.name}"

    @property
    def connections(self) -> int:
        """How many connections a blob may come over."""
        is_whole = self._kind == "manifests" or self._proved is not None
        return 1 if is_whole else self._repository.upstream.connections

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        """Begin at `offset`; see `Source.open`.

        The `validator` of an earlier answer is ignored: the digest decides, and a redirect may now
        lead to another server with the same bytes. A manifest always begins at 0.
        """
        return self._open(offset, None)

    def open_part(self, offset: int, end: int, validator: str | None = None) -> Feed:  # noqa: ARG002
        """`open` for the bytes before `end` alone; a manifest is always given as a whole."""
        return self._open(offset, end)

    def _open(self, offset: int, end: int | None) -> Feed:
        self.was_asked = True
        self._has_had = self._has_had or offset > 0
        if self._kind == "manifests":
            offset, end = 0, None
        failures: list[SourceError] = []
        is_rest = end is None  # if it is asked for again, the last URL did not give all of it
        for each in self._repository.in_turn(self._last if is_rest else None):
            self._last = each if is_rest else self._last
            try:
                return self._open_at(each, offset, end)
            except Unkept as error:
                self.failure = error
                raise
            except SourceError as error:
                if self._has_had and isinstance(error, Page):
                    error.retryable = True  # it is there for a while
                failures.append(error)
        failure = self._repository.weightiest(failures)
        if failure.status == 429 and not self._has_had:
            failure.retryable = False  # the client waits for the first byte: tell it at once
        self.failure = failure
        raise failure

    def _open_at(self, repository: Repository, offset: int, end: int | None) -> Feed:
        """The feed of one URL, and nothing else.

        Raises:
            SourceError: it gives none, or not what it should be.
        """
        upstream = repository.upstream
        headers = _accepting(self._kind, self._accept) | self._request_id
        url = repository.url(f"{self._kind}/{self._digest}")

        def call(authorization: dict[str, str]) -> Feed:
            source = HTTPSource(
                url,
                headers={**headers, **authorization},
                timeout=(upstream.bounds.connect or _CONNECT, upstream.bounds.silence),
                first_byte=upstream.bounds.first_byte,
                digest=self._digest,
                stranger=upstream.introduce,
                netrc=False,
                tls=upstream.tls,
                is_guarded=upstream.is_guarded,
            )
            source.is_encoded = self._are_encoded.get(repository)
            if self._kind == "manifests":
                source.heard = upstream.allowance.note
            feed = source.open(offset) if end is None else source.open_part(offset, end)
            self._are_encoded[repository] = source.is_encoded
            return feed

        admitted = upstream.admitted(repository.name, self._kind)
        with admitted as given, upstream.place() as give_back:
            found = upstream.authorised(repository.name, url, call)
            feed = _giving_back(found, give_back)
            given()
            try:
                feed = self._judged(repository, feed)
            except BaseException:
                feed.close()
                raise
        self.failure = None
        self.began = self.began or offset == 0
        self._has_had = True
        self._answered(feed.media_type, feed.size)
        if self._proved is not None and offset == 0:
            feed.data, feed.by_kernel = self._proving(feed.data, self._proved), None
        if upstream.pace is not None and self._kind == "blobs":
            return upstream.pace.slow(feed)
        return feed

    def _proving(self, data: Iterator[Buffer], proved: Callable[[], None]) -> Iterator[Buffer]:
        """The same bytes; if all of them have the digest, the repository has the blob."""
        algorithm, _, wanted = self._digest.partition(":")
        digest, is_proved = hashlib.new(algorithm), False
        for each in data:
            digest.update(each)
            if not is_proved and digest.hexdigest() == wanted:  # also if nobody asks for the end
                is_proved = True
                proved()
            yield each

    def _judged(self, repository: Repository, feed: Feed) -> Feed:
        """The feed of what was asked for.

        Raises:
            SourceError: it is of something else.
        """
        if self._kind == "manifests":
            return self._manifest(repository, feed)
        if answers.is_page(feed.media_type) and not feed.offset:
            self._check_page(repository, feed)
        return feed

    def _manifest(self, repository: Repository, feed: Feed) -> Feed:
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
        repository.judge_manifest(manifest, feed.media_type)
        if manifests.is_signed(manifests.parsed(manifest)):
            algorithm = self._digest.partition(":")[0]
            if _digest_of(manifest, algorithm) != self._digest:
                reason = "its manifest is of the first kind, without a digest of all its bytes"
                raise Unkept(self.name, 0, reason)
        told = manifests.media_type(feed.media_type)
        return Feed(iter((manifest,)), 0, len(manifest), feed.validator, told)

    def _check_page(self, repository: Repository, feed: Feed) -> None:
        """Refuse a page, unless it is the blob. Some registries call all blobs pages.

        Raises:
            SourceError: it is a page.
        """
        first = bytearray(next(feed.data, b""))
        if first.lstrip()[:1] == b"<":
            while len(first) <= _LARGEST_PAGE and (more := next(feed.data, b"")):
                first += more
            is_whole = len(first) <= _LARGEST_PAGE
            if is_whole and _digest_of(first, self._digest.partition(":")[0]) != self._digest:
                raise repository.page()
        feed.data = chain((bytes(first),) if first else (), feed.data)
        feed.by_kernel = None

    def _too_large(self) -> SourceError:
        reason = f"it is larger than the {manifests.LARGEST} bytes of a manifest"
        return SourceError(self.name, 0, reason, retryable=False)

    def describe(self) -> Description:
        """What is `known`; without it, what a HEAD request tells."""
        if (known := self._known) is not None:
            return Description(known.size, f'"{known.digest}"', known.media_type)
        self.was_asked = True
        about = self._repository.about(self._kind, self._digest, accept=self._accept)
        media_type = about.media_type
        if self._kind == "manifests":
            media_type = manifests.media_type(media_type)
        self._answered(media_type, about.size)
        return Description(about.size, about.validator, media_type)


def _may_lack_referrers(error: SourceError) -> bool:
    """Whether an upstream without the referrers API may answer so."""
    status = error.status or 0
    refused = 201 <= status <= 499 and status not in (408, 425, 429)
    return refused or status in NO_SUCH_METHOD or isinstance(error, BadAnswer)


def _giving_back(feed: Feed, give_back: Callable[[], None]) -> Feed:
    """The same feed; when it is closed, its place is given back."""
    close = feed.close

    def close_both() -> None:
        close()
        give_back()

    feed.close = close_both
    return feed


def _accepting(kind: str, accept: str | None = None) -> dict[str, str]:
    """The header for a digest. `accept`: the client's own, which comes first, as it is.

    Many registries give a manifest only to a client that names its type. A digest means one
    manifest, so all types that are known here are named, too: other clients share the answer.
    """
    if kind != "manifests":
        return {"accept": "*/*"}
    if accept is None:
        return {"accept": ", ".join((*manifests.KNOWN, "*/*;q=0.1"))}
    lacking = (f"{each};q=0.1" for each in (*manifests.KNOWN, "*/*") if each not in accept)
    return {"accept": ", ".join((accept, *lacking))}


def _is_manifest(headers: Mapping[str, str], digest: str) -> bool:
    """Whether a HEAD tells that this is the manifest of that digest."""
    told, named = headers.get("content-type"), headers.get("docker-content-digest", digest)
    return named == digest and answers.looks_like_a_manifest(told)


def _is_doubtful(headers: Mapping[str, str], digest: str, here: int | None) -> bool:
    """Whether what a HEAD tells of a blob may be wrong; `here`: its real size, if that is known."""
    size = _size(headers)
    is_wrong = not size if here is None else size != here
    return is_wrong or _is_called_page(headers, digest)


def _is_called_page(headers: Mapping[str, str], digest: str) -> bool:
    """Whether an answer is called a page, and does not tell that it has the digest."""
    is_page = answers.is_page(headers.get("content-type"))
    return is_page and headers.get("docker-content-digest") != digest


def _digest_of(data: bytes | bytearray, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def _size(headers: Mapping[str, str]) -> int | None:
    """The size of the whole; the answer to a range has it in Content-Range.

    None if it is not told, or if it may be the size of the encoded bytes.
    """
    if coding_of(headers.get("content-encoding")) is not None:
        return None
    told = headers.get("content-range") or f"/{headers.get('content-length', '')}"
    length = told.rpartition("/")[2]
    return int(length) if _LENGTH.fullmatch(length) else None
