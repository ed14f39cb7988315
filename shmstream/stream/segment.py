"""The shared memory of one stream: create, attach, unlink, list.

This module uses `multiprocessing.shared_memory` (in `mapping`), and avoids three of its dangers:

- Its resource tracker would unlink a segment as soon as any unrelated reader exits. Our segments
  are never registered: from Python 3.13 on by `track=False`; before that, the tracker's `register`
  is replaced by a function that ignores names with our prefix.
- If an attaching process runs out of descriptors, `SharedMemory` unlinks the segment that all other
  processes use. Here its `unlink` does nothing; only `Segment.unlink` removes a name.
- If `/dev/shm` is full, touching a new page kills the process with SIGBUS. Here all pages are
  reserved at creation, where a shortage is an ordinary error.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable

from shmstream.errors import DamagedSegment
from shmstream.stream import mapping
from shmstream.stream.listing import FOLDER, SEGMENT, ours
from shmstream.stream.mapping import Mapping

NAME_LIMIT = 30 - len("/" + SEGMENT)
"""Characters that a stream's name may have: with our prefix, 30 are portable."""

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LIMIT - 1}}}")


class Segment:
    """A mapped segment, `size` bytes at `memory`.

    The mapping outlives `unlink`, which only removes the name. Release all views of `memory` before
    closing it.
    """

    def __init__(self, memory: Mapping, name: str) -> None:
        self._memory = memory
        self.name = name
        self.memory: memoryview = memory.buf if memory.buf is not None else memoryview(b"")
        self.size: int = memory.size
        self.fd: int = memory.descriptor

    @classmethod
    def create(cls, name: str, size: int) -> Segment:
        """Make a new segment of `size` zero bytes, all of them reserved.

        Raises:
            FileExistsError: the name is taken.
            OSError: shared memory or descriptors have run out; nothing is left behind.
        """
        return cls(mapping.create(SEGMENT + name, size), name)

    def reserve(self) -> None:
        """Reserve all pages, so that touching them later never fails.

        Raises:
            OSError: shared memory has no room for them.
        """
        os.posix_fallocate(self.fd, 0, self.size)

    @classmethod
    def attach(cls, name: str, most: int) -> Segment:
        """Map the segment of that name, which has at most so many bytes.

        Raises:
            DamagedSegment: it has more, or is no file.
            FileNotFoundError: there is none, or another process is just making it.
            PermissionError: another user owns it, or may write to it.
            OSError: descriptors or memory have run out.
        """
        facts = os.stat(path_of(name), follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode):
            raise DamagedSegment(name, "it is no file")
        _refuse_foreign(facts, name)
        if facts.st_size > most:
            raise DamagedSegment(name, f"it has {facts.st_size} bytes, more than any stream")
        try:
            memory = mapping.attach(SEGMENT + name)
        except ValueError as error:  # "cannot mmap an empty file": made, but not yet sized
            raise FileNotFoundError(errno.ENOENT, "segment has no size yet", name) from error
        try:
            facts = os.fstat(memory.descriptor)
            _refuse_foreign(facts, name)
            if facts.st_blocks * 512 < facts.st_size:  # touching a missing page may be SIGBUS
                raise FileNotFoundError(errno.ENOENT, "segment is not reserved yet", name)
        except BaseException:
            memory.close()
            raise
        return cls(memory, name)

    def unlink(self) -> None:
        """Remove the name, so that no process can attach any more. Idempotent."""
        unlink(self.name)

    def close(self) -> None:
        """Unmap. The segment lives on until it is unlinked and every process has closed it.

        Idempotent.
        """
        self._memory.close()

    def __repr__(self) -> str:
        return f"<Segment {self.name} {self.size} bytes>"


def _refuse_foreign(facts: os.stat_result, name: str) -> None:
    reason = None
    if facts.st_uid != os.geteuid():
        reason = f"user {facts.st_uid} owns it, and this is user {os.geteuid()}"
    elif stat.S_IMODE(facts.st_mode) & 0o022:
        reason = "other users may write to it"
    if reason is not None:
        raise PermissionError(errno.EPERM, reason, name)


def is_name(name: str) -> bool:
    """Whether a stream can have that name."""
    return _NAME.fullmatch(name) is not None


def path_of(name: str) -> str:
    """The path of the segment of that name, to lock and remove it without mapping it."""
    return f"{FOLDER}/{SEGMENT}{name}"


def unlink(name: str) -> None:
    """Remove the segment of that name, if there is one."""
    try:
        os.unlink(path_of(name))
    except FileNotFoundError:
        pass


def names(among: Iterable[str] | None = None) -> list[str]:
    """The names of this user's streams on this host, dead or alive.

    `among`: a listing that the caller has; else this lists the shared memory of the host.
    """
    found = ours(SEGMENT, among)
    bare = (name.removeprefix(SEGMENT) for _, name, is_file in found if is_file)
    return sorted(each for each in bare if is_name(each))


def strangers(among: Iterable[str] | None = None) -> list[str]:
    """Paths that begin like those of segments, and are none: folders, pipes, impossible names."""
    found = ours(SEGMENT, among)
    return sorted(
        path
        for path, name, is_file in found
        if not (is_file and is_name(name.removeprefix(SEGMENT)))
    )
