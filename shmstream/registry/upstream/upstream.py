"""`Upstream`: a registry that is asked for what is not here.

    authorised   ask with an authorization, and once more if the upstream wants another one
    ask          a short answer, read as a whole

Everything here blocks. If the upstream refuses, the `SourceError` has its `status`; if it does not
answer, the error has none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import quote, urlencode

from shmstream.errors import SourceError
from shmstream.registry.upstream import answers
from shmstream.registry.upstream.credentials import Credential, find, is_hub, rights
from shmstream.registry.upstream.health import Reach
from shmstream.registry.upstream.tokens import Tokens
from shmstream.sources.http_client import Client, Reply, discard, parse

T = TypeVar("T")

_PATIENCE = (5.0, 20.0)  # s; to connect, and to answer a question (not a download)
_AGENT = {"user-agent": "shmstream"}
_HUB = "registry-1.docker.io"  # the host with the API of Docker Hub

NO_SUCH_METHOD = (405, 501)
"""Statuses of a server that does not know the method."""


class Upstream:
    """A registry, as the operator configured it. `name` is its URL.

    Args:
        url: http or https, perhaps with a path before `/v2/`.
        namespace: the name that clients use; None for the upstream of requests without one.
        config: the path of a Docker config.json with credentials.
    """

    def __init__(self, url: str, namespace: str | None = None, config: str | None = None) -> None:
        """Raises:
        ValueError: the URL is not valid.
        """
        parts = parse(url)
        if is_hub(parts.host or ""):
            parts = parts._replace(host=_HUB)
        self._base = parts._replace(path=(parts.path or "").rstrip("/"))
        self.name: str = self._base.url
        self.host: str = parts.netloc or ""
        self.namespace = namespace
        self.rights: str = rights(namespace, os.environ)
        """Tells this upstream from the same registry under another name, with other credentials."""
        self.is_hub: bool = is_hub(self.host) or (namespace is not None and is_hub(namespace))
        self._config = config
        self._tokens = Tokens(self.name, parts.scheme or "", self._find)
        self._client = Client(self.name, _PATIENCE)
        self.reach: Reach = Reach(self.name)

    def __repr__(self) -> str:
        return f"<Upstream {self.name}>"

    def _find(self) -> Credential | None:
        return find(self.host, self.namespace, self._config, os.environ)

    def full_name(self, name: str) -> str:
        """The upstream's own name for the repository that a client calls `name`."""
        return f"library/{name}" if self.is_hub and "/" not in name else name

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """The URL of a part of its API."""
        text = f"{self._base.url}/v2/{quote(path, safe='/:')}"
        return f"{text}?{urlencode(query)}" if query else text

    def authorised(self, repository: str, call: Callable[[dict[str, str]], T]) -> T:
        """Call `call` with the headers that authorize this `repository`; what it returns.

        It is called once more with new headers if the upstream wants a new authorization, for
        example because a token has expired.
        """
        began = time.monotonic()
        try:
            found = self._authorised(repository, call)
        except SourceError as error:
            error.said = answers.refusal(error.said)
            self.reach.failed(error, began)
            raise
        self.reach.answered()
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
        """The headers, and at most `limit` bytes of the body, of a good answer (200 or 206).

        Raises:
            SourceError: the upstream refuses, or does not answer.
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

        self.reach.check()
        return self.authorised(repository, call)


def _wants_get(reply: Reply) -> bool:
    """Whether a HEAD request was refused because it is no GET.

    A server that a registry redirects to may allow only the one request that the URL was made for.
    """
    status = reply.response.status
    return status in NO_SUCH_METHOD or (not reply.is_home and status in (400, 403))


def _headers(authorization: str | None) -> dict[str, str]:
    return _AGENT if authorization is None else {**_AGENT, "authorization": authorization}
