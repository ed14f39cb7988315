"""A registry that is asked for what is not here, and one repository of it.

All of it blocks. What an upstream refuses is a `SourceError` with its `status`; what it does not
answer is one without.

    Repository.resolve     HEAD of a manifest: which digest a tag has
    Repository.about       HEAD of what has a digest: whether this repository has it
    Repository.source      the bytes of what has a digest, for a flight
    Repository.tags        a page of its tags
    Repository.referrers   what refers to a manifest
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

from shmstream.errors import SourceError
from shmstream.http_client import Client, Reply, discard, parse
from shmstream.http_source import HTTPSource
from shmstream.registry import manifests
from shmstream.registry.credentials import Credential, find, is_hub
from shmstream.registry.manifests import Manifest
from shmstream.registry.routes import is_digest
from shmstream.registry.tokens import Tokens
from shmstream.source import Description, Feed

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_LOOKUP = (5.0, 20.0)  # s; to connect, and to answer a question that is no download
_DOWNLOAD = (10.0, 30.0)
_REMEMBERED = 300.0  # s; how long a failure is told when nobody asks again
_LARGEST_LIST = 16 << 20  # bytes
_NO_HEAD = (405, 501)  # statuses of a method that is not known
_AGENT = {"user-agent": "shmstream"}
_HUB = "registry-1.docker.io"  # where the API of Docker Hub is


@dataclass(frozen=True)
class Listing:
    """A list as the upstream gives it; `link` is its `Link` header."""

    content: dict[str, Any]
    link: str | None = None


class Upstream:
    """A registry, as the operator configured it. `name` is its URL.

    Args:
        url: http or https, perhaps with a path before `/v2/`.
        namespace: what clients call it; None for the one that is meant where they do not say.
        config: the path of a Docker config.json, for credentials.
    """

    def __init__(self, url: str, namespace: str | None = None, config: str | None = None) -> None:
        """Raises:
        ValueError: the URL is not valid.
        """
        parts = parse(url)
        if is_hub(parts.host or ""):
            parts = parts._replace(host=_HUB)
        self._base = parts._replace(path=(parts.path or "").rstrip("/"))
        self.name = self._base.url
        self.host = parts.netloc or ""
        self.namespace = namespace
        self.is_hub = is_hub(self.host) or (namespace is not None and is_hub(namespace))
        self._config = config
        self._tokens = Tokens(self.name, parts.scheme or "", self._find)
        self._client = Client(self.name, _LOOKUP)
        self._quiet_until = 0.0
        self._problem: tuple[float, str] | None = None  # when, and what; since the last success

    def __repr__(self) -> str:
        return f"<Upstream {self.name}>"

    def _find(self) -> Credential | None:
        return find(self.host, self.namespace, self._config, os.environ)

    def repository(self, name: str) -> Repository:
        """The repository that a client means by `name`."""
        if self.is_hub and "/" not in name:
            name = f"library/{name}"
        return Repository(self, name)

    @property
    def is_quiet(self) -> bool:
        """Whether it has just not answered: it is left alone for as long as that took to see."""
        return time.monotonic() < self._quiet_until

    @property
    def problem(self) -> str | None:
        """Why it could not be had when it was last asked, if that was not long ago."""
        problem = self._problem
        if problem is None or time.monotonic() - problem[0] > _REMEMBERED:
            return None
        return problem[1]

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Of a part of its API."""
        text = f"{self._base.url}/v2/{quote(path, safe='/:')}"
        return f"{text}?{urlencode(query)}" if query else text

    def authorised(self, repository: str, call: Callable[[dict[str, str]], T]) -> T:
        """What `call` gives when it is called with the headers that are needed to be let in.

        It is called again with others if the upstream wants others, for example because a token
        has expired.
        """
        try:
            found = self._authorised(repository, call)
        except SourceError as error:
            answered = error.status is not None and error.status != 429 and error.status < 500
            told = f"{self.name}: {error.reason}"
            self._problem = None if answered else (time.monotonic(), told)
            raise
        self._problem = None
        return found

    def _authorised(self, repository: str, call: Callable[[dict[str, str]], T]) -> T:
        authorization = self._tokens.current(repository)
        try:
            return call(_headers(authorization))
        except SourceError as error:
            if error.status != 401 or error.challenge is None:
                raise
            renewed = self._tokens.renew(repository, error.challenge, authorization)
            if renewed is None:
                raise
        return call(_headers(renewed))

    def ask(
        self, method: str, repository: str, url: str, headers: Mapping[str, str], limit: int = 0
    ) -> tuple[Mapping[str, str], bytes]:
        """The headers and at most `limit` bytes of an answer that is what was asked for.

        Raises:
            SourceError: there is none.
        """

        def call(authorization: dict[str, str]) -> tuple[Mapping[str, str], bytes]:
            headers_now = {**headers, **authorization}
            reply = self._client.ask(method, parse(url), headers_now)
            if method == "HEAD" and _wants_get(reply):
                discard(reply.response)
                headers_now["range"] = "bytes=0-0"
                reply = self._client.ask("GET", parse(url), headers_now)
            try:
                if reply.response.status not in (200, 206):
                    raise self._client.refused(reply)
                data = self._client.read(reply, limit) if limit else b""
                return reply.response.headers, data
            finally:
                discard(reply.response)

        began = time.monotonic()
        try:
            found = self.authorised(repository, call)
        except SourceError as error:
            answered = error.status is not None or not error.retryable
            self._quiet_until = 0.0 if answered else 2 * time.monotonic() - began
            raise
        self._quiet_until = 0.0
        return found


def _wants_get(reply: Reply) -> bool:
    """Whether a HEAD request was refused for what it is.

    The place that a registry redirects to may know only the very request it is meant for.
    """
    status = reply.response.status
    return status in _NO_HEAD or (not reply.is_home and status in (400, 403))


def _headers(authorization: str | None) -> dict[str, str]:
    return _AGENT if authorization is None else {**_AGENT, "authorization": authorization}


class Repository:
    """One repository of an upstream; `name` is the upstream's name for it."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self.upstream = upstream
        self.name = name

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
        return Manifest(digest, manifests.media_type(headers.get("content-type")), size)

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
                if error.status not in (404, *_NO_HEAD):
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
        self.was_asked = False
        self.failure: SourceError | None = None
        self.name = repository.url(f"{kind}/{digest}")  # the URL, which has nothing to hide

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
