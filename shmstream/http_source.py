"""`HTTPSource`: a blob behind an http or https URL, opened at an offset by a range request.

    describe()                HEAD
    open(offset, validator)   GET, with `Range` and `If-Range` when it begins behind 0
      200                     the whole blob from 0: no range asked for, not supported, or changed
      206                     the rest, if Content-Range says that it is what was asked for
      416                     nothing left, if the blob has just `offset` bytes
      3xx                     ask there; to another origin nothing goes that the user gave
      anything else           SourceError, and whether it may pass

Needs urllib3, the extra `http`. Connections are kept for reuse in pools, one for this process and
one for each proxy that its environment names; `close_pools` closes them.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from email.utils import mktime_tz, parsedate_tz
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urljoin
from urllib.request import getproxies, proxy_bypass

from shmstream.errors import SourceError
from shmstream.source import Description, Feed, check_offset, checked, public

try:
    import urllib3
except ImportError as missing:
    raise ImportError("an HTTP source needs urllib3: pip install 'shmstream[http]'") from missing
from urllib3 import exceptions
from urllib3.util import Timeout, Url, make_headers, parse_url

if TYPE_CHECKING:
    from typing_extensions import Buffer

_READ_SIZE = 128 * 1024  # bytes
_MAX_REDIRECTS = 10
_WORTH_DRAINING = 8192  # bytes; to read so much costs less than a new connection
_MAY_PASS = frozenset((408, 425, 429))  # and all 5xx
_GO_ANYWHERE = frozenset(("accept", "accept-language", "user-agent"))
_OURS = frozenset(
    ("range", "if-range", "accept-encoding", "connection", "content-length", "transfer-encoding")
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)", re.IGNORECASE)


class HTTPSource:
    """A blob behind an http or https URL.

    TLS certificates are verified, against those of SSL_CERT_FILE where that is set. Proxies come
    from the environment (http_proxy, https_proxy, all_proxy, no_proxy). Up to 10 redirects are
    followed, though not from https to http. The body is taken as it is stored, never decoded.
    Nothing is tried twice: that is up to the caller. Any thread may use it, and a forked child.

    Args:
        url: user and password in it are sent as basic authentication, and appear nowhere else.
        headers: sent with every request. After a redirect to another scheme, host or port only
            Accept, Accept-Language and User-Agent are.
        auth: a pair (user, password), or the text of a bearer token. Goes to no other origin.
        timeout: seconds to wait for a connection, and for the next bytes. Looking up a name takes
            as long as the system's resolver does.
        pool: a PoolManager to use for everything, in place of this process's own.

    Raises:
        ValueError: the URL or a header is not valid, or has a line break in it.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | str | None = None,
        timeout: tuple[float, float] = (10.0, 30.0),
        pool: urllib3.PoolManager | None = None,
    ) -> None:
        parts = _parse(url)
        self._url = parts._replace(auth=None, fragment=None)
        self._headers = _valid_headers(headers or {})
        if auth is None and parts.auth is not None and "authorization" not in self._headers:
            user, _, password = parts.auth.partition(":")
            auth = (unquote(user), unquote(password))
        if auth is not None:
            if "authorization" in self._headers:
                raise ValueError("either `auth` or a header Authorization")
            self._headers |= _valid_headers({"authorization": _authorization(auth)})
        self._connect_timeout, self._read_timeout = timeout
        self._pool = pool
        self.name = public(url)

    def __repr__(self) -> str:
        return f"HTTPSource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Ask for the blob from `offset` on; see `Source.open`.

        Blocks until the head of the answer is there. Then an iteration of the feed blocks until
        some bytes are, and fails when none came for the read timeout. The feed's `close` drops the
        connection unless the body was read to its end, and makes a thread that waits for bytes
        fail at once. It cannot do so to a thread that is still in `open`.

        The feed's validator is a strong ETag, else a Last-Modified at least a second older than
        the answer. An answer with neither Content-Length nor chunks ends where its connection
        does, cut off or not: only a digest can tell.

        Raises:
            SourceError: retryable if the network or the server may do better in a moment.
            ValueError: `offset` is negative.
        """
        check_offset(offset)
        feed = None
        if offset and (validator is None or _is_for_if_range(validator)):
            feed = self._ask(offset, validator)
        return feed or cast("Feed", self._ask(0, None))

    def describe(self) -> Description:
        """What a HEAD request tells. Blocks until the answer is there.

        Raises:
            SourceError: as `open`.
        """
        response = self._request("HEAD", 0, None)
        try:
            if response.status != 200:
                raise self._refused(response, 0)
            headers = response.headers
            self._check_coding(headers, 0)
            return Description(_size(headers), _validator(headers), headers.get("content-type"))
        finally:
            _discard(response)

    def _ask(self, offset: int, validator: str | None) -> Feed | None:
        """The feed from `offset`; None if there is nothing to be had but from 0."""
        response = self._request("GET", offset, validator)
        try:
            feed = self._judge(response, offset, validator)
        except BaseException:
            _discard(response)
            raise
        if feed is None:
            _discard(response)
        return feed

    def _request(self, method: str, offset: int, validator: str | None) -> urllib3.BaseHTTPResponse:
        """The answer, after all redirects."""
        url, headers = self._url, self._headers | {"accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-"
            if validator is not None:
                headers["if-range"] = validator
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                response = self._manager(url).urlopen(
                    method,
                    url.url,
                    headers=headers,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=Timeout(connect=self._connect_timeout, read=self._read_timeout),
                )
            except (exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
                raise self._explain(error, offset) from error
            location = response.get_redirect_location()
            if not location:
                return response
            _discard(response)
            there = self._redirected(url, location, offset)
            if _origin(there) != _origin(url):
                kept = _GO_ANYWHERE | _OURS
                headers = {name: value for name, value in headers.items() if name in kept}
            url = there
        raise self._failed(offset, f"it redirects more than {_MAX_REDIRECTS} times")

    def _redirected(self, url: Url, location: str, offset: int) -> Url:
        try:
            there = _parse(urljoin(url.url, location))
        except ValueError as error:
            raise self._failed(offset, f"it redirects elsewhere than to a URL: {error}") from None
        if url.scheme == "https" != there.scheme:
            raise self._failed(offset, "it redirects from https to http")
        return there._replace(auth=None, fragment=None)

    def _manager(self, url: Url) -> urllib3.PoolManager:
        return self._pool if self._pool is not None else _pool_for(url.scheme, _proxy_for(url))

    def _judge(
        self, response: urllib3.BaseHTTPResponse, offset: int, validator: str | None
    ) -> Feed | None:
        """What the head of an answer promises; None if it is not what `validator` says."""
        headers, status = response.headers, response.status
        current = _validator(headers)
        start, size = _content_range(headers)
        if offset and status in (206, 416):
            # A 416 brings no bytes, and need not say whose it is: the size will do.
            if not (size == offset if status == 416 else _is_same(validator, headers)):
                return None
            current = validator or current
            if status == 416:
                _discard(response)
                return Feed(iter(()), offset, size, current)
        if status not in (200, 206):
            raise self._refused(response, offset)
        if status == 206 and start != offset:
            told = headers.get("content-range", "no range at all")
            raise self._failed(offset, f"asked for bytes {offset}-, it answered with {told!r}")
        self._check_coding(headers, offset)
        if status == 200:
            offset = 0
            size = _size(headers)
        body = _Body(response)
        data = checked(iter(body), offset, size, self._explain)
        return Feed(data, offset, size, current, headers.get("content-type"), body.close)

    def _check_coding(self, headers: Mapping[str, str], offset: int) -> None:
        """Refuse a body whose bytes are not the blob's, or whose end cannot be known."""
        for header, plain in (("content-encoding", "identity"), ("transfer-encoding", "chunked")):
            coding = headers.get(header, plain).strip()
            if coding.lower() != plain:
                raise self._failed(offset, f"its answer has the {header} {coding!r}")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise self._failed(offset, f"its answer has the content-length {length!r}")

    def _refused(self, response: urllib3.BaseHTTPResponse, offset: int) -> SourceError:
        status = response.status
        return SourceError(
            self.name,
            offset,
            f"it answered {status} {response.reason or ''}".rstrip(),
            retryable=status in _MAY_PASS or 500 <= status <= 599,
            retry_after=_seconds(response.headers.get("retry-after")),
            status=status,
            challenge=response.headers.get("www-authenticate"),
        )

    def _failed(self, offset: int, reason: str) -> SourceError:
        return SourceError(self.name, offset, reason, retryable=False)

    def _explain(self, error: Exception, offset: int) -> SourceError:
        cause = _root(error)
        if isinstance(cause, TimeoutError):
            bounds = f"{self._connect_timeout:g} s to connect, {self._read_timeout:g} s to read"
            reason = f"no answer in time ({bounds})"
        elif isinstance(error, exceptions.NameResolutionError):
            reason = f"its name cannot be resolved: {cause}"
        else:
            reason = str(cause) or type(cause).__name__
        # Certificates that are not valid, and names and URLs that are not, are ValueErrors.
        return SourceError(self.name, offset, reason, retryable=not isinstance(cause, ValueError))


