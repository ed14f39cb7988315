"""`Hub`: a mirror of the Hugging Face Hub, for `huggingface_hub` with `HF_ENDPOINT=.../hf`.

    <repo>/resolve/<revision>/<file>    a file. The Hub is asked by HEAD which content it is; the
                                        content comes once per host, by whatever revision
        sha256 in the ETag (LFS)        a blob with that digest, verified
        another ETag                    a named blob of that file and that ETag. Its key is on the
                                        status page, so the key of a private file has only a hash of
                                        the file's name
    api/...                             as for any HTTP server (`kind`), but without what leads
                                        clients past the mirror: the hashes of Xet, and its links
    anything else                       as for any HTTP server

Which content a file is, is kept: for ever if the revision is a commit, else it is asked for each
time (`ttl`). If the Hub is away, the last answer serves.

What the Hub gives to anybody is public, so it is asked without the client's token first. Only if it
refuses, it is asked again with the token: then the answer is for this client alone, and is kept
nowhere. That an answer was given to this client at this moment is what lets the client join the
flight of such a file. A token goes to the Hub and to no other server: where the Hub redirects to a
CDN, the URL says all that the CDN needs.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from shmstream.asgi.messages import Receive, Scope, Send, answer, finish, start
from shmstream.asgi.terms import Terms
from shmstream.errors import SourceError
from shmstream.mirror.cache import Found
from shmstream.mirror.entry import Entry, Shelf
from shmstream.mirror.freshness import Pairs, Wish, values
from shmstream.mirror.kind import Plain, Refused, Rooms, aside, query_of, rest_of
from shmstream.mirror.origin import OriginSource, Told, head_of, is_personal, passed_on
from shmstream.mirror.replies import joined, promised, request_of
from shmstream.upstreams.notes import Notes

_RESOLVE = re.compile(
    r"/(?P<repo>(?:(?:datasets|spaces|kernels)/)?[^/]+(?:/[^/]+)?)"
    r"/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
)
_TYPES = r"/api/(?:models|datasets|spaces|kernels)"
_OF_A_REPO = re.compile(
    rf"{_TYPES}/[^/]+(?:/[^/]+)?/(?:revision|tree|refs|resolve-cache)\b.*|{_TYPES}/[^/]+/[^/]+"
)
_PATHS = re.compile(rf"{_TYPES}/.+/paths-info/[^/]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HIDING = (401, 403, 404, 429)
"""What the Hub says to a question without a token that it may answer with one."""
_KEPT = ("etag", "x-linked-etag", "x-linked-size", "x-repo-commit", "content-disposition",
         "content-type", "content-length")  # fmt: skip
_PRIVATE_FOR = 60.0  # s; how long a repository counts as one that needs a token
_MOST_PRIVATE = 4096
_LARGEST_BODY = 1 << 20  # bytes of a request
_LARGEST = 32 << 20  # bytes of an answer of the API


@dataclass(frozen=True)
class _File:
    """A file at one revision, as a client names it."""

    repo: str
    revision: str
    file: str

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, so that nothing changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def path(self, revision: str | None = None) -> str:
        return f"/{self.repo}/resolve/{revision or self.revision}/{self.file}"


@dataclass(frozen=True)
class _Facts:
    """What the Hub says of a file. `is_public`: it says so to everybody."""

    fields: Pairs
    is_public: bool
    is_stale: bool = False

    def first(self, name: str) -> str | None:
        return next(iter(values(self.fields, name)), None)

    @property
    def tag(self) -> str:
        """The ETag of the content, without quotes."""
        told = self.first("x-linked-etag") or self.first("etag") or ""
        return told.removeprefix("W/").strip('"')

    @property
    def size(self) -> str | None:
        told = self.first("x-linked-size") or self.first("content-length")
        return told if told is not None and told.isdecimal() else None


class Hub(Plain):
    """The kind `huggingface`."""

    def __init__(self, rooms: Rooms) -> None:
        super().__init__(rooms)
        store = rooms.cache.store
        self._store = store
        self._shelf = Shelf(store.folder, f"files {rooms.mirror.path} {rooms.mirror.url}")
        self._private: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        rest = rest_of(scope, self._mirror)
        if scope["method"] == "POST" and _PATHS.fullmatch(rest):
            await self._ask_paths(scope, receive, send, rest)
        elif scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "this mirror gives, and takes nothing: GET and HEAD")
        elif (named := _RESOLVE.fullmatch(rest)) is not None:
            await self._give_file(scope, receive, send, _File(**named.groupdict()))
        elif rest.startswith("/api/") and scope["method"] == "GET":
            await self._give_answer(scope, receive, send, rest)
        else:
            await super().__call__(scope, receive, send)

    # Files.

    async def _give_file(self, scope: Scope, receive: Receive, send: Send, file: _File) -> None:
        request = request_of(scope)
        facts = await self._facts(file, request, promised=promised(scope))
        if isinstance(facts, Told):
            scope["shmstream.cache"] = "miss"
            await _refuse(send, facts)
            return
        fields = [(name, value) for name, value in facts.fields if name != "content-length"]
        if facts.is_stale:
            fields.append(("warning", '110 - "Response is Stale"'))
        if scope["method"] == "HEAD":
            scope["shmstream.cache"] = "stale" if facts.is_stale else "hit"
            etag = [("etag", f'"{facts.tag}"'), ("accept-ranges", "bytes")]
            length = [] if facts.size is None else [("content-length", facts.size)]
            await start(send, 200, [*_without(fields, "etag"), *etag, *length])
            await finish(send)
            return
        key = self._key(file, facts)
        source = self._source(file, facts, request, key)
        if facts.is_public:  # everybody may see names on the status page
            scope["shmstream.named"] = (key, f"{file.repo}/{file.file}")
        how = self._how(key)
        scope["shmstream.cache"] = "stale" if facts.is_stale else how
        headers = joined(_without(fields, "etag", "content-type"))
        headers["etag"] = f'"{facts.tag}"'
        headers["cache-status"] = f"shmstream; {_STATUS[how]}"
        terms = Terms(key, headers=headers, media_type=facts.first("content-type"))
        await self._rooms.replies.blob(scope, receive, send, key, source, terms)

    def _key(self, file: _File, facts: _Facts) -> str:
        if _SHA256.fullmatch(facts.tag):
            return f"sha256:{facts.tag}"
        name = f"/{file.repo} {file.file} {facts.tag or file.revision} {facts.size}"
        if not facts.is_public:  # keys are on the status page, and names may be guessed
            secret = hashlib.blake2b(name.encode(), key=self._secret, digest_size=16)
            name = f" private {secret.hexdigest()}"
        return f"{self._mirror.url}{name}"

    @cached_property
    def _secret(self) -> bytes:
        return Notes(self._store.folder, "names").secret()

    def _how(self, key: str) -> str:
        if key in self._store:
            return "hit"
        return "flight" if self._store.is_in_flight(key) else "miss"

    def _source(
        self, file: _File, facts: _Facts, request: Mapping[str, str], key: str
    ) -> OriginSource:
        """The file at its commit, which does not move while it is downloaded."""
        headers = passed_on(_public(request) if facts.is_public else request)
        url = self._mirror.url + file.path(facts.first("x-repo-commit"))
        digest = key if key.startswith("sha256:") else None
        return OriginSource(self._cache.origin, key, url, headers, digest)

    async def _facts(
        self, file: _File, request: Mapping[str, str], *, promised: str
    ) -> _Facts | Told:
        """What the Hub says of a file, now or before; its refusal as it is.

        `promised`: the ETag of the file whose beginning another process has sent.

        Raises:
            SourceError: the Hub does not answer, and has not told it before.
        """
        url = self._mirror.url + file.path()
        entry = self._shelf.find(url, {})
        if entry is not None:
            facts = _Facts(entry.fields, is_public=True)
            if f'"{facts.tag}"' == promised or entry.serves(Wish({}), time.time()):
                return facts
        has_token = any(is_personal(each) for each in request)
        told = None
        try:
            if not (has_token and self._is_private(file.repo)):
                told = await self._head(url, passed_on(_public(request)))
                if (fields := _facts_of(told)) is not None:
                    self._keep(url, fields, file)
                    return _Facts(fields, is_public=True)
            if has_token and (told is None or told.status in _HIDING):
                told = await self._head(url, passed_on(request))
                if (fields := _facts_of(told)) is not None:
                    self._note_private(file.repo)
                    return _Facts(fields, is_public=False)
        except SourceError:
            if entry is None:
                raise
            return _Facts(entry.fields, is_public=True, is_stale=True)
        assert told is not None
        if told.status >= 500 and entry is not None:
            return _Facts(entry.fields, is_public=True, is_stale=True)
        return told

    async def _head(self, url: str, headers: Mapping[str, str]) -> Told:
        """What a HEAD tells; at the Hub itself, if that says enough."""
        told = await self.told("HEAD", url, headers, stays=True)
        if 300 <= told.status <= 399 and _facts_of(told) is None:  # such as from http to https
            return await self.told("HEAD", url, headers)
        return told

    def _keep(self, url: str, fields: Pairs, file: _File) -> None:
        now, ttl = time.time(), self._mirror.believed
        entry = Entry(200, fields, {}, now, now, ttl=ttl, is_immutable=file.is_pinned)
        self._shelf.write(url, entry)

    def _is_private(self, repo: str) -> bool:
        return time.monotonic() - self._private.get(repo, float("-inf")) < _PRIVATE_FOR

    def _note_private(self, repo: str) -> None:
        self._private.pop(repo, None)
        self._private[repo] = time.monotonic()
        if len(self._private) > _MOST_PRIVATE:
            del self._private[next(iter(self._private))]

    # The API.

    async def _give_answer(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        request = request_of(scope)
        found = await self._found(scope, rest, request)
        try:
            if found.status != 200 or "json" not in (found.first("content-type") or ""):
                await self._rooms.replies.found(scope, receive, send, found)
                return
            scope["shmstream.cache"] = found.how
            data = await self._rooms.replies.read(found, _LARGEST)
        finally:
            found.close()
        fields = _without(found.fields, "etag", "age", "accept-ranges")
        status = f"shmstream; {_STATUS.get(found.how, 'hit')}"
        await self._say(scope, send, data, [*fields, ("cache-status", status)])

    async def _found(self, scope: Scope, rest: str, request: Mapping[str, str]) -> Found:
        """The answer for everybody if there is one; else that for this client."""
        has_token = any(is_personal(each) for each in request)
        if has_token and _OF_A_REPO.fullmatch(rest):
            found = await self._cache.find(self.asked(scope, rest, _public(request)))
            if found.status not in _HIDING:
                return found
            found.close()
        return await self._cache.find(replace(self.asked(scope, rest, request), shares=False))

    async def _ask_paths(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        """Pass on a question about paths of a repository, which is a POST."""
        scope["shmstream.cache"] = "miss"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect":
                return
            if len(body) > _LARGEST_BODY:
                raise Refused(413, f"a question has at most {_LARGEST_BODY} bytes")
            if not message.get("more_body", False):
                break
        origin, url = self._cache.origin, f"{self._mirror.url}{rest}{query_of(scope)}"
        ask = partial(origin.read, "POST", url, passed_on(request_of(scope)), _LARGEST, body)
        told = await self._rooms.together.ask(object(), ask)
        if told.status != 200:
            await _refuse(send, told)
        else:
            await self._say(scope, send, told.body, told.fields)

    async def _say(self, scope: Scope, send: Send, data: bytes, fields: Pairs) -> None:
        """Send an answer of the API, in which nothing leads past the mirror."""
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        here = f"{scope.get('scheme', 'http')}://{host}{self._mirror.path}"
        headers = joined(fields)
        if "link" in headers:
            headers["link"] = headers["link"].replace(f"<{self._mirror.url}/", f"<{here}/")
        told = await aside(data, partial(without_xet, data))
        await answer(send, 200, headers, told)


def without_xet(data: bytes) -> bytes:
    """JSON of the Hub without the hashes with which clients get files from elsewhere, by Xet."""
    if b"xetHash" not in data:
        return data
    try:
        return json.dumps(_stripped(json.loads(data))).encode()
    except (ValueError, RecursionError):
        return data


def _stripped(found: object) -> object:
    if isinstance(found, dict):
        return {name: _stripped(value) for name, value in found.items() if name != "xetHash"}
    return [_stripped(each) for each in found] if isinstance(found, list) else found


def _facts_of(told: Told) -> Pairs | None:
    """The fields that tell of a file, of an answer and of the redirects that led to it.

    None if it does not tell which content the file is.
    """
    heads = [head_of(each) for each in told.before]
    last = list(told.fields)
    if 200 <= told.status <= 299 and told.length is not None:
        last.append(("content-length", told.length))
    found: dict[str, str] = {}
    for name, value in (pair for head in [*heads, last] for pair in head):
        is_of_last = name in ("content-length", "etag", "content-type")
        if name in _KEPT and (not is_of_last or (name, value) in last):
            found.setdefault(name, value)
    is_linked = any(values(head, "x-linked-etag") for head in heads)
    if 300 <= told.status <= 399 or (is_linked and told.status >= 400):
        # The content is elsewhere, and so is its head, for which a HEAD may not be allowed there.
        found.pop("content-type", None)
        return [*found.items()] if "x-linked-etag" in found else None
    is_good = 200 <= told.status <= 299 and ("etag" in found or "x-linked-etag" in found)
    return [*found.items()] if is_good else None


async def _refuse(send: Send, told: Told) -> None:
    """Pass on what the Hub says, if it is no file."""
    fields = [*_without(told.fields, "accept-ranges"), ("content-length", str(len(told.body)))]
    status = told.status if told.status >= 400 else 502
    await start(send, status, fields)
    await finish(send, told.body)


def _public(request: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in request.items() if not is_personal(name)}


def _without(fields: Pairs, *names: str) -> Pairs:
    return [(name, value) for name, value in fields if name not in names]


_STATUS = {"hit": "hit", "flight": "fwd=miss; collapsed", "miss": "fwd=miss; stored",
           "stale": "hit; detail=hub-unreachable"}  # fmt: skip
