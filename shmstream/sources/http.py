"""`HTTPSource`: a blob behind an http or https URL, opened at an offset by a range request.

    describe()                HEAD; where that is refused, GET of one byte: a signed URL may be good
                              for GET only
    open(offset, validator)   GET, with `Range` and `If-Range` when it begins after 0; `open_part`
                              asks for the bytes before an end
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

Needs urllib3, the extra `http`. `http_client` asks; `http_pool` keeps connections; `http_body`
takes the bytes to the file; `http_coding` undoes what a server did to the bytes on their way.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Self, cast

from shmstream.errors import SourceError
from shmstream.sources import http_coding
from shmstream.sources.base import (
    Description,
    Feed,
    check_connections,
    check_offset,
    checked,
    has_control_characters,
    public,
)
from shmstream.sources.http_body import Body
from shmstream.sources.http_client import (
    WHOLE,
    Client,
    Patience,
    Reply,
    Stranger,
    authorization,
    close_pools,
    credentials_in,
    date,
    discard,
    parse,
    valid_headers,
)
from shmstream.sources.http_tls import TLS, USUAL_TLS
from shmstream.sources.netrc_file import login_for

if TYPE_CHECKING:
    import urllib3
    from typing_extensions import Buffer

__all__ = ["HTTPSource", "close_pools"]

_CONTENT_RANGE = re.compile(
    r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)", re.IGNORECASE | re.ASCII
)
_NOT_THE_METHOD = (401, 407, 408, 425, 429)  # refusals that a GET would get, too
_UNAUTHORIZED = 401  # a credential is missing, whether for a part or for the whole
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)  # more digits are no number of bytes


class HTTPSource:
    """A blob behind an http or https URL.

    TLS certificates are verified, against those of SSL_CERT_FILE where that is set. Proxies come
    from the environment (http_proxy, https_proxy, all_proxy, no_proxy). Up to 10 redirects are
    followed, but not from a public server to a private address. If the `digest` is not known, none
    is followed from https to http, and a body that a server encodes, though it is not asked to, is
    an error. In a flight of a key that is a digest, it is known. No request is tried twice, except
    where a kept connection has ended meanwhile: to try again is up to the caller. Any thread may
    use it, and a forked child.

    Args:
        url: user and password in it are sent as basic authentication, and appear nowhere else.
        headers: sent with every request. After a redirect to another scheme, host or port, only
            Accept, Accept-Language and User-Agent are sent.
        auth: a pair (user, password), or the text of a bearer token. Not sent to another origin.
        timeout: seconds to wait for a connection, and for the next bytes. To look up a name takes
            as long as the system's resolver needs.
        first_byte: seconds to wait for the head of an answer; None: as for the next bytes.
        digest: of the blob, such as "sha256:...". Then a body that is said to be encoded is taken,
            too: as it is if that has the digest, else decoded.
        pool: a PoolManager for all requests, instead of the pools of this process.
        netrc: without `auth`, and without user and password in the URL, use those that the user's
            netrc file (`$NETRC`, or `~/.netrc`) has for the host.
        private_redirects: follow redirects from a public server to a private address, too. So does
            the environment variable SHMSTREAM_PRIVATE_REDIRECTS=1, for the whole process.
        stranger: gives the Authorization for a server that a redirect led to, from its URL and its
            challenge, or None.
        connections: how many of them one blob may come over; None: what the call or the store says,
            or else 8 if the blob has 64 MiB or more.
        tls: which certificates to trust, and which one to show; see `TLS`.
        is_guarded: make no connection to a private address at all.
        named_by: the URL of a server that has named `url`, as a redirect does; None: the user has.

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
        first_byte: float | None = None,
        digest: str | None = None,
        pool: urllib3.PoolManager | None = None,
        netrc: bool = True,
        private_redirects: bool = False,
        stranger: Stranger | None = None,
        connections: int | None = None,
        tls: TLS = USUAL_TLS,
        is_guarded: bool = False,
        named_by: str | None = None,
    ) -> None:
        self.connections: int | None = check_connections(connections)
        parts = parse(url)
        self._headers = valid_headers(headers or {})
        given = f" {sorted((headers or {}).items())} {auth!r}" if headers or auth else ""
        self.identity: str = url + given
        """Tells this source from others. It may have secrets in it, and is never shown."""
        self._url = parts._replace(auth=None, fragment=None)
        if auth is None and "authorization" not in self._headers:
            auth = credentials_in(parts) or (login_for(parts.host) if netrc else None)
        if auth is not None:
            if "authorization" in self._headers:
                raise ValueError("either `auth` or a header Authorization")
            self._headers |= valid_headers({"authorization": authorization(auth)})
        self.name: str = public(url)
        connect, silence = timeout
        patience = Patience(connect, silence if first_byte is None else first_byte, silence)
        self._client = Client(
            self.name,
            patience,
            pool,
            private_redirects=private_redirects,
            stranger=stranger,
            tls=tls,
            is_guarded=is_guarded,
            named_by=None if named_by is None else parse(named_by),
        )
        self._digest = digest
        self.is_encoded: bool | None = None
        """Whether bodies that are said to be encoded are; None while none was seen."""
        self.heard: Callable[[int, Mapping[str, str]], None] | None = None
        """Is called with status and headers of each answer of the server of `url` itself."""

    def __repr__(self) -> str:
        return f"HTTPSource({self.name!r})"

    def expecting(self, digest: str) -> Self:
        """The same source, for a blob that is known to have this digest."""
        source = copy.copy(self)
        source._digest, source.is_encoded = self._digest or digest, None
        return source

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

    def open_part(self, offset: int, end: int, validator: str | None = None) -> Feed:
        """`open` for the bytes before `end` alone.

        A server without ranges gives the whole blob, from 0 to its end.
        """
        check_offset(offset)
        feed = None
        if validator is None or _is_for_if_range(validator):
            feed = self._ask(offset, validator, end=end)
        return feed or cast("Feed", self._ask(0, None))

    def describe(self) -> Description:
        """Size, validator and media type, by a HEAD request. Blocks until the answer is there.

        Where HEAD is refused, by a GET request for one byte.

        Raises:
            SourceError: as `open`.
        """
        reply = self._request("HEAD", 0, None)
        if _is_for_head_only(reply.response.status):
            discard(reply.response)
            ranged = {**self._headers, "range": "bytes=0-0"}
            reply = self._client.ask("GET", self._url, ranged, is_verified=self._digest is not None)
        response = reply.response
        try:
            _, _, size = _content_range(response.headers)
            if response.status not in (*WHOLE, 206) and (response.status, size) != (416, 0):
                raise self._client.refused(reply)
            headers = response.headers
            is_plain = self._coding(headers, 0) is None
            size = (_size(headers) if response.status in WHOLE else size) if is_plain else None
            return Description(size, _validator(headers), _media_type(headers))
        finally:
            discard(response)

    @staticmethod
    def told(response: urllib3.BaseHTTPResponse) -> tuple[int | None, str | None, str | None]:
        """Size, validator and media type, as the head of an answer with the whole blob has them."""
        headers = response.headers
        length = headers.get("content-length", "0")
        size = _size(headers) if _LENGTH.fullmatch(length) else None
        return size, _validator(headers), _media_type(headers)

    def _ask(
        self,
        offset: int,
        validator: str | None,
        total: int | None = None,
        end: int | None = None,
    ) -> Feed | None:
        """The feed from `offset`, to `end` or at least so far; None if it perhaps begins at 0.

        `total` is the size of the blob, in case that the answer does not tell it.
        """
        is_part = offset > 0 or end is not None
        reply = self._request("GET", offset, validator, end)
        if total is None and is_part and _is_without_size(reply.response, offset):
            # If the size is not known, the part may be less than all the bytes that are left.
            discard(reply.response)
            total = self._total(validator)
            return None if total is None else self._ask(offset, validator, total, end)
        try:
            feed = self._judge(reply, offset, validator, total, end)
        except SourceError as error:
            discard(reply.response)
            if not is_part or error.retryable or error.status == _UNAUTHORIZED:
                raise
            return None
        except BaseException:
            discard(reply.response)
            raise
        if feed is None:
            discard(reply.response)
        return feed

    def _request(
        self, method: str, offset: int, validator: str | None, end: int | None = None
    ) -> Reply:
        headers = dict(self._headers)
        if offset or end is not None:
            headers["range"] = f"bytes={offset}-{'' if end is None else end - 1}"
            if validator is not None:
                headers["if-range"] = validator
        reply = self._client.ask(
            method, self._url, headers, offset=offset, is_verified=self._digest is not None
        )
        if self.heard is not None:
            self.heard(reply.first.status, reply.first.headers)
        return reply

    def _total(self, validator: str | None) -> int | None:
        """The size of the blob, if it has this `validator`; None if the server does not tell."""
        try:
            about = self.describe()
        except SourceError:
            return None
        return about.size if validator in (None, about.validator) else None

    def _judge(
        self,
        reply: Reply,
        offset: int,
        validator: str | None,
        total: int | None,
        end: int | None,
    ) -> Feed | None:
        """The feed that an answer promises; None if the content does not have `validator`.

        Raises:
            SourceError: the answer is of no use.
        """
        response = reply.response
        headers, status = response.headers, response.status
        current = _validator(headers)
        _, last, size = _content_range(headers)
        if (offset or end is not None) and status in (206, 416):
            # A 416 has no bytes of the blob, so the size is proof enough.
            if not (size == offset if status == 416 else _is_same(validator, headers)):
                return None
            current = validator or current
            if status == 416:
                discard(response)
                return Feed(iter(()), offset, size, current)
        if status not in (*WHOLE, 206):
            raise self._client.refused(reply, offset)
        if status == 206:
            self._check_part(headers, offset)
        coding = self._coding(headers, offset)
        if status != 206:
            return self._feed(response, 0, _size(headers), current, None, coding)
        behind = None if end is None or last == size else last
        size = total if size is None else size
        return self._feed(response, offset, size, current, behind, coding)

    def _feed(
        self,
        response: urllib3.BaseHTTPResponse,
        offset: int,
        size: int | None,
        validator: str | None,
        end: int | None,
        coding: str | None,
    ) -> Feed | None:
        """The feed of a body, to `end` or to the end of the blob.

        None if it is a part of what may be encoded: that has to begin at 0.
        """
        is_in_doubt = coding is not None and self.is_encoded is not False
        if is_in_doubt and (offset or end is not None):
            return None
        told = _media_type(response.headers)
        body = Body(response, offset, self._client.patience.silence, self._client.explain)
        if coding is not None and is_in_doubt:
            return self._encoded(body, coding, size, validator, told)
        data = checked(iter(body), offset, size if end is None else end, self._client.explain)
        last = size if end is None else end
        by_kernel = body if last is not None and body.length == last - offset else None
        return Feed(data, offset, size, validator, told, body.close, by_kernel, end)

    def _check_part(self, headers: Mapping[str, str], offset: int) -> None:
        """See that the answer is the part that its Content-Range says, and begins at `offset`.

        Some servers send the whole blob, and call it the part that was asked for.
        """
        start, end, _ = _content_range(headers)
        if start != offset or end is None or end <= offset:
            told = headers.get("content-range", "no range at all")
            raise self._client.failed(
                offset, f"asked for bytes {offset}-, it answered with {told!r}"
            )
        if _size(headers) not in (None, end - offset):
            told = f"{headers['content-length']} bytes as {headers['content-range']!r}"
            raise self._client.failed(offset, f"its answer has {told}")

    def _encoded(
        self, body: Body, coding: str, size: int | None, validator: str | None, told: str | None
    ) -> Feed:
        """The feed of a body that is said to be encoded, from 0 on; `told` is its media type."""
        raw = checked(iter(body), 0, size, self._client.explain)
        try:
            first, is_whole = _beginning(raw, coding)
        except BaseException:
            body.close()
            raise
        may_be = http_coding.may_be_encoded(first, coding)
        digest = self._digest if is_whole else None
        self.is_encoded = may_be and http_coding.is_encoded(first, coding, digest)
        data: Iterator[Buffer] = chain((first,) if first else (), raw)
        if self.is_encoded:
            size, validator = None, None
            data = checked(http_coding.decoding(data, coding), 0, None, self._client.explain)
        return Feed(data, 0, size, validator, told, body.close)

    def _coding(self, headers: Mapping[str, str], offset: int) -> str | None:
        """The coding of a body, if it is one that changes the bytes, and the digest is known.

        Raises:
            SourceError: the digest is not known; or a length is no number.
        """
        told = headers.get("content-encoding")
        coding = http_coding.coding_of(told)
        if self._digest is None and not http_coding.is_none(told):
            raise self._client.failed(offset, f"its answer has the content-encoding {told!r}")
        transfer = headers.get("transfer-encoding", "").strip().lower()
        if transfer not in ("", "identity", "chunked"):
            raise self._client.failed(offset, f"its answer has the transfer-encoding {transfer!r}")
        length = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(length):
            raise self._client.failed(offset, f"its answer has the content-length {length!r}")
        return coding


