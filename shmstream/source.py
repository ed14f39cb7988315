"""Where bytes come from: a *source* opens at an offset, and gives a *feed* to iterate over.

    source.open(offset, validator) -> Feed    begin there, or at 0 where that cannot be
    for data in feed                          buffers in order, each as soon as its bytes are there

A feed that ends has given the whole blob. Whatever else happens is a `SourceError`, which says how
far it came and whether trying again makes sense; trying again is up to the caller. A *validator*
is a text that stays the same only while the bytes do: whoever resumes hands it back, and gets the
blob from its beginning when it is another by now.

Here are the sources that need nothing but this host: a path, a file object, an iterable. Those of
`http_source` and `fsspec_source` look the same; `sources` tells which one a user means.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, TypeVar, cast
from urllib.parse import urlsplit

from shmstream.errors import SourceError

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_READ_SIZE = 128 * 1024  # bytes; a buffer of this size stays in the processor's cache
# Trying again changes nothing about these.
_HOPELESS = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    ValueError, TypeError, ImportError, NotImplementedError,
)  # fmt: skip
_HOPELESS_NUMBERS = frozenset((errno.ELOOP, errno.ENAMETOOLONG, errno.EBADF))


def _nothing_to_close() -> None:
    """There is nothing to let go of."""


class KernelFeed(Protocol):
    """The bytes of a feed, on a way to a file that does not lead through this process."""

    def wait(self, gather: float, enough: int) -> bool:
        """Wait until there are bytes to move; False at the end, when all were moved.

        With `gather` they may, for so many seconds, unless there are `enough`; then it returns even
        if none are there.

        Raises:
            SourceError: they do not come.
        """

    def move(self, fd: int, limit: int) -> int:
        """Write what is there, at most `limit` bytes, to a file at its position; how many.

        Waits for the file only.

        Raises:
            SourceError: the source fails.
            OSError: the file does.
        """


@dataclass
class Feed:
    """An opened source: an iterable of buffers, each valid until the next is asked for.

    Iterating blocks as long as the source does. A normal end means that the source says that the
    blob is complete. One thread iterates; `close` may be called by any, any number of times. Close
    it when done, or use it as a context manager: it may hold a file or a connection.

    Attributes:
        data: the bytes from `offset` on; raises `SourceError`.
        offset: where in the blob the first byte is: what was asked for, or 0 if the content has
            changed or the source cannot begin anywhere else.
        size: of the whole blob in bytes; None if the source does not say.
        validator: what `Source.open` takes to resume this very content; None if there is nothing.
        media_type: as the source declares it; None if it does not.
        close: lets go of what the feed holds.
        by_kernel: another way to the same bytes, if there is one: all are taken in one of the two.
    """

    data: Iterator[Buffer] = field(repr=False)
    offset: int = 0
    size: int | None = None
    validator: str | None = None
    media_type: str | None = None
    close: Callable[[], None] = field(default=_nothing_to_close, repr=False)
    by_kernel: KernelFeed | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Buffer]:
        return self.data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Description:
    """What a source says of its blob without giving any of it; None for what it does not say."""

    size: int | None = None
    validator: str | None = None
    media_type: str | None = None


class Source(Protocol):
    """Where the bytes of one blob come from. Anything with these two members is a source.

    It may also have `describe() -> Description`, which asks for no bytes, and raises as `open`.
    """

    @property
    def name(self) -> str:
        """For people and logs: it never has credentials in it."""

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Begin at `offset` (bytes), provided that the content is what `validator` says.

        If it is not, or if the source cannot begin there, the feed begins at 0: look at its
        `offset`. Without a validator nobody checks. Blocks until the source has answered.

        Raises:
            SourceError: it cannot be opened.
            ValueError: `offset` is negative.
        """


def describe(sources: Iterable[Source]) -> Description | None:
    """What the first source that can tell without giving bytes says; None if none of them can.

    Raises:
        SourceError: the last one that was asked cannot be had.
    """
    failure = None
    for source in sources:
        tell = getattr(source, "describe", None)
        if tell is not None:
            try:
                described: Description = tell()
            except SourceError as error:
                failure = error
            else:
                return described
    if failure is not None:
        raise failure
    return None


def open_at(source: Source, offset: int, validator: str | None) -> Feed:
    """`source.open`; whatever it raises, for a source is anybody's code, is a `SourceError`."""
    try:
        return source.open(offset, validator)
    except SourceError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SourceError(source.name, offset, reason, retryable=False) from error


