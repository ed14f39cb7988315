"""`Registry`: everything under /v2/, for an ASGI server; `routes` lists it.

How a request for a blob is answered:

    route       what the request asks for, or a refusal      routes, errors
    locate      which upstream has it                        upstream/upstream, tokens, credentials
    pull        check that the repository has the blob, then send it from the store or a flight
                                                             pull, grants, upstream/repository

For a manifest by tag, `tags` first finds the digest of the tag. If the upstream has that digest no
longer, the tag may mean another one by now, so it is asked once more. If the upstream gives the
manifest by its tag only, the client gets it so. If the upstream cannot give it, the client gets the
manifest that the tag had before. A manifest is read as a whole, because it tells its media type and
its layers (`upstream/manifests`), and because a blob of that digest may be no manifest; `prefetch`
may begin the flights of the layers. A manifest whose bytes have not the digest that names it
(Docker's first kind, or one that the upstream makes for each client) is passed on, and not kept.
Lists are asked for every time. Everything that blocks runs in a few threads
(`upstreams/singleflight`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from shmstream.asgi.messages import Message, Receive, Scope, Send, answer
from shmstream.asgi.statuses import as_ours
from shmstream.errors import DigestMismatch, ShmstreamError, SourceError, SourceFailed
from shmstream.registry.api.accept import Accept
from shmstream.registry.api.access import Access, check_allowed, told_for_upstream
from shmstream.registry.api.errors import (
    VERSION,
    Code,
    Refusal,
    because,
    log_in,
    refused_client,
)
from shmstream.registry.api.prefetch import Prefetch
from shmstream.registry.api.pull import Pull, Shared
from shmstream.registry.api.routes import Kind, Route, locate, route
from shmstream.registry.api.tags import Tagged, Tags
from shmstream.registry.images import Images
from shmstream.registry.settings import Settings
from shmstream.registry.upstream import answers, manifests
from shmstream.registry.upstream.answers import InvalidAnswer, Unkept
from shmstream.registry.upstream.choice import Upstreams, check
from shmstream.registry.upstream.credentials import Credential
from shmstream.registry.upstream.repository import Listing, Repository
from shmstream.store import Store
from shmstream.upstreams.allowance import Left
from shmstream.upstreams.counts import Counts
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.probes import Probes

_UNKNOWN = {
    Kind.BLOB: Code.BLOB_UNKNOWN,
    Kind.MANIFEST: Code.MANIFEST_UNKNOWN,
    Kind.REFERRERS: Code.MANIFEST_UNKNOWN,
}  # for all other kinds it is the repository that is unknown
_NEXT = re.compile(r"<([^<>]*)>[^<>]*;\s*rel=\"?next\"?", re.IGNORECASE)
_JSON = "application/json"

_log = logging.getLogger("shmstream")


class Registry:
    """A pull-through registry, as an ASGI application for paths that begin with /v2.

    Raises:
        BadSetting: the file with credentials, or the environment, cannot be understood.
        OSError: the store's folder cannot be written to.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        access: Access | None = None,
        counts: Counts | None = None,
    ) -> None:
        """`access`: which clients may pull; None: all that reach this registry."""
        counts = counts or Counts()
        self._access = access
        check(settings)
        self._upstreams = Upstreams(settings, Notes(store.folder, "reach"), counts.asked)
        self._shared = Shared(store, settings.stall, counts)
        self.images: Images = Images(store)
        self._tags = Tags(
            Notes(store.folder, "tags"),
            settings.tag_ttl,
            store.__contains__,
            settings.immutable_tags,
        )
        self._prefetch = Prefetch(store, settings.prefetch)
        self._redirect = settings.x_accel_redirect
        self._probes = Probes()

    def problems(self) -> list[str]:
        """What is wrong with upstreams; see `Probes.problems`."""
        return self._probes.problems(self._upstreams.told)

    def upstreams_that_are_well(self) -> dict[str, bool]:
        """By label, whether an upstream answers. Reads files, and asks again as `problems`."""
        self.problems()
        return self._upstreams.are_well()

    def left(self) -> dict[str, Left]:
        """By label, how many more manifests an upstream gives, if it tells. Reads files."""
        return self._upstreams.left()

    def hides(self, called: str) -> bool:
        """Whether strangers must not see a name of a blob (`shmstream.named`).

        They must not if no client tells a name to this cache, and the upstream of the blob is asked
        with the credentials of clients. A name of no upstream is hidden, too: the settings may have
        changed.
        """
        if self._access is not None or not self._upstreams.pass_on:
            return False
        try:
            return locate(self._upstreams, Route(Kind.BLOB, called))[0].passes_on
        except Refusal:
            return True

    def close(self) -> None:
        """Cancel all questions to upstreams. Flights go on. Idempotent."""
        self._prefetch.close()
        self._shared.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Sets in the scope `shmstream.route`; `shmstream.upstream`, the label of the upstream;
        `shmstream.user`, the client's name;
        `shmstream.cache`: hit, flight, miss or stale; and
        `shmstream.named`: the digest that is sent, and its name for people.
        """
        unknown, detail = Code.NAME_UNKNOWN, {}
        try:
            asked = route(scope["method"], _raw_path(scope), scope.get("query_string", b""))
            scope["shmstream.route"] = asked.kind.value
            unknown, detail = _UNKNOWN.get(asked.kind, unknown), _about(asked)
            await self._answer(asked, scope, receive, send)
        except (ShmstreamError, OSError, MemoryError, RuntimeError) as raised:
            if (error := as_ours(raised, scope["path"][:300])) is None:
                raise
            refusal = because(error, unknown, detail)
            if refusal.status >= 500:
                _log.warning("%s %s: %s", scope["method"], scope["path"][:300], str(error))
            headers = {"content-type": _JSON, "cache-control": "no-store", **refusal.headers}
            await _send(scope, send, refusal.status, headers, refusal.body())

    async def _answer(self, asked: Route, scope: Scope, receive: Receive, send: Send) -> None:
        if asked.kind is Kind.BASE:
            await self._greet(scope)
            await _send(scope, send, 200, {"content-type": _JSON}, b"{}")
            return
        if not self._passes_on(asked):
            name = None
            if self._access is not None:
                scope["shmstream.user"] = name = await self._access.name_of(scope)
            upstream, full_name = locate(self._upstreams, asked)
            scope["shmstream.upstream"] = upstream.title
            if self._access is not None:
                check_allowed(name, upstream.allow)
            repository = Repository(upstream, full_name)
            await self._answer_of(repository, asked, scope, receive, send)
            return
        credential = await self._told(scope)
        upstream, full_name = locate(self._upstreams, asked)
        scope["shmstream.upstream"] = upstream.title
        repository = Repository(upstream.for_client(credential), full_name)
        try:
            await self._answer_of(repository, asked, scope, receive, send)
        except (SourceError, SourceFailed) as error:
            has_told = credential is not None
            refusal = refused_client(error, has_told=has_told, detail=_about(asked))
            if refusal is None:
                raise
            raise refusal from error

    # Whose credentials.

    def _passes_on(self, asked: Route) -> bool:
        """Whether it is for an upstream that is asked with the credentials of clients."""
        if not self._upstreams.pass_on:
            return False
        try:
            return locate(self._upstreams, asked)[0].passes_on
        except Refusal:  # which a client that may not pull at all is not told
            return False

    async def _told(self, scope: Scope) -> Credential | None:
        """What the client has told for the upstream; a password of this cache is not for it.

        Raises:
            Refusal: it is no name and password; or it cannot be looked at just now.
        """
        if self._access is not None:
            await self._access.keep_ours(scope)
        return told_for_upstream(scope)

    async def _greet(self, scope: Scope) -> None:
        """Check what a client tells of itself under /v2/, where clients ask whether to log in.

        docker, podman and skopeo send credentials only if they are asked for them here. If they can
        be for one upstream only, that upstream is asked whether they are right. If it does not
        answer, they count as right here.

        Raises:
            Refusal: the client has to log in, or its credentials are not right.
        """
        if not self._upstreams.pass_on:
            if self._access is not None:
                scope["shmstream.user"] = name = await self._access.name_of(scope)
                check_allowed(name, None)
            return
        if not any(name.lower() == b"authorization" for name, _ in scope["headers"]):
            raise log_in()
        credential, upstream = await self._told(scope), self._upstreams.only_one
        if credential is None or upstream is None:
            return
        own = Repository(upstream.for_client(credential), "")
        try:
            await self._shared.ask(own, ("login",), own.upstream.check_login)
        except SourceError as error:
            if (refusal := refused_client(error, has_told=True)) is not None:
                raise refusal from error

    async def _answer_of(
        self, repository: Repository, asked: Route, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if asked.kind is Kind.BLOB:
            pull = Pull(self._shared, repository, "blobs", asked.reference)
            scope["shmstream.cache"] = pull.cache
            scope["shmstream.named"] = (pull.digest, _called(asked))
            headers = _headers(pull.digest, _cache_status(pull.cache))
            if self._may_redirect(scope) and pull.cache == "hit" and await pull.use():
                headers |= {
                    "x-accel-redirect": f"{self._redirect}blobs/{pull.digest.replace(':', '/')}",
                    "content-type": "application/octet-stream",
                    "etag": f'"{pull.digest}"',
                }
                await _send(scope, send, 200, headers, b"")
                return
            is_for_all = self._access is None and not repository.upstream.passes_on
            media_type = "application/octet-stream"
            await pull.send(scope, receive, send, headers, media_type, is_for_all=is_for_all)
        elif asked.kind is Kind.MANIFEST:
            await self._manifest(asked, repository, scope, receive, send)
        elif asked.kind is Kind.TAGS:
            await self._list_tags(asked, repository, scope, send)
        else:
            await self._list_referrers(asked, repository, scope, send)

    def _may_redirect(self, scope: Scope) -> bool:
        """Whether nginx, in front, sends a complete blob. It cannot judge conditions."""
        if self._redirect is None:
            return False
        return not any(name in (b"if-match", b"if-none-match") for name, _ in scope["headers"])

    # Manifests.

    async def _manifest(
        self, asked: Route, repository: Repository, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def give(tagged: Tagged | None, digest: str) -> None:
            known = None if tagged is None else tagged.manifest
            pull = Pull(self._shared, repository, "manifests", digest, known, _accept(scope).text)
            await self._send_manifest(asked, pull, tagged, scope, receive, send)

        try:
            if asked.is_digest:
                await give(None, asked.reference)
            else:
                await self._tagged_manifest(repository, asked.reference, _accept(scope), give)
        except Unkept:
            await self._pass_manifest(asked, repository, scope, send)

    async def _tagged_manifest(
        self,
        repository: Repository,
        tag: str,
        accept: Accept,
        give: Callable[[Tagged, str], Awaitable[None]],
    ) -> None:
        """Give the manifest of a tag. If nothing was sent, there may be another one to give.

        Raises:
            Unkept: the upstream has a manifest of that tag, and none of the digest that it tells.
        """
        tagged = self._tags.known(repository, tag, accept)
        if tagged is None:
            tagged = await self._resolve(repository, tag, accept)
        while True:
            try:
                await give(tagged, tagged.manifest.digest)
            except (SourceError, SourceFailed, DigestMismatch) as error:
                tagged = await self._instead(repository, tag, accept, tagged, error)
            else:
                return

    async def _instead(
        self,
        repository: Repository,
        tag: str,
        accept: Accept,
        tagged: Tagged,
        error: SourceError | SourceFailed | DigestMismatch,
    ) -> Tagged:
        """What to give instead of a manifest that the upstream did not give.

        Raises:
            SourceError, SourceFailed, DigestMismatch: there is nothing else; `error` itself.
            Unkept: as `_tagged_manifest`.
        """
        has_none = isinstance(error, DigestMismatch) or answers.is_no(error.status)
        if has_none and tagged.was_asked:
            raise Unkept(repository.upstream.name, 0, "it has it by its tag only") from error
        if has_none and not tagged.is_stale:
            self._tags.forget(repository, tag, accept)
            return await self._resolve(repository, tag, accept)
        earlier = None
        if not (has_none or tagged.is_stale or isinstance(error, Unkept)):
            earlier = self._tags.stale(repository, tag, accept, but=tagged.manifest.digest)
        if earlier is None:
            raise error
        return earlier

    async def _send_manifest(
        self,
        asked: Route,
        pull: Pull,
        tagged: Tagged | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Raises `SourceError`, `SourceFailed` or `DigestMismatch` only if nothing was sent."""
        cache = "stale" if tagged is not None and tagged.is_stale else pull.cache
        headers = _headers(pull.digest, _cache_status(cache, tagged))
        if cache == "stale":
            headers["warning"] = '110 - "Response is Stale"'
        scope["shmstream.cache"] = cache
        scope["shmstream.named"] = (pull.digest, _called(asked))
        is_signed = tagged is not None and tagged.is_signed
        if scope["method"] == "GET" and is_signed:
            raise Unkept(pull.repository.upstream.name, 0, "its manifest is of the first kind")
        media_type = None

        def note() -> None:
            if not is_signed:
                self.images.note_soon(pull.repository.image, asked.reference, pull.digest)

        if scope["method"] == "GET" or pull.cache != "miss":  # else the upstream tells
            content, media_type = await self._read(pull)
            note()
            if scope["method"] == "GET":
                self._begin(pull.repository, manifests.layers(content))
        else:
            send = _noting(send, note)
        await pull.send(scope, receive, send, headers, media_type)

    async def _pass_manifest(
        self, asked: Route, repository: Repository, scope: Scope, send: Send
    ) -> None:
        """Answer as the upstream does, and keep nothing: a digest does not tell these bytes."""
        reference, accept = asked.reference, _accept(scope).text
        ask = partial(repository.passed, reference, accept)
        passed = await self._shared.ask(repository, ("passed", reference, accept), ask)
        headers = {"content-type": passed.media_type, "cache-status": "shmstream; fwd=miss"}
        if passed.digest is not None:
            headers["docker-content-digest"] = passed.digest
        scope["shmstream.cache"] = "miss"
        await _send(scope, send, 200, {**headers, "x-content-type-options": "nosniff"}, passed.data)

    async def _read(self, pull: Pull) -> tuple[dict[str, Any], str | None]:
        """The manifest and its media type.

        Raises:
            Refusal: the blob of that digest is no manifest.
        """
        data = await pull.read()
        noted = self._shared.grants.media_type(pull.repository, pull.digest)
        try:
            content = answers.manifest(data, noted)
        except InvalidAnswer as error:
            raise Refusal(502, Code.MANIFEST_INVALID, f"the upstream: {error}") from None
        declared = manifests.declared(content)
        for alike in (manifests.IMAGES, manifests.INDEXES):
            if noted in alike and declared in alike:  # clients read it as the upstream calls it
                return content, noted
        return content, declared or noted

    async def _resolve(self, repository: Repository, tag: str, accept: Accept) -> Tagged:
        """What the upstream says that a tag means; what is noted if it does not answer."""

        def resolve() -> Tagged:
            tagged = self._tags.resolve(repository, tag, accept)
            if tagged.was_asked:
                manifest = tagged.manifest
                facts = (manifest.digest, manifest.media_type, manifest.size)
                self._shared.grants.record(repository, "manifests", *facts)
            return tagged

        return await self._shared.ask(repository, ("tag", tag, accept.text), resolve)

    def _begin(self, repository: Repository, layers: Iterable[str]) -> None:
        """Begin the flights of layers, as many as the limit of `prefetch` allows."""
        for digest in layers:
            if not self._prefetch.has_room:
                return
            self._prefetch.begin(digest, Pull(self._shared, repository, "blobs", digest).source())

    # Lists.

    async def _list_tags(
        self, asked: Route, repository: Repository, scope: Scope, send: Send
    ) -> None:
        ask = partial(repository.tags, dict(asked.query))
        listing = await self._shared.ask(repository, ("tags", asked.query), ask)
        body = json.dumps({**listing.content, "name": asked.name}).encode()
        headers = {"content-type": _JSON, **_next_page(asked, "tags/list", listing)}
        await _send(scope, send, 200, headers, body)

    async def _list_referrers(
        self, asked: Route, repository: Repository, scope: Scope, send: Send
    ) -> None:
        query = dict(asked.query)
        ask = partial(repository.referrers, asked.reference, query)
        what = ("referrers", asked.reference, asked.query)
        listing = await self._shared.ask(repository, what, ask)
        artifact_type = query.get("artifactType")
        body = manifests.referrers(listing.content, artifact_type)
        headers = _next_page(asked, f"referrers/{asked.reference}", listing)
        headers["content-type"] = manifests.INDEX
        if artifact_type is not None:
            headers["oci-filters-applied"] = "artifactType"
        await _send(scope, send, 200, headers, body)


