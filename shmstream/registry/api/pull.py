"""`Pull`: a blob or manifest with a digest, from one repository, for one request.

    admit       with a grant: go on. Without one, if the digest is complete or in flight: ask the
                upstream first, because another repository may have brought it here. Upstreams that
                are asked with clients' credentials are asked before a 304 or 412 in any case
    send, read  a flight with the repository as its source; the answer of the source is a grant.
                Before the first byte is sent, the grant is looked up again

    this request, repository B             another one, repository A
    1 admit: not here, not in flight
                                           leads; its source answers, A has a grant
    2 follows: the bytes are there
    3 looks again: B has no grant;
      asks the upstream, and goes on or not

A flight that fails before anything was sent may belong to another repository, which the upstream
refused. Then our repository's upstream is asked; if it has the digest, there is a second try.

The flight of another repository may also be of another size than our upstream tells, may stop in
the middle, or may stall. Then the client gets the bytes, or the rest of them, straight from our own
upstream (`BlobReply`, `goes_past`), and the flight is left to those that want it. With the right
source, the next request finds the blob absent again, or complete.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import TypeVar
from weakref import WeakKeyDictionary

from shmstream.asgi.messages import Receive, Scope, Send
from shmstream.asgi.reply import BlobReply
from shmstream.errors import (
    BlobNotFound,
    ShmstreamError,
    SizeMismatch,
    SourceError,
    SourceFailed,
    WriterStalled,
)
from shmstream.flight.async_blob import AsyncBlob
from shmstream.registry.api.errors import Code, Refusal
from shmstream.registry.api.grants import Grants
from shmstream.registry.upstream import manifests
from shmstream.registry.upstream.answers import REFUSED
from shmstream.registry.upstream.manifests import Manifest
from shmstream.registry.upstream.repository import Repository, RepositorySource
from shmstream.registry.upstream.upstream import Upstream
from shmstream.sources.base import Description
from shmstream.store import Store
from shmstream.system.threads import in_thread
from shmstream.upstreams.counts import Counts
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.singleflight import Together

T = TypeVar("T")

_STALL = 70.0  # s; longer than an upstream may be silent
_MOST_LED = 4096  # digests
_LARGE = 64 << 20  # bytes; beside these, what lies in buffers of sockets is little
_CONDITIONS = (b"if-match", b"if-none-match")  # which a digest answers


class Shared:
    """What all requests of this process share.

    Each upstream has threads of its own, so an upstream that hangs does not delay the others.
    """

    def __init__(
        self, store: Store, stall_timeout: float = _STALL, counts: Counts | None = None
    ) -> None:
        """`stall_timeout`: seconds after which a client without a byte is given up.

        `counts` is told from which upstream the bytes of a flight come.

        Raises:
            OSError: the store's folder cannot be written to.
        """
        self.store = store
        self.stall_timeout = stall_timeout
        self.grants: Grants = Grants(Notes(store.folder, "grants"))
        self.led: dict[str, Hashable] = {}
        """By digest, the repository whose upstream has last answered this process for a flight."""
        self._counts = counts or Counts()
        self._together: WeakKeyDictionary[Upstream, Together] = WeakKeyDictionary()

    def note_leader(self, digest: str, repository: Repository) -> None:
        """Note whose upstream gives the bytes of a flight. Any thread may call it."""
        self.led.pop(digest, None)
        self.led[digest] = repository.key
        if len(self.led) > _MOST_LED:
            self.led.pop(next(iter(self.led)), None)
        self._counts.comes_from(digest, repository.upstream.title)

    async def ask(
        self, repository: Repository, what: tuple[object, ...], call: Callable[[], T]
    ) -> T:
        """Return or raise what `call` does; once for all requests that ask `what` just now."""
        upstream = repository.upstream
        together = self._together.get(upstream)
        if together is None:
            together = self._together[upstream] = Together(f"shmstream-ask {upstream.room}")
        return await together.ask((repository.key, *what), call)

    def close(self) -> None:
        """Cancel all questions to upstreams."""
        for each in list(self._together.values()):
            each.close()


class Pull:
    """The bytes of `digest` in `repository`; `kind` is blobs or manifests.

    `known` is what the upstream has already said of it. `accept`: what the client of a manifest
    accepts.
    """

    def __init__(
        self,
        shared: Shared,
        repository: Repository,
        kind: str,
        digest: str,
        known: Manifest | None = None,
        accept: str | None = None,
    ) -> None:
        self._accept = accept
        self._shared = shared
        self.repository: Repository = repository
        self._kind = kind
        self._known = known
        self._is_granted = False  # as far as this request knows
        self.digest = digest

    @cached_property
    def cache(self) -> str:
        """Where the bytes come from: `hit` (complete), `flight`, or `miss`; looked up once."""
        if self.digest in self._shared.store:
            return "hit"
        return "flight" if self._shared.store.is_in_flight(self.digest) else "miss"

    async def _expected(self, is_part: bool) -> Description | None:
        """What the upstream has said of a blob that is not here.

        For a part it is asked, without bytes: a flight that finds no room has asked for all bytes,
        and some megabytes are on their way. So for a store that cannot keep a large blob it is
        asked for the whole, too.

        Raises:
            SourceError: the repository does not have it.
        """
        if self.cache != "miss":
            return None
        size = self._noted_size()
        if size is None and (is_part or await self._is_short_of_room()):
            try:
                await self._confirm()
            except SourceError as error:
                if error.status in REFUSED:
                    raise
            size = self._noted_size()
        return None if size is None else Description(size, f'"{self.digest}"')

    async def _is_short_of_room(self) -> bool:
        """Whether the store cannot keep a large blob."""
        misfit = partial(self._shared.store.misfit, self.digest, _LARGE)
        return await in_thread(misfit) is not None

    def _noted_size(self) -> int | None:
        return self._shared.grants.size(self.repository, self._kind, self.digest)

    def source(self) -> RepositorySource:
        """The source for a flight. When the upstream answers it, that is a grant."""
        proved = self._proved if self.repository.upstream.is_guarded else None
        return self.repository.source(
            self._kind, self.digest, self._answered, self._known, proved, self._accept
        )

    def _proved(self) -> None:
        self._shared.grants.prove(self.repository, self._kind, self.digest)

    def _answered(self, media_type: str | None, size: int | None) -> None:
        self._shared.note_leader(self.digest, self.repository)
        self._shared.grants.record(self.repository, self._kind, self.digest, media_type, size)

    def _goes_past(self, source: RepositorySource) -> bool:
        """Whether our upstream may do better than a flight that breaks: another one leads it."""
        return not source.was_asked and self._shared.led.get(self.digest) != self.repository.key

    async def admit(self, *, has_condition: bool = False) -> None:
        """Check that this repository has a blob that is complete or in flight here.

        `has_condition`: what is asked for may be answered without the blob, wherever it is. If the
        upstream itself decides which client gets what, it is asked for a blob that is not here,
        too: an answer without it would tell everybody which blobs are here.

        Raises:
            SourceError: the repository does not have it, or the upstream does not confirm it.
        """
        upstream = self.repository.upstream
        is_asked = self.cache != "miss" or (has_condition and upstream.passes_on)
        if is_asked and not upstream.is_guarded:
            await self._see_grant()

    async def use(self) -> bool:
        """Mark the complete blob as used just now; False if it is not complete, or not granted.

        Raises:
            SourceError: as `admit`.
        """
        await self.admit()
        if self.repository.upstream.is_guarded and not self._is_noted():
            return False
        try:
            self._shared.store.open(self.digest).close()
        except BlobNotFound:  # it was evicted meanwhile
            return False
        return True

    async def _see_grant(self, source: RepositorySource | None = None) -> None:
        """Look whether this repository may have the digest.

        If its own `source` has led the flight and failed, the flight goes on with another one.
        """
        if self._is_granted:
            return
        if source is not None and source.failure is not None:
            raise source.failure
        if self._is_noted():
            self._is_granted = True
        elif self.repository.upstream.is_guarded:
            if source is None or not source.began:
                raise SizeMismatch(self.digest, 0, "its upstream has not given it yet", 0, 0)
        else:
            await self._confirm()

    def _is_noted(self) -> bool:
        return self._shared.grants.is_known(self.repository, self._kind, self.digest)

    async def _confirm(self) -> None:
        what = ("has", self._kind, self.digest, self._accept)
        await self._shared.ask(self.repository, what, self._ask)
        self._is_granted = not self.repository.upstream.is_guarded

    def _ask(self) -> None:
        size = None
        if self.digest in self._shared.store:
            try:
                with self._shared.store.open(self.digest) as blob:
                    size = blob.size
            except BlobNotFound:
                pass  # it was evicted meanwhile
        self._shared.grants.confirm(self.repository, self._kind, self.digest, size, self._accept)

    async def _authorise(self, source: RepositorySource, blob: AsyncBlob | Description) -> None:
        """See that this repository has the blob, and that it is the blob of the flight.

        Raises:
            SizeMismatch: the flight is of another size than our upstream tells.
        """
        if isinstance(blob, Description) and self.repository.upstream.is_guarded:
            return  # no bytes, or those of the upstream itself
        await self._see_grant(source)
        if isinstance(blob, Description) or blob.is_complete:
            return
        ours, size = self._told_size(), blob.size
        if size is None or ours in (None, size):
            return
        confirm = partial(self._shared.grants.confirm, self.repository, self._kind, self.digest)
        what = ("size", self._kind, self.digest, size)
        with suppress(SourceError):  # what a HEAD told may be wrong: only a GET is believed
            await self._shared.ask(self.repository, what, partial(confirm, size))
        ours = self._told_size()
        if ours not in (None, size):
            reason = f"its flight has {blob.size} bytes, and {self.repository.url('')} tells {ours}"
            raise SizeMismatch(self.digest, 0, reason, ours or 0, blob.size or 0)

    def _told_size(self) -> int | None:
        return self._shared.grants.size(self.repository, self._kind, self.digest)

    async def _attempt(
        self, use: Callable[[RepositorySource], Awaitable[T]], *, has_condition: bool = False
    ) -> T:
        await self.admit(has_condition=has_condition)
        source = self.source()
        try:
            return await use(source)
        except SourceFailed as error:
            if source.was_asked:
                raise source.failure or error from None
        await self._confirm()
        return await use(self.source())

    async def read(self) -> bytes:
        """The bytes of a manifest.

        Raises:
            ShmstreamError: the manifest cannot be read, or is too large.
        """
        return await self._attempt(self._read)

    async def _read(self, source: RepositorySource) -> bytes:
        store, limit = self._shared.store, manifests.LARGEST + 1
        stall = self._shared.stall_timeout
        try:
            async with store.aopen(self.digest, source, stall_timeout=stall) as blob:
                await blob.known()
                await self._see_grant(source)
                data = await blob.read(limit) if (blob.size or 0) < limit else None
        except ShmstreamError as error:
            is_guarded = self.repository.upstream.is_guarded
            anyway = isinstance(error, WriterStalled) and self._goes_past(source)
            anyway = anyway or (is_guarded and isinstance(error, SizeMismatch))
            async with store.pass_through(
                self.digest, source, error, stall_timeout=stall, anyway=anyway
            ) as passage:
                about = await passage.ask()
                if not is_guarded:
                    await self._see_grant(source)
                data = await passage.read(about, limit)
        if data is not None and len(data) < limit:
            return data
        message = f"it is larger than the {manifests.LARGEST} bytes that a manifest may have"
        raise Refusal(502, Code.MANIFEST_INVALID, message)

    async def send(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Mapping[str, str],
        media_type: str | None,
        *,
        is_for_all: bool = False,
    ) -> None:
        """Answer the request.

        `is_for_all`: no client is refused what another one gets. Then equal requests may get a
        complete blob again (`BlobReply`, `repeats`), as long as there is a grant.

        Raises:
            ShmstreamError: nothing was sent.
            BrokenOff: the response ends short of its Content-Length.
        """
        repeats = is_for_all and self.cache == "hit" and not self.repository.upstream.is_guarded

        async def use(source: RepositorySource) -> None:
            reply = BlobReply(
                self._shared.store,
                self.digest,
                source,
                headers=headers,
                media_type=media_type,
                stall_timeout=self._shared.stall_timeout,
                authorise=partial(self._authorise, source),
                goes_past=partial(self._goes_past, source),
                expected=self._expected,
                repeats=self._is_noted if repeats else None,
            )
            await reply.send_or_break_off(scope, receive, send)

        has_condition = any(name.lower() in _CONDITIONS for name, _ in scope["headers"])
        await self._attempt(use, has_condition=has_condition)
