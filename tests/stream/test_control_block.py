"""The control block: its table, its states, what is refused, its page in the docs."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from shmstream import DamagedSegment, IllegalTransition
from shmstream.stream.control_block import (
    HEADER_SIZE,
    MAGIC,
    MAX_SLOTS,
    SLOT_SIZE,
    TERMINAL,
    TRANSITIONS,
    UNKNOWN,
    VERSION,
    Block,
    Slot,
    State,
    Word,
    chunks_in,
    fields_of,
    generations_in,
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


def test_several_words_at_once() -> None:
    block = new_block()
    block.store(size=5, published=3, token=7)
    assert (block.size, block.published, block.token) == (5, 3, 7)
    assert block.load("token", "size", "published") == [7, 5, 3]
    with pytest.raises(KeyError):
        block.store(digest=1)


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


def test_what_is_stored_at_once_is_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "segment"
    path.write_bytes(bytes(Block.size_for(4)))
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as mapped,
        memoryview(mapped) as memory,
    ):
        block = Block(memory, "name", file.fileno())
        compared: list[tuple[int, ...]] = []
        lseek = os.lseek

        def compare(*args: int) -> int:
            compared.append(args)
            return lseek(*args)

        monkeypatch.setattr(os, "lseek", compare)
        now = block.at_once()
        now.published, now.path = 7, b"/somewhere"
        assert (now.published, now.path, len(compared)) == (7, b"/somewhere", 1)
        assert (block.published, block.path, len(compared)) == (7, b"/somewhere", 4)
        os.truncate(path, 0)
        assert block.if_sound() is None
        with pytest.raises(DamagedSegment, match="cut off"):
            block.at_once()
        block.release()
        with pytest.raises(ValueError, match="released"):
            _ = now.published


@pytest.mark.parametrize(
    ("published", "chunk_size", "size", "chunks"),
    [(0, 5, UNKNOWN, 0), (4, 5, UNKNOWN, 0), (5, 5, UNKNOWN, 1), (104, 5, UNKNOWN, 20),
     (104, 5, 104, 21), (105, 5, 105, 21), (0, 5, 0, 0), (4, 5, 104, 0)],
)  # fmt: skip
def test_chunks(published: int, chunk_size: int, size: int, chunks: int) -> None:
    assert chunks_in(published, chunk_size, size) == chunks


@pytest.mark.parametrize("index", [0, 7, 8, 15, 16, 511, 999])
def test_slots_are_found_wherever_readers_have_taken_them(index: int) -> None:
    block = new_block(1000)
    block.slots = 1000
    assert block.taken() == block.ever_taken() == {}
    block.slot(index).membership = (3, True)
    assert block.taken() == block.ever_taken() == {index: 3}
    block.slot(index).membership = (3, False)
    assert block.taken() == {}
    assert block.ever_taken() == {index: 3}


@pytest.mark.parametrize("size", [0, 3, 8, 63, 65])
def test_memberships_of_a_segment_that_was_cut_off_have_the_whole_words(size: int) -> None:
    assert generations_in(bytes(size)) == {}
    words = (1 << 8).to_bytes(8, sys.byteorder) + bytes(size)
    assert generations_in(words) == {0: 1}


def valid_block() -> Block:
    block = new_block()
    block.slots, block.chunk_size, block.size = 4, 65536, UNKNOWN
    block.token, block.path = 123, b"/somewhere"
    block.version, block.magic = VERSION, MAGIC
    return block


def require_accepted_or_refused(block: Block) -> None:
    """What is accepted can be read without any further look at it."""
    try:
        is_accepted = block.validate("name")
    except DamagedSegment:
        return
    if not is_accepted:
        assert block.magic == 0
        return
    assert (block.magic, block.version) == (MAGIC, VERSION)
    assert block.state in set(State)
    assert 1 <= block.slots <= MAX_SLOTS
    assert sum(block.slots_span) <= len(block.memory)
    assert len(block.taken()) <= block.slots
    assert block.published <= block.size
    assert chunks_in(block.published, block.chunk_size, block.size) <= block.published
    assert block.path.startswith(b"/")


def whole_header(seed: int, more: int) -> bytes:
    """Random bytes that hypothesis need not draw one by one."""
    return random.Random(seed).randbytes(HEADER_SIZE + more)


@settings(deadline=None)
@given(
    memory=some.binary(max_size=200)
    | some.builds(whole_header, some.integers(0), some.integers(0, 99))
)
def test_random_bytes_are_refused_or_not_ready(memory: bytes) -> None:
    require_accepted_or_refused(Block(memoryview(bytearray(memory))))


WORDS = some.integers(0, 7) | some.integers(0, UNKNOWN) | some.integers(UNKNOWN - 7, UNKNOWN)
CHANGES = some.dictionaries(
    some.sampled_from(
        [name for name, field in fields_of(Block).items() if isinstance(field, Word)]
    ),
    WORDS,
    max_size=4,
)
SCRIBBLES = some.lists(
    some.tuples(some.integers(0, Block.size_for(4) - 1), some.binary(min_size=1, max_size=16)),
    max_size=3,
)


@settings(deadline=None, max_examples=500)
@given(
    changes=CHANGES, scribbles=SCRIBBLES, length=some.none() | some.integers(0, Block.size_for(4))
)
@example(changes={}, scribbles=[], length=None)
@example(changes={"state": State.COMMITTED, "size": 7, "published": 7}, scribbles=[], length=None)
@example(changes={"slots": MAX_SLOTS}, scribbles=[], length=None)
def test_a_header_that_was_changed_is_accepted_or_refused(
    changes: dict[str, int], scribbles: list[tuple[int, bytes]], length: int | None
) -> None:
    block = valid_block()
    assert block.validate("name")
    for name, value in changes.items():
        setattr(block, name, value)
    for start, data in scribbles:
        part = data[: len(block.memory) - start]
        block.memory[start : start + len(part)] = part
    require_accepted_or_refused(Block(block.memory[:length]))


def test_the_page_is_what_the_tables_say() -> None:
    page = generate.page()
    assert (DOCS / "protocol.md").read_text(encoding="utf-8") == page, "run `make docs`"
    for name in [*fields_of(Block), *fields_of(Slot)]:
        assert f"`{name}`" in page
    assert page.count("- **I") == 8
