"""Sizes and durations: what people write is read back, and everything else is refused."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from shmstream import units

FACTORS = {
    "": 1, "b": 1, "k": 2**10, "kib": 2**10, "kb": 10**3, "m": 2**20, "mib": 2**20, "mb": 10**6,
    "g": 2**30, "gib": 2**30, "gb": 10**9, "t": 2**40, "tib": 2**40, "tb": 10**12,
    "p": 2**50, "pib": 2**50, "pb": 10**15,
}  # fmt: skip
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
spaces = some.sampled_from(["", " ", "  "])


@settings(deadline=None, max_examples=200)
@given(some.integers(0, 2**64), some.sampled_from(sorted(FACTORS)), spaces, some.booleans())
@example(2**53 + 1, "", "", False)
def test_a_size(number: int, unit: str, space: str, upper: bool) -> None:
    text = f"{space}{number}{space}{unit.upper() if upper else unit}{space}"
    assert units.size(text) == number * FACTORS[unit]


def test_a_size_with_a_fraction() -> None:
    assert units.size("1.5KiB") == 1536
    assert units.size("0.1 GB") == 100_000_000
    assert units.size("1.9") == 1


@settings(deadline=None, max_examples=200)
@given(some.integers(0, 10**9), some.sampled_from(sorted(SECONDS)), spaces)
def test_a_duration(number: int, unit: str, space: str) -> None:
    assert units.duration(f"{number}{space}{unit}") == number * SECONDS[unit]
    assert units.duration(f"{number}.5{space}{unit.upper()}") == (number + 0.5) * SECONDS[unit]


@settings(deadline=None, max_examples=500)
@given(some.text(alphabet="0123456789.kKmMgGtTpPiIbBsShHdDwW \u017f\u212a\u0663-e", max_size=12))
@example("1\u017f")
@example("9" * 400)
@example("9" * 5000)
@example("1" * 5000 + "w")
def test_whatever_is_written(text: str) -> None:
    """The answer is a number that can be used, or a ValueError."""
    for read in (units.size, units.duration):
        with suppress(ValueError):
            value = read(text)
            assert value >= 0
            assert math.isfinite(value)
            assert text.isascii()


@settings(deadline=None, max_examples=200)
@given(some.integers(0, 2**60))
@example(1)
@example(1023)
@example(2**20 - 1)
def test_an_amount_is_read_back(count: int) -> None:
    shown = units.amount(count)
    assert re.fullmatch(r"\d+ bytes?|\d+\.\d [KMGT]iB", shown)
    if shown.endswith("iB"):
        last_digit = 0.05 * FACTORS[shown.split()[1].lower()]
        assert abs(units.size(shown) - count) <= last_digit + 1
    else:
        assert shown == f"{count} byte{'' if count == 1 else 's'}"


@pytest.mark.parametrize("text", ["", " ", "-1", "1e3", "1.", ".5", "many", "1 KiBs", "1s s"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        units.size(text)
    with pytest.raises(ValueError, match="no duration"):
        units.duration(text)