# What all sources share.


def check_offset(offset: int) -> None:
    """An offset is a number of bytes.

    Raises:
        ValueError: it is negative.
    """
    if offset < 0:
        raise ValueError(f"an offset is a number of bytes from the beginning, not {offset}")


def begin(offset: int, size: int | None, asked: str | None, validator: str | None) -> int:
    """Where to begin: at `offset` if that exists in what was `asked` for, else at 0."""
    same = asked is None or asked == validator
    return offset if same and (size is None or offset <= size) else 0


def public(url: str) -> str:
    """`url` for people and logs: without user, password, fragment and the query's values."""
    if "::" in url:  # fsspec's chains
        return "::".join(public(link) for link in url.split("::"))
    if url.isascii() and not any(mark in url for mark in "@?#"):
        return url  # has nothing to hide
    head, separator, rest = url.partition("://")
    try:
        netloc, path = urlsplit(url).netloc.rpartition("@")[2], rest.partition("#")[0]
    except ValueError:
        return f"{head}{separator}***"  # no valid URL: who knows what is where
    path, question_mark, query = path.partition("?")
    path = path.partition("/")[1] + path.partition("/")[2]
    fields = (part.partition("=") for part in query.split("&"))
    shown = "&".join(name + "=***" if equals else "***" for name, equals, _ in fields)
    return f"{head}{separator}{netloc}{path}{question_mark}{shown if query else ''}"


def explain(error: Exception, offset: int, *, name: str, retryable: bool = True) -> SourceError:
    """What went wrong at `offset`, as a `SourceError`: no file or no permission stays that way."""
    reason, number = str(error), None
    if isinstance(error, OSError):
        reason, number = error.strerror or reason, error.errno
    hopeless = isinstance(error, _HOPELESS) or number in _HOPELESS_NUMBERS
    return SourceError(
        name, offset, reason or type(error).__name__, retryable=retryable and not hopeless
    )


def checked(
    data: Iterator[Buffer],
    offset: int,
    size: int | None,
    explained: Callable[[Exception, int], SourceError],
) -> Iterator[Buffer]:
    """The buffers of `data`; every failure, and an end that is not at `size`, is a SourceError."""
    while True:
        try:
            given = next(data)
        except StopIteration:
            break
        except SourceError:
            raise
        except Exception as error:
            raise explained(error, offset) from error
        offset += memoryview(given).nbytes
        if size is not None and offset > size:
            raise explained(EOFError(f"it gives more than its {size} bytes"), size)
        yield given
    if size is not None and offset < size:
        raise explained(EOFError(f"it ended {size - offset} bytes short of its {size}"), offset)


# The sources.


class PathSource:
    """A regular file. Its validator is its time of change, size and inode.

    Links are followed. What is no regular file is refused, so a FIFO does not block and a device
    is not read for ever. A file that changes while it is read is a `SourceError` at its end.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self.name = self.path

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
            # O_NONBLOCK: opening a FIFO would wait for somebody who writes to it.
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
    """A binary file object. The blob begins where it stands now.

    If it can seek it can be opened any number of times, one feed at a time; else once, from the
    beginning. It is never closed: it belongs to whoever opened it.

    Raises:
        TypeError: it is in text mode, or cannot be read.
    """

    def __init__(self, file: BinaryIO, name: str | None = None) -> None:
        buffers(file)
        self._file = file
        given = getattr(file, "name", None)
        self.name = name or (given if isinstance(given, str) else f"<{type(file).__name__}>")
        seekable = getattr(file, "seekable", None)
        self._start = file.tell() if callable(seekable) and seekable() else None
        self._opened = False

    def __repr__(self) -> str:
        return f"FileSource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Read the file from `offset`; see `Source.open`. What it blocks for is the file's."""
        check_offset(offset)
        file, start = self._file, self._start
        size = current = None
        if start is None:
            _only_once(self.name, offset, again=self._opened)
            self._opened = True
            offset = 0
        else:
            try:
                size, current = _size_and_validator(file, start)
                offset = begin(offset, size, validator, current)
                file.seek(start + offset)
            except (OSError, ValueError) as error:
                raise explain(error, offset, name=self.name) from error
        explained = partial(explain, name=self.name, retryable=start is not None)
        return Feed(
            checked(_unchanged(file, current), offset, size, explained), offset, size, current
        )


