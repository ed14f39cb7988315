"""`Index`: a mirror of a Python package index, for `pip install --index-url .../pypi/simple/`.

    simple/<project>/                   a page of the index, in HTML or JSON as the client accepts.
                                        It is fresh for `ttl`; its links lead to the mirror
    _files/simple/<project>/<file>      a file that this page has. Its hash there is its digest, so
                                        the file comes once per host, verified
    _files/simple/<project>/<file>.metadata    the metadata of a wheel (PEP 658), likewise

What is asked for below `_files` is looked up on the page, so the mirror fetches nothing that its
index does not name; nor what an index on the internet names inside of this network. A page that is
kept serves for that however old it is; if it lacks the file, the index is asked again. A file
without a hash is kept by its URL, for ever: an index never changes a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import unquote, urlsplit

from shmstream.asgi.conditions import without_the_blob
from shmstream.asgi.messages import Receive, Scope, Send, answer, finish, start
from shmstream.asgi.terms import Terms
from shmstream.errors import SourceError
from shmstream.mirror import index_pages
from shmstream.mirror.cache import Asked, Found
from shmstream.mirror.freshness import Wish
from shmstream.mirror.index_pages import HTML, JSON, Link, is_file, is_page, normalized
from shmstream.mirror.kind import Plain, Refused, Rooms, aside, query_of, rest_of
from shmstream.mirror.origin import OriginSource, is_personal, passed_on
from shmstream.mirror.replies import promised, request_of

_FILES = "/_files"
_METADATA = ".metadata"
_PROJECT = re.compile(r"(?P<before>/(?:.*simple/)?)(?P<project>[A-Za-z0-9][A-Za-z0-9._%-]*)/?")
_ACCEPTS = {
    JSON: f"{JSON}, {HTML};q=0.2, text/html;q=0.01",
    HTML: f"{HTML}, text/html;q=0.5",
    "text/html": "text/html",
}
"""By what a client likes best, what the index is asked for: so few answers are kept."""
_LARGEST = 32 << 20  # bytes of a page of one project
_LARGEST_INDEX = 256 << 20  # bytes of that of all projects, which has tens of millions at PyPI
_MOST_READ = 64  # pages whose links are remembered
_ASKINGS = (Wish({"max-stale": ""}), Wish({}), Wish({"no-cache": ""}))
"""For a file: first any page that is kept, then one that is fresh, then what the index has now."""
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}
_STATUS = {"hit": "hit", "flight": "fwd=miss; collapsed", "miss": "fwd=miss; stored"}


class Index(Plain):
    """The kind `pypi`."""

    def __init__(self, rooms: Rooms) -> None:
        super().__init__(rooms)
        self._store = rooms.cache.store
        self._read: dict[str, dict[str, Link]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "this mirror gives, and takes nothing: GET and HEAD")
        rest = rest_of(scope, self._mirror)
        if rest.startswith(f"{_FILES}/"):
            await self._give_file(scope, receive, send, rest.removeprefix(_FILES))
        else:
            await self._give_page(scope, receive, send, rest)

    def _page(self, rest: str) -> str:
        """The path at the index that a client means, with the usual name of the project."""
        if self._mirror.url.endswith("/simple") and re.match(r"/simple(?:/|$)", rest):
            rest = rest.removeprefix("/simple")
        found = _PROJECT.fullmatch(rest)
        if found is None or found["project"] == "simple" or is_file(rest):
            return "/simple/" if rest == "/simple" else rest or "/"
        return f"{found['before']}{normalized(found['project'])}/"

    def _asked_page(self, scope: Scope, page: str, request: Mapping[str, str], wish: Wish) -> Asked:
        accept = _ACCEPTS[_liked(request.get("accept", "text/html"))]
        return Asked(
            f"{self._mirror.url}{page}{query_of(scope)}",
            {**request, "accept": accept},
            wish,
            believed=self._mirror.believed,
            at_most=self._mirror.believed,
            shares=False,
            promised=promised(scope),
        )

    # Pages.

    async def _give_page(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        page, request = self._page(rest), request_of(scope)
        found = await self._cache.find(self._asked_page(scope, page, request, Wish({})))
        try:
            media_type = found.first("content-type")
            if found.status != 200 or not is_page(media_type):
                await self._rooms.replies.found(scope, receive, send, found)
                return
            scope["shmstream.cache"] = found.how
            data = await self._rooms.replies.read(found, _largest(page))
        finally:
            found.close()
        here = scope.get("root_path", "") + self._mirror.path
        try:
            told = await aside(data, partial(self._relinked, data, media_type, page, here))
        except ValueError as error:
            raise SourceError(self._mirror.url, 0, str(error), retryable=False) from error
        await self._say(scope, send, request, found, told)

    def _relinked(self, data: bytes, media_type: str | None, page: str, here: str) -> bytes:
        base = self._mirror.url

        def to(url: str) -> str | None:
            if is_file(url):
                return f"{here}{_FILES}{page}{index_pages.name_of(url)}"
            is_ours = url.startswith(f"{base}/")
            return here + url.removeprefix(base) if is_ours else None

        return index_pages.relinked(data, media_type, f"{base}{page}", to)

    async def _say(
        self, scope: Scope, send: Send, request: Mapping[str, str], found: Found, data: bytes
    ) -> None:
        digest = await aside(data, lambda: hashlib.blake2b(data, digest_size=16).hexdigest())
        etag = f'W/"{digest}"'
        left = 0 if found.entry is None else max(int(found.entry.left), 0)
        detail = f"; detail={found.detail}" if found.detail else ""
        headers = {
            "content-type": found.first("content-type") or "text/html",
            "cache-control": "private" if found.entry is None else f"max-age={left}",
            "vary": "Accept",
            "cache-status": f"shmstream; {_STATUS.get(found.how, 'hit')}{detail}",
        }
        if (serial := found.first("x-pypi-last-serial")) is not None:
            headers["x-pypi-last-serial"] = serial
        if (known := without_the_blob(request, etag)) is not None:
            await start(send, known.status, headers | known.headers)
            await finish(send)
            return
        is_head = scope["method"] == "HEAD"
        await answer(send, 200, {**headers, "etag": etag}, data, is_head=is_head)

    # Files.

    async def _give_file(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        before, _, name = rest.rpartition("/")
        page, request = self._page(f"{before}/"), request_of(scope)
        name = unquote(name)
        link = await self._link(scope, page, name, request)
        if link is None:
            raise Refused(404, "the index does not name such a file")
        mine = urlsplit(self._mirror.url)[:2] == urlsplit(link.url)[:2]
        kept = {name: value for name, value in request.items() if mine or not is_personal(name)}
        if link.digest is None:
            asked = Asked(link.url, kept, is_immutable=True)
            await self.give(scope, receive, send, asked)
            return
        key, how = link.digest, self._how(link.digest)
        scope["shmstream.cache"] = how
        if not any(map(is_personal, request)):  # everybody may see names on the status page
            scope["shmstream.named"] = (key, name)
        headers = {**_FOR_EVER, "cache-status": f"shmstream; {_STATUS[how]}"}
        source = OriginSource(self._cache.origin, key, link.url, passed_on(kept), key)
        terms = Terms(key, headers=headers)
        await self._rooms.replies.blob(scope, receive, send, key, source, terms)

    def _how(self, key: str) -> str:
        if key in self._store:
            return "hit"
        return "flight" if self._store.is_in_flight(key) else "miss"

    async def _link(
        self, scope: Scope, page: str, name: str, request: Mapping[str, str]
    ) -> Link | None:
        """The file of that name on the page; None if the index does not name it."""
        for wish in _ASKINGS:
            found = await self._links(scope, page, request, wish)
            if (link := found.get(name)) is not None:
                return link
            of = found.get(name.removesuffix(_METADATA))
            if name.endswith(_METADATA) and of is not None and of.metadata is not None:
                return Link(of.url + _METADATA, of.metadata or None)
        return None

    async def _links(
        self, scope: Scope, page: str, request: Mapping[str, str], wish: Wish
    ) -> dict[str, Link]:
        of_a_page = {**scope, "query_string": b""}
        asked = self._asked_page(of_a_page, page, {**request, "accept": JSON}, wish)
        found = await self._cache.find(asked)
        try:
            key = "" if found.entry is None else found.entry.key
            if (known := self._read.get(key)) is not None:
                return known
            media_type = found.first("content-type")
            if found.status != 200 or not is_page(media_type):
                return {}
            data = await self._rooms.replies.read(found, _largest(page))
        finally:
            found.close()
        url = f"{self._mirror.url}{page}"
        try:
            links = await aside(data, partial(index_pages.links, data, media_type, url))
        except ValueError as error:
            raise SourceError(self._mirror.url, 0, str(error), retryable=False) from error
        if key:
            self._read[key] = links
            if len(self._read) > _MOST_READ:
                del self._read[next(iter(self._read))]
        return links


def _largest(page: str) -> int:
    """The most bytes that a page may have: only that of all projects is larger than a few."""
    return _LARGEST_INDEX if page == "/" or page.endswith("/simple/") else _LARGEST


def _liked(accept: str) -> str:
    """Which form of a page a client likes best, of those that there are."""
    weights: dict[str, float] = {}
    for each in accept.split(","):
        name, *parameters = (part.strip().lower() for part in each.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            weights[name] = float(quality)
        except ValueError:
            weights[name] = 0.0
    best = max(_ACCEPTS, key=lambda each: weights.get(each, 0.0))
    return best if weights.get(best, 0.0) > 0 else "text/html"
