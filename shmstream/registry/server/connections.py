"""The table of a worker's connections, in memory that the worker and the supervisor share.

    0              4096           + 4096 x records
    +--------------+--------------+--------------+----
    | header       | record 0     | record 1     | ...
    +--------------+--------------+--------------+----

    a record       0        64                     2080                   4096
                   +--------+----------------------+----------------------+
                   | turn   | response 0           | response 1           |
                   +--------+----------------------+----------------------+

If a worker ends, another worker goes on with its connections. For each of them it needs to know
what the dead worker was doing. Most of that is in the kernel, which knows it without fail, so it
is not in the table:

    the request      its bytes stay in the socket until the whole response is written. The next
                     worker reads the same request again
    how far it is    the kernel says how many bytes were ever written to the connection, and how
                     many were read from it (`system/tcp`)

So a record has only what the kernel cannot know of the last response of its connection: where the
response begins in the bytes of the connection, its head, and how long it is. One store of `turn`
makes a response the last one. A worker may be killed between any two stores:

    the worker                                       what the next worker finds
    1 writes the last byte of response A             A is complete; its request is not read yet:
                                                     it reads that, and waits for another request
    2 reads the request of A from the socket         A is complete, its request is read: it waits
      another request B comes                        the same; then it finds B, and answers it
    3 fills the response that `turn` does not name   the same: that part is not looked at
    4 stores `turn`: the response is that of B       nothing of B's response is written: it reads B
                                                     again, and answers it as if it were new
    5 writes some bytes of B's response              so many bytes are written; it goes on behind
                                                     them: the text of the record first, and what
                                                     is not there it makes again from the request

    K1 Before a byte of a response is written, the record has its whole head, and `turn` names it.
    K2 A request is read from the socket only when its response is written whole. A request of which
       bytes were read before that is never answered twice: its record says that it was read.
    K3 Only the worker that has the connection writes a record, and only it knows that the record is
       in use. The supervisor reads a record only when that worker has ended, or has said that it
       will not touch the connection any more.

The text of a response is its head, and its body if both are short enough. A body that is not there
is made again: the next worker answers the request in the usual way, compares the new head with the
one in the record, and leaves out the bytes that were written. So the body has to be the same, and
that is so if the head has a strong ETag and is the same in all that concerns the content
(`is_same_content`). Every blob and every manifest has one.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Self

from shmstream.stream.control_block import Text, Word

MAGIC = int.from_bytes(b"shmkeep\0", "little")
VERSION = 3
HEADER_SIZE = 4096
RECORD_SIZE = 4096
RESPONSE_SIZE = 2016
FIRST = 64
"""Offset of the first response in a record; the second one follows it."""
UNKNOWN = (1 << 64) - 1
"""The stored length of a body that has no end yet."""

_FACTS = 48  # bytes of the words of a response before its text
_SAME = frozenset(
    {b"content-length", b"content-range", b"content-encoding", b"transfer-encoding", b"etag",
     b"docker-content-digest"}
)  # fmt: skip


class Header:
    """The beginning of a table."""

    magic: Word = Word(
        0, "supervisor", "creation", "last of all at creation", "`shmkeep` and a zero byte"
    )
    version: Word = Word(8, "supervisor", "creation", "", "layout version")
    records: Word = Word(16, "supervisor", "creation", "", "number of records")
    progress: Word = Word(
        64, "worker", "ten times a second", "", "the time, in ns of the host's monotonic clock"
    )

    def __init__(self, words: memoryview) -> None:
        self.words = words


class Response:
    """What a record says of one response; the worker that has the connection writes it."""

    written: Word = Word(
        0, "worker", "before its head is written", "before `turn`",
        "bytes that were written to the connection before this response",
    )  # fmt: skip
    taken: Word = Word(
        8, "worker", "before its head is written", "before `turn`",
        "bytes that were read from the connection before its request; all ones: unread requests "
        "were read, too, so the connection cannot go on",
    )  # fmt: skip
    request: Word = Word(
        16, "worker", "before its head is written", "before `turn`",
        "bytes of its request, which is read when the response is complete; 0: it was read before",
    )  # fmt: skip
    head: Word = Word(
        24, "worker", "before its head is written", "before `turn`", "bytes of its head"
    )
    body: Word = Word(
        32, "worker", "before its head is written; without a Content-Length again at its end",
        "before `turn`", "bytes of its body; all ones: not known yet",
    )  # fmt: skip
    is_last: Word = Word(
        40, "worker", "before its head is written", "before `turn`",
        "1: the connection ends with it",
    )  # fmt: skip
    text: Text = Text(
        _FACTS, RESPONSE_SIZE - _FACTS - 8, "worker",
        "the head before it is written, the body if there is room, before that is written",
        "before `turn`", "its head, and the beginning of its body",
    )  # fmt: skip

    def __init__(self, memory: memoryview, words: memoryview) -> None:
        self.memory = memory
        self.words = words

    @classmethod
    def of(cls, data: bytes) -> Self:
        """A copy, from `copy`."""
        memory = memoryview(bytearray(data.ljust(RESPONSE_SIZE, b"\0")))
        return cls(memory, memory.cast("Q"))

    def copy(self) -> bytes:
        """All that it has, as bytes."""
        length = min(self.words[_FACTS >> 3], self.room)
        return bytes(self.memory[: _FACTS + 8 + length])

    def load(self, data: bytes) -> None:
        """Take over what `copy` gave of another."""
        self.memory[: len(data)] = data

    @property
    def room(self) -> int:
        """Bytes that its text may have."""
        return type(self).text.capacity

    def fill(
        self, written: int, taken: int, request: int, head: bytes, body: int, is_last: bool
    ) -> None:
        """Store all fields, in their order; each request does this, so without the descriptors.

        Raises:
            ValueError: the head is too long.
        """
        length = len(head)
        if length > RESPONSE_SIZE - _FACTS - 8:
            raise ValueError(f"{length} bytes do not fit into {self.room}")
        words = self.words
        words[0] = written
        words[1] = taken
        words[2] = request
        words[3] = length
        words[4] = body
        words[5] = is_last
        words[6] = length
        self.memory[_FACTS + 8 : _FACTS + 8 + length] = head

    def append(self, data: bytes) -> bool:
        """Add bytes to the text; False if they do not fit."""
        length = self.words[_FACTS >> 3]
        if length + len(data) > self.room:
            return False
        start = _FACTS + 8 + length
        self.memory[start : start + len(data)] = data
        self.words[_FACTS >> 3] = length + len(data)
        return True

    @property
    def end(self) -> int:
        """Bytes that have been written to the connection when this response is complete."""
        return self.written + self.head + self.body


class Record:
    """What the table says of one connection."""

    turn: Word = Word(
        0, "worker", "before the head of a response is written", "after the response is filled",
        "which of the two responses is the last one: 0 or 1",
    )  # fmt: skip

    def __init__(self, memory: memoryview, words: memoryview) -> None:
        self.words = words
        self._turn = words[:1]
        self._responses = [
            Response(memory[start : start + RESPONSE_SIZE],
                     words[start >> 3 : (start + RESPONSE_SIZE) >> 3])
            for start in (FIRST, FIRST + RESPONSE_SIZE)
        ]  # fmt: skip

    @property
    def last(self) -> Response:
        """The last response of the connection; zeros if there was none yet."""
        return self._responses[self.turn & 1]

    def begin(
        self, written: int, taken: int, request: int, head: bytes, body: int, *, is_last: bool
    ) -> Response:
        """Make this the last response: call it before its first byte is written (K1).

        Raises:
            ValueError: the head is too long.
        """
        turn = ~self._turn[0] & 1
        response = self._responses[turn]
        response.fill(written, taken, request, head, body, is_last)
        self._turn[0] = turn
        return response

    def load(self, data: bytes) -> None:
        """Make a copied response the last one, of a connection that is not used yet."""
        turn = ~self.turn & 1
        self._responses[turn].load(data)
        self.turn = turn


class Table:
    """The table of one worker, in an anonymous file that it and the supervisor have mapped."""

    def __init__(self, descriptor: int, records: int) -> None:
        """Internal: use `make` or `attach`."""
        size = HEADER_SIZE + records * RECORD_SIZE
        self.descriptor: int = descriptor
        self.records: int = records
        self._map = mmap.mmap(descriptor, size)
        self._map.madvise(mmap.MADV_DONTFORK)  # a forked worker would keep the memory of others
        self._memory = memoryview(self._map)
        self._words = self._memory.cast("Q")
        self._header = Header(self._words[: HEADER_SIZE >> 3])

    @classmethod
    def make(cls, records: int) -> Self:
        """A new table. It takes memory only for records that were used.

        Raises:
            OSError: there is no descriptor, or no memory.
        """
        descriptor = os.memfd_create("shmstream-connections", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, HEADER_SIZE + records * RECORD_SIZE)
            table = cls(descriptor, records)
        except BaseException:
            os.close(descriptor)
            raise
        header = table._header
        header.records = records
        header.version = VERSION
        header.magic = MAGIC
        return table

    @classmethod
    def attach(cls, descriptor: int) -> Self | None:
        """The table behind a descriptor, which belongs to the table from now on.

        None if it is of another version, as when the program was upgraded meanwhile.
        """
        beginning = memoryview(os.pread(descriptor, HEADER_SIZE, 0).ljust(HEADER_SIZE, b"\0"))
        header = Header(beginning.cast("Q"))
        size = os.fstat(descriptor).st_size
        if (header.magic, header.version) != (MAGIC, VERSION) or (
            size != HEADER_SIZE + header.records * RECORD_SIZE
        ):
            os.close(descriptor)
            return None
        return cls(descriptor, header.records)

    def record(self, index: int) -> Record:
        """The record of that number."""
        start = HEADER_SIZE + index * RECORD_SIZE
        end = start + RECORD_SIZE
        return Record(self._memory[start:end], self._words[start >> 3 : end >> 3])

    def beat(self) -> None:
        """Tell the supervisor that this worker makes progress. Not after `close`."""
        self._header.progress = time.monotonic_ns()

    @property
    def silence(self) -> float:
        """Seconds since the worker has told that it makes progress; 0 if it never has."""
        told = self._header.progress
        return (time.monotonic_ns() - told) / 1e9 if told else 0.0

    def close(self) -> None:
        """Give the descriptor back. The memory goes when no record is used any more. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            with suppress(BufferError):  # a record is used: its owner frees the memory
                self._header.words.release()
                self._words.release()
                self._memory.release()
                self._map.close()


