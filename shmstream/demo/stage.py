"""What every act of the demo is given, and the check that nothing of it is left over."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import psutil
from rich.console import Console

from shmstream.demo.screen import Fact, say
from shmstream.errors import CannotStart
from shmstream.sources.origin import Pace
from shmstream.stream import doorbell, segment
from shmstream.stream.partial import partial_path
from shmstream.stream.stream import Stream
from shmstream.system.signals import undisturbed
from shmstream.units import amount

_PIECE = 32 * 1024  # bytes, at most


@dataclass(frozen=True)
class Stage:
    """What an act is given."""

    console: Console
    undo: ExitStack  # ends what the act has begun
    folder: Path  # for the files of the act; removed in the end
    source: Path  # the file to stream
    size: int  # of that file, in bytes
    digest: str  # of that file
    chunk_size: int  # bytes; so small that a small blob flows too
    rate: float | None  # bytes a second; 0: no limit; None: an act takes some seconds
    count: int  # of readers, processes or clients; at least 1
    _streams: dict[str, int | None] = field(default_factory=dict)  # name -> token of its doorbells

    def say(self, text: str = "", style: str = "") -> None:
        """Print one line."""
        say(self.console, text, style)

    def note(self, stream: str) -> None:
        """Remember a stream; `left_over` looks for what is left of it."""
        if self._streams.setdefault(stream, None) is None:
            with suppress(CannotStart), Stream.attach(stream, timeout=0) as seen:
                self._streams[stream] = seen.block.token

    def check_file(self, path: str | Path) -> Fact:
        """Whether the file at `path` has the bytes of the source."""
        good, size = digest_of(path) == self.digest, os.stat(path).st_size
        found = "has the right SHA-256" if good else "HAS THE WRONG SHA-256"
        return Fact("file", f"the committed file, {amount(size)}, {found}", good)

    def left_over(self, processes: Iterable[psutil.Process]) -> Fact:
        """What is left of the act: segments, doorbells, partial files and live `processes`."""
        left = sorted(self._streams.keys() & set(segment.names()))
        tokens = [token for token in self._streams.values() if token is not None]
        left += [bell for token in tokens for _, bell in doorbell.names(token)]
        left += [str(path) for path in self.folder.rglob("*" + partial_path(""))]
        left += [f"process {each.pid}" for each in processes if each.is_running()]
        nothing = "nothing of this in /dev/shm, no partial file, no process"
        return Fact("left over", ", ".join(left) or nothing, not left)


def temporary_folder(undo: ExitStack) -> Path:
    """A new folder, which `undo` removes."""
    with undisturbed():
        return Path(undo.enter_context(TemporaryDirectory(prefix="shmstream-demo-")))


def digest_of(path: str | Path) -> str:
    """`sha256:` and the digest of a file."""
    with Path(path).open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def pace(rate: float) -> str:
    """A rate in bytes a second, for people; a rate of 0 has no limit."""
    return f"at {amount(rate)}/s" if rate else "as fast as it goes"


def paced(file: BinaryIO, end: int, rate: float, wait: Callable[[float], None]) -> Iterator[bytes]:
    """The bytes of `file` up to `end`, each piece when it is due; `wait(seconds)` waits."""
    keeping, given = Pace(rate, 1, _PIECE), 0
    while data := file.read(max(min(keeping.piece, end - file.tell()), 0)):
        given += len(data)
        keeping.keep(given, wait)
        if given % (1 << 20) < len(data):
            wait(0.0)  # once in a MiB, also if no piece has to wait
        yield data
