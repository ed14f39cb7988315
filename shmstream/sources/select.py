"""`as_sources`: which sources a user means by a URL, a path, a file object, ...

"https://..."                    HTTPSource      (extra `http`)
"scheme://...", "a::b://..."     FsspecSource    (extra `fsspec`)
other text, a PathLike           PathSource
a binary file object             FileSource
a subprocess.Popen               ProcessSource
a buffer such as bytes           FileSource of it
an object with `name` and `open(offset, ...)`    is a source already
a function without arguments     RenewedSource: it returns one of the above, fresh when it expires
an iterable of buffers           IterableSource
a list or tuple of the above     each in turn; a list of buffers is an iterable of buffers
"""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, TypeGuard, Union, cast

from shmstream.arguments import in_order
from shmstream.sources.base import Source
from shmstream.sources.command import ProcessSource, is_process
from shmstream.sources.local import FileSource, IterableSource, PathSource
from shmstream.sources.renewed import RenewedSource
from shmstream.system.process import Identity

if TYPE_CHECKING:
    import subprocess

    from typing_extensions import Buffer

_Address: TypeAlias = str | os.PathLike[str] | Source
OneSource: TypeAlias = Union[
    _Address, BinaryIO, "subprocess.Popen[bytes]", "Callable[[], _Address]"
]
AnySource: TypeAlias = Union[OneSource, "Buffer", "Iterable[Buffer]", "Iterable[OneSource]"]

_A_SOURCE = (
    "a source is a URL, a path, a binary file object, a process, an iterable of buffers, an object "
    "with `name` and `open(offset, validator)`, a function that returns a URL, or a list of these"
)
_HTTP, _FSSPEC = "shmstream.sources.http", "shmstream.sources.fsspec"
_URL = re.compile(r"(\w[\w+.-]*::)*([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def as_sources(source: AnySource) -> list[Source]:
    """The sources that `source` means, in the order in which to try them.

    Opens nothing and asks no server.

    Raises:
        TypeError: `source` is nothing that this module's table names.
        ValueError: a URL is not valid, or the list is empty.
        ImportError: the extra for such a URL is not installed; the message names the extra.
    """
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError("at least one source: this is an empty list")
        if not any(_is_one(item) for item in source):
            return [IterableSource(_buffers_only(source))]
        return [_as_source(item) for item in source]
    if _is_one(source):
        return [_as_source(source)]
    in_order(source, _A_SOURCE)
    if _is_buffer(source):
        return [FileSource(io.BytesIO(source), f"<{type(source).__name__}>")]
    if isinstance(source, Iterable):
        return [IterableSource(cast("Iterable[Buffer]", source))]
    raise _no_source(source)


def check_source(source: object) -> None:
    """Raises:
    TypeError: `source` is nothing that this module's table names.
    ValueError: it is an empty list.
    """
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError("at least one source: this is an empty list")
        others = [item for item in source if not _is_one(item)]
        if 0 < len(others) < len(source):  # else all are sources, or all are buffers of one
            raise _no_source(others[0])
    elif not _is_one(source):
        in_order(source, _A_SOURCE)
        if not (_is_buffer(source) or isinstance(source, Iterable)):
            raise _no_source(source)


def missing_modules(source: AnySource) -> set[str]:
    """The modules that `as_sources` has to import for the URLs in `source`."""
    items = source if isinstance(source, list | tuple) else [source]
    urls = [_URL.match(item) for item in items if isinstance(item, str)]
    return {_HTTP if _is_http(url) else _FSSPEC for url in urls if url} - sys.modules.keys()


def _is_http(url: re.Match[str]) -> bool:
    return url[1] is None and url[2].lower() in ("http", "https")


def fingerprints(source: AnySource) -> list[str]:
    """The `fingerprint` of each source that `source` means. Makes none of them, and never fails."""
    if isinstance(source, list | tuple) and any(_is_one(item) for item in source):
        return [fingerprint(item) for item in source]
    return [fingerprint(source)]


def fingerprint(source: object) -> str:
    """A short text that two sources, or what means them, share only if they are the same source.

    It tells no secret. Files and iterables belong to one process, so each is a source of its own.
    """
    if isinstance(source, FileSource):
        source = source._file
    elif isinstance(source, IterableSource):
        source = source._iterable
    elif isinstance(source, RenewedSource):
        source = source.renew
    given = getattr(source, "identity", None) or getattr(source, "name", None)
    if isinstance(source, str) and _URL.match(source):
        text = source
    elif isinstance(source, str | os.PathLike):
        text = _full_path(os.fsdecode(source))
    elif isinstance(given, str) and callable(getattr(source, "open", None)):
        text = given
    else:
        text = f"{id(source)} in {Identity.mine()!r}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _full_path(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # this process's folder is gone
        return path


def _as_source(source: object) -> Source:
    if _is_source(source):
        return source
    if isinstance(source, str):
        return _named(source)
    if isinstance(source, os.PathLike):
        return PathSource(os.fspath(source))
    if is_process(source):
        return ProcessSource(source)
    if _is_file(source):
        return FileSource(source)
    if _is_function(source):
        return RenewedSource(source, _as_source)
    raise _no_source(source)


def _named(name: str) -> Source:
    url = _URL.match(name)
    if url is None:
        return PathSource(name)
    if _is_http(url):
        from shmstream.sources.http import HTTPSource

        return HTTPSource(name)
    from shmstream.sources.fsspec import FsspecSource

    return FsspecSource(name)


def _is_one(source: object) -> bool:
    known = isinstance(source, str | os.PathLike) or is_process(source)
    return known or _is_source(source) or _is_file(source) or _is_function(source)


def _is_source(source: object) -> TypeGuard[Source]:
    open_at = getattr(source, "open", None)
    if isinstance(source, type) or not callable(open_at) or not hasattr(source, "name"):
        return False
    return _takes_offset(open_at)


def _takes_offset(function: Callable[..., object]) -> bool:
    """Whether a function has a parameter of the name `offset`.

    Each flight asks that of its sources, and `inspect.signature` takes longer than to write a small
    blob. A function that nothing wraps tells it at once.
    """
    plain = getattr(function, "__func__", function)
    if isinstance(plain, FunctionType) and not vars(plain):
        code = plain.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        is_bound = plain is not function and code.co_argcount > 0
        return "offset" in names[is_bound:]
    try:
        return "offset" in inspect.signature(function).parameters
    except ValueError:  # a function in C
        return False


def _is_file(source: object) -> TypeGuard[BinaryIO]:
    return callable(getattr(source, "read", None))


def _is_function(source: object) -> TypeGuard[Callable[[], object]]:
    if not callable(source) or isinstance(source, type | Iterable):
        return False
    return not inspect.iscoroutinefunction(source)


def _is_buffer(source: object) -> TypeGuard[Buffer]:
    try:
        memoryview(cast("Buffer", source)).release()
    except TypeError:
        return False
    return True


def _buffers_only(items: list[object] | tuple[object, ...]) -> Iterable[Buffer]:
    for item in items:
        if not _is_buffer(item):
            raise _no_source(item)
    return cast("Iterable[Buffer]", items)


def _no_source(source: object) -> TypeError:
    return TypeError(f"{_A_SOURCE}; not {type(source).__name__}")
