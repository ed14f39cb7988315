"""Moves bytes of a file to a destination, through the kernel where the kernel can.

The kind of destination decides the way: `copy_file_range` to a file (some file systems then share
the blocks and copy nothing), `sendfile` to a socket, `splice` to a pipe. If the kernel refuses a
way (another file system, a file opened for appending, ...), the next way is tried. The last way is
to read and write.

A file object is bypassed only if it does not change the bytes. A `GzipFile` or an `SSLSocket` has a
descriptor too, but writing to that descriptor would lose the compression or the encryption.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeGuard, Union

from shmstream.system import greenlets

if TYPE_CHECKING:
    import socket


class SupportsWrite(Protocol):
    """Anything with the `write` of a binary file object."""

    def write(self, data: bytes, /) -> int | None:
        """Take some or all bytes of `data`; how many, or None for all."""


Destination: TypeAlias = Union[SupportsWrite, "socket.socket", int]

_Way = Callable[[int, int, int], int]  # descriptor, offset, count -> bytes moved

_BUFFER = 64 * 1024
_CANNOT = frozenset(
    {
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EBADF,
        errno.EPERM,
        errno.ETXTBSY,
        errno.ESPIPE,
    }
)


def _is_socket(thing: object) -> TypeGuard[socket.socket]:
    """Whether it is a socket. There is none if nobody has imported that module."""
    module = sys.modules.get("socket")
    return module is not None and isinstance(thing, module.socket)


class Mover:
    """Moves spans of files to one destination: call `move` any number of times, then `finish`."""

    def __init__(self, destination: Destination) -> None:
        """Raises:
        TypeError: bytes cannot be written to `destination`.
        ValueError: it is a socket in non-blocking mode.
        """
        self._file: io.BufferedWriter | io.BufferedRandom | None = None
        self._timeout: float | None = None
        self._out = -1
        if isinstance(destination, int):
            self._out = destination
        elif _is_socket(destination):
            self._timeout = destination.gettimeout()
            if self._timeout == 0:
                raise ValueError("a socket in non-blocking mode cannot be copied to")
            if type(destination) is sys.modules["socket"].socket:
                self._out = destination.fileno()
        elif type(destination) is io.FileIO:
            self._out = destination.fileno()
        elif (
            isinstance(destination, io.BufferedWriter | io.BufferedRandom)
            and type(destination.raw) is io.FileIO
        ):
            self._file = destination
            self._file.flush()
            self._out = destination.fileno()
        if self._out >= 0:
            self._ways = _ways_to(self._out)
        else:
            self._ways = [_through(_writer_of(destination))]

    def move(self, fd: int, offset: int, count: int) -> int:
        """Move up to `count` bytes of `fd` from `offset`; how many. 0: the file ends at `offset`.

        Blocks until the destination takes at least one byte.

        Raises:
            TimeoutError: it is a socket with a timeout, and took no byte in that time.
            OSError: an error of the destination.
        """
        while True:
            try:
                moved = self._ways[0](fd, offset, count)
            except BlockingIOError:
                self._wait_until_writable()
                continue
            except OSError as error:
                if error.errno not in _CANNOT or len(self._ways) == 1:
                    raise
                moved = 0
            if moved or len(self._ways) == 1:
                return moved
            del self._ways[0]

    def _wait_until_writable(self) -> None:
        if not greenlets.wait_until_ready(self._out, self._timeout, writable=True):
            raise TimeoutError(f"the destination took no bytes for {self._timeout} s")

    def finish(self) -> None:
        """Have a buffered file read the position of its descriptor, which `move` has changed."""
        if self._file is not None and self._file.seekable():
            self._file.tell()


def _ways_to(out: int) -> list[_Way]:
    """The ways to move bytes to a descriptor, the fastest first."""

    def copy_range(fd: int, offset: int, count: int) -> int:
        return os.copy_file_range(fd, out, count, offset)

    def splice(fd: int, offset: int, count: int) -> int:
        return os.splice(fd, out, count, offset)

    def sendfile(fd: int, offset: int, count: int) -> int:
        return os.sendfile(out, fd, offset, count)

    mode = os.fstat(out).st_mode
    ways: list[_Way] = [_through(lambda data: os.write(out, data))]
    if stat.S_ISREG(mode):
        return [copy_range, sendfile, *ways]
    if stat.S_ISSOCK(mode):
        return [sendfile, *ways]
    if stat.S_ISFIFO(mode):
        return [splice, *ways]
    return ways


def _through(write: Callable[[bytes], int | None]) -> _Way:
    """The way that reads the bytes, and calls `write` with them."""

    def read_and_write(fd: int, offset: int, count: int) -> int:
        data = os.pread(fd, min(count, _BUFFER), offset)
        if not data:
            return 0
        taken = write(data)
        if taken == 0:
            raise OSError(errno.EIO, "the destination took nothing and told no error")
        return len(data) if taken is None else taken

    return read_and_write


def _writer_of(destination: object) -> Callable[[bytes], int | None]:
    if _is_socket(destination):
        return destination.send
    if isinstance(destination, io.TextIOBase):
        raise TypeError("a blob is bytes: open the destination in binary mode")
    write: Callable[[bytes], int | None] | None = getattr(destination, "write", None)
    if not callable(write):
        raise TypeError(
            "a destination is a binary file object, a descriptor or a socket, not "
            f"{type(destination).__name__}"
        )
    if isinstance(destination, io.RawIOBase):

        def write_raw(data: bytes) -> int | None:
            taken = write(data)
            if taken is None:
                raise ValueError("the destination is in non-blocking mode and takes no bytes now")
            return taken

        return write_raw
    return write
