"""Texts for people: times and columns."""

from __future__ import annotations

from shmstream.cli import formatting


def test_formatting() -> None:
    assert [formatting.left(each) for each in (None, 0, 3.2, 61, 3723)] == [
        "", "0:00", "0:04", "1:01", "1:02:03",
    ]  # fmt: skip
    assert formatting.in_columns([("a", "1"), ("bcd", "22")], right=[1]) == "a     1\nbcd  22"
