"""Errors carry their facts through pickling and to other processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as some

from shmstream import (
    BlobAborted,
    BlobStreamer,
    DigestMismatch,
    ShmstreamError,
    StreamNotFound,
    WriterDied,
    errors,
)
from tests.support import roles
from tests.support.interpreters import Interpreter


def test_errors_survive_pickling_and_carry_their_facts() -> None:
    examples: list[ShmstreamError] = [
        StreamNotFound("name", 5.0),
        WriterDied("name", 7, "pid 1"),
        BlobAborted("name", 7, "reason"),
        DigestMismatch("name", 7, "reason", "sha256:a", "sha256:b"),
        errors.OutOfResources("name", "space", 28, "detail"),
        errors.OutOfRoom("name", 7, "reason"),
        errors.IllegalTransition("name", "COMMITTED", "ABORTED"),
    ]
    for error in examples:
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert back.facts == error.facts
        assert str(back) == str(error)
        assert "name" in str(error)
        with pytest.raises(type(error)):
            raise back
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, ShmstreamError):
            assert kind.__doc__


def test_an_error_crosses_processes_whole(start: Callable[..., Interpreter], blob: str) -> None:
    with BlobStreamer.create(blob, size=5) as streamer:
        reader = start(roles.read, streamer.name, {})
        assert [reader.hear(), reader.hear()] == ["starting", "attached"]
        with pytest.raises(errors.SizeMismatch) as caught:
            streamer.transfer([b"too many"])
        assert reader.hear()["text"] == str(caught.value)


def test_escaped() -> None:
    assert errors.escaped("ä b\t\x1b[2J") == "ä b\\t\\x1b[2J"
    assert errors.escaped("a\u202eb\ud800") == "a\\u202eb\\ud800"


@given(some.text())
def test_no_text_moves_the_cursor(text: str) -> None:
    shown = errors.escaped(text)
    assert shown.isprintable()
    assert errors.escaped(shown) == shown
