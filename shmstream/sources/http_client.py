"""One HTTP request and its answer, after all redirects. The user's headers stay at their origin.

    ask         send a request through the pools of this process, and follow redirects; another
                origin is sent only harmless headers, and must not be inside (`http_guard`)
    read        read a short body as a whole
    refused     the SourceError for an answer that is not what was asked for
    explain     the SourceError for no answer, and for an answer that breaks off

Needs urllib3, the extra `http`. Connections are kept for reuse in pools, one for this process and
one for each proxy that its environment names; `close_pools` closes them.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin
from urllib.request import proxy_bypass

from shmstream.errors import FailureKind, SourceError
from shmstream.sources.base import public
from shmstream.system.process import PerProcess

try:
    import urllib3
except ImportError as _missing:
    raise ImportError("an HTTP source needs urllib3: pip install 'shmstream[http]'") from _missing
from urllib3 import exceptions
from urllib3.util import Timeout, Url, make_headers, parse_url

from shmstream.sources import http_guard

_READ_SIZE = 64 * 1024  # bytes
_MAX_REDIRECTS = 10
_WORTH_DRAINING = 8192  # bytes; to read so much costs less than a new connection
_MAY_PASS = frozenset((408, 425, 429))  # and 5xx
_NEVER_PASS = frozenset((501, 505))  # the server cannot do what it is asked for
_GO_ANYWHERE = frozenset(("accept", "accept-language", "user-agent"))
_OURS = frozenset(
    ("range", "if-range", "accept-encoding", "connection", "content-length", "transfer-encoding")
)
_FOR_EVER = 1e10  # s; a `Retry-After` may have any number of digits
_NO_DATE = 10**12  # s; beyond the last year that a calendar has
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Reply(NamedTuple):
    """An answer. `is_home` is False if a redirect led to another scheme, host or port."""

    response: urllib3.BaseHTTPResponse
    is_home: bool


class Client:
    """Asks for one source; errors have its `name`. Any thread may use it.

    `timeout`: seconds to wait for a connection, and for the next bytes. `pool`: for all requests,
    instead of the pools of this process. `private_redirects`: a redirect may lead from a public
    server to a private address. `named_by`: the server that named the URLs to ask, as a redirect
    does; None: the user did.
    """

    def __init__(
        self,
        name: str,
        timeout: tuple[float, float] = (10.0, 30.0),
        pool: urllib3.PoolManager | None = None,
        *,
        private_redirects: bool = False,
        named_by: Url | None = None,
    ) -> None:
        self._private_redirects = private_redirects
        self._named_by = named_by
        self.name = name
        self._connect_timeout, self._read_timeout = timeout
        self._pool = pool

    def ask(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        *,
        offset: int = 0,
        body: bytes | None = None,
    ) -> Reply:
        """The answer, after all redirects. The caller reads its body, or calls `discard`.

        Blocks until the head is there. A request with a `body` follows no redirect.

        Raises:
            SourceError: there is no answer, or a redirect that must not be followed.
        """
        home = origin_of(url)
        first = url if self._named_by is None else self._named_by
        headers = {"accept-encoding": "identity", **headers}
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                response = self._manager(url, first).urlopen(
                    method,
                    url.url,
                    body=body,
                    headers=headers,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=Timeout(connect=self._connect_timeout, read=self._read_timeout),
                )
            except (exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
                raise self.explain(error, offset) from error
            location = response.get_redirect_location()
            if not location:
                return Reply(response, origin_of(url) == home)
            discard(response)
            if body is not None:
                raise self.failed(offset, "it redirects what was sent to it")
            there = self._redirected(url, location, offset)
            if origin_of(there) != origin_of(url):
                kept = _GO_ANYWHERE | _OURS
                headers = {name: value for name, value in headers.items() if name in kept}
            url = there
        raise self.failed(offset, f"it redirects more than {_MAX_REDIRECTS} times")

    def _redirected(self, url: Url, location: str, offset: int) -> Url:
        try:
            there = parse(urljoin(url.url, location))
        except ValueError as error:
            raise self.failed(offset, f"it redirects elsewhere than to a URL: {error}") from None
        if url.scheme == "https" != there.scheme:
            raise self.failed(offset, "it redirects from https to http")
        return there._replace(auth=None, fragment=None)

    def _manager(self, url: Url, first: Url) -> urllib3.PoolManager:
        """The pools for a request to `url`; `first` is the server that was asked first.

        Raises:
            InsideAddressError: `first` has led to a private address.
        """
        guarded = not (
            origin_of(url) == origin_of(first)
            or self._private_redirects
            or http_guard.is_allowed_here()
            or http_guard.is_server_inside(first)
        )
        if self._pool is not None:
            if guarded:
                http_guard.check_looked_up(url)
            return self._pool
        proxy = _proxy_for(url)
        if guarded and proxy is not None:
            http_guard.check_literal(url)
        return _pool_for(url.scheme, proxy, guarded=guarded and proxy is None)

    def read(self, reply: Reply, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes, as it was sent. Blocks until all of it came.

        Raises:
            SourceError: the body is longer, or breaks off.
        """
        data = bytearray()
        try:
            while more := reply.response.read(min(_READ_SIZE, limit + 1 - len(data))):
                data += more
        except (exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            raise self.explain(error, len(data)) from error
        if len(data) > limit:
            raise self.failed(0, f"its answer is longer than {limit} bytes")
        return bytes(data)

    def refused(self, reply: Reply, offset: int = 0) -> SourceError:
        """The error for an answer with a status that is of no use.

        It has no challenge of another origin: our credentials must not answer that.
        """
        response = reply.response
        status = response.status
        return SourceError(
            self.name,
            offset,
            f"it answered {status} {response.reason or ''}".rstrip(),
            retryable=status in _MAY_PASS or (500 <= status <= 599 and status not in _NEVER_PASS),
            retry_after=_seconds(response.headers.get("retry-after")),
            status=status,
            challenge=response.headers.get("www-authenticate") if reply.is_home else None,
        )

    def failed(self, offset: int, reason: str) -> SourceError:
        """The error for an answer that will be of no use the next time either."""
        return SourceError(self.name, offset, reason, retryable=False)

    def explain(self, error: Exception, offset: int) -> SourceError:
        """The error for an exception of urllib3 or of the network."""
        cause, kind = _root(error), FailureKind.BROKEN
        if isinstance(error, exceptions.NewConnectionError):  # for urllib3, also a timeout
            kind = FailureKind.UNREACHABLE
        elif isinstance(error, exceptions.ConnectTimeoutError):
            kind = FailureKind.CONNECT_TIMEOUT
        elif isinstance(cause, TimeoutError):
            kind = FailureKind.TIMEOUT
        if isinstance(cause, TimeoutError):
            bounds = f"{self._connect_timeout:g} s to connect, {self._read_timeout:g} s to read"
            reason = f"no answer in time ({bounds})"
        elif isinstance(error, exceptions.NameResolutionError):
            reason = f"its name cannot be resolved: {cause}"
        else:
            reason = str(cause) or type(cause).__name__
        # Certificates that are not valid, and names and URLs that are not, are ValueErrors.
        retryable = not isinstance(cause, ValueError)
        return SourceError(self.name, offset, reason, retryable, kind=kind)


def _root(error: BaseException) -> BaseException:
    """What urllib3 wraps."""
    inner = (arg for arg in reversed(error.args) if isinstance(arg, BaseException))
    cause = error.__cause__ or next(inner, None)
    return error if cause is None else _root(cause)


def discard(response: urllib3.BaseHTTPResponse) -> None:
    """Close an answer whose body is not needed; keep its connection if little is left to read."""
    length = getattr(response, "length_remaining", None)
    if length is not None and length <= _WORTH_DRAINING:
        response.drain_conn()
    response.close()
    response.release_conn()  # a pool that is bounded counts it, closed or not


# What is sent.


def parse(url: str) -> Url:
    """The parts of an http or https URL.

    Raises:
        ValueError: `url` is no such URL; the message shows no credentials.
    """
    if _CONTROL.search(url):
        raise ValueError("a URL has no line breaks or other control characters")
    try:
        parts = parse_url(url)
    except exceptions.LocationParseError:
        parts = Url()  # its message would show the whole URL, credentials and all
    if parts.scheme not in ("http", "https") or not parts.host or " " in parts.host:
        raise ValueError(f"not a valid http or https URL: {public(url)!r}")
    return parts


def origin_of(url: Url) -> tuple[str | None, str | None, int]:
    """Scheme, host and port."""
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def credentials_in(url: Url) -> tuple[str, str] | None:
    """User and password, if the URL has any."""
    if url.auth is None:
        return None
    user, _, password = url.auth.partition(":")
    return unquote(user), unquote(password)


def valid_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The same headers, with names in lower case.

    Raises:
        ValueError: a header is not valid, has a line break in it, or is set by the client itself.
    """
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise ValueError(f"not a header to set: {name!r}")
        if has_control_characters(value.replace("\t", " ")):
            raise ValueError(f"the value of header {name} has control characters")
    return {name.lower(): value for name, value in headers.items()}


def has_control_characters(text: str) -> bool:
    """Whether `text` has control characters, such as line breaks."""
    return _CONTROL.search(text) is not None


def authorization(auth: tuple[str, str] | str) -> str:
    """The value of the header Authorization for (user, password), or for a bearer token.

    Raises:
        ValueError: the user has a colon in it, which basic authentication cannot express.
    """
    if isinstance(auth, str):
        return f"Bearer {auth}"
    user, password = auth
    if ":" in user:
        raise ValueError("a user name for basic authentication has no colon")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# What is answered.


def date(text: str | None) -> int | None:
    """A date in a header, as seconds since 1970; None if `text` is no date."""
    try:
        parts = parsedate_tz(text) if text else None
        seconds = mktime_tz(parts) if parts else None
    except (ValueError, OverflowError):  # such as a year that no calendar has
        return None
    return seconds if seconds is not None and abs(seconds) < _NO_DATE else None


def _seconds(text: str | None) -> float | None:
    """`Retry-After` in seconds from now: the header has a number of seconds, or a date."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text), _FOR_EVER)
    when = date(text)
    return None if when is None else min(max(when - time.time(), 0.0), _FOR_EVER)


# The pools of this process.

_Pools = dict[
    tuple[str | None, str | None, bool], urllib3.PoolManager
]  # by scheme, proxy, and whether they are guarded
_pools: PerProcess[_Pools] = PerProcess(dict)  # a forked child has none


def _proxy_for(url: Url) -> str | None:
    proxy = _named(url.scheme or "") or _named("all")
    if not proxy or proxy_bypass(url.netloc or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _named(kind: str) -> str | None:
    """The proxy of the environment, as `getproxies` finds it, which reads all variables."""
    lower = f"{kind}_proxy"
    upper = lower.upper()
    if upper == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ:
        upper = lower  # a CGI program: the client has set it, by a header `Proxy`
    return os.environ.get(lower, os.environ.get(upper))


def _pool_for(scheme: str | None, proxy: str | None, *, guarded: bool) -> urllib3.PoolManager:
    with _pools.lock:
        pools = _pools.value
        if (scheme, proxy, guarded) not in pools:
            # One context for all: to load the system's certificates takes milliseconds.
            context = ssl.create_default_context() if scheme == "https" else None
            options = {"num_pools": 16, "maxsize": 8, "ssl_context": context}
            pools[scheme, proxy, guarded] = made = _new_pool(proxy, options)
            if guarded:
                http_guard.guard(made)
        return pools[scheme, proxy, guarded]


def _new_pool(proxy: str | None, options: dict[str, Any]) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(**options)
    auth = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=unquote(auth)) if auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


def close_pools() -> None:
    """Close the idle connections of this process; a connection in use is closed after use.

    Sources still work: the next `open` makes a new connection, and reads SSL_CERT_FILE again.
    """
    with _pools.lock:
        pools = _pools.value
        closing = list(pools.values())
        pools.clear()
    for pool in closing:
        pool.clear()
