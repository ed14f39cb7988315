"""`ShmstreamFileSystem`: a file system of fsspec over another one, the *target*.

Reading a file goes through the store; everything else is the target's:

    open "rb", cat, cat_file, cat_ranges, get_file, head, tail, ...    a blob of the store
    ls, info, glob, find, exists, ...                                  the target
    open "wb", put, pipe, rm, mkdir, ...                               the target

How a file is opened:

    1 which content has it now? `identity` asks the target, or remembers an answer for `expiry`
      seconds. If a download would begin, the target is asked in any case
    2 `Store.open` with the key of that content: complete, in flight, or a flight begins. The leader
      reads the target's file in its own thread (`target`)
    3 `file` puts a buffer over it

With `check` the key is the digest, and the target is asked only if a download would begin.

A file whose target says nothing that changes with the content has the same key always. Step 2 then
uses a complete blob for `expiry` seconds after it was completed, removes it when it is older, and
downloads anew. A flight in progress is joined in any case.

Files are read by several threads at once where there are several files, so that their downloads are
side by side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path, tokenize

from shmstream.filesystem.delegation import MARKS, Method, of_target
from shmstream.filesystem.file import BlobFile
from shmstream.filesystem.identity import Identities, Version, name_of
from shmstream.filesystem.options import (
    digests,
    make_store,
    refuse_options,
    refuse_unknown,
    seconds,
)
from shmstream.filesystem.ranges import read_slice
from shmstream.filesystem.target import TargetSource
from shmstream.flight.blob import Blob
from shmstream.flight.progress import Progress
from shmstream.sources.fsspec import is_http
from shmstream.sources.fsspec_guard import guarded_system
from shmstream.store import Store
from shmstream.stream.digest import is_digest
from shmstream.system.threads import side_by_side

_PIECE = 1 << 20  # bytes
_FILES = ("shmstream-files", 16)  # that one call reads at the same time


if TYPE_CHECKING:

    class _Chained:  # fsspec has no types
        storage_args: tuple[Any, ...]
        storage_options: dict[str, Any]

        def __init__(self, **options: Any) -> None: ...

else:
    from fsspec.implementations.chained import ChainedFileSystem as _Chained


class ShmstreamFileSystem(_Chained):
    """Reads the files of another file system, each downloaded once per host for all processes.

    `fsspec.open("shmstream::s3://bucket/x.parquet", s3={...}, shmstream={"store": ...})`.

    Args:
        target_protocol: the protocol of the target, such as `s3`. Either this or `fs`.
        target_options: options of the target.
        fs: the target itself.
        store: the folder of the store, or a `Store`. None: `SHMSTREAM_STORE`, or `shmstream` in the
            user's cache, as for the command line.
        expiry: seconds for which an answer of the target counts: which content a file has. 0: the
            target is asked each time a file is opened.
        check: the digest `sha256:<hex>` or `sha512:<hex>` of the file that will be opened, or a
            mapping from paths on the target to digests. Such a file is verified, and its content is
            not asked for.
        max_bytes: limit of all complete blobs of the store together; the least recently used go.

    Raises:
        ValueError: there is no target, or there are two; an option has a value that it cannot have.
        TypeError: there is no such option.
        StoreUnusable: the folder cannot hold a store.
    """

    protocol: str = "shmstream"
    _strip_tokenize_options = ("fo",)
    async_impl: bool = False
    local_file: bool = True  # `fsspec.open_local` gives the path of the blob

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        fs: AbstractFileSystem | None = None,
        *,
        store: str | os.PathLike[str] | Store | None = None,
        expiry: float = 0.0,
        check: str | Mapping[str, str] | None = None,
        max_bytes: int | None = None,
        **of_fsspec: Any,
    ) -> None:
        super().__init__(**of_fsspec)
        if (fs is None) == (target_protocol is None):
            raise ValueError(
                "one target: a URL such as shmstream::s3://bucket/key, or `target_protocol`, or "
                "`fs`"
            )
        refuse_unknown(of_fsspec, target_protocol)
        self._given = fs
        self._target_protocol = target_protocol
        self._target_options = dict(target_options or {})
        self._target, self._pid = self._make_target(), os.getpid()
        self._store = store if isinstance(store, Store) else make_store(store, max_bytes)
        self.expiry: float = seconds(expiry)
        self._identities = Identities(lambda: self.fs, self.expiry)
        self.__dict__["_strip_protocol"] = self._strip_all  # on the class there is no target
        self._checks = digests(check, self._strip_all)

    # The target.

    @property
    def fs(self) -> AbstractFileSystem:
        """The target. A forked child makes its own, because threads do not survive a fork."""
        if self._pid != os.getpid():
            self._target, self._pid = self._make_target(), os.getpid()
        return self._target

    def _make_target(self) -> AbstractFileSystem:
        given = self._given
        if given is None:
            options = guarded_system(self._target_protocol, self._target_options)
            return fsspec.filesystem(self._target_protocol, **options)
        if given.async_impl and getattr(given, "_pid", os.getpid()) != os.getpid():
            return type(given)(*given.storage_args, **given.storage_options)
        return given

    @property
    def store(self) -> Store:
        """The store that holds the blobs."""
        return self._store

    @property
    def fsid(self) -> str:
        """As that of the target."""
        return f"shmstream_{self.fs.fsid}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path without `shmstream::`, as the target has it or a URL of the target."""
        if isinstance(path, list | tuple | set):
            return [cls._strip_protocol(each) for each in path]
        path = stringify_path(path)
        for mark in MARKS:
            path = path.removeprefix(mark)
        return path

    def _strip_all(self, path: Any) -> Any:
        """The path on the target."""
        return self.fs._strip_protocol(type(self)._strip_protocol(path))

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path on the target, with `shmstream::` before it."""
        return f"{MARKS[0]}{self.fs.unstrip_protocol(type(self)._strip_protocol(name))}"

    def _parent(self, path: str) -> str:
        return str(self.fs._parent(self._strip_all(path)))

    def __getattr__(self, name: str) -> Any:
        """What this class has not is the target's."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.fs, name)

    # Opening a file.

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        path = self._strip_all(path)
        if mode == "rb":
            refuse_options(kwargs)
            return self.open_version(path, self._version(path))
        self._identities.forget(path)
        return self.fs._open(
            path,
            mode=mode,
            block_size=block_size,
            autocommit=autocommit,
            cache_options=cache_options,
            **kwargs,
        )

    def open_version(self, path: str, version: Version) -> BlobFile:
        """Open one content of the file at `path`, as `open` has found it. Does not wait for bytes.

        Raises:
            ShmstreamError: as `Store.open`.
        """
        return BlobFile(self, path, version, self._blob(path, version))

    def _blob(
        self, path: str, version: Version, progress: Callable[[Progress], None] | None = None
    ) -> Blob:
        # A digest guards the content by itself.
        only = None if is_digest(version.key) else version.validator
        source = TargetSource(lambda: self.fs, path, name_of(self.fs, path), only)
        return self._store.open(version.key, source, progress=progress)

    def _version(self, path: str) -> Version:
        """Which content the file has.

        Raises:
            As `Identities.ask`.
        """
        digest = self._checks.get(path, self._checks.get(""))
        if digest is not None:
            if self._is_here(digest):
                return Version(digest, None, digest)
            return Version(digest, self._identities.ask(path).size, digest)
        version = self._identities.known(path)
        if version is None or not self._is_usable(version):
            version = self._identities.ask(path)
            self._is_usable(version)
        return version

    def _is_usable(self, version: Version) -> bool:
        """Whether the blob is here. Removes a blob that may be of another content by now."""
        if version.validator is None:
            with suppress(FileNotFoundError):
                age = time.time() - os.stat(self._store.path(version.key)).st_mtime
                if not 0 <= age < self.expiry:
                    self._store.remove(version.key)
        return self._is_here(version.key)

    def _is_here(self, key: str) -> bool:
        return key in self._store or self._store.is_in_flight(key)

    def open_many(self, open_files: Sequence[Any]) -> list[Any]:
        """Open all files of `fsspec.open_files(...)`, and wait until those to be read are complete.

        fsspec calls it for `with open_files(...)` and `open_local`, which promise whole files.
        """
        opened = [each.__enter__() for each in open_files]
        for each in open_files:
            for file in each.fobjects:
                if isinstance(file, BlobFile):
                    file.blob.wait()
        return opened

    def commit_many(self, open_files: Sequence[Any]) -> None:
        """Nothing: each file was written to the target when it was closed."""

    # Reading whole files and ranges.

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """The bytes from `start` to `end`, as a slice has them; waits only until they are here."""
        refuse_options(kwargs)
        [data] = self._ranges(self._strip_all(path), [(start, end)], on_error="raise")
        assert isinstance(data, bytes)
        return data

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,  # noqa: ARG002  the bytes in between come anyway
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[bytes | Exception]:
        """The bytes of each range; waits only until they are here. A file is opened once.

        With `on_error="return"` an error stands in the place of the bytes.
        """
        refuse_options(kwargs)
        if not isinstance(paths, list):
            raise TypeError(f"paths are a list, not {type(paths).__name__}")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError(f"{len(paths)} paths, {len(starts)} starts and {len(ends)} ends")
        wanted: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            wanted.setdefault(self._strip_all(path), []).append(index)

        def read(path: str) -> list[bytes | Exception]:
            ranges = [(starts[index], ends[index]) for index in wanted[path]]
            return self._ranges(path, ranges, on_error)

        found: dict[int, bytes | Exception] = {}
        for indices, data in zip(wanted.values(), side_by_side(read, wanted, _FILES), strict=True):
            found.update(zip(indices, data, strict=True))
        return [found[index] for index in range(len(paths))]

    def _ranges(
        self, path: str, ranges: list[tuple[int | None, int | None]], on_error: str
    ) -> list[bytes | Exception]:
        found: list[bytes | Exception] = []
        try:
            version = self._version(path)
            with self._blob(path, version) as blob:
                for start, end in ranges:
                    try:
                        found.append(read_slice(blob, version.size, start, end))
                    except Exception as error:
                        if on_error == "raise":
                            raise
                        found.append(error)
        except Exception as error:
            if on_error == "raise":
                raise
            found += [error] * (len(ranges) - len(found))
        return found

    def cat(
        self,
        path: str | list[str],
        recursive: bool = False,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """The contents of one file, or of several by their paths, which are read side by side."""
        paths: list[str] = self.expand_path(path, recursive=recursive)
        if isinstance(path, str | os.PathLike) and paths == [self._strip_all(path)]:
            return self.cat_file(paths[0], **kwargs)

        def read(each: str) -> bytes | Exception:
            try:
                return self.cat_file(each, **kwargs)
            except Exception as error:
                if on_error == "raise":
                    raise
                return error

        found = dict(zip(paths, side_by_side(read, paths, _FILES), strict=True))
        if on_error == "omit":
            return {each: data for each, data in found.items() if isinstance(data, bytes)}
        return found

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file to `lpath`, once the whole file is here; or to an open file, as it comes."""
        refuse_options(kwargs)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        path = self._strip_all(rpath)
        try:
            version = self._version(path)
        except IsADirectoryError:
            os.makedirs(lpath, exist_ok=True)
            return
        callback.set_size(version.size)
        progress = partial(_tell, callback)
        with self._blob(path, version, progress) as blob:
            if outfile is not None:
                while data := blob.read1(_PIECE):
                    outfile.write(data)
                return
            blob.wait()
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with Path(lpath).open("wb") as file:
                blob.copy(file)

    # What is the target's.

    def ukey(self, path: str) -> str:
        """A text that changes with the content, as far as the target tells that."""
        path = self._strip_all(path)
        with suppress(IsADirectoryError):
            version = self._version(path)
            if version.validator is not None:
                return version.key
        return str(self.fs.ukey(path))

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what the target has said of `path`; None: of all files."""
        own = None if path is None else self._strip_all(path)
        self._identities.forget(own)
        self.fs.invalidate_cache(own)

    def forget(self) -> None:
        """Forget what the target has said of all files; its own listings stay."""
        self._identities.forget()

    def isdir(self, path: str) -> bool:
        """As the target; but no file of an HTTP server is read to find links in it."""
        own = self._strip_all(path)
        if is_http(self.fs):
            with suppress(FileNotFoundError):
                info = self.fs.info(own)
                kind = info.get("mimetype")
                if kind != "text/html" and (kind or info.get("size") is not None):
                    return False
        return bool(self.fs.isdir(own))

    def walk(self, path: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As the target."""
        yield from self.fs.walk(self._strip_all(path), *args, **kwargs)

    def pipe(
        self, path: str | Mapping[str, bytes], value: bytes | None = None, **kwargs: Any
    ) -> None:
        """As the target."""
        self._identities.forget()
        if isinstance(path, Mapping):
            path = {self._strip_all(each): data for each, data in path.items()}
            self.fs.pipe(path, **kwargs)
        else:
            self.fs.pipe(self._strip_all(path), value, **kwargs)

    ls: Method = of_target("ls")
    info: Method = of_target("info")
    exists: Method = of_target("exists")
    lexists: Method = of_target("lexists")
    isfile: Method = of_target("isfile")
    find: Method = of_target("find")
    glob: Method = of_target("glob")
    du: Method = of_target("du")
    size: Method = of_target("size")
    sizes: Method = of_target("sizes")
    checksum: Method = of_target("checksum")
    created: Method = of_target("created")
    modified: Method = of_target("modified")
    sign: Method = of_target("sign")
    expand_path: Method = of_target("expand_path")

    mkdir: Method = of_target("mkdir", writes=True)
    makedirs: Method = of_target("makedirs", writes=True)
    rmdir: Method = of_target("rmdir", writes=True)
    rm: Method = of_target("rm", writes=True)
    rm_file: Method = of_target("rm_file", writes=True)
    touch: Method = of_target("touch", writes=True)
    cp_file: Method = of_target("cp_file", writes=True)
    copy: Method = of_target("copy", writes=True)
    mv: Method = of_target("mv", writes=True)
    put: Method = of_target("put", writes=True)
    put_file: Method = of_target("put_file", writes=True)
    pipe_file: Method = of_target("pipe_file", writes=True)

    # Transactions are the target's, because only files that are written belong to one.

    @property
    def transaction(self) -> Any:
        """As the target."""
        return self.fs.transaction

    def start_transaction(self) -> Any:
        """As the target."""
        return self.fs.start_transaction()

    def end_transaction(self) -> None:
        """As the target."""
        self.fs.end_transaction()

    @property
    def _intrans(self) -> bool:
        return bool(self.fs._intrans)

    @_intrans.setter
    def _intrans(self, value: bool) -> None:
        """Set by fsspec to False when there is no target yet."""

    # Comparing.

    def _same(self) -> tuple[Any, ...]:
        options = {**self.storage_options, "fo": None}
        return type(self), self.storage_args, options

    def __eq__(self, other: object) -> bool:
        """Whether both have the same options: in any thread and process, unlike fsspec's own."""
        return isinstance(other, ShmstreamFileSystem) and self._same() == other._same()

    def __hash__(self) -> int:
        return hash((self._store.folder, self._target_protocol, self.expiry))

    def __dask_tokenize__(self) -> str:
        return str(tokenize(*self._same()))

    def __repr__(self) -> str:
        return f"<ShmstreamFileSystem of {type(self.fs).__name__} in {self._store.folder}>"


def _tell(callback: Callback, progress: Progress) -> None:
    callback.absolute_update(progress.published)
