"""The record of a named blob: whole or not at all, and never an exception."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream import Description
from shmstream.storage.record import Record
from shmstream.stream.spelling import is_spelled
from tests.support.stores import digest

KEYS = some.text(some.characters(exclude_categories=()), min_size=1)  # also half surrogates
DESCRIPTIONS = some.builds(
    Description,
    some.none() | some.integers(0, 1 << 80),
    some.none() | some.text(),
    some.none() | some.text(),
)
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_written_is_read(durable: bool, tmp_path: Path) -> None:
    path = str(tmp_path / "record")

    @given(KEYS, some.sampled_from((None, digest(1, 10))), DESCRIPTIONS)
    @example("\ud800", None, Description(0, "", ""))
    def prove(key: str, its_digest: str | None, metadata: Description) -> None:
        record = Record(key, its_digest, metadata)
        record.write(path, durable=durable)
        assert Record.read(path) == record

    prove()
    assert os.listdir(tmp_path) == ["record"]
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_random_bytes_are_no_record(tmp_path: Path) -> None:
    path = tmp_path / "record"

    @given(some.binary(max_size=300))
    @example(b"")
    @example(b"[" * 100_000)
    @example(b"9" * 5000)
    @example(b'{"key": 5}')
    @example(b'{"key": "k", "digest": null, "metadata": "{}"')
    def prove(data: bytes) -> None:
        path.write_bytes(data)
        assert Record.read(str(path)) is None

    prove()


def test_facts_of_any_kind_are_a_good_record_or_none(tmp_path: Path) -> None:
    path = tmp_path / "record"
    facts = some.fixed_dictionaries({}, optional={"key": JSON, "digest": JSON, "metadata": JSON})

    @given(facts)
    @example({"key": "k", "metadata": "{}", "digest": ["foo:bar"]})
    @example({"key": "k", "metadata": "{}", "digest": "sha256:" + "A" * 64})
    @example({"key": "k", "metadata": '{"size": -1}', "digest": None})
    @example({"key": "k", "metadata": '{"size": true}', "digest": None})
    def prove(facts: dict[str, object]) -> None:
        path.write_text(json.dumps(facts))
        record = Record.read(str(path))
        if record is not None:
            assert record.digest is None or is_spelled(record.digest)
            check(record.metadata)

    prove()


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        Record("key", None, Description()).write(str(path))
    assert os.listdir(tmp_path) == ["record"]
    assert Record.read(str(path)) is None


# What a source said.


def check(metadata: Description) -> None:
    assert metadata.size is None or (type(metadata.size) is int and metadata.size >= 0)
    assert metadata.validator is None or isinstance(metadata.validator, str)
    assert metadata.media_type is None or isinstance(metadata.media_type, str)


@given(DESCRIPTIONS)
def test_a_description_is_read_as_it_was_written(metadata: Description) -> None:
    assert Description.from_text(metadata.to_text(1 << 20)) == metadata


@given(DESCRIPTIONS, some.integers(90, 400))
def test_a_short_description_has_less_in_it_and_nothing_else(
    metadata: Description, limit: int
) -> None:
    """The media type goes first, then the validator; the size always fits."""
    text = metadata.to_text(limit)
    assert len(text) <= limit
    found = Description.from_text(text)
    assert found.size == metadata.size
    assert found.validator in (metadata.validator, None)
    assert found.media_type in (metadata.media_type, None)
    if found.validator != metadata.validator:
        assert found.media_type is None


@given(some.binary(max_size=200) | some.text(max_size=200) | JSON.map(json.dumps))
@example("[" * 100_000)
@example('{"size": 1e400}')
@example('{"size": false}')
@example('{"validator": 5}')
def test_any_text_is_a_good_description(text: bytes | str) -> None:
    check(Description.from_text(text))
