"""The control block: its table, its states, its page in the docs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shmstream import IllegalTransition
from shmstream.stream.control_block import (
    HEADER_SIZE,
    SLOT_SIZE,
    TERMINAL,
    TRANSITIONS,
    UNKNOWN,
    Block,
    Slot,
    State,
    Word,
    chunks_in,
    fields_of,
)
from tools import generate

DOCS = Path(__file__).parents[2] / "docs"


def new_block(slots: int = 4) -> Block:
    return Block(memoryview(bytearray(Block.size_for(slots))))


@pytest.mark.parametrize(("structure", "size"), [(Block, HEADER_SIZE), (Slot, SLOT_SIZE)])
def test_fields_are_aligned_and_do_not_overlap(structure: type[Block | Slot], size: int) -> None:
    end = 0
    for name, field in fields_of(structure).items():
        assert field.offset % 8 == 0, name
        assert field.offset >= end, name
        assert field.writer
        assert field.when
        assert field.meaning, name
        end = field.offset + field.size
    assert end <= size
    assert size % 64 == 0, "slots begin at cache lines"


def test_each_field_holds_what_is_stored_and_touches_no_other() -> None:
    block = new_block()
    expected: dict[str, int | bytes] = {}
    for number, (name, field) in enumerate(fields_of(Block).items(), start=1):
        value: int | bytes = (
            (1 << 64) - number if isinstance(field, Word) else b"x" * field.capacity
        )
        setattr(block, name, value)
        expected[name] = value
    assert {name: getattr(block, name) for name in expected} == expected
    assert block.memory[HEADER_SIZE:] == bytes(len(block.memory) - HEADER_SIZE)


def test_slots_do_not_touch_each_other() -> None:
    block = new_block()
    block.slots = 4
    for index in range(4):
        slot = block.slot(index)
        slot.pid, slot.started, slot.namespace, slot.position = (index, 10, 20, 30)
        slot.membership = (index + 100, bool(index % 2))
    assert [block.slot(index).pid for index in range(4)] == [0, 1, 2, 3]
    assert [block.slot(index).membership for index in range(4)] == [
        (100, False), (101, True), (102, False), (103, True),
    ]  # fmt: skip
    spans = [block.slot(index).span for index in range(4)]
    assert block.header_span == (0, HEADER_SIZE)
    assert block.slots_span == (spans[0][0], sum(length for _, length in spans))
    assert spans[-1][0] + SLOT_SIZE == Block.size_for(4)


def test_a_text_that_is_too_long_changes_nothing() -> None:
    block = new_block()
    block.digest = b"before"
    with pytest.raises(ValueError, match="do not fit"):
        block.digest = b"x" * (Block.digest.capacity + 1)
    assert block.digest == b"before"


@pytest.mark.parametrize(("present", "to"), list(itertools.product(State, State)))
def test_every_transition(present: State, to: State) -> None:
    block = new_block()
    block.state = present
    if to in TRANSITIONS[present]:
        block.advance(to, "name")
        assert block.state == to
    else:
        with pytest.raises(IllegalTransition) as caught:
            block.advance(to, "name")
        assert caught.value.facts == {"name": "name", "state": present.name, "to": to.name}
        assert f"is {present.name} and cannot become {to.name}" in str(caught.value)
        assert block.state == present


def test_terminal_states_and_ways_to_them() -> None:
    assert {State.COMMITTED, State.ABORTED} == TERMINAL
    assert set(TRANSITIONS) == set(State)
    assert not any(State.OPENING in following for following in TRANSITIONS.values())


def test_a_snapshot_outlives_its_block() -> None:
    block = new_block()
    block.published, block.path = 7, b"/somewhere"
    snapshot = block.snapshot()
    block.published = 8
    block.release()
    assert (snapshot.published, snapshot.path) == (7, b"/somewhere")


@pytest.mark.parametrize(
    ("published", "chunk_size", "size", "chunks"),
    [(0, 5, UNKNOWN, 0), (4, 5, UNKNOWN, 0), (5, 5, UNKNOWN, 1), (104, 5, UNKNOWN, 20),
     (104, 5, 104, 21), (105, 5, 105, 21), (0, 5, 0, 0), (4, 5, 104, 0)],
)  # fmt: skip
def test_chunks(published: int, chunk_size: int, size: int, chunks: int) -> None:
    assert chunks_in(published, chunk_size, size) == chunks


def test_the_page_is_what_the_tables_say() -> None:
    page = generate.page()
    assert (DOCS / "protocol.md").read_text(encoding="utf-8") == page, "run `make docs`"
    for name in [*fields_of(Block), *fields_of(Slot)]:
        assert f"`{name}`" in page
    assert page.count("- **I") == 8
