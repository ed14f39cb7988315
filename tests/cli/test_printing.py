"""What programs read from standard output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream.cli.printing import show_json

JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=10,
)


def test_json_is_indented_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    @given(JSON)
    @example({"blobs": [{"key": "a", "size": 1}, {}], "flights": [], "store": "/a, b: {c}"})
    @example({"blobs": [{"key": "},\n      {", "size": 1}, {"a": 1.5, "b": None, "c": True}]})
    @example([{"number": number, "text": "},"} for number in range(2500)])
    def prove(facts: Any) -> None:
        show_json(facts)
        assert capsys.readouterr().out == json.dumps(facts, indent=2) + "\n"

    prove()