class Step(Enum):
    """How a worker goes on with a connection of another worker."""

    WAIT = "its last response is complete: wait for the next request"
    END = "its last response is complete, and said that the connection ends"
    TEXT = "the rest of its response is in the record"
    ANSWER = "its request is not answered, or not yet asked"
    RESUME = "make the response again, and leave out what is written"
    GIVE_UP = "it cannot go on"


@dataclass(frozen=True)
class Continuation:
    """What is left to do for a connection; `unread` bytes of its request are still to be read."""

    step: Step
    unread: int = 0
    gone: int = 0
    """Bytes of the response that were written."""


def continuation(last: Response, written: int, taken: int) -> Continuation:
    """How to go on with a connection that had so many bytes written to it and read from it."""
    gone = written - last.written
    whole = UNKNOWN if last.body == UNKNOWN else last.head + last.body
    if not 0 <= gone <= whole or last.taken == UNKNOWN:
        return Continuation(Step.GIVE_UP)
    if gone == whole:
        unread = last.taken + last.request - taken
        if unread not in (0, last.request):
            return Continuation(Step.GIVE_UP)
        return Continuation(Step.END if last.is_last else Step.WAIT, unread)
    if taken != last.taken:
        return Continuation(Step.GIVE_UP)
    if len(last.text) == whole:
        return Continuation(Step.TEXT, last.request, gone)
    if not last.request or (gone and whole == UNKNOWN):
        return Continuation(Step.GIVE_UP)
    return Continuation(Step.RESUME, last.request, gone) if gone else Continuation(Step.ANSWER)


def is_same_content(one: bytes, other: bytes) -> bool:
    """Whether two heads of responses are of the same bytes; False if nothing proves that."""
    first, second = _about(one), _about(other)
    return first == second and first.get(b"etag", b"").startswith(b'"')


def etag_of(head: bytes) -> str:
    """The ETag that a head of a response tells; empty if it tells none."""
    return _about(head).get(b"etag", b"").decode("latin-1")


def _about(head: bytes) -> dict[bytes, bytes]:
    """What a head says of the content; the status has no name."""
    status, *lines = head.split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    named = {name.lower(): value.strip() for name, _, value in pairs}
    return {b"": status[:12], **{name: named[name] for name in _SAME & set(named)}}
