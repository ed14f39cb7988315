"""The table of connections: its layout, the order of its stores, and what the next worker does."""

from __future__ import annotations

import os
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest

from shmstream.registry.server.connections import (
    MAGIC,
    RECORD_SIZE,
    RESPONSE_SIZE,
    UNKNOWN,
    VERSION,
    Continuation,
    Header,
    Record,
    Response,
    Step,
    Table,
    continuation,
    is_same_content,
)
from shmstream.stream.control_block import fields_of

HEAD = b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\netag: "a"\r\n\r\n'
BEGINNING, BODY = len(HEAD), 1000


@pytest.mark.parametrize("structure", [Header, Response, Record])
def test_fields_do_not_overlap(structure: type) -> None:
    fields = list(fields_of(structure).values())
    for field, following in pairwise(fields):
        assert field.offset + field.size <= following.offset
        assert field.offset % 8 == 0
    if structure is Response:
        assert fields[-1].offset + fields[-1].size == RESPONSE_SIZE
    assert all(field.meaning and field.when for field in fields)


def test_a_table_is_seen_by_both_sides() -> None:
    with closing(Table.make(3)) as mine:
        theirs = Table.attach(os.dup(mine.descriptor))
        assert theirs is not None
        with closing(theirs):
            assert (theirs.records, theirs.silence) == (3, 0.0)
            mine.record(2).begin(5, 6, 7, b"head", 8, is_last=True)
            last = theirs.record(2).last
            assert (last.written, last.taken, last.request, last.text) == (5, 6, 7, b"head")
            assert (last.head, last.body, last.is_last, last.end) == (4, 8, 1, 17)
            assert theirs.record(1).last.text == b""
            mine.beat()
            assert 0 <= theirs.silence < 60
            del last


def test_a_table_of_another_version_is_refused() -> None:
    with closing(Table.make(1)) as table:
        assert (table._header.magic, table._header.version) == (MAGIC, VERSION)
        table._header.version = VERSION + 1
        copy = os.dup(table.descriptor)
        assert Table.attach(copy) is None
        with pytest.raises(OSError):
            os.fstat(copy)
        table._header.version = VERSION
        os.ftruncate(table.descriptor, 100)
        assert Table.attach(os.dup(table.descriptor)) is None
        os.ftruncate(table.descriptor, 3 * RECORD_SIZE)


def test_a_response_becomes_the_last_one_by_one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memoryview(bytearray(RECORD_SIZE))
    record = Record(memory, memory.cast("Q"))
    record.begin(0, 0, 10, b"first", 0, is_last=False)
    first = record.last.copy()
    fill, seen = Response.fill, []

    def filled(response: Response, *facts: Any) -> None:
        fill(response, *facts)
        seen.append(record.last.copy())

    monkeypatch.setattr(Response, "fill", filled)
    record.begin(5, 10, 20, b"second", UNKNOWN, is_last=True)
    assert seen == [first], "until then the record has the whole response before"
    last = record.last
    assert (last.written, last.taken, last.request, last.text) == (5, 10, 20, b"second")
    assert (last.head, last.body, last.is_last) == (6, UNKNOWN, 1)


def test_text_grows_as_long_as_there_is_room() -> None:
    response = Response.of(b"")
    response.text = HEAD
    assert response.append(b"body")
    assert not response.append(bytes(response.room))
    assert response.append(b".")
    assert Response.of(response.copy()).text == HEAD + b"body."
    with pytest.raises(ValueError, match="do not fit"):
        response.text = bytes(response.room + 1)


def answered(request: int = 50, body: int = BODY, text: bytes = HEAD, **others: int) -> Response:
    """A response after 100 bytes that were written, and 200 that were read."""
    response = Response.of(b"")
    response.written, response.taken, response.request = 100, 200, request
    response.head, response.body, response.text = BEGINNING, body, text
    for name, value in others.items():
        setattr(response, name, value)
    return response


WHOLE = 100 + BEGINNING + BODY
CASES: list[tuple[Response, int, int, Step, int]] = [
    (Response.of(b""), 0, 0, Step.WAIT, 0),  # no request yet
    (Response.of(b""), 0, 7, Step.GIVE_UP, 0),  # half a head was read
    (answered(), 100, 200, Step.ANSWER, 0),  # noted, and not written
    (answered(), 101, 200, Step.RESUME, 50),  # in the head
    (answered(), 100 + BEGINNING, 200, Step.RESUME, 50),
    (answered(), WHOLE - 1, 200, Step.RESUME, 50),
    (answered(), WHOLE, 200, Step.WAIT, 50),  # the request is still to be read
    (answered(), WHOLE, 250, Step.WAIT, 0),  # it was read
    (answered(is_last=1), WHOLE, 200, Step.END, 50),
    (answered(), WHOLE, 230, Step.GIVE_UP, 0),  # a part of it
    (answered(), WHOLE, 251, Step.GIVE_UP, 0),  # a part of the next one
    (answered(), WHOLE + 1, 200, Step.GIVE_UP, 0),
    (answered(), 99, 200, Step.GIVE_UP, 0),
    (answered(), 150, 250, Step.GIVE_UP, 0),  # the request is gone, and was to be repeated
    (answered(request=0), 150, 200, Step.GIVE_UP, 0),  # it was read before
    (answered(request=0), WHOLE, 200, Step.WAIT, 0),
    (answered(request=0, body=4, text=HEAD + b"body"), 100, 200, Step.TEXT, 0),
    (answered(body=4, text=HEAD + b"body"), 150, 200, Step.TEXT, 50),
    (answered(body=4, text=HEAD + b"bo"), 150, 200, Step.RESUME, 50),
    (answered(body=UNKNOWN), 100, 200, Step.ANSWER, 0),
    (answered(body=UNKNOWN), 101, 200, Step.GIVE_UP, 0),
    (answered(taken=UNKNOWN), WHOLE, 200, Step.GIVE_UP, 0),  # other requests were read
    (answered(taken=UNKNOWN), 100, 200, Step.GIVE_UP, 0),
]


@pytest.mark.parametrize(("last", "written", "taken", "step", "unread"), CASES)
def test_how_a_connection_goes_on(
    last: Response, written: int, taken: int, step: Step, unread: int
) -> None:
    gone = written - last.written if step in (Step.TEXT, Step.RESUME) else 0
    assert continuation(last, written, taken) == Continuation(step, unread, gone)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (HEAD, True),
        (HEAD.replace(b"\r\n\r\n", b"\r\ndate: now\r\nCache-Status: hit\r\n\r\n"), True),
        (HEAD.replace(b"etag", b"ETag"), True),
        (HEAD.replace(b"200 OK", b"206 Partial Content"), False),
        (HEAD.replace(b"1000", b"1001"), False),
        (HEAD.replace(b'"a"', b'"b"'), False),
        (HEAD.replace(b"\r\n\r\n", b"\r\ncontent-range: bytes 0-999/2000\r\n\r\n"), False),
    ],
)
def test_heads_of_the_same_content(other: bytes, same: bool) -> None:
    assert is_same_content(HEAD, other) == is_same_content(other, HEAD) == same


@pytest.mark.parametrize("tag", [b"", b'etag: W/"a"\r\n'])
def test_without_a_strong_etag_nothing_is_the_same(tag: bytes) -> None:
    head = HEAD.replace(b'etag: "a"\r\n', tag)
    assert not is_same_content(head, head)
