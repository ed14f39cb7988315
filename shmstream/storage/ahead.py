"""`AheadFile`: the bytes of a blob that came before their turn, beside the partial file.

With several connections, the bytes after the published ones come before the gap in front of them is
closed. They wait in a file of their own, until the leader appends them to the partial file. So the
partial file stays what every process takes it for: its length says how much of the blob is there.
Followers in other containers read up to that length, a successor keeps all of it, the seal of the
journal is on all of it. A partial file with holes would break each of these.

The file is a ring of blocks of 256 KiB: block `n` of the blob lies in slot `n % slots`. So it takes
no more space than its slots, however large the blob is:

    0          a line of JSON: which boot, which partial file, which content
    4,096      for each slot, 8 bytes: the number of the block that is complete there, plus 1; or 0
    ...        the blocks

    writer                                     successor of a writer that was killed
    1 store 0 for the slot                     takes each block that is noted as complete, and that
    2 write the bytes of a block               comes after the end of the partial file. What was
    3 store the block's number                 not noted is asked for again

The page cache keeps what a killed process has written. After a reboot it proves nothing, so the
file counts for nothing then; neither does it for another partial file, or another content.

Only the holder of the lock on the partial file writes, in several threads: each writes the slots of
its own blocks. The file is removed with the commit, and when a flight begins anew; `gc` removes a
file whose partial file is gone.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from contextlib import suppress

from shmstream.sources.base import Description
from shmstream.storage.journal import boot_id
from shmstream.stream.partial import reserve
from shmstream.system.files import open_file

BLOCK = 256 << 10
"""Bytes of a block."""
_HEAD = 4096  # bytes
_MARK = 8  # bytes


class AheadFile:
    """The file at `path`, for the partial file with the identity `partial`. Close it.

    Any thread may call its methods; at one time, only one of them for one block.
    """

    def __init__(
        self, path: str, partial: tuple[int, int, int], known: Description, digest: str
    ) -> None:
        """For a blob that has `known.size` bytes. Makes no file: see `adopt` and `make`.

        `digest`: of the blob if it is known in advance, else only the algorithm.
        """
        self.path = path
        self._fd = -1
        self.slots: int = 0
        """How many blocks have a place."""
        self._data = 0
        size = known.size or 0
        self._size = size
        self.blocks: int = -(-size // BLOCK)
        """How many blocks the blob has."""
        validator = None if ":" in digest else known.validator
        self._facts = [boot_id(), *partial, size, digest, validator]

    def adopt(self, appended: int) -> set[int]:
        """Take the file that an earlier leader left; the complete blocks after `appended` bytes.

        Without such a file, or if it is of anything else, none are.

        Raises:
            OSError: it cannot be read.
        """
        try:
            fd = open_file(self.path, os.O_RDWR)
        except FileNotFoundError:
            return set()
        try:
            slots = self._slots_of(os.pread(fd, _HEAD, 0), os.fstat(fd).st_size)
            told = os.pread(fd, slots * _MARK, _HEAD)
            marks = [mark for (mark,) in struct.iter_unpack("<Q", told[: len(told) // 8 * 8])]
        except BaseException:
            os.close(fd)
            raise
        if not slots or len(marks) != slots:
            os.close(fd)
            return set()
        self._begin(fd, slots)
        first = appended // BLOCK
        return {
            mark - 1
            for slot, mark in enumerate(marks)
            if mark and first <= mark - 1 < first + slots and (mark - 1) % slots == slot
        }

    def _slots_of(self, head: bytes, there: int) -> int:
        """The slots of a file with that head and length; 0 if it is of no use."""
        try:
            found = json.loads(head.rstrip(b"\0"))
            facts, slots = found["of"], found["slots"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return 0
        if facts != self._facts or type(slots) is not int or not 0 < slots <= self.blocks:
            return 0
        return slots if there == _place_of_data(slots) + slots * BLOCK else 0

    def make(self, slots: int) -> None:
        """Make the file anew, for so many blocks. Then call `reserve`.

        Raises:
            OSError: it cannot be made.
        """
        self.remove()
        fd = open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(fd, _place_of_data(slots) + slots * BLOCK)
            head = json.dumps({"of": self._facts, "slots": slots}).encode()
            if len(head) > _HEAD:
                raise OSError(f"its facts have {len(head)} bytes")  # no validator is so long
            os.pwrite(fd, head, 0)
        except BaseException:
            os.close(fd)
            self.remove()
            raise
        self._begin(fd, slots)

    def reserve(self) -> None:
        """Reserve the disk space for all blocks.

        Raises:
            OSError: the disk has less free space.
        """
        reserve(self._fd, _place_of_data(self.slots) + self.slots * BLOCK)

    def _begin(self, fd: int, slots: int) -> None:
        self._fd, self.slots = fd, slots
        self._data = _place_of_data(slots)

    @property
    def is_open(self) -> bool:
        """Whether there is a file to write to."""
        return self._fd >= 0

    def reopen(self) -> int:
        """A descriptor with a position of its own; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)

    def locate(self, offset: int) -> tuple[int, int]:
        """Where the byte of the blob at `offset` lies, and how many bytes follow it there."""
        block, inside = divmod(offset, BLOCK)
        slot = block % self.slots
        run = (self.slots - slot) * BLOCK - inside
        return self._data + slot * BLOCK + inside, min(run, self._size - offset)

    def end_of(self, block: int) -> int:
        """The offset after the last byte of a block."""
        return min((block + 1) * BLOCK, self._size)

    def forget(self, blocks: Sequence[int]) -> None:
        """Note that the slots of these blocks are written to now."""
        for block in blocks:
            self._mark(block, 0)

    def complete(self, block: int) -> None:
        """Note that all bytes of the block are in its slot."""
        self._mark(block, block + 1)

    def _mark(self, block: int, value: int) -> None:
        os.pwrite(self._fd, value.to_bytes(_MARK, "little"), _HEAD + block % self.slots * _MARK)

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` with bytes from `offset` on; how many, fewer at the end of the ring."""
        position, run = self.locate(offset)
        return os.preadv(self._fd, [buffer[:run]], position)

    def remove(self) -> None:
        """Remove the file. Idempotent. The descriptor stays open."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self) -> None:
        """Close the descriptor; the file stays. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> AheadFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AheadFile {self.path!r} with {self.slots} slots>"


def _place_of_data(slots: int) -> int:
    return _HEAD + -(-slots * _MARK // _HEAD) * _HEAD
