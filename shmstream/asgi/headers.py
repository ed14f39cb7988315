"""Headers that a caller asks for: dates, names of files."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import formatdate, mktime_tz, parsedate_tz
from urllib.parse import quote

_ASCII_NAME = str.maketrans({"\\": "_", '"': "_", "/": "_", "%": "_"})


def content_disposition(filename: str) -> str:
    """The header with which browsers save the body as `filename` (RFC 6266).

    Raises:
        ValueError: the name is empty, or has a control character in it.
    """
    if not filename or not filename.isprintable():
        raise ValueError(f"a file name is a text without control characters, not {filename!r}")
    plain = filename.encode("ascii", "replace").decode().replace("?", "_").translate(_ASCII_NAME)
    told = f'attachment; filename="{plain}"'
    if plain != filename:
        told += f"; filename*=UTF-8''{quote(filename, safe='')}"
    return told


def http_date(seconds: int) -> str:
    """A time in seconds since 1970 as headers have it."""
    return formatdate(seconds, usegmt=True)


def read_date(text: str | None) -> int | None:
    """Seconds since 1970, from a header; None if it is no date."""
    try:
        parts = parsedate_tz(text) if text is not None else None
        return None if parts is None else mktime_tz(parts)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def seconds_of(when: datetime | float | str) -> int:
    """A time as callers give it, in seconds since 1970; a `datetime` without a zone is of UTC.

    Raises:
        ValueError: it is no time that a header can have.
    """
    if isinstance(when, str):
        if (read := read_date(when)) is None:
            raise ValueError(f"{when!r} is no date as HTTP has it: give a datetime, or seconds")
        return read
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    try:
        seconds = int(when)
        datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{when!r} is no time in seconds since 1970") from error
    return seconds
