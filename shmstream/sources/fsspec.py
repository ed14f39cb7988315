"""`FsspecSource`: a blob on any file system that fsspec knows, such as `s3://`, `gs://`, `sftp://`.

    look                      what `info` says now: size and validator
    open(offset, validator)   look, then open there
      iterate                 read; at the end look again, to see that nothing has changed

    the file                            how it is read
    a real file                         as its bytes are there
    over HTTP                           by one request from the offset on, as its bytes come
    by ranged requests (S3, GCS, ...)   one request after the other, without fsspec's caches; the
                                        first one is small, so that the first bytes come soon, and
                                        each next one is larger, as long as it does not take long

Of a part (`open_part`), all bytes are right when they are given: without a digest, `info` is asked
after each request, before its bytes go out.

Needs fsspec, the extra `fsspec`, and for most schemes a package that fsspec names in its error.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from shmstream.arguments import flag
from shmstream.errors import SourceError
from shmstream.sources.base import Description, Feed, begin, check_offset, checked, explain, public
from shmstream.system.buffers import buffers

try:
    import fsspec.core
except ImportError as _missing:
    raise ImportError("such a URL needs fsspec: pip install 'shmstream[fsspec]'") from _missing
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from shmstream.sources.fsspec_guard import cause_of, guarded

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FIRST_REQUEST = 256 << 10  # bytes
_FIRST_OF_PART = 4 << 20  # bytes
_LARGEST_REQUEST = 8 << 20  # bytes; each request costs a round trip, whatever its size
_QUICK, _SLOW = 0.25, 1.0  # s; after a request that was quick the next is larger, else smaller
_PIECE = 256 << 10  # bytes; the most that is taken at once of what comes over HTTP
_CONNECT, _SILENCE = 30.0, 60.0  # s; the bounds that fsspec gives to a request end a long download

_IDENTITIES = (
    "ETag", "etag", "generation", "version_id", "md5Hash", "content_md5", "Content-MD5", "md5",
    "sha256", "Digest", "sha", "hex", "blob_id",
)  # fmt: skip
_TIMES = (
    "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "modify",
    "modificationTime", "date_time", "created",
)  # fmt: skip
_BESIDE_TIMES = ("ino", "CRC")
# The modules whose `ukey` does not change with the content.
_CONSTANT_KEYS = (
    "fsspec.spec", "fsspec.archive", "fsspec.implementations.dirfs", "fsspec.implementations.http",
    "fsspec.implementations.http_sync",
)  # fmt: skip


def look(system: AbstractFileSystem, path: str) -> Description:
    """The file's size and validator now, not those that fsspec remembers. Blocks for the answer.

    The validator is, in this order: the `ukey` of a file system that has one of its own; an ETag or
    a checksum; a time and the size. None if the file system says nothing that would change with
    the content.

    Raises:
        IsADirectoryError: `path` is a directory.
        FileNotFoundError: there is no such file.
        Exception: as `info` of the file system.
    """
    system.invalidate_cache(path)
    try:
        info: Mapping[str, Any] = system.info(path)
    except FileNotFoundError as error:
        if not is_http(system):
            raise
        raise _http_error(error) from None
    if info.get("type") == "directory":
        raise IsADirectoryError(path)
    size = info.get("size")
    if type(system).ukey.__module__ not in _CONSTANT_KEYS:
        return Description(size, str(system.ukey(path)))
    return Description(size, _validator(info, size))


def _validator(info: Mapping[str, Any], size: int | None) -> str | None:
    identity = next((str(info[name]) for name in _IDENTITIES if info.get(name)), None)
    if identity is not None:  # a weak ETag (RFC 9110, 8.8.1) may stay while bytes change
        return f"{identity}-{size}" if identity.startswith("W/") else identity
    time = next((info[name] for name in _TIMES if info.get(name)), None)
    if time is None:
        return None
    beside = (info[name] for name in _BESIDE_TIMES if info.get(name))
    return "-".join(str(each) for each in (time, size, *beside))


class FsspecSource:
    """A blob on a file system of fsspec. Its validator comes from what `info` says of the content.

    Args:
        url: as fsspec takes it, chains (`zip://a::s3://b/c.zip`) included.
        storage_options: options of the file system, such as credentials. `private_redirects=True`
            is none of them: it lets public http and https URLs redirect to private addresses.
    """

    _has_digest = False  # a digest guards the bytes

    def __init__(self, url: str, **storage_options: Any) -> None:
        self._url = url
        self._private_redirects = flag(
            "private_redirects", storage_options.pop("private_redirects", False)
        )
        self._options = storage_options
        self.name: str = public(url)
        given = sorted(storage_options.items())
        self.identity: str = f"{url} {given}" if given else url
        """Tells this source from others. It may have secrets in it, and is never shown."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _locate(self) -> tuple[AbstractFileSystem, str]:
        """The file system, and the path in it."""
        options = self._options
        if not self._private_redirects:
            options = guarded(self._url, options)
        return cast("tuple[AbstractFileSystem, str]", fsspec.core.url_to_fs(self._url, **options))

    @property
    def connections(self) -> int | None:
        """Over how many a blob may come: of a file that is far away, what the caller says."""
        return None if issubclass(self._class(), AsyncFileSystem) else 1

    def _class(self) -> type[AbstractFileSystem]:
        """Of the file system; none is made, because some connect at once, or read a file."""
        first, is_chain, _ = self._url.partition("::")
        protocol = fsspec.core.split_protocol(first)[0]
        if not is_chain:
            protocol = self._options.get("protocol") or protocol
        found = protocol or (first if is_chain else "file")
        return cast("type[AbstractFileSystem]", fsspec.get_filesystem_class(found))

    def expecting(self, digest: str) -> FsspecSource:  # noqa: ARG002
        """The same source, for a blob that is known to have a digest."""
        source = copy.copy(self)
        source._has_digest = True
        return source

    def describe(self) -> Description:
        """Size and validator, from `info`."""
        try:
            return look(*self._locate())
        except Exception as error:
            raise _explain(error, 0, name=self.name) from error

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Open the file at `offset`; see `Source.open`. Blocks as long as the file system does.

        A file that cannot seek begins at 0. If the file changes while it is read, and `info` shows
        that, the feed ends with a `SourceError`. Every error is `retryable` but a missing file, a
        missing permission and a mistake such as an unknown scheme.
        """
        check_offset(offset)
        try:
            system, path = self._locate()
            seen = look(system, path)
            offset = begin(offset, seen.size, validator, seen.validator)
            file, offset = _open(system, path, offset, seen)
        except Exception as error:
            raise _explain(error, offset, name=self.name) from error
        read = _read(system, path, file, offset, seen)
        data = checked(read, offset, seen.size, partial(_explain, name=self.name))
        return Feed(data, offset, seen.size, seen.validator, close=file.close)

    def open_part(self, offset: int, end: int, validator: str | None = None) -> Feed:
        """`open` for the bytes before `end` alone, from a file system with ranged requests."""
        check_offset(offset)
        try:
            system, path = self._locate()
            seen = look(system, path)
            is_part = seen.size is not None and offset < end <= seen.size
            if not is_part or begin(offset, seen.size, validator, seen.validator) != offset:
                return self.open(offset, validator)
            file, begins = _open(system, path, offset, seen, end)
            if begins != offset or not _is_ranged(system, file):
                file.close()
                return self.open(offset, validator)
        except SourceError:
            raise
        except Exception as error:
            raise _explain(error, offset, name=self.name) from error
        read = _read_part(system, path, file, end - offset, None if self._has_digest else seen)
        data = checked(read, offset, end, partial(_explain, name=self.name))
        is_all = end == seen.size
        return Feed(
            data, offset, seen.size, seen.validator, close=file.close, end=None if is_all else end
        )


def _explain(error: Exception, offset: int, *, name: str) -> SourceError:
    return explain(cause_of(error), offset, name=name)


def _open(
    system: AbstractFileSystem, path: str, offset: int, seen: Description, end: int | None = None
) -> tuple[BinaryIO, int]:
    """The file, and where it begins: at `offset`, or at 0 if it can begin nowhere else.

    What is read by one request ends at `end`.
    """
    if is_http(system) and not (offset and offset == seen.size):
        return _open_http(system, path, offset, seen, end)
    try:
        file: BinaryIO = system.open(path, "rb", cache_type="none")
    except TypeError:  # a file system without the argument `cache_type`
        file = system.open(path, "rb")
    try:
        if offset and not file.seekable():
            offset = 0
        if offset:
            file.seek(offset)
    except Exception:
        file.close()
        if offset:  # it says that it can seek, and cannot
            return _open(system, path, 0, seen)
        raise
    return file, offset


def _read(
    system: AbstractFileSystem, path: str, file: BinaryIO, offset: int, seen: Description
) -> Iterator[Buffer]:
    """What comes; the last of it only if the file still is what was `seen`.

    So no reader has all bytes of a mixture of two contents, if the size is known.
    """
    last: Buffer = b""
    for data in _pieces(system, file):
        offset += memoryview(data).nbytes
        if offset == seen.size:
            last = bytes(data)
        else:
            yield data
    if look(system, path) != seen:
        raise EOFError("the file was changed while it was read")
    if last:
        yield last


def _is_ranged(system: AbstractFileSystem, file: BinaryIO) -> bool:
    """Whether a file gives a part, not all of what comes after its beginning."""
    if is_http(system):
        return bool(getattr(getattr(file, "r", None), "status", None) == 206)
    return isinstance(file, AbstractBufferedFile)


def _read_part(
    system: AbstractFileSystem, path: str, file: BinaryIO, count: int, seen: Description | None
) -> Iterator[Buffer]:
    """The next `count` bytes, as they come; if they have to be of what was `seen`, look each time.

    All of them are right when they are given, because they may become a part of another whole.
    """
    if is_http(system):
        pieces = iter(partial(file.read, _PIECE), b"")
        if seen is not None and (seen.validator or "").startswith('"'):
            seen = None  # the answer had that validator
    else:
        pieces = _ranges(file, _FIRST_OF_PART, count)
    for data in pieces:
        if seen is not None and look(system, path) != seen:
            raise EOFError("the file was changed while it was read")
        yield data


def _pieces(system: AbstractFileSystem, file: BinaryIO) -> Iterator[Buffer]:
    if is_http(system):
        while data := file.read(_PIECE):
            yield data
    elif isinstance(file, AbstractBufferedFile):
        yield from _ranges(file)
    else:
        yield from buffers(file)


def _ranges(
    file: BinaryIO, first: int = _FIRST_REQUEST, count: int = sys.maxsize
) -> Iterator[bytes]:
    """What ranged requests give, one after the other: at most `count` bytes."""
    size = first
    began = time.monotonic()
    while data := file.read(min(size, count)):
        count -= len(data)
        took = time.monotonic() - began
        if took < _QUICK:
            size = min(size * 2, _LARGEST_REQUEST)
        elif took > _SLOW:
            size = max(size // 2, _FIRST_REQUEST)
        yield data
        began = time.monotonic()


# Over HTTP.

_MISSING = (404, 410)
_FORBIDDEN = (401, 403, 407)


def _http_error(error: Exception) -> Exception:
    """What went wrong: for fsspec every failure of `info` over HTTP is a missing file."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    status = getattr(cause, "status", None)
    if not isinstance(cause, Exception) or status in _MISSING:
        return FileNotFoundError(str(error))
    return PermissionError(str(cause)) if status in _FORBIDDEN else cause


