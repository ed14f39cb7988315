"""`BlobFile`: what `open` of the file system gives, a blob with what readers of files expect.

A `Blob` is raw: iterating over it gives pieces as they arrive, and each small read costs as much as
a large one. A `BlobFile` has a buffer over it, so it has lines, and small reads cost little. The
buffer never waits for more than it was asked for: it takes what has arrived.

A file can be pickled, as files of fsspec can: the other process opens the same content at the same
position.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, Protocol

from shmstream.filesystem.identity import Version
from shmstream.flight.blob import Blob
from shmstream.system.refusals import ReadOnly

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER = 256 << 10  # bytes


class Opens(Protocol):
    """The file system, as far as a file needs it."""

    def open_version(self, path: str, version: Version) -> BlobFile:
        """Open one content of a file."""


class BlobFile(ReadOnly, io.BufferedReader):
    """A readable, seekable binary file, read while it arrives; from `ShmstreamFileSystem.open`.

    It is an `io.BufferedReader` over a `Blob`. Reading waits for the bytes that it is asked for,
    also after a `seek` ahead, and raises what reading a `Blob` raises. Any thread may use it, one
    at a time.
    """

    _instead = "to write, open the path without `shmstream::`, or make a blob with `Store.create`"

    def __init__(self, fs: Opens, path: str, version: Version, blob: Blob) -> None:
        """Internal: use `ShmstreamFileSystem.open`."""
        super().__init__(_Raw(blob, version.size), _BUFFER)
        self.fs: Opens = fs
        self.path: str = path
        """The path on the target."""
        self.original: str = path  # as fsspec's own caches have it, to infer a compression from
        self.blob: Blob = blob
        """The blob that is read."""
        self._version = version

    @property
    def size(self) -> int | None:
        """Bytes of the file; None while neither the target nor the flight has told them."""
        return self._version.size if self.blob.size is None else self.blob.size

    @property
    def name(self) -> str:
        """The path of the complete blob in the store: where it is, or will be."""
        return self.blob.path

    @property
    def mode(self) -> str:
        """`rb`."""
        return "rb"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.fs, self.path, self._version, self.tell())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __repr__(self) -> str:
        return f"<BlobFile {self.path!r} of {self.blob!r}>"


def _open_again(fs: Opens, path: str, version: Version, position: int) -> BlobFile:
    file = fs.open_version(path, version)
    file.seek(position)
    return file


class _Raw(io.RawIOBase):
    """The blob as a raw file that gives what has arrived, as a socket does.

    `size` is what the target says, so that nobody waits for the flight to know the end.
    """

    def __init__(self, blob: Blob, size: int | None) -> None:
        self._blob = blob
        self._size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        return self._blob.readinto1(buffer)

    def readall(self) -> bytes:
        return self._blob.readall()

    def tell(self) -> int:
        return self._blob.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END and self._blob.size is None and self._size is not None:
            offset, whence = self._size + offset, os.SEEK_SET
        return self._blob.seek(offset, whence)

    def fileno(self) -> int:
        return self._blob.fileno()

    def close(self) -> None:
        self._blob.close()
        super().close()
