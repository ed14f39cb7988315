"""The answer to a request for a blob, decided from its headers and from what is known of the blob.

    If-Match that does not name it    412
    If-None-Match that names it       304
    one Range, without If-Range or
      with one that names it          206, or 416 if the blob has no such bytes
    anything else                     200

A request for several ranges, for another unit, or for no valid range gets the whole blob, as RFC
9110 (14.2) allows. So does any request while the size is not known. Nothing here waits or sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shmstream.stream.spelling import read_digest

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


def etag_of(key: str, validator: str | None = None) -> str | None:
    """The ETag of a blob: its key if that is a digest, else the validator of its source.

    None if the source has no validator, or a weak one, or a date.
    """
    if (digest := _digest_of(key)) is not None:
        return f'"{digest}"'
    strong = validator is not None and validator.startswith('"')
    return validator if strong and _ETAG.fullmatch(validator or "") else None


def _digest_of(key: str) -> str | None:
    try:
        return read_digest(key)
    except ValueError:  # no store takes such a key
        return None


def without_the_blob(request: Mapping[str, str], etag: str | None) -> Answer | None:
    """412 or 304, if a condition of the request decides the answer; None if the blob is needed.

    Raises nothing, whatever the headers are.
    """
    if not _matches(request.get("if-match"), etag, weak=False):
        return Answer(412, _tagged(etag, {"content-length": "0"}))
    if "if-none-match" in request and _matches(request["if-none-match"], etag, weak=True):
        return Answer(304, _tagged(etag, {}))
    return None


def with_the_blob(request: Mapping[str, str], etag: str | None, size: int | None) -> Answer:
    """The answer to a request whose conditions allow one; `size` in bytes, None if not known."""
    if size is None:
        return Answer(200, _tagged(etag, {}), end=None)
    wanted = request.get("range")
    is_same = "if-range" not in request or (_is_strong(etag) and request["if-range"] == etag)
    if wanted is not None and is_same:
        span = _span(wanted, size)
        if span is not None:
            start, end = span
            if start >= end:
                told = {"content-range": f"bytes */{size}", "content-length": "0"}
                return Answer(416, _tagged(etag, told))
            told = {
                "content-range": f"bytes {start}-{end - 1}/{size}",
                "content-length": str(end - start),
            }
            return Answer(206, _tagged(etag, told), start, end, wanted.strip().endswith("-"))
    return Answer(200, _tagged(etag, {"content-length": str(size)}), 0, size)


def _tagged(etag: str | None, headers: dict[str, str]) -> dict[str, str]:
    headers["accept-ranges"] = "bytes"
    if etag is not None:
        headers["etag"] = etag
    return headers


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