def is_http(system: AbstractFileSystem) -> bool:
    """Whether it is fsspec's file system of http and https URLs, or one that is made of it."""
    module = sys.modules.get("fsspec.implementations.http")  # it needs a package of its own
    return module is not None and isinstance(system, module.HTTPFileSystem)


def _open_http(
    system: AbstractFileSystem, path: str, offset: int, seen: Description, end: int | None = None
) -> tuple[BinaryIO, int]:
    """The body of one request, which gives bytes as they come, and where it begins."""
    import aiohttp
    from fsspec.asyn import sync
    from fsspec.implementations.http import HTTPStreamFile

    options = dict(system.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    if offset or end is not None:
        headers["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        if seen.validator is not None and seen.validator.startswith('"'):
            headers["If-Range"] = seen.validator
    if "timeout" not in options and "timeout" not in system.client_kwargs:
        options["timeout"] = aiohttp.ClientTimeout(None, sock_connect=_CONNECT, sock_read=_SILENCE)
    session = sync(system.loop, system.set_session)
    try:
        file = HTTPStreamFile(
            system, path, loop=system.loop, session=session, headers=headers, **options
        )
    except aiohttp.ClientResponseError as error:
        raise _http_error(error) from None
    try:
        return file, _begins_at(file.r.status, file.r.headers, offset, seen)
    except BaseException:
        file.close()
        raise


def _begins_at(status: int, headers: Mapping[str, str], offset: int, seen: Description) -> int:
    """Where an answer begins.

    Raises:
        OSError: it is no answer to what was asked.
    """
    validator = seen.validator
    is_strong = validator is not None and validator.startswith('"')
    if is_strong and headers.get("ETag", validator) != validator:
        raise OSError("the file was changed while it was opened")
    if status == 200:
        return 0
    told = headers.get("Content-Range", "no range")
    encoded = headers.get("Content-Encoding", "identity") != "identity"
    if status != 206 or encoded or not told.startswith(f"bytes {offset}-"):
        raise OSError(f"asked for bytes {offset}-, it answered {status} with {told!r}")
    return offset