class IterableSource:
    """An iterable of buffers: it can be opened once, from the beginning.

    An exception that it raises, of whatever kind, is a `SourceError` that cannot be retried.
    """

    def __init__(self, iterable: Iterable[Buffer], name: str | None = None) -> None:
        self._iterable = iterable
        self.name = name or f"<{type(iterable).__name__}>"
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


def _unchanged(file: BinaryIO | io.FileIO, validator: str | None) -> Iterator[Buffer]:
    yield from buffers(file)
    if validator is not None and _file_validator(os.fstat(file.fileno())) != validator:
        raise EOFError("the file was changed while it was read")


def _size_and_validator(file: BinaryIO, start: int) -> tuple[int | None, str | None]:
    """What can be told without reading: of others, such as a GzipFile, seeking reads it all."""
    inner = getattr(file, "file", file)  # what the wrappers of `tempfile` wrap
    if isinstance(inner, io.BytesIO):
        return max(inner.seek(0, os.SEEK_END) - start, 0), None
    if isinstance(getattr(inner, "raw", inner), io.FileIO):
        found = os.fstat(inner.fileno())
        if stat.S_ISREG(found.st_mode):
            return max(found.st_size - start, 0), _file_validator(found)
    return None, None


# Reading whatever has bytes.


def buffers(source: BinaryIO | io.RawIOBase | Iterable[Buffer] | Buffer) -> Iterator[Buffer]:
    """The bytes of `source` in order, as buffers that are valid until the next is asked for.

    Takes bytes as soon as they are there: `BufferedReader.readinto` and plain `read(n)` wait until
    they have all that was asked for, so the one-call methods are preferred wherever an object has
    them. Blocks as long as the source does. Does not close it.

    Raises:
        EOFError: it is an HTTP response that ends before its Content-Length.
        TypeError: it is neither, or gives something other than bytes.
        ValueError: it is a file object in non-blocking mode.
    """
    if isinstance(source, str | io.TextIOBase):
        raise TypeError("a source gives bytes; this one gives text: open it in binary mode")
    try:
        return iter((memoryview(cast("Buffer", source)),))
    except TypeError:
        pass  # no buffer: a file object or an iterable
    if isinstance(source, io.RawIOBase):
        return _fill(source.readinto)
    if isinstance(source, io.BufferedReader) and _is_pipe(source.raw):
        return _fill(partial(_read_when_ready, source, _poll(source.fileno())))
    if callable(fill := getattr(source, "readinto1", None)):
        return _checked(source, _fill(fill))
    for method in ("read1", "read"):
        if callable(read := getattr(source, method, None)):
            return _read(read)
    if not isinstance(source, Iterable):
        raise TypeError(
            "a source is a binary file object or an iterable of buffers, not "
            f"{type(source).__name__}; of a socket take `.makefile('rb')`"
        )
    return iter(source)


def _is_pipe(raw: io.RawIOBase) -> bool:
    return isinstance(raw, io.FileIO) and not raw.seekable()


def _poll(fd: int) -> select.poll:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll


def _read_when_ready(source: io.BufferedReader, poll: select.poll, buffer: bytearray) -> int:
    """Wait outside of `source`: an interpreter that ends while a thread reads a pipe such as
    `sys.stdin.buffer` finds it locked, and aborts.
    """
    poll.poll()
    return source.readinto1(buffer)


def _fill(readinto: Callable[[bytearray], int | None]) -> Iterator[Buffer]:
    buffer = bytearray(_READ_SIZE)
    view = memoryview(buffer)
    while count := _there(readinto(buffer)):
        yield view[:count]


def _read(read: Callable[[int], bytes | None]) -> Iterator[Buffer]:
    while data := _there(read(_READ_SIZE)):
        yield data


def _checked(source: object, data: Iterator[Buffer]) -> Iterator[Buffer]:
    """An `http.client` response that is cut off reads like one that ends: it must not."""
    yield from data
    http = sys.modules.get("http.client")
    if http is not None and isinstance(source, http.HTTPResponse) and source.length:
        raise EOFError(f"the response ended {source.length} bytes short of its Content-Length")


def _there(given: T | None) -> T:
    if given is None:
        raise ValueError("the source is in non-blocking mode and has no bytes now")
    return given
