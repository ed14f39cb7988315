"""The journal of a partial file: it lets a download go on after a restart or a reboot.

The journal is a small text file beside the partial file. Its first line holds what the source said
of the blob, the boot of the machine in which the line was written, which source gave the first
byte, and which sources once gave a wrong blob of this key: these are asked last. Such notes stay
when the partial file is removed, for a day at least. Each further line is one of:

    <offset> <digest>                            a checkpoint: the digest of the first bytes
    seal <inode> <generation> <size> <time>      nobody leads any more, and all bytes are right

While the machine stays up, the page cache keeps every byte that was written. So a partial file that
is still the sealed one can be trusted as a whole: nobody has replaced it, and nobody has written to
it since. Its last change (st_ctime) tells, which no program can set back. The seal is written when
the flight ends or is given up, and by the process that removes the stream of a leader that was
killed.

In any other case the partial file can be trusted up to the last checkpoint whose digest its bytes
still have: if another program has changed it, if the shared memory of a killed leader was lost, and
after a reboot, because nothing was synced: the tail may be torn, zeros, or old bytes of another
blob. A flight that computes no digest notes no checkpoint, so nothing is trusted then. The journal
itself may be torn too: a line that cannot be read counts for nothing, and neither do the lines
after it.

A small blob whose key is a digest has no journal; after a restart it is downloaded from its
beginning. No reader has seen a byte of it before its end, and writing a journal would cost more
than the bytes.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from shmstream.sources.base import Description, Source, name_hash
from shmstream.storage.layout import JOURNAL, algorithm_at
from shmstream.stream.claims import when_removed
from shmstream.stream.partial import REAPER, partial_path
from shmstream.stream.spelling import new_hash
from shmstream.system.files import is_hollow, open_file, read_file, says_none, write_file
from shmstream.system.locks import KernelLock, file_identity

WORTH_A_JOURNAL = 64 * 1024
"""Bytes; to ask again for a blob that is no larger takes no longer than to ask for its rest."""

_STEP = 1 << 20  # bytes
_LARGEST = 1 << 26  # bytes of a journal; a blob of 4 TiB has as many checkpoints
_MOST_NOTES = 32  # sources that gave a wrong blob; of more, the latest
_CHECKPOINT = re.compile(r"([0-9]{1,18}) ([0-9a-f]+)")
_SEAL = re.compile(r"seal ([0-9]{1,20} [0-9]{1,20} [0-9]{1,20} [0-9]{1,20})")

_log = logging.getLogger("shmstream")


class Journal:
    """The journal at `path`. Only the holder of the lock on the partial file may write it."""

    def __init__(self, path: str, algorithm: str | None) -> None:
        """A journal with digests of another algorithm counts for nothing. None: of any; to read.

        Raises:
            OSError: it is not known now whether there is a journal: see `says_none`.
        """
        self.path = path
        self._algorithm = algorithm
        self.metadata: Description = Description()
        self._boot = ""
        self._checkpoints: list[tuple[int, str]] = []
        self._seal = ""
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
            text = read_file(self.path, _LARGEST).decode("utf-8", "replace")
        except FileNotFoundError:
            self.exists = False
            return
        except OSError as error:
            if not says_none(error):
                raise
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
                self._read_lines(lines[1:])
        except (ValueError, LookupError, TypeError, RecursionError):
            self._boot = ""
            self.defect = "its first line is not that of a journal"

    def _read_lines(self, lines: list[str]) -> None:
        """Take seals and ascending checkpoints, up to the first line that is neither."""
        for number, line in enumerate(lines, start=2):
            if (seal := _SEAL.fullmatch(line)) is not None:
                self._seal = seal[1]
                continue
            found = _CHECKPOINT.fullmatch(line)
            if found is None or int(found[1]) <= self.covers:
                self.defect = f"its line {number} is no checkpoint"
                return
            self._checkpoints.append((int(found[1]), found[2]))

    @property
    def is_begun(self) -> bool:
        """Whether it is of the present partial file; else it has only notes, or there is none."""
        return self.exists and bool(self._boot)

    @property
    def vouches(self) -> bool:
        """Whether any byte of the partial file may be right. Does not look at the partial file."""
        return bool(self._checkpoints) or self._boot == boot_id()

    @property
    def is_of_this_boot(self) -> bool:
        """Whether it was written since the machine was booted."""
        return self._boot == boot_id()

    def trusted(self, fd: int) -> int:
        """How many bytes of the partial file `fd` can be trusted; reads them if it has no seal."""
        if self._boot == boot_id() and self._seal == _facts_of(fd):
            return os.fstat(fd).st_size
        if not self._checkpoints or is_hollow(fd):
            return 0
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

    def begin(self, metadata: Description, kept: int = 0, fd: int = -1) -> None:
        """Write the journal anew: `metadata` is what the source says of the blob.

        The first `kept` bytes of the partial file stay, and so do their checkpoints. If `fd` is
        given, it is the partial file, which has these bytes and no others, and is sealed.

        Raises:
            OSError: the journal cannot be written.
        """
        self.metadata, self._boot = metadata, boot_id()
        self._checkpoints = [each for each in self._checkpoints if each[0] <= kept]
        self._seal = _facts_of(fd) if fd >= 0 else ""
        self._write_anew()

    def blame(self, source: str) -> None:
        """Note that `source`, the hash of its name, gave a wrong blob.

        Raises:
            OSError: the journal cannot be written.
        """
        others = [each for each in self.wrong if each != source]
        self.wrong = [*others, source][-_MOST_NOTES:]
        self._write_anew()

    def wrong_last(self, sources: Sequence[Source]) -> list[Source]:
        """The sources in their order; those that gave a wrong blob last, the latest last of all."""
        rank = {each: number for number, each in enumerate(self.wrong, 1)}
        return sorted(sources, key=lambda each: rank.get(name_hash(each), 0))

    def forget(self) -> None:
        """Keep only the notes on sources; if there are none, or no room for them, no file."""
        self.metadata, self._boot, self._checkpoints, self.first = Description(), "", [], ""
        self._seal = ""
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
        if self._seal:
            lines.append(f"seal {self._seal}")
        write_file(self.path, "".join(f"{line}\n" for line in lines).encode())
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
        self._append(f"{offset} {digest}")

    def seal(self, fd: int) -> None:
        """Note that all bytes of the partial file `fd` are right, and that nobody leads any more.

        Only for a journal that exists.

        Raises:
            OSError: the journal cannot be written: then less can be trusted.
        """
        facts = _facts_of(fd)
        if self.exists and self._boot == boot_id() and self._seal != facts:
            self._append(f"seal {facts}")
            self._seal = facts

    def _append(self, line: str) -> None:
        fd = open_file(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file. Idempotent. What is no file stays, and vouches for nothing."""
        if self.exists:
            try:
                Path(self.path).unlink(missing_ok=True)
                self.exists = False
            except OSError as error:
                _log.warning("%s cannot be removed: %s", self.path, error.strerror)