class _Body:
    """The body of one response: iterated by one thread, closed by any."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._lock = threading.RLock()  # held by whoever reads from the response or closes it
        self._closed = False

    def __iter__(self) -> Iterator[Buffer]:
        while True:
            with self._lock:
                # Closing shuts the socket down first: what comes out of it then is no data.
                data = b"" if self._closed else self._response.read1(_READ_SIZE, False)
                if self._closed:
                    raise ConnectionAbortedError("the feed was closed")
            if not data:
                return
            yield data

    def close(self) -> None:
        self._closed = True
        if not self._lock.acquire(blocking=False):
            try:
                self._response.shutdown()  # ends the wait of the thread that has the lock
            except (ValueError, RuntimeError, OSError):
                pass  # it has just come to its end
            self._lock.acquire()
        try:
            self._response.close()
        finally:
            self._lock.release()

    def __del__(self) -> None:
        if not self._closed and self._response.connection is not None:
            warnings.warn("a feed of an HTTPSource was not closed", ResourceWarning, stacklevel=2)


def _parse(url: str) -> Url:
    if _CONTROL.search(url):
        raise ValueError("a URL has no line breaks or other control characters")
    try:
        parts = parse_url(url)
    except exceptions.LocationParseError:
        parts = Url()  # its message would show the whole URL, credentials and all
    if parts.scheme not in ("http", "https") or not parts.host or " " in parts.host:
        raise ValueError(f"not a valid http or https URL: {public(url)!r}")
    return parts


def _valid_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise ValueError(f"not a header to set: {name!r}")
        if _CONTROL.search(value.replace("\t", " ")):
            raise ValueError(f"the value of header {name} has control characters")
    return {name.lower(): value for name, value in headers.items()}


def _authorization(auth: tuple[str, str] | str) -> str:
    if isinstance(auth, str):
        return f"Bearer {auth}"
    user, password = auth
    if ":" in user:
        raise ValueError("a user name for basic authentication has no colon")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _origin(url: Url) -> tuple[str | None, str | None, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _validator(headers: Mapping[str, str]) -> str | None:
    """What `If-Range` takes: what is strong enough (RFC 9110, 8.8.1 and 8.8.2.2)."""
    etag = headers.get("etag", "")
    if etag.startswith('"'):
        return etag
    changed, now = _date(headers.get("last-modified")), _date(headers.get("date"))
    old_enough = changed is not None and now is not None and changed + 1 <= now
    return headers["last-modified"] if old_enough else None


def _is_for_if_range(validator: str) -> bool:
    """Whether it can have come from `_validator`, and not from a source of another kind."""
    if _CONTROL.search(validator):
        return False
    return validator.startswith('"') or _date(validator) is not None


def _is_same(validator: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a partial answer is of the content that was asked for, as far as it says so.

    A server that knows ranges but not `If-Range` would let two contents be put together, so one
    that does not say is not believed.
    """
    field = "etag" if validator is not None and validator.startswith('"') else "last-modified"
    return validator is None or headers.get(field) == validator


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Where a partial answer begins, and the size of the whole."""
    told = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if told is None:
        return None, None
    return int(told[1]) if told[1] else None, int(told[2])


def _size(headers: Mapping[str, str]) -> int | None:
    """Of the body that follows, or would; `_check_coding` has seen that it is a number."""
    length = headers.get("content-length")
    return int(length) if length and "transfer-encoding" not in headers else None


def _date(text: str | None) -> int | None:
    parts = parsedate_tz(text) if text else None
    return mktime_tz(parts) if parts else None


def _seconds(text: str | None) -> float | None:
    """`Retry-After` in seconds: it is a number of them, or a date."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    date = _date(text)
    return None if date is None else max(date - time.time(), 0.0)


