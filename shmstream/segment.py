"""The shared memory of one stream: create, attach, unlink, list.

`multiprocessing.shared_memory` with its dangers taken out:

- Its resource tracker would unlink a segment as soon as any unrelated reader exits. Our segments
  are never registered: `track=False` from Python 3.13 on; before, the tracker is taught to
  overlook names with our prefix.
- When an attaching process runs out of descriptors, `SharedMemory` unlinks the segment under
  everybody else. Here its `unlink` does nothing; `Segment.unlink` is the only way.
- Touching a page that a full `/dev/shm` cannot give kills the process with SIGBUS. All pages are
  reserved at creation, where a lack is an ordinary error.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker, shared_memory

_FOLDER = "/dev/shm"
_PREFIX = "shms-"

NAME_LIMIT = 30 - len("/" + _PREFIX)
"""Characters that a stream's name may have: with ours in front, 30 is portable."""


class _Attached(shared_memory.SharedMemory):
    @property
    def descriptor(self) -> int:
        return int(self._fd)  # type: ignore[attr-defined]

    def unlink(self) -> None:
        """Nothing: a constructor that fails calls this, and would rob everybody else."""


class _Created(_Attached):
    def unlink(self) -> None:
        """Remove what this constructor made."""
        unlink(self.name.removeprefix(_PREFIX))


if sys.version_info >= (3, 13):

    def _create(name: str, size: int) -> _Created:
        return _Created(_PREFIX + name, create=True, size=size, track=False)

    def _attach(name: str) -> _Attached:
        return _Attached(_PREFIX + name, track=False)

else:

    def _overlooking_ours(tell: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def tell_of_others(name: str, kind: str) -> None:
            if not name.startswith("/" + _PREFIX):
                tell(name, kind)

        return tell_of_others

    resource_tracker.register = _overlooking_ours(  # type: ignore[assignment]
        resource_tracker.register
    )

    def _create(name: str, size: int) -> _Created:
        return _Created(_PREFIX + name, create=True, size=size)

    def _attach(name: str) -> _Attached:
        return _Attached(_PREFIX + name)


class Segment:
    """A mapped segment, `size` bytes at `memory`.

    The mapping outlives `unlink`, which only removes the name. Close it after the views of
    `memory` have been released.
    """

    def __init__(self, memory: _Attached, name: str) -> None:
        self._memory = memory
        self.name = name
        self.memory = memory.buf if memory.buf is not None else memoryview(b"")
        self.size = memory.size
        self.fd = memory.descriptor

    @classmethod
    def create(cls, name: str, size: int) -> Segment:
        """Make a new segment of `size` zero bytes, all of them reserved.

        Raises:
            FileExistsError: the name is taken.
            OSError: shared memory or descriptors have run out; nothing is left behind.
        """
        memory = _create(name, size)
        try:
            os.posix_fallocate(memory.descriptor, 0, size)
        except OSError:
            memory.unlink()
            memory.close()
            raise
        return cls(memory, name)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Map the segment of that name.

        Raises:
            FileNotFoundError: there is none, or it is only just being made.
            PermissionError: another user owns it, or may write to it.
            OSError: descriptors or memory have run out.
        """
        try:
            memory = _attach(name)
        except ValueError as error:  # "cannot mmap an empty file": made, but not yet sized
            raise FileNotFoundError(errno.ENOENT, "segment has no size yet", name) from error
        facts = os.fstat(memory.descriptor)
        reason = None
        if facts.st_uid != os.geteuid():
            reason = f"user {facts.st_uid} owns it, and this is user {os.geteuid()}"
        elif stat.S_IMODE(facts.st_mode) & 0o022:
            reason = "other users may write to it"
        if reason is not None:
            memory.close()
            raise PermissionError(errno.EPERM, reason, name)
        return cls(memory, name)

    def unlink(self) -> None:
        """Remove the name, so that nobody attaches any more. Idempotent."""
        unlink(self.name)

    def close(self) -> None:
        """Unmap; the segment lives on until unlinked and closed by all. Idempotent."""
        self._memory.close()

    def __repr__(self) -> str:
        return f"<Segment {self.name} {self.size} bytes>"


def path_of(name: str) -> str:
    """Where the segment of that name lies, for locking and removing it without mapping it."""
    return f"{_FOLDER}/{_PREFIX}{name}"


def unlink(name: str) -> None:
    """Remove the segment of that name, if there is one."""
    try:
        os.unlink(path_of(name))
    except FileNotFoundError:
        pass


def names() -> list[str]:
    """The names of all streams on this host, dead or alive, whosoever they are."""
    return sorted(
        entry.removeprefix(_PREFIX) for entry in os.listdir(_FOLDER) if entry.startswith(_PREFIX)
    )
