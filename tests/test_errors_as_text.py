"""Errors as text in the control block: whatever fits comes back, and no error is cut for ever."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from shmstream.errors import (
    BlobAborted,
    ContentChanged,
    DigestMismatch,
    FailureKind,
    OutOfRoom,
    SizeMismatch,
    SourceFailed,
)

texts = some.text(max_size=300)
names = some.text(alphabet="abc-0123", min_size=1, max_size=40)
ends = some.one_of(
    some.builds(BlobAborted, names, some.integers(0, 2**63), texts),
    some.builds(SizeMismatch, names, some.integers(0), texts, some.integers(0), some.integers(0)),
    some.builds(DigestMismatch, names, some.integers(0, 2**63), texts, names, names),
    some.builds(
        SourceFailed, names, some.integers(0, 2**63), texts,
        some.none() | some.integers(100, 599), some.sampled_from(FailureKind),
    ),
    some.builds(ContentChanged, names, some.integers(0, 2**63), texts),
    some.builds(OutOfRoom, names, some.integers(0, 2**63), texts),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(ends, some.integers(500, 3000))
def test_an_error_as_text(error: BlobAborted, limit: int) -> None:
    """It is never longer than its room; all but the end of an overlong reason comes back."""
    text = error.to_text(limit)
    assert len(text) <= limit
    copy = BlobAborted.from_text(text)
    assert type(copy) is type(error)
    if copy.reason != error.reason:
        assert copy.reason.endswith("...")
        assert error.reason.startswith(copy.reason[:-3])
        assert len(error.to_text(1 << 20)) > limit
    assert {**copy.facts, "reason": ""} == {**error.facts, "reason": ""}


def test_an_error_that_does_not_fit_is_not_tried_for_ever() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        BlobAborted("n" * 100, 5, "why").to_text(100)


@settings(deadline=None, max_examples=300)
@given(
    some.binary(max_size=60) | some.text(alphabet='{}[]":,errokind0', max_size=60).map(str.encode)
)
@example(b'{"error": []}')
@example(b'{"error": {}, "kind": 5}')
@example(b'{"error": "OutOfRoom", "x": ' + b"9" * 5000 + b"}")
def test_whatever_an_error_is_read_from(text: bytes) -> None:
    with pytest.raises(ValueError):
        BlobAborted.from_text(text)