def _root(error: BaseException) -> BaseException:
    """What urllib3 wrapped."""
    inner = (arg for arg in reversed(error.args) if isinstance(arg, BaseException))
    cause = error.__cause__ or next(inner, None)
    return error if cause is None else _root(cause)


def _discard(response: urllib3.BaseHTTPResponse) -> None:
    length = getattr(response, "length_remaining", None)
    if length is not None and length <= _WORTH_DRAINING:
        response.drain_conn()  # and back into the pool
    response.close()


# The pools of this process.

_lock = threading.Lock()
_pools: dict[tuple[str | None, str | None], urllib3.PoolManager] = {}  # by scheme and proxy
_inherited: list[object] = []


def _proxy_for(url: Url) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(url.scheme or "") or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _pool_for(scheme: str | None, proxy: str | None) -> urllib3.PoolManager:
    with _lock:
        if (scheme, proxy) not in _pools:
            # One context for all: to load the system's certificates takes milliseconds.
            context = ssl.create_default_context() if scheme == "https" else None
            options = {"num_pools": 16, "maxsize": 8, "ssl_context": context}
            _pools[scheme, proxy] = _new_pool(proxy, options)
        return _pools[scheme, proxy]


def _new_pool(proxy: str | None, options: dict[str, Any]) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(**options)
    auth = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=unquote(auth)) if auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


def close_pools() -> None:
    """Close the idle connections of this process; those in use are closed after use.

    Sources go on to work: the next `open` connects anew, and reads SSL_CERT_FILE again.
    """
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.clear()


def _forget() -> None:
    """In a forked child: the connections are the parent's.

    To close them here would take locks that a thread of the parent may have held at the fork.
    """
    global _lock, _pools
    _inherited.append(_pools)
    _lock, _pools = threading.Lock(), {}


os.register_at_fork(after_in_child=_forget)
