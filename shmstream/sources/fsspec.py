"""`FsspecSource`: a blob on any file system that fsspec knows, such as `s3://`, `gs://`, `sftp://`.

    open(offset, validator)   info() for size and validator, then open and seek
      iterate                 read; at the end info() again, to see that nothing has changed

A file that fsspec reads by ranged requests is read 4 MiB at a time, one request each, without
fsspec's caches. A real file gives bytes as soon as they are there.

Needs fsspec, the extra `fsspec`, and for most schemes a package that fsspec names in its error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from shmstream.sources.base import Description, Feed, begin, check_offset, checked, explain, public
from shmstream.system.buffers import buffers

try:
    import fsspec.core
except ImportError as _missing:
    raise ImportError("such a URL needs fsspec: pip install 'shmstream[fsspec]'") from _missing
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

if TYPE_CHECKING:
    from typing_extensions import Buffer

_REQUEST_SIZE = 4 << 20  # bytes; each request costs a round trip, whatever its size
_IDENTITIES = (
    "ETag",
    "etag",
    "generation",
    "version_id",
    "md5Hash",
    "content_md5",
    "md5",
    "sha256",
)
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "date_time", "created")


class FsspecSource:
    """A blob on a file system of fsspec. Its validator comes from what `info` says of the content.

    Args:
        url: as fsspec takes it, chains (`zip://a::s3://b/c.zip`) included.
        storage_options: options of the file system, such as credentials.
    """

    def __init__(self, url: str, **storage_options: Any) -> None:
        self._url = url
        self._options = storage_options
        self.name: str = public(url)
        given = sorted(storage_options.items())
        self.identity: str = f"{url} {given}" if given else url
        """Tells this source from others. It may have secrets in it, and is never shown."""

    def __repr__(self) -> str:
        return f"FsspecSource({self.name!r})"

    def describe(self) -> Description:
        """Size and validator, from `info`."""
        try:
            system, path = fsspec.core.url_to_fs(self._url, **self._options)
            return Description(*_look(system, path))
        except Exception as error:
            raise explain(error, 0, name=self.name) from error

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Open the file at `offset`; see `Source.open`. Blocks as long as the file system does.

        A file that cannot seek begins at 0. If the file changes while it is read, and `info` shows
        that, the feed ends with a `SourceError`. Every error is `retryable` but a missing file, a
        missing permission and a mistake such as an unknown scheme.
        """
        check_offset(offset)
        try:
            system, path = fsspec.core.url_to_fs(self._url, **self._options)
            size, current = _look(system, path)
            file = _open(system, path)
        except Exception as error:
            raise explain(error, offset, name=self.name) from error
        try:
            offset = begin(offset, size, validator, current)
            if offset and not file.seekable():
                offset = 0
            if offset:
                file.seek(offset)
        except Exception as error:
            file.close()
            if offset:  # it says that it can seek, and cannot
                return self.open()
            raise explain(error, offset, name=self.name) from error
        data = _read(system, path, file, (size, current))
        explained = partial(explain, name=self.name)
        return Feed(checked(data, offset, size, explained), offset, size, current, close=file.close)


def _look(system: AbstractFileSystem, path: str) -> tuple[int | None, str | None]:
    """The file's size and validator now, not those that fsspec remembers."""
    system.invalidate_cache(path)
    info: Mapping[str, Any] = system.info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError(path)
    size = info.get("size")
    identity = next((f"{info[key]}" for key in _IDENTITIES if info.get(key)), None)
    time = next((f"{info[key]}-{size}" for key in _TIMES if info.get(key)), None)
    if time is not None and info.get("ino"):
        time += f"-{info['ino']}"
    return size, identity or time


def _open(system: AbstractFileSystem, path: str) -> BinaryIO:
    try:
        file: BinaryIO = system.open(path, "rb", cache_type="none")
    except TypeError:  # a file system without the argument `cache_type`
        file = system.open(path, "rb")
    return file


def _read(
    system: AbstractFileSystem, path: str, file: BinaryIO, seen: tuple[int | None, str | None]
) -> Iterator[Buffer]:
    if isinstance(file, AbstractBufferedFile):
        while data := file.read(_REQUEST_SIZE):
            yield data
    else:
        yield from buffers(file)
    if _look(system, path) != seen:
        raise EOFError("the file was changed while it was read")