def _is_for_head_only(status: int) -> bool:
    """Whether a HEAD is refused with what a GET may not be refused with."""
    return status == 501 or (400 <= status < 500 and status not in _NOT_THE_METHOD)


def _beginning(data: Iterator[Buffer], coding: str) -> tuple[bytes, bool]:
    """The first bytes of a body, all if it is not too large; and whether these are all."""
    first = bytearray()
    for each in data:
        first += each
        may_be = len(first) < 2 or http_coding.may_be_encoded(first, coding)
        if len(first) >= (http_coding.LARGEST if may_be else 2):
            return bytes(first), False
    return bytes(first), True


def _validator(headers: Mapping[str, str]) -> str | None:
    """A validator that is strong enough for `If-Range` (RFC 9110, 8.8.1 and 8.8.2.2)."""
    etag = headers.get("etag", "")
    if etag.startswith('"') and not has_control_characters(etag):
        return etag
    if (changed := date(headers.get("last-modified"))) is None:
        return None
    now = date(headers.get("date"))
    old_enough = now is not None and changed + 1 <= now
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
    start, _, size = _content_range(response.headers)
    return response.status == 206 and (start, size) == (offset, None)


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """Where a partial answer begins and ends, and the size of the whole; None if it does not tell.

    The end is behind the last byte.
    """
    told = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if told is None:
        return None, None, None
    start, last, size = (int(each) if each else None for each in told.groups())
    return start, None if last is None else last + 1, size


def _size(headers: Mapping[str, str]) -> int | None:
    """The size of the body; `_coding` has made sure that the length is a number."""
    length = headers.get("content-length")
    is_framed = headers.get("transfer-encoding", "").strip().lower() not in ("", "identity")
    return int(length) if length and not is_framed else None
