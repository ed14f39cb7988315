"""The control block: the state of one stream, in memory that all its processes share.

    0             HEADER_SIZE            + 8 x slots               + 64 x slots
    +-------------+----------------------+--------------------------+
    | header      | memberships          | slots                    |
    | the writer  | one word a slot:     | one cache line a slot:   |
    | writes      | its reader writes    | its reader writes        |
    +-------------+----------------------+--------------------------+

The layout is the classes below: `Word` and `Text` fields, each with its offset, its one writing
role, the moment of writing, and the order in which it is stored. This is the only code that touches
raw shared bytes, and `docs/protocol.md` is made from these tables. Words are aligned and 64 bits
wide. They are stored and loaded through a `memoryview` cast to words, which is one machine
instruction; `struct.pack_into` would let a reader see zeros. All numbers are in host byte order;
sizes and offsets of blobs are in bytes.

Another program may cut the shared memory off, and to touch a page behind its end is SIGBUS. So
every load and store first compares the size of the file with that of the block, and raises
`DamagedSegment`. Where several follow one another, one comparison is for all of them (`at_once`).
For `load_published`, `load_state`, and for views that are kept, the caller does it
(`require_whole`). What remains is the moment between the comparison and the load.

The memberships lie together, so that the writer sees with one comparison of a few KiB whether a
reader has come or gone since the last ring.

    I1 `published` never decreases, and never exceeds the size.
    I2 Bytes below `published` are on disk and never change.
    I3 Size, error and `published` are final before a terminal state is stored.
    I4 A ring may be spurious or missing: the truth is in the block, every wait is bounded, and a
       reader loads the block again after every wait.
    I5 With a digest, the last chunk is withheld until the digest of all bytes is verified and the
       blob has its final name. Only a reader for another host may have it before it has that name,
       when `verified` says that the digest is right: it withholds the chunk from its own readers.
    I6 No reader can block, slow or kill the writer; no reader can block another reader.
    I7 Data ends only when the state is COMMITTED.
    I8 The next user of the host removes what a SIGKILL leaves behind; nothing alive is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, ClassVar, Protocol, Self, overload

from shmstream.errors import DamagedSegment, IllegalTransition
from shmstream.stream.digest import is_known
from shmstream.stream.partial import partial_path

MAGIC = int.from_bytes(b"shmstrm\0", "little")
VERSION = 1
HEADER_SIZE = 8192
SLOT_SIZE = 64
MAX_SLOTS = 1 << 16
_FIRST = 64  # bytes of memberships; readers take the first slots
UNKNOWN = (1 << 64) - 1
"""The stored size of a blob whose size the writer does not know yet."""


class State(IntEnum):
    """The state of a stream. COMMITTED and ABORTED never change again."""

    OPENING = 0
    STREAMING = 1
    COMMITTED = 2
    ABORTED = 3


TRANSITIONS: dict[State, frozenset[State]] = {
    State.OPENING: frozenset({State.STREAMING, State.ABORTED}),
    State.STREAMING: frozenset({State.COMMITTED, State.ABORTED}),
    State.COMMITTED: frozenset(),
    State.ABORTED: frozenset(),
}
"""The states that may follow each state. *Orphaned* is observed (no process holds the lock on the
header of a stream that is not terminal) and never stored."""

_STATES = tuple(State)  # by number
TERMINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
LIVE = frozenset(TRANSITIONS) - TERMINAL


_PARTIAL = os.fsencode(partial_path(""))
_FILE_WHEN = "creation; again before STREAMING if another file is begun"


class _HasWords(Protocol):
    @property
    def words(self) -> memoryview: ...


class _HasMemory(_HasWords, Protocol):
    @property
    def memory(self) -> memoryview: ...


@dataclass(frozen=True)
class Word:
    """An aligned 64-bit unsigned field at `offset` from the start of its structure."""

    offset: int
    writer: str
    when: str
    order: str = ""
    meaning: str = ""
    size: ClassVar[int] = 8

    @overload
    def __get__(self, block: None, owner: type) -> Self: ...
    @overload
    def __get__(self, block: _HasWords, owner: type) -> int: ...
    def __get__(self, block: _HasWords | None, owner: type) -> Self | int:
        if block is None:
            return self
        word: int = block.words[self.offset >> 3]
        return word

    def __set__(self, block: _HasWords, value: int) -> None:
        block.words[self.offset >> 3] = value


@dataclass(frozen=True)
class Text:
    """A word at `offset` with a number of bytes, then the bytes, at most `capacity`."""

    offset: int
    capacity: int
    writer: str
    when: str
    order: str = ""
    meaning: str = ""

    @property
    def size(self) -> int:
        """Bytes that the field takes up in the block."""
        return 8 + self.capacity

    @overload
    def __get__(self, block: None, owner: type) -> Self: ...
    @overload
    def __get__(self, block: _HasMemory, owner: type) -> bytes: ...
    def __get__(self, block: _HasMemory | None, owner: type) -> Self | bytes:
        if block is None:
            return self
        length = min(block.words[self.offset >> 3], self.capacity)
        start = self.offset + 8
        return bytes(block.memory[start : start + length])

    def __set__(self, block: _HasMemory, value: bytes) -> None:
        if len(value) > self.capacity:
            raise ValueError(f"{len(value)} bytes do not fit into {self.capacity}")
        start = self.offset + 8
        block.memory[start : start + len(value)] = value
        block.words[self.offset >> 3] = len(value)


class Block:
    """The control block of one stream, laid over `memory`, which the caller keeps mapped.

    Loads and stores are single machine words and never block. `release` the block before the
    memory is unmapped.
    """

    magic: Word = Word(
        0, "writer", "creation", "last of all at creation", "`shmstrm` and a zero byte"
    )
    version: Word = Word(8, "writer", "creation", "", "layout version")
    slots: Word = Word(16, "writer", "creation", "", "number of subscriber slots")
    token: Word = Word(
        24, "writer", "creation", "", "48 random bits that name this stream's doorbells"
    )
    chunk_size: Word = Word(
        32, "writer", "creation", "", "bytes of a chunk; the last may be shorter"
    )
    writer_pid: Word = Word(
        40, "writer", "creation, takeover", "", "the writer's process id, in its pid namespace"
    )
    writer_started: Word = Word(
        48,
        "writer",
        "creation, takeover",
        "",
        "start time of the writer's process, in us since 1970",
    )
    writer_namespace: Word = Word(
        56, "writer", "creation, takeover", "", "inode of the writer's pid namespace"
    )
    device: Word = Word(64, "writer", _FILE_WHEN, "", "device of the partial file")
    inode: Word = Word(72, "writer", _FILE_WHEN, "", "inode of the partial file")
    file_generation: Word = Word(
        88, "writer", _FILE_WHEN, "", "generation of that inode: its number may be used again"
    )
    epoch: Word = Word(80, "writer", "takeover", "", "number of takeovers so far")
    resumable: Word = Word(
        96, "writer", "creation", "", "1: the partial file outlives a dead or aborting writer"
    )
    size: Word = Word(
        128,
        "writer",
        "once: at creation, when the source tells it, or at commit",
        "before COMMITTED (I3)",
        "bytes of the blob; all ones: unknown",
    )
    changed: Word = Word(
        136,
        "writer",
        "before STREAMING, after each change of the partial file, of a resumable stream",
        "after the change, before `writing`",
        "time of its last change (st_ctime), in ns since 1970; 0: not noted",
    )
    writing: Word = Word(
        144,
        "writer",
        "around each change of the partial file, of a resumable stream",
        "before the change, and after `changed`",
        "when the change in progress began, in ns since 1970; 0 between changes",
    )
    published: Word = Word(
        192,
        "writer",
        "publish",
        "after the bytes are written (I2)",
        "bytes that can be read: the truth (I1)",
    )
    chunk_count: Word = Word(
        200,
        "writer",
        "publish",
        "after `published`, before the rings",
        "whole chunks that can be read; the short last chunk counts once the end is known",
    )
    progress: Word = Word(
        208,
        "writer",
        "creation, takeover, publish",
        "",
        "time of the last of these, in ns of the host's monotonic clock",
    )
    state: Word = Word(
        216, "writer", "transition", "after all fields that it makes final (I3)", "see States"
    )
    verified: Word = Word(
        224,
        "writer",
        "before the commit",
        "after the digest of all bytes is verified (I5)",
        "the size, once all bytes are known to be right; 0 before, or if nobody reads ahead",
    )
    digest: Text = Text(
        256, 248, "writer", "creation", "", "`algorithm:hex`, the algorithm alone, or empty"
    )
    path: Text = Text(
        512, 4096, "writer", "creation", "", "path of the blob; the partial file is beside it"
    )
    error: Text = Text(
        4616,
        2536,
        "writer",
        "abort; hand-over to a reader with other sources",
        "before ABORTED (I3)",
        "reason of the abort, as JSON",
    )
    metadata: Text = Text(
        7160,
        1024,
        "writer",
        "once",
        "before STREAMING",
        "what the source says of the blob, as JSON",
    )

    def __init__(self, memory: memoryview, name: str = "", fd: int = -1) -> None:
        """`fd` is the file of the mapped `memory`, if another program could cut it off."""
        self.name = name
        self._memory = memory
        self._words = memory[: len(memory) // 8 * 8].cast("Q")
        self._fd = fd
        self._size = len(memory) if fd >= 0 else 0
        self._compared: Block | None = None
        load = self._words.__getitem__
        self.load_published: Callable[[], int] = partial(load, _PUBLISHED_AT)
        """Loads `published` without a Python frame, which costs microseconds after a wake-up."""
        self.load_state: Callable[[], int] = partial(load, _STATE_AT)
        """Loads the state, likewise, as a number that may be none of the states."""

    @property
    def is_whole(self) -> bool:
        """Whether all of the memory can be touched."""
        return self._fd < 0 or os.lseek(self._fd, 0, os.SEEK_END) >= self._size

    @property
    def is_sound(self) -> bool:
        """Whether its writer can tell readers anything: it is whole, and has a known state."""
        if self._fd >= 0 and os.lseek(self._fd, 0, os.SEEK_END) < self._size:
            return False
        return self.load_state() <= State.ABORTED

    def at_once(self) -> Block:
        """The block for several loads or stores in a row, all of them made now.

        Only this call compares the sizes, so nothing that takes a while may come in between.

        Raises:
            DamagedSegment: another program has cut the shared memory off.
        """
        if self._fd >= 0 and os.lseek(self._fd, 0, os.SEEK_END) < self._size:
            raise self._cut_off()
        return self._compared or self._bare()

    def if_sound(self) -> Block | None:
        """As `at_once`; None if it is not sound."""
        return (self._compared or self._bare()) if self.is_sound else None

    def change_begins(self, when: int) -> None:
        """Note that the partial file is changed from now on, if there is a sound block."""
        if self.is_sound:
            self._words[_WRITING_AT] = when

    def change_ended(self, changed: int) -> None:
        """Note the time of its last change; no change is in progress."""
        if self.is_sound:
            self._words[_CHANGED_AT] = changed
            self._words[_WRITING_AT] = 0

    def _bare(self) -> Block:
        """The same memory, without comparisons."""
        if self._fd < 0:
            return self
        if self._compared is None:
            bare = _Compared.__new__(_Compared)
            vars(bare).update(vars(self), _fd=-1, words=self._words, memory=self._memory)
            self._compared = bare
        return self._compared

    def require_whole(self) -> None:
        """Raises:
        DamagedSegment: another program has cut the shared memory off.
        """
        if self._fd >= 0 and os.lseek(self._fd, 0, os.SEEK_END) < self._size:
            raise self._cut_off()

    def _cut_off(self) -> DamagedSegment:
        return DamagedSegment(self.name, f"it was cut off from its {self._size} bytes")

    @property
    def memory(self) -> memoryview:
        """The bytes of the block."""
        self.require_whole()
        return self._memory

    @property
    def words(self) -> memoryview:
        """The bytes of the block, as words."""
        if self._fd >= 0 and os.lseek(self._fd, 0, os.SEEK_END) < self._size:
            raise self._cut_off()
        return self._words

    def load(self, *names: str) -> list[int]:
        """The words with these names, loaded in this order. Compares the sizes once.

        Raises:
            DamagedSegment: another program has cut the shared memory off.
        """
        words = self.words
        return [words[_INDEX[each]] for each in names]

    def store(self, **values: int) -> None:
        """Store words, in the order in which they are given. Compares the sizes once.

        Raises:
            DamagedSegment: another program has cut the shared memory off.
        """
        words = self.words
        for name in values:
            words[_INDEX[name]] = values[name]

    @staticmethod
    def size_for(slots: int) -> int:
        """Bytes of shared memory that a block with that number of slots takes."""
        return HEADER_SIZE + slots * (8 + SLOT_SIZE)

    @staticmethod
    def read_token(fd: int, name: str) -> int:
        """The token in a segment's file; 0 if its writer has not stored it yet.

        Raises:
            DamagedSegment: the file is no control block, or has another layout version.
        """
        words = memoryview(os.pread(fd, Block.token.offset + 8, 0).ljust(32, b"\0")).cast("Q")
        magic, version, _, token = words
        if magic not in (0, MAGIC) or (magic and version != VERSION):
            raise DamagedSegment(name=name, reason="it is of another kind, or of another version")
        return token

    @staticmethod
    def read_ever_taken(fd: int, slots: int) -> dict[int, int]:
        """As `ever_taken`, in a segment's file of so many slots."""
        return generations_in(os.pread(fd, slots * 8, HEADER_SIZE))

    @classmethod
    def read(cls, fd: int, name: str = "") -> Block:
        """A copy of the header in a segment's file; zeros where the file is shorter."""
        header = os.pread(fd, HEADER_SIZE, 0).ljust(HEADER_SIZE, b"\0")
        return cls(memoryview(bytearray(header)), name)

    def validate(self, name: str, available: int | None = None) -> bool:
        """Whether the block is ready to be read; False while its writer is still making it.

        `available` is the size of the segment in bytes, if `memory` is only a copy of the header.

        Raises:
            DamagedSegment: it is no control block, has another layout version, or is inconsistent.
        """

        def refuse(reason: str) -> DamagedSegment:
            return DamagedSegment(name=name, reason=reason)

        available = len(self._memory) if available is None else available
        if available < HEADER_SIZE:
            raise refuse(f"{available} bytes are shorter than a header of {HEADER_SIZE}")
        now = self.at_once()
        magic, version = now.load("magic", "version")
        if magic == 0:
            return False
        if magic != MAGIC:
            raise refuse(f"magic is {magic:#018x}, not {MAGIC:#018x}")
        if version != VERSION:
            raise refuse(f"layout version is {version}; this program reads {VERSION}")
        for reason in now._inconsistencies(available):
            raise refuse(reason)
        return True

    def _inconsistencies(self, available: int) -> Iterator[str]:
        state, slots, published, size, chunk_size, token = self.load(
            "state",  # first: fields that a terminal state makes final are loaded later (I3)
            "slots", "published", "size", "chunk_size", "token",
        )  # fmt: skip
        if not 1 <= slots <= MAX_SLOTS:
            yield f"it claims {slots} slots"
        if available < self.size_for(slots):
            yield f"{available} bytes have no room for its slots"
        if chunk_size == 0:
            yield "its chunks have no bytes"
        if state > State.ABORTED:
            yield f"its state is {state}"
        if state == State.COMMITTED and published != size:
            yield "it is committed, and not complete"
        if published > size:
            yield f"it published {published} bytes of {size}"
        if token >> 48 > 0:
            yield "its token is out of bounds"
        if not is_path(self.path):
            yield "its path is no absolute path"
        if not is_known(self.digest):
            yield "its digest is of no kind that this program knows"

    def known_state(self) -> State:
        """The state.

        Raises:
            DamagedSegment: another program has stored a number that is no state.
        """
        if self._fd >= 0 and os.lseek(self._fd, 0, os.SEEK_END) < self._size:
            raise self._cut_off()
        state = self.load_state()
        try:
            return _STATES[state]
        except IndexError:
            raise DamagedSegment(self.name, f"its state is {state}") from None

    def require(self, to: State, name: str) -> None:
        """Require that the state `to` may follow the present state.

        Raises:
            IllegalTransition: it may not.
        """
        present = self.known_state()
        if to not in TRANSITIONS[present]:
            raise IllegalTransition(name=name, state=present.name, to=to.name)

    def advance(self, to: State, name: str) -> None:
        """Store the state `to` if it may follow the present state; otherwise change nothing.

        Raises:
            IllegalTransition: it may not.
        """
        now = self.at_once()
        now.require(to, name)
        now.state = to

    @property
    def file_path(self) -> str:
        """The path of the blob.

        Raises:
            DamagedSegment: another program has stored a text that is no path.
        """
        if not is_path(path := self.path):
            raise DamagedSegment(self.name, "its path is no absolute path")
        return os.fsdecode(path)

    @property
    def file(self) -> tuple[int, int, int]:
        """Identity of the partial file: device, inode, generation."""
        device, inode, generation = self.load("device", "inode", "file_generation")
        return device, inode, generation

    @property
    def header_span(self) -> tuple[int, int]:
        """The bytes that the writer writes, and on which it holds a lock."""
        return (0, HEADER_SIZE)

    @property
    def life_span(self) -> tuple[int, int]:
        """The bytes whose lock only a writer holds: a reaper locks just the byte before them."""
        return (1, HEADER_SIZE - 1)

    @property
    def slots_span(self) -> tuple[int, int]:
        """The bytes of all slots: only live readers hold locks on them."""
        now = self.at_once()
        return (now._slot_offset(0), now.slots * SLOT_SIZE)

    def memberships(self) -> memoryview:
        """All membership words, as a view; the caller releases it before the block."""
        now = self.at_once()
        return now.words[HEADER_SIZE >> 3 : (HEADER_SIZE >> 3) + now.slots]

    def taken(self) -> dict[int, int]:
        """The slots that readers have, dead or alive: slot number -> generation."""
        with self.memberships() as words:
            return active_in(words.tobytes())

    def ever_taken(self) -> dict[int, int]:
        """All slots that a reader has ever taken: slot number -> generation."""
        with self.memberships() as words:
            return generations_in(words.tobytes())

    def slot(self, index: int) -> Slot:
        """The slot of that number."""
        now = self.at_once()
        return Slot(now, index, now._slot_offset(index))

    def reads_ahead(self, index: int) -> bool:
        """Whether the reader with the slot of that number reads for another host."""
        now = self.at_once()
        return bool(now.words[(now._slot_offset(index) + Slot.ahead.offset) >> 3])

    def _slot_offset(self, index: int) -> int:
        return HEADER_SIZE + self.slots * 8 + index * SLOT_SIZE

    def snapshot(self) -> Block:
        """A copy of the header as it is now, without slots; zeros if it was cut off."""
        if self._fd >= 0:
            return Block.read(self._fd, self.name)
        return Block(memoryview(bytearray(self._memory[:HEADER_SIZE])), self.name)

    def release(self) -> None:
        """Release the memory, so that it can be unmapped."""
        self._fd = -1  # it may be another file's by and by
        self._compared = None
        self._words.release()


