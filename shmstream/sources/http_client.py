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
import ipaddress
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from http.client import HTTPException
from operator import methodcaller
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin
from urllib.request import proxy_bypass

from shmstream import arguments
from shmstream.errors import FailureKind, SourceError
from shmstream.sources.base import has_control_characters, public
from shmstream.system.process import PerProcess

try:
    import urllib3
except ImportError as _missing:
    raise ImportError("an HTTP source needs urllib3: pip install 'shmstream[http]'") from _missing
from urllib3 import exceptions
from urllib3.util import Retry, Timeout, Url, make_headers, parse_url

from shmstream.sources import http_guard
from shmstream.sources.addresses import is_allowed_here, is_host_inside
from shmstream.sources.http_coding import beginning, decoded
from shmstream.sources.http_pool import Pool, TLSPool, Waiting
from shmstream.sources.http_tls import TLS, USUAL_TLS

_READ_SIZE = 64 * 1024  # bytes
_MAX_REDIRECTS = 10
_KEPT = 64  # idle connections to a host; urllib3 warns of each one beyond, and closes it
_MOST_WORDS = 2048  # bytes of an answer that says why it refuses
_WORTH_DRAINING = 8192  # bytes; to read so much costs less than a new connection
_MAY_PASS = frozenset((408, 425, 429))  # and 5xx
_NEVER_PASS = frozenset((501, 505))  # the server cannot do what it is asked for
_GO_ANYWHERE = frozenset(("accept", "accept-language", "user-agent"))
_OURS = frozenset(
    ("range", "if-range", "accept-encoding", "connection", "content-length", "transfer-encoding")
)
WHOLE = (200, 203)
"""Statuses of an answer that is the whole; with 203 a proxy says that it may have changed it."""
_FOR_EVER = 1e10  # s; a `Retry-After` may have any number of digits
_NO_DATE = 10**12  # s; beyond the last year that a calendar has
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TEXT = re.compile(r"[^:]+://[^\\/?#]*([^?#]*)(?:\?([^#]*))?")  # path and query as they are written
_UNFIT = re.compile(r"[^\x21-\x7e]")
_UNWISE = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ONCE = Retry(False, redirect=False)  # a request is sent once; `retries` decides what follows

Stranger = Callable[[Url, str], str | None]
"""The Authorization for a server that a redirect led to, and that answered with a challenge."""


@dataclass(frozen=True)
class Patience:
    """Seconds to wait: to connect, until the head of an answer is there, and for the next bytes."""

    connect: float = 10.0
    first_byte: float = 30.0
    silence: float = 30.0


class Reply(NamedTuple):
    """An answer. `is_home` is False if a redirect led to another scheme, host or port.

    `before` has the redirects that led to it, in order.
    """

    response: urllib3.BaseHTTPResponse
    is_home: bool
    before: tuple[urllib3.BaseHTTPResponse, ...] = ()

    @property
    def first(self) -> urllib3.BaseHTTPResponse:
        """The answer of the server that was asked, perhaps a redirect."""
        return (*self.before, self.response)[0]


