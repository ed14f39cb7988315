"""`Mapping`: shared memory of `multiprocessing`, without its dangers; `segment` tells which."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker, shared_memory

_OURS = "/shms-"  # what our names begin with, with the slash that the system puts in front


class Mapping(shared_memory.SharedMemory):
    """One mapped segment."""

    _fd: int  # the constructor of the base class sets it

    @property
    def descriptor(self) -> int:
        """Its descriptor."""
        return self._fd

    def unlink(self) -> None:
        """Do nothing: a failing constructor calls this, and would remove what others use."""

    def close(self) -> None:
        """Unmap. Memory to which a frame still has a view is unmapped when the view is gone."""
        try:
            super().close()
        except BufferError:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


if sys.version_info >= (3, 13):

    def create(name: str, size: int) -> Mapping:
        """A new segment of that full name.

        Raises:
            FileExistsError: the name is taken.
            OSError: shared memory or descriptors have run out.
        """
        return Mapping(name, create=True, size=size, track=False)

    def attach(name: str) -> Mapping:
        """The segment of that full name.

        Raises:
            OSError: it cannot be mapped.
        """
        return Mapping(name, track=False)

else:

    def _overlooking_ours(tell: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def tell_of_others(name: str, rtype: str) -> None:
            if not name.startswith(_OURS):
                tell(name, rtype)

        return tell_of_others

    resource_tracker.register = _overlooking_ours(  # type: ignore[assignment]
        resource_tracker.register
    )

    def create(name: str, size: int) -> Mapping:
        """As above, for older versions of Python."""
        return Mapping(name, create=True, size=size)

    def attach(name: str) -> Mapping:
        """As above."""
        return Mapping(name)
