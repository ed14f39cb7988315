"""`HTTPSource`: a blob behind an http or https URL, opened at an offset by a range request.

    describe()                HEAD
    open(offset, validator)   GET, with `Range` and `If-Range` when it begins after 0
      200                     the whole blob from 0: no range was asked for or supported, or the
                              content has changed
      206                     the rest, if Content-Range begins at the offset that was asked for; a
                              HEAD asks for the size if Content-Range has none
      416                     nothing is left, if the blob has exactly `offset` bytes
      3xx                     ask there; another origin is not sent what the user gave
      anything else           SourceError, which says whether to try again

Many servers have ranges that do not work: they refuse them, or give another part. So whatever a
range request is answered, if the answer is of no use and waiting would not help, `open` asks for
the whole blob once more, before it fails.

Needs urllib3, the extra `http`. `http_client` asks and keeps connections; `http_body` takes the
bytes to the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from shmstream.errors import SourceError
from shmstream.sources.base import Description, Feed, check_offset, checked, public
from shmstream.sources.http_body import Body
from shmstream.sources.http_client import (
    Client,
    Reply,
    authorization,
    close_pools,
    credentials_in,
    date,
    discard,
    has_control_characters,
    parse,
    valid_headers,
)
from shmstream.sources.netrc_file import login_for

if TYPE_CHECKING:
    import urllib3

__all__ = ["HTTPSource", "close_pools"]

_CONTENT_RANGE = re.compile(
    r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(?:(\d{1,18})|\*)", re.IGNORECASE | re.ASCII
)
_UNAUTHORIZED = 401  # a credential is missing, whether for a part or for the whole
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)  # more digits are no number of bytes


class HTTPSource:
    """A blob behind an http or https URL.

    TLS certificates are verified, against those of SSL_CERT_FILE where that is set. Proxies come
    from the environment (http_proxy, https_proxy, all_proxy, no_proxy). Up to 10 redirects are
    followed, but not from https to http, and not from a public server to a private address. The
    body is taken as it is stored, never decoded. No request is tried twice: that is up to the
    caller. Any thread may use it, and a forked child.

    Args:
        url: user and password in it are sent as basic authentication, and appear nowhere else.
        headers: sent with every request. After a redirect to another scheme, host or port, only
            Accept, Accept-Language and User-Agent are sent.
        auth: a pair (user, password), or the text of a bearer token. Not sent to another origin.
        timeout: seconds to wait for a connection, and for the next bytes. To look up a name takes
            as long as the system's resolver needs.
        pool: a PoolManager for all requests, instead of the pools of this process.
        netrc: without `auth`, and without user and password in the URL, use those that the user's
            netrc file (`$NETRC`, or `~/.netrc`) has for the host.
        private_redirects: follow redirects from a public server to a private address, too. So does
            the environment variable SHMSTREAM_PRIVATE_REDIRECTS=1, for the whole process.

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
        netrc: bool = True,
        private_redirects: bool = False,
    ) -> None:
        parts = parse(url)
        given = f" {sorted((headers or {}).items())} {auth!r}" if headers or auth else ""
        self.identity: str = url + given
        """Tells this source from others. It may have secrets in it, and is never shown."""
        self._url = parts._replace(auth=None, fragment=None)
        self._headers = valid_headers(headers or {})
        if auth is None and "authorization" not in self._headers:
            auth = credentials_in(parts) or (login_for(parts.host) if netrc else None)
        if auth is not None:
            if "authorization" in self._headers:
                raise ValueError("either `auth` or a header Authorization")
            self._headers |= valid_headers({"authorization": authorization(auth)})
        self.name: str = public(url)
        self._client = Client(self.name, timeout, pool, private_redirects=private_redirects)
        self._timeout = timeout[1]

    def __repr__(self) -> str:
        return f"HTTPSource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Ask for the blob from `offset` on; see `Source.open`.

        Blocks until the head of the answer is there. Then each iteration of the feed blocks until
        bytes are there, and fails if none came within the read timeout. The feed's `close` drops
        the connection unless the body was read to its end, and a thread that waits for bytes fails
        at once. It cannot do that to a thread that is still in `open`.

        The feed's validator is a strong ETag, or else a Last-Modified at least a second older than
        the answer. An answer with neither Content-Length nor chunks ends with its connection. If it
        was cut off, only a digest can show that.

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
        """Size, validator and media type, by a HEAD request. Blocks until the answer is there.

        Raises:
            SourceError: as `open`.
        """
        reply = self._request("HEAD", 0, None)
        response = reply.response
        try:
            if response.status != 200:
                raise self._client.refused(reply)
            headers = response.headers
            self._check_coding(headers, 0)
            return Description(_size(headers), _validator(headers), _media_type(headers))
        finally:
            discard(response)

    def _ask(self, offset: int, validator: str | None, total: int | None = None) -> Feed | None:
        """The feed from `offset`; None if the blob can perhaps be had from 0.

        `total` is the size of the blob, in case that the answer does not tell it.
        """
        reply = self._request("GET", offset, validator)
        if total is None and offset and _is_without_size(reply.response, offset):
            # If the size is not known, the part may be less than all the bytes that are left.
            discard(reply.response)
            total = self._total(validator)
            return None if total is None else self._ask(offset, validator, total)
        try:
            feed = self._judge(reply, offset, validator, total)
        except SourceError as error:
            discard(reply.response)
            if not offset or error.retryable or error.status == _UNAUTHORIZED:
                raise
            return None
        except BaseException:
            discard(reply.response)
            raise
        if feed is None:
            discard(reply.response)
        return feed

    def _request(self, method: str, offset: int, validator: str | None) -> Reply:
        headers = dict(self._headers)
        if offset:
            headers["range"] = f"bytes={offset}-"
            if validator is not None:
                headers["if-range"] = validator
        return self._client.ask(method, self._url, headers, offset=offset)

    def _total(self, validator: str | None) -> int | None:
        """The size of the blob, if it has this `validator`; None if the server does not tell."""
        try:
            about = self.describe()
        except SourceError:
            return None
        return about.size if validator in (None, about.validator) else None

    def _judge(
        self, reply: Reply, offset: int, validator: str | None, total: int | None
    ) -> Feed | None:
        """The feed that an answer promises; None if the content does not have `validator`.

        Raises:
            SourceError: the answer is of no use.
        """
        response = reply.response
        headers, status = response.headers, response.status
        current = _validator(headers)
        start, size = _content_range(headers)
        if offset and status in (206, 416):
            # A 416 has no bytes of the blob, so the size is proof enough.
            if not (size == offset if status == 416 else _is_same(validator, headers)):
                return None
            current = validator or current
            if status == 416:
                discard(response)
                return Feed(iter(()), offset, size, current)
        if status not in (200, 206):
            raise self._client.refused(reply, offset)
        if status == 206 and start != offset:
            told = headers.get("content-range", "no range at all")
            raise self._client.failed(
                offset, f"asked for bytes {offset}-, it answered with {told!r}"
            )
        self._check_coding(headers, offset)
        if status == 200:
            offset = 0
            size = _size(headers)
        elif size is None:
            size = total
        body = Body(response, offset, self._timeout, self._client.explain)
        data = checked(iter(body), offset, size, self._client.explain)
        by_kernel = body if size is not None and body.length == size - offset else None
        return Feed(data, offset, size, current, _media_type(headers), body.close, by_kernel)

    def _check_coding(self, headers: Mapping[str, str], offset: int) -> None:
        """Refuse an encoded body, which has other bytes, and a length that is no number."""
        for header, plain in (("content-encoding", "identity"), ("transfer-encoding", "chunked")):
            coding = headers.get(header, plain).strip()
            if coding.lower() != plain:
                raise self._client.failed(offset, f"its answer has the {header} {coding!r}")
        length = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(length):
            raise self._client.failed(offset, f"its answer has the content-length {length!r}")