def _facts_of(fd: int) -> str:
    """What changes with each change of a file, and which file it is."""
    _, inode, generation = file_identity(fd)
    facts = os.fstat(fd)
    return f"{inode} {generation} {facts.st_size} {facts.st_ctime_ns}"


def _seal_for(path: str, fd: int, metadata: bytes, digest: str) -> None:
    """Seal the partial file of a leader that was killed, perhaps before it began the journal."""
    journal = Journal(path + JOURNAL, digest.partition(":")[0])
    known = Description.from_text(metadata)
    is_named = algorithm_at(path) is None
    if journal.is_begun:
        journal.seal(fd)
    elif is_named or known.size is None or known.size > WORTH_A_JOURNAL:
        journal.begin(known, fd=fd)


def seal_for_the_dead(path: str, identity: tuple[int, int, int]) -> None:
    """Seal the partial file of the blob at `path`, whose leader has died.

    For a process that has looked after the file until just before, and has no stream that tells.

    Raises:
        OSError: it cannot be done now; a later call may do it.
    """
    try:
        lock = KernelLock(partial_path(path))
    except OSError as error:
        if says_none(error):  # nobody vouches for it
            return
        raise
    try:
        if file_identity(lock.fd) == identity and lock.try_acquire(REAPER):
            Journal(path + JOURNAL, algorithm_at(path)).seal(lock.fd)
    finally:
        lock.close()


when_removed(_seal_for)


@cache
def boot_id() -> str:
    """A text that changes with each boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
