"""Texts for people: times, columns, and keys with control characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from shmstream.cli import formatting


def test_formatting() -> None:
    assert [formatting.left(each) for each in (None, 0, 3.2, 61, 3723)] == [
        "", "0:00", "0:04", "1:01", "1:02:03",
    ]  # fmt: skip
    assert formatting.printable("ä b\t\x1b[2J") == "ä b\\t\\x1b[2J"
    assert formatting.in_columns([("a", "1"), ("bcd", "22")], right=[1]) == "a     1\nbcd  22"


@given(some.text())
def test_no_text_moves_the_cursor(text: str) -> None:
    shown = formatting.printable(text)
    assert shown.isprintable()
    assert formatting.printable(shown) == shown