class _Compared(Block):
    """A block that was compared with its file a moment ago, and is not compared again."""

    words: memoryview = memoryview(b"")
    memory: memoryview = memoryview(b"")


class Slot:
    """The slot of one subscriber: the reader that holds the lock on its bytes writes it.

    The membership word, which lies apart, is `generation << 8 | active`. Each reader that takes the
    slot begins a new generation, so that no two readers have doorbells of the same name. It stores
    the generation before it makes the doorbell, so the word names every doorbell that may exist.
    """

    pid: Word = Word(0, "reader", "subscribe", "before the membership", "the reader's process id")
    started: Word = Word(
        8,
        "reader",
        "subscribe",
        "before the membership",
        "start time of that process, in us since 1970",
    )
    namespace: Word = Word(
        16, "reader", "subscribe", "before the membership", "inode of its pid namespace"
    )
    position: Word = Word(
        24,
        "reader",
        "read",
        "",
        "bytes that it has read (up to 64 KiB less, unless it waits): for people only",
    )
    sources: Word = Word(
        32,
        "reader",
        "subscribe; again when its sources change",
        "before the membership",
        "a number that readers with other sources have not; 0: no source to lead with",
    )
    ahead: Word = Word(
        40,
        "reader",
        "subscribe",
        "before the membership",
        "1: it reads for another host, and may have what is `verified`; it is rung often",
    )

    def __init__(self, block: Block, index: int, offset: int) -> None:
        self.index = index
        self.span: tuple[int, int] = (offset, SLOT_SIZE)
        self.words: memoryview = block.words[offset >> 3 : (offset + SLOT_SIZE) >> 3]
        self._membership = block.words[(HEADER_SIZE >> 3) + index : (HEADER_SIZE >> 3) + index + 1]

    @property
    def membership(self) -> tuple[int, bool]:
        """Generation, and whether a reader has the slot."""
        word: int = self._membership[0]
        return word >> 8, bool(word & 1)

    @membership.setter
    def membership(self, value: tuple[int, bool]) -> None:
        generation, active = value
        self._membership[0] = generation << 8 | active

    def release(self) -> None:
        """Release the memory, so that it can be unmapped."""
        self.words.release()
        self._membership.release()


