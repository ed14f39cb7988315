"""`TargetSource`: a file of the target file system, as long as its content is the one asked for."""

from __future__ import annotations

from collections.abc import Callable

from fsspec.spec import AbstractFileSystem

from shmstream.errors import SourceError
from shmstream.sources.base import Feed
from shmstream.sources.fsspec import FsspecSource


class TargetSource(FsspecSource):
    """The file at `path`. Refuses every content that has not the validator `only`; None: none.

    The key of a blob tells its validator. Between the moment when a process asked for that and the
    moment when a leader opens the file, the file may change; another content must not get that key.

    Args:
        system: gives the file system of this process: a forked child has another one.
        path: as the file system has it.
        name: what people and logs call the file.
        only: the validator that the content must have.
    """

    def __init__(
        self, system: Callable[[], AbstractFileSystem], path: str, name: str, only: str | None
    ) -> None:
        self._system = system
        self._path = path
        self._only = only
        self.name: str = name
        self.identity: str = f"{path} {system().storage_options}"

    def _locate(self) -> tuple[AbstractFileSystem, str]:
        return self._system(), self._path

    def _class(self) -> type[AbstractFileSystem]:
        return type(self._system())

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """As `FsspecSource.open`; an error that is not `retryable` for another content."""
        return self._right(super().open(offset, validator), offset)

    def open_part(self, offset: int, end: int, validator: str | None = None) -> Feed:
        """As `FsspecSource.open_part`; the same."""
        return self._right(super().open_part(offset, end, validator), offset)

    def _right(self, feed: Feed, offset: int) -> Feed:
        if self._only is not None and feed.validator != self._only:
            feed.close()
            reason = "the file was changed after it was opened: open it again"
            raise SourceError(self.name, offset, reason, retryable=False)
        return feed