class Client:
    """Asks for one source; errors have its `name`. Any thread may use it.

    `pool`: for all requests, instead of the pools of this process. `private_redirects`: a redirect
    may lead from a public server to a private address. `named_by`: the server that named the URLs
    to ask, as a redirect does; None: the user did. `stranger`: gives an authorization for a server
    that a redirect led to. `tls`: how to speak TLS with the server that was asked first.
    `is_guarded`: no connection is made to a private address, also if the user has named it.
    """

    def __init__(
        self,
        name: str,
        patience: Patience = Patience(),
        pool: urllib3.PoolManager | None = None,
        *,
        private_redirects: bool = False,
        named_by: Url | None = None,
        stranger: Stranger | None = None,
        tls: TLS = USUAL_TLS,
        is_guarded: bool = False,
    ) -> None:
        self._tls = tls
        self._is_guarded = is_guarded
        self._private_redirects = private_redirects
        self._named_by = named_by
        self._stranger = stranger
        self.name = name
        self.patience = patience
        self._pool = pool

    def ask(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        *,
        offset: int = 0,
        body: bytes | None = None,
        until: float | None = None,
        stays: bool = False,
        is_verified: bool = False,
    ) -> Reply:
        """The answer, after all redirects. The caller reads its body, or calls `discard`.

        Blocks until the head is there. `until`: when the whole answer has to be there, its body
        included, on the monotonic clock. A request with a `body` follows no redirect. `stays`: a
        redirect to another origin is not followed, but is the answer. `is_verified`: what comes is
        verified by a digest, so a redirect may lead from https to http, too.

        Raises:
            SourceError: there is no answer, or a redirect that must not be followed.
        """
        asked, home = url, origin_of(url)
        first = url if self._named_by is None else self._named_by
        headers = {"accept-encoding": "identity", **headers}
        before: tuple[urllib3.BaseHTTPResponse, ...] = ()
        is_introduced = False
        while len(before) <= _MAX_REDIRECTS:
            try:
                response = self._send(method, url, first, headers, body, until)
            except (exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
                failure = self.explain(error, offset)
                if url is not asked and failure.kind.is_without_connection:
                    # The server itself has answered: it may give the blob when asked otherwise.
                    timed_out = failure.kind.is_timeout
                    failure.kind = FailureKind.TIMEOUT if timed_out else FailureKind.BROKEN
                raise failure from error
            if location := response.get_redirect_location():
                discard(response)
                if body is not None:
                    raise self.failed(offset, "it redirects what was sent to it")
                there = self._redirected(url, location, offset, is_verified=is_verified)
                if origin_of(there) != origin_of(url):
                    if stays:
                        return Reply(response, origin_of(url) == home, before)
                    kept = _GO_ANYWHERE | _OURS
                    headers = {name: value for name, value in headers.items() if name in kept}
                    is_introduced = False
                url, before = there, (*before, response)
                continue
            reply = Reply(response, origin_of(url) == home, before)
            if is_introduced or (introduced := self._introduced(reply, url)) is None:
                return reply
            discard(response)
            headers, is_introduced = {**headers, "authorization": introduced}, True
        raise self.failed(offset, f"it redirects more than {_MAX_REDIRECTS} times")

    def _send(
        self,
        method: str,
        url: Url,
        first: Url,
        headers: Mapping[str, str],
        body: bytes | None,
        until: float | None,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request; the answer once its head is there. `first`: see `_manager`."""
        patience = self.patience
        connect, left = patience.connect, None
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the time for the answer is over")
            connect = min(connect, left)
        manager, proxy = self._manager(url, first)
        where = url.url
        send: Callable[..., urllib3.BaseHTTPResponse] = manager.urlopen
        options: dict[str, Any] = {}
        read = patience.silence
        if self._pool is None:
            is_absolute = proxy is not None and url.scheme == "http"
            options["target"] = url._replace(auth=None, fragment=None).url if is_absolute else None
            options["target"] = options["target"] or url.request_uri
            options["waiting"] = Waiting(patience.first_byte, patience.silence, until)
            read = patience.first_byte if left is None else min(patience.first_byte, left)
            if proxy is None:  # the manager would only take the URL apart once more
                pool = manager.connection_from_host(url.host, url.port, url.scheme)
                send, where = pool.urlopen, options["target"]
                options["assert_same_host"] = False
        return send(
            method,
            where,
            body=body,
            headers=headers,
            redirect=False,
            retries=_ONCE,
            preload_content=False,
            decode_content=False,
            timeout=Timeout(connect=connect, read=read),
            **options,
        )

    def _introduced(self, reply: Reply, url: Url) -> str | None:
        """The authorization for the server of `url`, which no secret of the user's is sent to."""
        challenge = reply.response.headers.get("www-authenticate")
        if reply.is_home or reply.response.status != 401 or None in (challenge, self._stranger):
            return None
        assert challenge is not None
        assert self._stranger is not None
        return self._stranger(url, challenge)

    def _redirected(self, url: Url, location: str, offset: int, *, is_verified: bool) -> Url:
        try:
            there = parse(_joined(url, location), is_exact=True)
        except ValueError as error:
            raise self.failed(offset, f"it redirects elsewhere than to a URL: {error}") from None
        if url.scheme == "https" != there.scheme and not is_verified:
            raise self.failed(offset, "it redirects from https to http")
        return there._replace(auth=None, fragment=None)

    def _manager(self, url: Url, first: Url) -> tuple[urllib3.PoolManager, str | None]:
        """The pools for a request to `url`, and the proxy that they use.

        `first` is the server that was asked first.

        Raises:
            InsideAddressError: `first` has led to a private address.
        """
        is_first = origin_of(url) == origin_of(first)
        guarded = self._is_guarded or not (is_first or self._private_redirects)
        if guarded and is_allowed_here():
            guarded = False
        if guarded and not self._is_guarded and is_host_inside(first.host or ""):
            guarded = False
        if self._pool is not None:
            if guarded:
                http_guard.check_looked_up(url)
            return self._pool, None
        proxy = _proxy_for(url)
        if guarded and proxy is not None:
            http_guard.check_literal(url)
        tls = self._tls if is_first else self._tls.for_others()
        return _pool_for(url.scheme, proxy, tls, guarded=guarded and proxy is None), proxy

    def read(self, reply: Reply, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes, as it was sent. Blocks until all of it came.

        What is encoded, though nobody has asked for that, is decoded.

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
        return decoded(bytes(data), reply.response.headers.get("content-encoding"), limit)

    def first(self, reply: Reply) -> bytes:
        """The first byte of the body, without waiting for others; empty if the body is.

        Raises:
            SourceError: the body breaks off.
        """
        try:
            return bytes(reply.response.read(1))
        except (exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            raise self.explain(error, 0) from error

    def refused(self, reply: Reply, offset: int = 0) -> SourceError:
        """The error for an answer with a status that is of no use, with the answer's first words.

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
            said=_beginning(response),
        )

    def failed(self, offset: int, reason: str) -> SourceError:
        """The error for an answer that will be of no use the next time either."""
        return SourceError(self.name, offset, reason, retryable=False)

    def explain(self, error: Exception, offset: int) -> SourceError:
        """The error for an exception of urllib3 or of the network."""
        cause, kind = root_of(error), FailureKind.BROKEN
        if isinstance(error, exceptions.NewConnectionError):  # for urllib3, also a timeout
            kind = FailureKind.UNREACHABLE
        elif isinstance(error, exceptions.ConnectTimeoutError):
            kind = FailureKind.CONNECT_TIMEOUT
        elif isinstance(cause, TimeoutError):
            kind = FailureKind.TIMEOUT
        if isinstance(cause, TimeoutError):
            patience = self.patience
            bounds = f"{patience.connect:g} s to connect, {patience.first_byte:g} s for the head"
            reason = f"no answer in time ({bounds}, {patience.silence:g} s for the next bytes)"
        elif isinstance(error, exceptions.NameResolutionError):
            reason = f"its name cannot be resolved: {cause}"
        else:
            reason = str(cause) or type(cause).__name__
        # Certificates that are not valid, and names and URLs that are not, are ValueErrors.
        retryable = not isinstance(cause, ValueError)
        return SourceError(self.name, offset, reason, retryable, kind=kind)


def root_of(error: BaseException) -> BaseException:
    """What urllib3 wraps."""
    inner = (arg for arg in reversed(error.args) if isinstance(arg, BaseException))
    cause = error.__cause__ or next(inner, None)
    return error if cause is None else root_of(cause)


def discard(response: urllib3.BaseHTTPResponse) -> None:
    """Close an answer whose body is not needed; keep its connection if little is left to read."""
    length = getattr(response, "length_remaining", None)
    if length is not None and length <= _WORTH_DRAINING:
        response.drain_conn()
    response.close()
    response.release_conn()  # a pool that is bounded counts it, closed or not


# What is sent.


def parse(url: str, *, is_exact: bool = False) -> Url:
    """The parts of an http or https URL. Path and query stay as they are written.

    Only what cannot stand in a request is escaped; unless `is_exact`, also what should not.

    Raises:
        ValueError: `url` is no such URL; the message shows no credentials.
    """
    if has_control_characters(url):
        raise ValueError("a URL has no line breaks or other control characters")
    try:
        parts = parse_url(url)
    except exceptions.LocationParseError:
        parts = Url()  # its message would show the whole URL, credentials and all
    if parts.scheme not in ("http", "https") or not parts.host or " " in parts.host:
        raise ValueError(f"not a valid http or https URL: {public(url)!r}")
    text = _TEXT.match(url)
    assert text is not None
    unfit = _UNFIT if is_exact else _UNWISE
    path, query = (each and unfit.sub(_percent, each) for each in text.groups())
    return parts._replace(path=path or "/", query=query)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))


def _joined(url: Url, location: str) -> str:
    """Where a `Location` leads, in its own text: what http.client read as Latin-1 is mostly UTF-8.

    A signature in it is made of that text, so nothing in it is put in order.
    """
    location = location.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
    if _ABSOLUTE.match(location):
        return location
    if location.startswith("//"):
        return f"{url.scheme}:{location}"
    if location.startswith("/"):
        return f"{url.scheme}://{url.netloc}{location}"
    return urljoin(url.url, location)


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
        TypeError: it is no mapping of texts.
        ValueError: a header is not valid, has a line break in it, or is set by the client itself.
    """
    arguments.headers("headers", headers)
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise ValueError(f"not a header to set: {name!r}")
        if has_control_characters(value.replace("\t", " ")):
            raise ValueError(f"the value of header {name} has control characters")
    return {name.lower(): value for name, value in headers.items()}


def authorization(auth: tuple[str, str] | str) -> str:
    """The value of the header Authorization for (user, password), or for a bearer token.

    Raises:
        TypeError: it is neither.
        ValueError: the user has a colon in it, which basic authentication cannot express.
    """
    if isinstance(auth, str):
        return f"Bearer {auth}"
    is_pair = isinstance(auth, tuple | list) and len(auth) == 2
    if not is_pair or not all(isinstance(each, str) for each in auth):
        told = "auth is a pair (user, password), or the text of a bearer token"
        raise TypeError(f"{told}; not {type(auth).__name__}")
    user, password = auth
    if ":" in user:
        raise ValueError("a user name for basic authentication has no colon")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# What is answered.


def _beginning(response: urllib3.BaseHTTPResponse) -> str:
    """The first characters of a text that explains a refusal; empty for a page, or no text."""
    kind = response.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()
    if kind not in ("text/plain", "") and not kind.endswith("json"):
        return ""
    length = getattr(response, "length_remaining", None)
    try:
        if length is not None and length <= _WORTH_DRAINING:
            data = response.read(_MOST_WORDS)
        else:  # one that is longer may not come at once
            data = response.read1(_MOST_WORDS, False)
    except (exceptions.HTTPError, HTTPException, OSError, ValueError):
        return ""  # the status says enough
    data = beginning(data, response.headers.get("content-encoding"), _MOST_WORDS)
    text = data.decode("utf-8", "replace").strip()
    return "" if text.startswith("<") else text


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
    tuple[str | None, str | None, TLS, bool], urllib3.PoolManager
]  # by scheme, proxy, how to speak TLS, and whether they are guarded
_pools: PerProcess[_Pools] = PerProcess(dict)  # a forked child has none


def _proxy_for(url: Url) -> str | None:
    proxy = _named(url.scheme or "") or _named("all")
    if not proxy or proxy_bypass(url.netloc or "") or _is_excepted(url):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excepted(url: Url) -> bool:
    """Whether `no_proxy` has a network (10.0.0.0/8) or a pattern (*.example.com) for `url`.

    Plain names and addresses in `no_proxy` are the matter of urllib.
    """
    host = (url.host or "").strip("[]").partition("%")[0].lower()
    entries = [each.strip().strip("[]").lower() for each in (_named("no") or "").split(",")]
    if any(each.startswith("*.") and host.endswith(each[1:]) for each in entries):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name; nobody looks it up for that
    return any(_has(each, address) for each in entries)


def _has(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _named(kind: str) -> str | None:
    """The proxy of the environment, as `getproxies` finds it, which reads all variables."""
    lower = f"{kind}_proxy"
    upper = lower.upper()
    if upper == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ:
        upper = lower  # a CGI program: the client has set it, by a header `Proxy`
    return os.environ.get(lower, os.environ.get(upper))


def _pool_for(
    scheme: str | None, proxy: str | None, tls: TLS, *, guarded: bool
) -> urllib3.PoolManager:
    """Raises `OSError`: a file of `tls` cannot be used."""
    key = (scheme, proxy, tls if scheme == "https" else USUAL_TLS, guarded)
    with _pools.lock:
        pools = _pools.value
        if key not in pools:
            # One context for all: to load the system's certificates takes milliseconds.
            context = tls.context() if scheme == "https" else None
            options = {"num_pools": 16, "maxsize": _KEPT, "ssl_context": context}
            pools[key] = made = _new_pool(proxy, options)
            made.pool_classes_by_scheme = {"http": Pool, "https": TLSPool}
            made.pools.dispose_func = methodcaller("close")  # else the garbage collector does it
            if guarded:
                http_guard.guard(made)
        return pools[key]


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