def _raw_path(scope: Scope) -> bytes:
    raw = scope.get("raw_path")
    return raw if isinstance(raw, bytes) else quote(scope["path"]).encode()


def _noting(send: Send, note: Callable[[], None]) -> Send:
    """The same `send`, which calls `note` before the head of a good answer."""

    async def send_noted(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 300:
            note()
        await send(message)

    return send_noted


def _accept(scope: Scope) -> Accept:
    lines = [value for name, value in scope["headers"] if name.lower() == b"accept"]
    return Accept.of(each.decode("latin-1") for each in lines)


def _about(asked: Route) -> dict[str, str]:
    """What a request was about, for the detail of an error."""
    facts = {"name": asked.name, "reference": asked.reference}
    return {name: value for name, value in facts.items() if value}


def _called(asked: Route) -> str:
    """A name of the blob or manifest for people."""
    name = asked.name if asked.namespace is None else f"{asked.namespace}/{asked.name}"
    if asked.kind is Kind.MANIFEST:
        return f"{name}, a manifest" if asked.is_digest else f"{name}:{asked.reference}"
    return name


def _headers(digest: str, cache_status: str) -> dict[str, str]:
    return {
        **VERSION,
        "docker-content-digest": digest,
        "cache-status": cache_status,
        "x-content-type-options": "nosniff",
    }


def _cache_status(cache: str, tagged: Tagged | None = None) -> str:
    """The value of the header Cache-Status (RFC 9211)."""
    if cache == "stale" and tagged is not None:
        return f"shmstream; hit; ttl={tagged.left:.0f}; detail=upstream-unreachable"
    if cache == "flight":
        return "shmstream; fwd=miss; collapsed"
    if cache == "miss":
        return "shmstream; fwd=miss; stored"
    if tagged is None:
        return "shmstream; hit"
    ttl = f"ttl={tagged.left:.0f}"
    return f"shmstream; fwd=stale; {ttl}" if tagged.was_asked else f"shmstream; hit; {ttl}"


def _next_page(asked: Route, part: str, listing: Listing) -> dict[str, str]:
    """The `Link` header to the next page, with a URL of this registry."""
    link = _NEXT.search(listing.link or "")
    if link is None:
        return {}
    query = parse_qsl(link[1].partition("?")[2].partition("#")[0], keep_blank_values=True)
    if asked.namespace is not None:
        query.append(("ns", asked.namespace))
    return {"link": f'</v2/{asked.name}/{part}?{urlencode(query)}>; rel="next"'}


async def _send(
    scope: Scope, send: Send, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    await answer(send, status, {**VERSION, **headers}, body, is_head=scope["method"] == "HEAD")
