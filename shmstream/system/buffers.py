"""The bytes of any Python object that has bytes.

`buffers` gives them in order, as soon as they arrive. `octets` are those of one buffer of any form.
`lines_of` gives the lines of a file whose iteration gives pieces.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from shmstream.arguments import in_order
from shmstream.system import greenlets

if TYPE_CHECKING:
    from typing_extensions import Buffer


T = TypeVar("T")


_READ_SIZE = 128 * 1024  # bytes; a buffer of this size stays in the processor's cache


def buffers(source: BinaryIO | io.RawIOBase | Iterable[Buffer] | Buffer) -> Iterator[Buffer]:
    """The bytes of `source` in order, as buffers; each is valid until the next one is asked for.

    Gives bytes as soon as they arrive. `BufferedReader.readinto` and plain `read(n)` wait until
    they have all n bytes, so `readinto1` and `read1` are preferred if the object has them. Blocks
    as long as the source does. Does not close it.

    Raises:
        EOFError: it is an HTTP response that ends before its Content-Length.
        TypeError: it is no source of bytes, or gives something other than bytes.
        ValueError: it is a file object in non-blocking mode.
    """
    if isinstance(source, str | io.TextIOBase):
        raise TypeError("a source gives bytes; this one gives text: open it in binary mode")
    in_order(source, "a source is a binary file object or an iterable of buffers")
    try:
        return iter((memoryview(cast("Buffer", source)),))
    except TypeError:
        pass  # no buffer: a file object or an iterable
    if isinstance(source, io.RawIOBase):  # one of our readers gives what is there by `readinto1`
        return _fill(getattr(source, "readinto1", source.readinto))
    if isinstance(source, io.BufferedReader) and _is_pipe(source.raw):
        return _fill(partial(_read_when_ready, source))
    if callable(fill := getattr(source, "readinto1", None)):
        return _checked(source, _fill(fill))
    for method in ("read1", "read"):
        if callable(read := getattr(source, method, None)):
            return _checked(source, _read(read))
    if not isinstance(source, Iterable):
        raise TypeError(
            "a source is a binary file object or an iterable of buffers, not "
            f"{type(source).__name__}; of a socket take `.makefile('rb')`"
        )
    return iter(source)


def octets(buffer: Buffer) -> memoryview:
    """The bytes of a C-contiguous buffer; of none at all if one of its dimensions is 0.

    Raises:
        TypeError: it is no such buffer.
    """
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def lines_of(file: io.RawIOBase, hint: int | None) -> list[bytes]:
    """What `readlines(hint)` of a file gives: its lines, each with its end.

    `io.IOBase.readlines` would give the pieces of an iteration.
    """
    lines: list[bytes] = []
    if hint is None or hint <= 0:
        *lines, rest = file.readall().split(b"\n")
        return [line + b"\n" for line in lines] + ([rest] if rest else [])
    length = 0
    while length <= hint and (line := file.readline()):
        lines.append(line)
        length += len(line)
    return lines


def _is_pipe(raw: io.RawIOBase) -> bool:
    return isinstance(raw, io.FileIO) and not raw.seekable()


def _read_when_ready(source: io.BufferedReader, buffer: bytearray) -> int:
    """Wait without holding the lock of `source`: an interpreter that ends while a thread waits in
    a pipe such as `sys.stdin.buffer` finds the lock taken, and aborts.
    """
    greenlets.wait_until_ready(source.fileno(), None)
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
    """`data`, then an error if `source` is an HTTP response that was cut off.

    Without that, it would look like a complete one.
    """
    yield from data
    if left := _left_of(getattr(source, "raw", source)):  # what an `io.BufferedReader` reads
        raise EOFError(f"the response ended {left} bytes short of its Content-Length")


def _left_of(source: object) -> int:
    """How many bytes a response of `http.client` or urllib3 still lacks."""
    http = sys.modules.get("http.client")
    if http is not None and isinstance(source, http.HTTPResponse):
        return source.length or 0
    left = getattr(source, "length_remaining", None)  # urllib3 need not raise this by itself
    return left if isinstance(left, int) else 0


def _there(given: T | None) -> T:
    if given is None:
        raise ValueError("the source is in non-blocking mode and has no bytes now")
    return given
