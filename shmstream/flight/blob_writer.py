"""`BlobWriter`: a writable binary file that is a blob of a store, read by others while it grows.

    with store.create("report") as blob:
        frame.to_csv(blob)                            # or any program that writes files
        subprocess.run(command, stdout=blob, check=True)

Leaving the block commits the blob; an exception aborts it, and every reader gets the reason. The
file can be closed inside the block, as some programs do with files that they are given: that ends
the writing, and leaving the block still decides.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmstream.errors import StreamClosed
from shmstream.flight.inlet import Inlet
from shmstream.flight.naming import naming
from shmstream.storage.folder import trouble
from shmstream.stream.writer import cannot_seek
from shmstream.system.refusals import AppendOnly, refuse_text

if TYPE_CHECKING:
    from typing import BinaryIO

    from typing_extensions import Buffer

    from shmstream.flight.producer import Producer

    class _File(AppendOnly, BinaryIO):  # as `io.BufferedWriter` is
        """What type checkers take for a file: `subprocess.run(stdout=...)` asks for one."""

else:
    _File = AppendOnly


class BlobWriter(_File):
    """A writable binary file: the blob of `key`, which others read while it is written.

    From `Store.create`. Use it as a context manager: leaving it commits, and an exception aborts.
    Without a `with` block call `commit`; `close` without it aborts. `write` writes all bytes, and
    never waits for a reader. There is no `seek`: programs that can write to a pipe can write to it
    (`shutil.copyfileobj`, `tarfile`, `zipfile`, `gzip`, `pandas`, `pyarrow`, ...).

    A process can write to it too, `subprocess.run(command, stdout=blob, check=True)`: `fileno` is a
    pipe. Look at its exit code, as `check=True` does: a pipe does not tell whether it wrote all.

    Any thread of the process may use it. A forked child cannot, and leaving the block there does
    nothing.

    Raises from every way of writing:
        SizeMismatch, DigestMismatch, OutOfRoom, OutOfResources, DamagedPartial: the blob is given
            up. Further calls raise `BlobAborted`.
        StreamClosed: it is committed, closed, or of the parent process.
    """

    mode: str = "wb"
    """As of a file; some programs ask for it."""

    def __init__(self, producer: Producer, folder: str) -> None:
        """Internal: use `Store.create`."""
        self._producer = producer
        self._folder = folder
        self._inlet: Inlet | None = None
        self._is_entered = self._is_shut = self._has_ended = False
        self._process = os.getpid()
        self.key: str = producer.place.key
        self.name: str = self.key
        """The key, as files have a name."""
        self.path: str = producer.place.path
        """Where the complete blob will be."""

    @property
    def size(self) -> int | None:
        """Bytes of the whole blob; None until that is known."""
        return self._producer.streamer.size

    @property
    def digest(self) -> str | None:
        """`algorithm:hex` of the blob, once it is committed; None if the store does not hash it."""
        return self._producer.streamer.digest

    # Writing.

    def write(self, data: Buffer, /) -> int:
        """Write all of `data`; how many bytes those are. Blocks for the disk only."""
        refuse_text(data)
        with memoryview(data) as whole, self._naming():
            self._check_open()
            if self._inlet is not None:
                self._inlet.settle()
            self._producer.append(whole, whole.nbytes)
            return whole.nbytes

    def flush(self) -> None:
        """Let readers have now what was written, but for a last chunk that is to be verified."""
        with self._naming():
            if not self.closed:
                if self._inlet is not None:
                    self._inlet.settle()
                self._producer.streamer.flush()

    def tell(self) -> int:
        """The bytes that were written."""
        with self._naming():
            if self._inlet is not None and not self.closed:
                self._inlet.settle()
            return self._producer.streamer.appended

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:  # noqa: ARG002
        """Raises:
        UnsupportedOperation: always, because readers may have read what was written.
        """
        raise cannot_seek(self.key)

    def fileno(self) -> int:
        """A pipe to the blob, for a process to write to. The writer closes it.

        What this process writes afterwards comes after what is in the pipe by then. `commit` waits
        until no other process has the pipe open.
        """
        with self._naming():
            self._check_open()
            if self._inlet is None:
                self._inlet = Inlet(self._append)
            return self._inlet.fd

    def _append(self, data: bytes) -> None:
        self._producer.append(data, len(data))

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """False."""
        return False

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes: it was closed, committed or aborted."""
        return self._is_shut or self._has_ended

    # The end.

    def commit(self) -> None:
        """Complete the blob; when this returns, every reader can have all of it.

        Raises:
            DigestMismatch, SizeMismatch: it is another blob than was announced. It is aborted.
            BlobAborted: it was given up before.
        """
        with self._naming():
            self._check_here()
            if self._has_ended:
                self._producer.require_going_on()
            try:
                if self._inlet is not None:
                    self._inlet.finish()
                self._producer.commit()
            finally:
                self._end()

    def abort(self, reason: str | BaseException) -> None:
        """Give the blob up: its readers get `reason`, nothing is kept. Idempotent."""
        if self._is_here() and not self._has_ended:
            with self._naming():
                try:
                    self._producer.abort(reason)
                finally:
                    self._end()

    def _end(self) -> None:
        self._has_ended = True
        try:
            if self._inlet is not None:
                self._inlet.close()
        finally:
            self._producer.close()

    def close(self) -> None:
        """End the writing. In a `with` block its end decides; else this aborts unless committed."""
        if self._is_entered and not self._has_ended:
            self._is_shut = True
            return
        self.abort("its producer closed it without commit")

    def _is_here(self) -> bool:
        return os.getpid() == self._process

    def _check_here(self) -> None:
        if not self._is_here():
            raise StreamClosed(self.key, "it belongs to the process that this one was forked from")

    def _check_open(self) -> None:
        self._check_here()
        if self._is_shut:
            raise StreamClosed(self.key, "it was closed")
        if self._has_ended:
            self._producer.require_going_on()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Have errors inside name the key; and an error of the system say what is lacking."""
        with naming(self._producer.place):
            try:
                yield
            except io.UnsupportedOperation:
                raise
            except (OSError, RuntimeError, MemoryError) as error:
                raise trouble(error, self.key, self._folder) or error from error

    def __enter__(self) -> Self:
        self._check_open()
        self._is_entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_entered = False
        if not self._is_here() or self._has_ended:
            return
        if error is None:
            self.commit()
        else:
            self.abort(error)

    def __reduce__(self) -> tuple[Any, ...]:
        """Raises:
        TypeError: always, because one process produces a blob.
        """
        raise TypeError(
            f"the blob {self.key[:80]!r} is written by this process, and a BlobWriter cannot be "
            "pickled: hand on the key, and open it in the other process"
        )

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_has_ended", True) or is_finalizing() or not self._is_here():
            return
        self._is_entered = False
        try:
            told = f"{self!r} was never closed"
            warnings.warn(told, ResourceWarning, source=self, stacklevel=2)
        finally:  # warnings may be errors here
            with suppress(OSError):
                self.close()

    def __repr__(self) -> str:
        size = "?" if self.size is None else self.size
        return f"<BlobWriter {self.key[:80]!r} {self._producer.streamer.appended}/{size} bytes>"