def _validator(headers: Mapping[str, str]) -> str | None:
    """A validator that is strong enough for `If-Range` (RFC 9110, 8.8.1 and 8.8.2.2)."""
    etag = headers.get("etag", "")
    if etag.startswith('"') and not has_control_characters(etag):
        return etag
    changed, now = date(headers.get("last-modified")), date(headers.get("date"))
    old_enough = changed is not None and now is not None and changed + 1 <= now
    return headers["last-modified"] if old_enough else None


def _media_type(headers: Mapping[str, str]) -> str | None:
    """What the server declares; None if it could not be sent on in a header."""
    told = headers.get("content-type")
    return None if told is None or has_control_characters(told) else told


def _is_for_if_range(validator: str) -> bool:
    """Whether `validator` can come from `_validator`, not from a source of another kind."""
    if has_control_characters(validator):
        return False
    return validator.startswith('"') or date(validator) is not None


def _is_same(validator: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a partial answer says that it is of the content that was asked for.

    A server that supports ranges but not `If-Range` may send a part of another content. So an
    answer without a validator is not believed.
    """
    field = "etag" if validator is not None and validator.startswith('"') else "last-modified"
    return validator is None or headers.get(field) == validator


def _is_without_size(response: urllib3.BaseHTTPResponse, offset: int) -> bool:
    """Whether this is the part from `offset` on of a blob whose size it does not tell."""
    return response.status == 206 and _content_range(response.headers) == (offset, None)


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Where a partial answer begins, and the size of the whole blob; None if it does not tell."""
    told = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if told is None:
        return None, None
    return int(told[1]) if told[1] else None, int(told[2]) if told[2] else None


def _size(headers: Mapping[str, str]) -> int | None:
    """The size of the body; `_check_coding` has made sure that the length is a number."""
    length = headers.get("content-length")
    return int(length) if length and "transfer-encoding" not in headers else None