def generations_in(memberships: bytes) -> dict[int, int]:
    """The slots that a reader has ever taken, in the bytes of all membership words."""
    end = _end_of_used(memberships)
    with memoryview(memberships[:end]) as used, used.cast("Q") as words:
        return {index: word >> 8 for index, word in enumerate(words) if word}


def active_in(memberships: bytes) -> dict[int, int]:
    """The slots that readers have, dead or alive, in the bytes of all membership words."""
    end = _end_of_used(memberships)
    with memoryview(memberships[:end]) as used, used.cast("Q") as words:
        return {index: word >> 8 for index, word in enumerate(words) if word & 1}


def _end_of_used(memberships: bytes) -> int:
    """Where the memberships end that readers have ever taken; most slots are never taken.

    To compare 8 KiB with zeros takes far less time than `rstrip` takes.
    """
    end, size = _FIRST, len(memberships)
    while not memberships.endswith(bytes(max(size - end, 0))):
        end *= 2
    return min(end, size // 8 * 8)


def is_path(text: bytes) -> bool:
    """Whether a block may have this text as the path of its blob."""
    longest = max(map(len, (text + _PARTIAL).split(b"/")))  # no file system has longer names
    return text.startswith(b"/") and b"\0" not in text and longest <= 255


def fields_of(structure: type[Any]) -> dict[str, Word | Text]:
    """The field table of `Block` or `Slot`, by name, in order of offset."""
    found = {name: each for name, each in vars(structure).items() if isinstance(each, Word | Text)}
    return dict(sorted(found.items(), key=lambda item: item[1].offset))


_INDEX = {
    name: each.offset >> 3 for name, each in fields_of(Block).items() if isinstance(each, Word)
}
"""Where each word of the header lies, by name."""
_PUBLISHED_AT, _STATE_AT = _INDEX["published"], _INDEX["state"]
_CHANGED_AT, _WRITING_AT = _INDEX["changed"], _INDEX["writing"]


def chunks_in(published: int, chunk_size: int, size: int) -> int:
    """Chunks that can be read: whole ones, and the short last one if all bytes are published."""
    return published // chunk_size + (published == size and published % chunk_size > 0)
