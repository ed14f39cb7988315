"""The journal of a partial file: it lets a download go on after a restart or a reboot.

The journal is a small text file beside the partial file. Its first line holds what the source said
of the blob, the boot of the machine in which the line was written, which source gave the first
byte, and which sources once gave a wrong blob of this key: these are asked last. Such notes stay
when the partial file is removed, for a day at least. Each further line is a
checkpoint, `offset digest`: the hex digest of the first `offset` bytes.

While the machine stays up, the page cache keeps every byte that was written, so the whole partial
file can be trusted. After a reboot nothing is sure, because nothing was synced: the tail may be
torn, zeros, or old bytes of another blob. Then the partial file can be trusted up to the last
checkpoint whose digest its bytes still have. The journal itself may be torn too: a line that cannot
be read counts for nothing, and neither do the lines after it.

A small blob whose key is a digest has no journal; after a restart it is downloaded from its
beginning. No reader has seen a byte of it before its end, and writing a journal would cost more
than the bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from shmstream.sources.base import Description
from shmstream.stream.spelling import new_hash

_STEP = 1 << 20  # bytes
_MOST_NOTES = 32  # sources that gave a wrong blob; of more, the latest
_CHECKPOINT = re.compile(r"([0-9]{1,18}) ([0-9a-f]+)")


class Journal:
    """The journal at `path`. Only the holder of the lock on the partial file may write it."""

    def __init__(self, path: str, algorithm: str | None) -> None:
        """A journal with digests of another algorithm counts for nothing. None: of any; to read."""
        self.path = path
        self._algorithm = algorithm
        self.metadata: Description = Description()
        self._boot = ""
        self._checkpoints: list[tuple[int, str]] = []
        self.first: str = ""
        """The source of the first byte, as a hash of its name; empty if it is not known."""
        self.wrong: list[str] = []
        """The sources that gave a wrong blob, as hashes of their names, the latest last."""
        self.exists: bool = True
        """Whether there is a file, or anything else, at `path`."""
        self.defect: str | None = None
        """What is wrong with the file; None if all of it can be read."""
        self._read()

    def _read(self) -> None:
        try:
            with io.FileIO(self.path, opener=_open_to_read) as file:
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            self.exists = False
            return
        except OSError as error:
            self.defect = f"it cannot be read: {error.strerror}"
            return
        if not text:  # its leader was killed between making the file and writing to it
            return
        lines = text.split("\n")[:-1]
        try:
            header = json.loads(lines[0])
            fits = self._algorithm in (None, header["algorithm"])
            if fits and isinstance(header["boot"], str):
                self._boot = header["boot"]
                self.first = str(header.get("first", ""))
                self.wrong = [str(each) for each in header.get("wrong", ())][-_MOST_NOTES:]
                self.metadata = Description.from_text(header["metadata"])
                self._checkpoints = list(_ascending(lines[1:]))
                if (good := 1 + len(self._checkpoints)) < len(lines):
                    self.defect = f"its line {good + 1} is no checkpoint"
        except (ValueError, LookupError, TypeError, RecursionError):
            self._boot = ""
            self.defect = "its first line is not that of a journal"

    @property
    def is_begun(self) -> bool:
        """Whether it is of the present partial file; else it has only notes, or there is none."""
        return self.exists and bool(self._boot)

    @property
    def vouches(self) -> bool:
        """Whether any byte of the partial file may be trusted. Does not read the partial file."""
        return bool(self._checkpoints) or self._boot == boot_id()

    @property
    def is_of_this_boot(self) -> bool:
        """Whether it was written since the machine was booted."""
        return self._boot == boot_id()

    def trusted(self, fd: int) -> int:
        """How many bytes of the partial file `fd` can be trusted. After a reboot it reads them."""
        size = os.fstat(fd).st_size
        if self._boot == boot_id():
            return size
        running = new_hash(self._algorithm or "sha256")
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
        """Write the journal anew: `metadata` is what the source says of the blob.

        The first `kept` bytes of the partial file stay, and so do their checkpoints.

        Raises:
            OSError: the journal cannot be written.
        """
        self.metadata, self._boot = metadata, boot_id()
        self._checkpoints = [each for each in self._checkpoints if each[0] <= kept]
        self._write_anew()

    def blame(self, source: str) -> None:
        """Note that `source`, the hash of its name, gave a wrong blob.

        Raises:
            OSError: the journal cannot be written.
        """
        others = [each for each in self.wrong if each != source]
        self.wrong = [*others, source][-_MOST_NOTES:]
        self._write_anew()

    def forget(self) -> None:
        """Keep only the notes on sources; if there are none, or no room for them, no file."""
        self.metadata, self._boot, self._checkpoints, self.first = Description(), "", [], ""
        if self.wrong:
            with suppress(OSError):
                self._write_anew()
                return
        self.remove()

    def _write_anew(self) -> None:
        header = {
            "algorithm": self._algorithm,
            "boot": self._boot,
            "first": self.first,
            "wrong": self.wrong,
            "metadata": self.metadata.to_text(1 << 16).decode(),
        }
        lines = [
            json.dumps(header),
            *(f"{offset} {digest}" for offset, digest in self._checkpoints),
        ]
        # Beside and renamed: a process that is killed leaves the old journal, or the new one.
        fresh = f"{self.path}.{secrets.token_hex(4)}"
        try:
            self._write("\n".join(lines), os.O_EXCL, fresh)
            os.rename(fresh, self.path)
        except OSError:
            Path(fresh).unlink(missing_ok=True)
            raise
        self.exists = True

    @property
    def covers(self) -> int:
        """The offset of the last checkpoint, in bytes; 0 without one."""
        return self._checkpoints[-1][0] if self._checkpoints else 0

    def note(self, offset: int, digest: str) -> None:
        """Add a checkpoint: the hex digest of the first `offset` bytes.

        Raises:
            OSError: the journal cannot be written.
        """
        if offset <= self.covers:
            return  # a successor hashes from the beginning, and comes past old checkpoints
        self._checkpoints.append((offset, digest))
        self._write(f"{offset} {digest}", os.O_APPEND, self.path)

    def _write(self, line: str, flags: int, path: str) -> None:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file. Idempotent."""
        if self.exists:
            Path(self.path).unlink(missing_ok=True)
            self.exists = False


def _ascending(lines: list[str]) -> Iterator[tuple[int, str]]:
    """The checkpoints in `lines`, up to the first line that is none or does not ascend."""
    last = 0
    for line in lines:
        found = _CHECKPOINT.fullmatch(line)
        if found is None or int(found[1]) <= last:
            return
        last = int(found[1])
        yield last, found[2]


def _open_to_read(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


@cache
def boot_id() -> str:
    """A text that changes with each boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
