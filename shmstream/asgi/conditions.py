"""The answer to a request for a blob, decided from its headers and from what is known of the blob.

    If-Match that does not name it    412; without it If-Unmodified-Since, if it was modified since
    If-None-Match that names it       304; without it If-Modified-Since, if it was not modified
    one Range, without If-Range or
      with one that names it          206, or 416 if the blob has no such bytes
    anything else                     200

A request for several ranges, for another unit, or for no valid range gets the whole blob, as RFC
9110 (14.2) allows. While the size is not known, a range with a first and a last byte that are there
is a 206 with `*` for the size; any other request gets the whole blob. Nothing here waits or sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shmstream.asgi.headers import http_date, read_date
from shmstream.asgi.remembering import remembered
from shmstream.stream.spelling import read_digest

CONDITIONS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"))
"""The headers that may decide an answer without the blob. If-Range only chooses between two."""

_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d+)-(\d+)?|-(\d+))\s*", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 19  # no blob has so many bytes as a number with more digits says
_ETAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass
class Answer:
    """What is sent: a status, headers, and the bytes of the blob from `start` to before `end`.

    An `end` of None means all bytes to the end of the blob. `is_open`: the range that was asked for
    has no end.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    start: int = 0
    end: int | None = 0
    is_open: bool = False


@remembered  # many requests are for the same blob
def etag_of(key: str, validator: str | None = None) -> str | None:
    """The ETag of a blob: its key if that is a digest, else the validator of its source.

    None if the source has no validator, or a weak one, or a date.
    """
    try:
        digest = read_digest(key)
    except ValueError:  # no store takes such a key
        digest = None
    if digest is not None:
        return f'"{digest}"'
    strong = validator is not None and validator.startswith('"')
    return validator if strong and _ETAG.fullmatch(validator or "") else None


def without_the_blob(
    request: Mapping[str, str], etag: str | None, modified: int | None = None
) -> Answer | None:
    """412 or 304, if a condition of the request decides the answer; None if the blob is needed.

    `modified` is when the blob was modified last, in seconds since 1970. Raises nothing, whatever
    the headers are.
    """
    if CONDITIONS.isdisjoint(request):
        return None
    since = read_date(request.get("if-unmodified-since"))
    too_late = None not in (since, modified) and (modified or 0) > (since or 0)
    if "if-match" not in request:
        is_refused = too_late
    else:
        is_refused = not _matches(request["if-match"], etag, weak=False)
    if is_refused:
        return Answer(412, _tagged(etag, modified, {"content-length": "0"}))
    since = read_date(request.get("if-modified-since"))
    if "if-none-match" in request:
        is_known = _matches(request["if-none-match"], etag, weak=True)
    else:
        is_known = None not in (since, modified) and (modified or 0) <= (since or 0)
    return Answer(304, _tagged(etag, modified, {})) if is_known else None


def with_the_blob(
    request: Mapping[str, str],
    etag: str | None,
    size: int | None,
    modified: int | None = None,
    published: int = 0,
) -> Answer:
    """The answer to a request whose conditions allow one; `size` in bytes, None if not known.

    `published` is the number of bytes that are there.
    """
    wanted = request.get("range")
    if "if-range" in request and not _is_same(request["if-range"], etag, modified):
        wanted = None
    if size is None:
        part = _part_that_is_there(wanted, published)
        if part is None:
            return Answer(200, _tagged(etag, modified, {}), end=None)
        return _partial(part, None, etag, modified)
    span = None if wanted is None else _span(wanted, size)
    if span is None:
        return Answer(200, _tagged(etag, modified, {"content-length": str(size)}), 0, size)
    if span[0] >= span[1]:
        told = {"content-range": f"bytes */{size}", "content-length": "0"}
        return Answer(416, _tagged(etag, modified, told))
    answer = _partial(span, size, etag, modified)
    answer.is_open = (wanted or "").strip().endswith("-")
    return answer


def _partial(
    span: tuple[int, int], size: int | None, etag: str | None, modified: int | None
) -> Answer:
    start, end = span
    told = {
        "content-range": f"bytes {start}-{end - 1}/{'*' if size is None else size}",
        "content-length": str(end - start),
    }
    return Answer(206, _tagged(etag, modified, told), start, end)


def _part_that_is_there(wanted: str | None, published: int) -> tuple[int, int] | None:
    """Start and end of the one range that is asked for, if all its bytes are there."""
    match = None if wanted is None else _ONE_RANGE.fullmatch(wanted)
    if match is None or match[1] is None or match[2] is None:
        return None
    start, end = _number(match[1]), _number(match[2]) + 1
    return (start, end) if start < end <= published else None


def _tagged(etag: str | None, modified: int | None, headers: dict[str, str]) -> dict[str, str]:
    headers["accept-ranges"] = "bytes"
    if etag is not None:
        headers["etag"] = etag
    if modified is not None:
        headers["last-modified"] = http_date(modified)
    return headers


def _is_same(if_range: str, etag: str | None, modified: int | None) -> bool:
    """Whether the client has a part of this very content."""
    if '"' in if_range:
        return _is_strong(etag) and if_range == etag
    return modified is not None and read_date(if_range) == modified


def _matches(condition: str | None, etag: str | None, *, weak: bool) -> bool:
    """Whether an `If-Match` or `If-None-Match` names `etag`; True if the header is absent."""
    if condition is None or condition.strip() == "*":
        return True
    if etag is None:
        return False
    found = _ETAG.findall(condition)
    if weak:
        return etag.removeprefix("W/") in [each.removeprefix("W/") for each in found]
    return _is_strong(etag) and etag in found


def _is_strong(etag: str | None) -> bool:
    return etag is not None and not etag.startswith("W/")


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Start and end of the one range that is asked for; None for several ranges or none."""
    match = _ONE_RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return max(size - _number(suffix), 0), size if _number(suffix) else 0
    if last is not None and _number(last) < _number(first):
        return None
    return _number(first), size if last is None else min(_number(last) + 1, size)


def _number(digits: str) -> int:
    """The number; of one that is larger than any blob, another such one."""
    plain = digits.lstrip("0")
    return int(plain or 0) if len(plain) <= _MOST_DIGITS else 10**_MOST_DIGITS
