"""Facts as text for people: keys, rates, times and columns."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from shmstream.errors import escaped
from shmstream.units import amount


def per_second(rate: float | None) -> str:
    """A rate in bytes a second: `1.5 MiB/s`; empty if the rate is not known."""
    return "" if rate is None else f"{amount(rate)}/s"


def left(seconds: float | None) -> str:
    """A length of time, rounded up to a second: `0:04`, `1:02:03`; empty if it is not known."""
    if seconds is None:
        return ""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def plural(count: int, noun: str) -> str:
    """`1 blob`, `2 blobs`."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def in_columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Rows as lines. A column is as wide as its widest cell, and no cell is cut off.

    `right` holds the indexes of the columns that are aligned to the right.
    """
    return side_by_side(list(zip(*rows, strict=True)), right=right)


def side_by_side(columns: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """As `in_columns`, of columns instead of rows."""
    widths = [max(map(len, column)) for column in columns]
    signs = ["" if index in right else "-" for index in range(len(widths))]
    line = "  ".join(f"%{sign}{width}s" for sign, width in zip(signs, widths, strict=True))
    return "\n".join(map(str.rstrip, map(line.__mod__, zip(*columns, strict=True))))


def local_time(seconds: float) -> str:
    """A time stamp of a file in the local time zone: `2024-05-01 09:30:00`."""
    return _local_second(math.floor(seconds))


@lru_cache(1024)  # one pull uses many blobs in the same second
def _local_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def utc(seconds: float) -> str:
    """A time stamp for programs: `2024-05-01T09:30:00Z`."""
    return _second_of_utc(math.floor(seconds))


@lru_cache(1024)
def _second_of_utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def named(key: str | None) -> str:
    """A key for people; None if the store does not know the key."""
    return "(its key is not known)" if key is None else escaped(key)
