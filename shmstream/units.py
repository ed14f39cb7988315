"""Sizes, durations and foreign texts as people write and read them."""

from __future__ import annotations

import re

_NUMBER = r"(\d{1,30}(?:\.\d{1,30})?)"  # of more digits, nothing has a use
_SIZE = re.compile(rf"{_NUMBER}\s*(?:([kmgtp])(i?b)?|b)?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(rf"{_NUMBER}\s*([smhdw]?)", re.IGNORECASE | re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def size(text: str) -> int:
    """A number of bytes: `1234`, `500MB` (a thousand to the kilo), `10GiB` or `10G` (1024).

    Raises:
        ValueError: `text` is no size.
    """
    if not (found := _SIZE.fullmatch(text.strip())):
        raise ValueError(f"{text!r} is no size, such as 1234, 500MB or 10GiB")
    from fractions import Fraction

    number, letter, unit = found.groups()
    kilo = 1000 if (unit or "").lower() == "b" else 1024
    return int(Fraction(number) * kilo ** " kmgtp".index((letter or " ").lower()))


def is_size(text: str) -> bool:
    """Whether `size` understands the text."""
    return _SIZE.fullmatch(text.strip()) is not None


def duration(text: str) -> float:
    """A time in seconds: `90`, `90s`, `30m`, `12h`, `7d`, `2w`.

    Raises:
        ValueError: `text` is no duration.
    """
    if not (found := _DURATION.fullmatch(text.strip())):
        raise ValueError(f"{text!r} is no duration, such as 90s, 30m, 12h or 7d")
    return float(found[1]) * _SECONDS[found[2].lower()]


def amount(count: float) -> str:
    """A number of bytes for people: `1 byte`, `512 bytes`, `1.5 MiB`."""
    value, units = count, ["KiB", "MiB", "GiB", "TiB"]
    if value < 1024:
        return f"{value:.0f} {'byte' if value == 1 else 'bytes'}"
    while (value := value / 1024) >= 1024 and len(units) > 1:
        units.pop(0)
    return f"{value:.1f} {units[0]}"
