"""Sources that need nothing but this host: a path, a file object, an iterable of buffers."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from shmstream.arguments import in_order
from shmstream.errors import SourceError
from shmstream.sources.base import (
    Description,
    Feed,
    Source,
    begin,
    check_offset,
    checked,
    explain,
)
from shmstream.sources.command import ProcessSource
from shmstream.system.buffers import buffers

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PathSource:
    """A regular file. Its validator is its time of change, size and inode.

    Links are followed. Everything else than a regular file is refused, so that a FIFO does not
    block and a device is not read for ever. If the file changes while it is read, the feed ends
    with a `SourceError`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.path.abspath(path)
        self.name: str = self.path

    def __repr__(self) -> str:
        return f"PathSource({self.path!r})"

    def describe(self) -> Description:
        """Size and validator, from the file's entry in its folder."""
        try:
            found = os.stat(self.path)
        except (OSError, ValueError) as error:
            raise explain(error, 0, name=self.name) from error
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(self.name, 0, "it is no regular file", retryable=False)
        return Description(found.st_size, _file_validator(found))

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Open the file at `offset`; see `Source.open`. Blocks for the disk only."""
        check_offset(offset)
        try:
            # O_NONBLOCK: to open a FIFO would wait for a process that writes to it.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise explain(error, offset, name=self.name) from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise SourceError(self.name, offset, "it is no regular file", retryable=False)
        file = io.FileIO(fd)
        current = _file_validator(found)
        offset = begin(offset, found.st_size, validator, current)
        file.seek(offset)
        explained = partial(explain, name=self.name)
        data = checked(_unchanged(file, current), offset, found.st_size, explained)
        return Feed(data, offset, found.st_size, current, close=file.close)


class FileSource:
    """A binary file object. The blob begins at the file's current position.

    A file that can seek can be opened any number of times, one feed at a time; another file only
    once, from the beginning. The file is never closed: it belongs to the caller.

    Raises:
        TypeError: the file is in text mode, or cannot be read.
    """

    is_live = True  # a pipe, perhaps, whose other end makes the bytes just now

    def __init__(self, file: BinaryIO, name: str | None = None) -> None:
        buffers(file)
        self._file = file
        given = getattr(file, "name", None)
        self.name: str = name or (given if isinstance(given, str) else f"<{type(file).__name__}>")
        seekable = getattr(file, "seekable", None)
        self._start = file.tell() if callable(seekable) and seekable() else None
        self._opened = False

    def __repr__(self) -> str:
        return f"FileSource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Read the file from `offset`; see `Source.open`. Blocks as long as the file does."""
        check_offset(offset)
        file, start = self._file, self._start
        size = current = regular = None
        if start is None:
            _only_once(self.name, offset, again=self._opened)
            self._opened = True
            offset = 0
        else:
            try:
                size, current = _size_and_validator(file, start)
                offset = begin(offset, size, validator, current)
                file.seek(start + offset)
                if current is not None:
                    regular = _At(file, start + offset)
            except (OSError, ValueError) as error:
                raise explain(error, offset, name=self.name) from error
        explained = partial(explain, name=self.name, retryable=start is not None)
        data = checked(_unchanged(regular or file, current), offset, size, explained)
        return Feed(data, offset, size, current)


class IterableSource:
    """An iterable of buffers: it can be opened once, from the beginning.

    Every exception that the iterable raises becomes a `SourceError` that is not `retryable`.

    Raises:
        TypeError: it is no iterable of buffers: a text, a dict, a set, ...
    """

    is_live = True

    def __init__(self, iterable: Iterable[Buffer], name: str | None = None) -> None:
        told = "the iterable of a source gives buffers, such as bytes, in their order"
        in_order(iterable, told)
        given: object = iterable
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(f"{told}; not {type(given).__name__}")
        self._iterable = iterable
        self.name: str = name or f"<{type(iterable).__name__}>"
        self._opened = False

    def __repr__(self) -> str:
        return f"IterableSource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        """Iterate from the beginning, the first time; see `Source.open`."""
        check_offset(offset)
        _only_once(self.name, offset, again=self._opened)
        self._opened = True
        explained = partial(explain, name=self.name, retryable=False)
        return Feed(checked(iter(self._iterable), 0, None, explained))


def _only_once(name: str, offset: int, *, again: bool) -> None:
    if again:
        raise SourceError(name, offset, "it can be read only once", retryable=False)


def _file_validator(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


class _At(io.RawIOBase):
    """Reads a regular file from a position of its own.

    The kernel's position is shared with forked processes that read the file, and the position of a
    file object with other threads: each of them would get some of the bytes.
    """

    def __init__(self, file: BinaryIO, position: int) -> None:
        self._file = file
        self._position = position

    def readinto(self, buffer: Buffer, /) -> int:
        count = os.preadv(self.fileno(), [buffer], self._position)
        self._position += count
        return count

    def fileno(self) -> int:
        return self._file.fileno()  # an error if the caller has closed the file


def _unchanged(file: BinaryIO | io.RawIOBase, validator: str | None) -> Iterator[Buffer]:
    yield from buffers(file)
    if validator is not None and _file_validator(os.fstat(file.fileno())) != validator:
        raise EOFError("the file was changed while it was read")


def _size_and_validator(file: BinaryIO, start: int) -> tuple[int | None, str | None]:
    """Size and validator of a file, as far as they are known without reading it.

    A file of another kind, such as a GzipFile, would read everything to seek to its end.
    """
    inner = getattr(file, "file", file)  # what the wrappers of `tempfile` wrap
    if isinstance(inner, io.BytesIO):
        return max(inner.seek(0, os.SEEK_END) - start, 0), None
    if isinstance(getattr(inner, "raw", inner), io.FileIO):
        found = os.fstat(inner.fileno())
        if stat.S_ISREG(found.st_mode):
            return max(found.st_size - start, 0), _file_validator(found)
    return None, None


def rereadable(sources: Sequence[Source]) -> list[Source]:
    """The sources that any number of readers can read, each for itself: no iterables, no files."""
    once = FileSource | IterableSource | ProcessSource
    return [each for each in sources if not isinstance(each, once)]
