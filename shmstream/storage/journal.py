"""The journal of a partial file: what lets a download go on after a restart, or a reboot.

Beside the partial file lies a small text: one line with what the source said of the blob and under
which boot of the machine, then a line for each checkpoint, `offset digest-of-all-bytes-up-to-it`.

While the machine stays up the page cache keeps whatever was written, so all of the file is good.
After a reboot nothing is sure, because nothing was synced: the tail may be torn, zeros, or another
blob's old bytes. Then the file is good up to the last checkpoint whose digest it still has. The
journal itself may be torn, too: a line that cannot be read, and all after it, count for nothing.

A small blob whose key is a digest has none, and is asked for from its beginning again: no reader
has seen any of it before its end, and two file operations would cost more than its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from shmstream.sources.base import Description

_STEP = 1 << 20  # bytes


class Journal:
    """The journal at `path`, for one who holds the lock on the partial file."""

    def __init__(self, path: str, algorithm: str) -> None:
        self.path = path
        self._algorithm = algorithm
        self.metadata = Description()
        self._boot = ""
        self._checkpoints: list[tuple[int, str]] = []
        self.exists = True
        """Whether there is such a file, or anything else by that name."""
        self.defect: str | None = None
        """What cannot be read of it, if anything."""
        self._read()

    def _read(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except FileNotFoundError:
            self.exists = False
            return
        except OSError as error:
            self.defect = f"it cannot be read: {error.strerror}"
            return
        if not text:  # whoever began it was killed just then
            return
        lines = text.split("\n")[:-1]
        try:
            header = json.loads(lines[0])
            if header["algorithm"] == self._algorithm and isinstance(header["boot"], str):
                self._boot = header["boot"]
                self.metadata = Description.from_text(header["metadata"])
                self._checkpoints = list(_ascending(lines[1:]))
                if (good := 1 + len(self._checkpoints)) < len(lines):
                    self.defect = f"its line {good + 1} is no checkpoint"
        except (ValueError, LookupError, TypeError, RecursionError):
            self._boot = ""
            self.defect = "its first line is not that of a journal"

    @property
    def vouches(self) -> bool:
        """Whether it may be that bytes of the partial file can be trusted."""
        return bool(self._checkpoints) or self._boot == boot_id()

    def trusted(self, fd: int) -> int:
        """How many bytes of the partial file `fd` can be trusted. Reads them after a reboot."""
        size = os.fstat(fd).st_size
        if self._boot == boot_id():
            return size
        running = hashlib.new(self._algorithm)
        good = position = 0
        for offset, digest in self._checkpoints:
            while position < offset:
                data = os.pread(fd, min(_STEP, offset - position), position)
                if not data:
                    return good
                running.update(data)
                position += len(data)
            if running.hexdigest() != digest:
                return good
            good = offset
        return good

    def begin(self, metadata: Description, kept: int = 0) -> None:
        """Begin anew for a blob of which the source says this, with `kept` bytes there already.

        Raises:
            OSError: it cannot be written.
        """
        self.metadata, self._boot = metadata, boot_id()
        self._checkpoints = [each for each in self._checkpoints if each[0] <= kept]
        header = {
            "algorithm": self._algorithm,
            "boot": self._boot,
            "metadata": metadata.to_text(1 << 16).decode(),
        }
        lines = [
            json.dumps(header),
            *(f"{offset} {digest}" for offset, digest in self._checkpoints),
        ]
        self._write("\n".join(lines), os.O_TRUNC)

    @property
    def covers(self) -> int:
        """Bytes up to the last checkpoint."""
        return self._checkpoints[-1][0] if self._checkpoints else 0

    def note(self, offset: int, digest: str) -> None:
        """Note a checkpoint: the hex digest of the first `offset` bytes.

        Raises:
            OSError: it cannot be written.
        """
        if offset <= self.covers:
            return  # a successor hashes from the beginning again
        self._checkpoints.append((offset, digest))
        self._write(f"{offset} {digest}", os.O_APPEND)

    def _write(self, line: str, flags: int) -> None:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags, 0o600)
        self.exists = True
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove it. Idempotent."""
        if self.exists:
            Path(self.path).unlink(missing_ok=True)
            self.exists = False


def _ascending(lines: list[str]) -> Iterator[tuple[int, str]]:
    last = 0
    for line in lines:
        offset, _, digest = line.partition(" ")
        if not offset.isdecimal() or int(offset) <= last:
            return
        last = int(offset)
        yield last, digest


@cache
def boot_id() -> str:
    """A text that is another one after each boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
