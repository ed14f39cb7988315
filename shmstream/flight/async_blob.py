"""The bridge to asyncio: blobs for any number of tasks, and one thread for each flight.

A task learns from a `Lookout` (`hub`) how many bytes are published, and reads them from the file:

    span    128 KiB of the blob. A span is read once, and kept while it is among the last 16,
            because all tasks at the live tail want the same one
    read    from the page cache, which does not block (`RWF_NOWAIT`). If bytes are not in the page
            cache, one of four threads reads them, so that a cold disk blocks no event loop. These
            threads belong to shmstream; the executor of the event loop is not used

A blob that is complete when it is opened needs no `Lookout`, only a descriptor.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from shmstream.errors import (
    BlobNotFound,
    DamagedPartial,
    OutOfResources,
    StreamClosed,
    WriterStalled,
)
from shmstream.flight.flight import FIRST_LOOK, LAST_LOOK, Flight, Role
from shmstream.flight.hub import Lookout
from shmstream.flight.progress import REPORT, Bar, Progress
from shmstream.sources.base import UNKNOWN, Description
from shmstream.storage.folder import no_memory
from shmstream.stream.growing_file import View
from shmstream.system import threads
from shmstream.system.threads import in_thread

Stored = tuple[int, int, Description]
"""A complete blob: its descriptor, its size in bytes, and what its source said about it."""

_NOTHING = View()
_SPAN = 128 * 1024  # bytes
_SPANS = 16  # spans that are kept for each flight
_READERS = ("shmstream-read", 4)  # threads that read bytes which are not in the page cache
_STARTERS = ("shmstream-start", 1)  # a thread that starts other threads, so that no loop waits


class AsyncBlob:
    """A readable, seekable blob for asyncio: complete or in flight. From `Store.aopen`.

    Use it as an async context manager; it can be read only inside. `async for data in blob` gives
    bytes as they arrive. One task at a time may use it; each further task opens its own, which
    needs no further thread. A cancelled read leaves nothing behind, and does not move the position.

    Raises from every way of reading what a `Blob` raises.
    """

    def __init__(
        self,
        key: str,
        flight: tuple[object, ...],
        path: str,
        stored: Callable[..., Stored | None] | None,
        is_given: bool,
        flight_for_all: Callable[[float], Flight],
        stall_timeout: float | None,
        offer: Callable[[], object],
        withdraw: Callable[[], object],
        *,
        wait_for: float = 0.0,
        is_begun: Callable[[], bool] = lambda: True,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Internal: use `Store.aopen`. Blobs with the same `flight` share one `Lookout`.

        `stored` opens the complete blob. With `again` it looks at the folder of the store first;
        without it, the caller has just done so. `is_given`: the digest was known in advance.
        `offer` offers the sources of this blob to the leader of the flight, until `withdraw`.
        Entering waits up to `wait_for` seconds until `is_begun`.
        """
        self._wait_for = wait_for
        self._is_begun = is_begun
        self._tell = progress
        self._told = float("-inf")
        self._enters_at_once = False
        self._offer = offer
        self._withdraw = withdraw
        self.key = key
        self._flight = flight
        self._is_given = is_given
        self._stored = stored
        self._flight_for_all = flight_for_all
        self._stall_timeout = stall_timeout
        self._view = _NOTHING
        self._metadata = UNKNOWN
        self._lookout: Lookout | None = None
        self._position = 0
        self.path = path
        """Where the complete blob is, or will be."""

    def at_once(self) -> Self:
        """Have entering not wait for the flight, because the caller calls `known` next.

        `known` then raises what entering would have raised. A caller that waits twice is woken
        twice, which costs a server more than the bytes of a small blob.
        """
        self._enters_at_once = self._wait_for <= 0
        return self

    async def __aenter__(self) -> Self:
        try:
            if self._wait_for > 0:
                return await self._enter_in_time()
            return await self._enter()
        except MemoryError as error:
            raise no_memory(self.key, error) from error

    async def _enter_in_time(self) -> Self:
        """Enter; before that wait until another process has begun the blob."""
        until = time.monotonic() + self._wait_for
        pause = FIRST_LOOK
        while (left := until - time.monotonic()) > 0:
            if self._is_begun():
                try:
                    return await self._enter()
                except BlobNotFound:  # its leader has just given it up, or died
                    pass
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.2, LAST_LOOK)
        try:
            return await self._enter()
        except BlobNotFound as error:
            error.waited = self._wait_for
            raise

    async def _enter(self) -> Self:
        is_new = False
        if (lookout := Lookout.find(self._flight)) is None:
            if self._stored is not None and (stored := self._stored()) is not None:
                fd, size, self._metadata = stored
                self._view = View(size, size, is_complete=True, fd=fd)
                return self
            lookout, is_new = Lookout.join(self._flight, self._flight_for_all)
        self._lookout = lookout
        self._offer()
        try:
            if is_new and threads.is_ready():
                lookout.start()
            elif is_new:
                in_thread(lookout.start, _STARTERS)
            while not (lookout.is_open or self._enters_at_once):
                self._raise_error(lookout)
                await lookout.wait(lambda: lookout.is_open)
        except BaseException:
            await self.aclose()
            raise
        return self

    def again(self) -> Callable[[], int | None] | None:
        """A function that opens the same complete blob once more, and gives its descriptor.

        None if it was not complete when it was entered, or if nothing could tell it from another
        blob of its size: it has neither a digest nor a strong validator. The function gives None if
        there is another blob by now, or if entering would wait. It does not wait, and raises what
        entering raises.
        """
        if self._lookout is not None or self._stored is None:
            return None
        if not (self._is_given or (self.validator or "").startswith('"')):
            return None
        was = (self._view.published, self._metadata)
        return partial(_open_again, self._flight, self._stored, was)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the blob; its flight goes on. Idempotent."""
        if self._tell is not None and isinstance(self._tell, Bar):
            self._report(last=True)
            self._tell.close()
        lookout, self._lookout = self._lookout, None
        view, self._view = self._view, _NOTHING
        if lookout is not None:
            self._withdraw()
            lookout.leave()
        elif view.fd >= 0:
            os.close(view.fd)

    def _raise_error(self, lookout: Lookout) -> None:
        """Raise a copy of the error, because raising adds the traceback of this task to it."""
        if lookout.error is not None:
            raise copy.copy(lookout.error)

    def _check_open(self, lookout: Lookout) -> None:
        if self._lookout is not lookout:  # another task closed it during the wait
            raise StreamClosed(self.key, "it was closed")

    # How far the blob is.

    @property
    def size(self) -> int | None:
        """Bytes of the blob; None until the size is known."""
        return self._view.published if self._lookout is None else self._lookout.size

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        return (self._lookout or self._view).published

    @property
    def role(self) -> Role:
        """Whether it was stored when it was opened, or this process leads its flight or follows."""
        return Role.STORED if self._lookout is None else self._lookout.role

    @property
    def is_complete(self) -> bool:
        """Whether the whole blob is verified and in the store."""
        return (self._lookout or self._view).is_complete

    @property
    def media_type(self) -> str | None:
        """The media type that the source declares; None for a stored blob whose key is a digest."""
        return (self._lookout or self._metadata).media_type

    @property
    def validator(self) -> str | None:
        """The source's name for these very bytes, such as an ETag; None where `media_type` is."""
        return (self._lookout or self._metadata).validator

    async def known(self) -> None:
        """Wait until the source has answered: until the size or the first byte is known."""
        await self._readable(1, or_size=True)

    @property
    def descriptor(self) -> int:
        """The descriptor of the file that has the bytes of the last wait; do not close it.

        After the next wait it may be another one, because a new leader may begin a new file.
        """
        return self._view.fd

    async def wait_past(self, seen: int) -> int:
        """Wait until more than `seen` bytes can be read, or the blob is complete; how many can."""
        return await self._readable(seen + 1)

    # Reading.

    async def _readable(self, want: int, *, or_size: bool = False) -> int:
        """Wait until `want` bytes or the end can be read; how many bytes can.

        With `or_size`, knowing the size ends the wait too.
        """
        lookout = self._lookout
        if lookout is None:
            if self._view.fd < 0:
                raise StreamClosed(self.key, "it was closed, or never entered")
            if self._tell is not None:
                self._report()
            return self._view.published
        came = time.monotonic()
        view = lookout.view
        while not (view.published >= want or view.is_complete):
            self._raise_error(lookout)
            if or_size and lookout.size is not None:
                break
            seen = view.published
            await lookout.wait(partial(_has_news, lookout, view, or_size=or_size))
            self._check_open(lookout)
            view = lookout.view
            if view.published != seen or not lookout.is_open:
                came = time.monotonic()
            elif self._stall_timeout is not None:
                waited = time.monotonic() - max(came, lookout.past_since)
                self._look_at_stall(lookout, waited, self._stall_timeout)
        self._view = view
        self._report()
        return view.published

    def _report(self, *, last: bool = False) -> None:
        if self._tell is None:
            return
        now = time.monotonic()
        if last or now - self._told >= REPORT:
            self._told = now
            self._tell(Progress(self.key, self.published, self.size, self.role))

    def _look_at_stall(self, lookout: Lookout, waited: float, patience: float) -> None:
        """After a leader without progress: have the lookout go past it, or raise.

        A task that comes later does not wait as long as the first one did. If the lookout cannot go
        past the leader, each task waits as long as it would for any leader.

        Raises:
            WriterStalled: this task has waited for so long in vain.
        """
        is_quiet = time.monotonic() - lookout.moved >= patience
        if is_quiet and lookout.go_past():
            return
        if waited >= patience:
            raise WriterStalled(self.key, self._position, waited)

    async def read1(self, size: int = -1) -> bytes:
        """Bytes that have arrived, waiting for one, at most `size` (or 128 KiB); b"" at the end."""
        try:
            ahead = await self._readable(self._position + 1) - self._position
            count = min(ahead, _SPAN if size < 0 else size)
            if count <= 0:
                return b""
            start = self._position // _SPAN * _SPAN
            if self._lookout is None:
                data = await _pread(self._view.fd, count, self._position)
            else:
                span = await self._span(self._lookout, start)
                offset = self._position - start
                whole = offset == 0 and len(span) <= count
                data = span if whole else span[offset : offset + count]
        except MemoryError as error:
            raise no_memory(self.key, error) from error
        if not data:
            reason = f"is shorter than the {self.published} published"
            raise DamagedPartial(self.key, self._position, self.path, reason)
        self._position += len(data)
        return data

    async def _span(self, lookout: Lookout, start: int) -> bytes:
        """The published bytes of a span, read once for all tasks."""
        view = self._view
        count = min(view.published - start, _SPAN)
        known = lookout.spans.get(start)
        if known is None or len(known) < min(count, self._position - start + 1):
            known = await _pread(view.fd, count, start)
            lookout.spans[start] = known
            while len(lookout.spans) > _SPANS:
                lookout.spans.popitem(last=False)
        return known

    async def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, waiting for them all; fewer only at the end. -1: the rest."""
        start = self._position
        parts: list[bytes] = []
        left = size
        try:
            while left and (data := await self.read1(left)):
                parts.append(data)
                left -= len(data)
        except BaseException:
            self._position = start
            raise
        return b"".join(parts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read1()
        if not data:
            raise StopAsyncIteration
        return data

    async def wait(self) -> int:
        """Wait until the blob is complete and in the store; its size in bytes."""
        lookout = self._lookout
        while lookout is not None and not lookout.is_complete:
            self._raise_error(lookout)
            await lookout.wait(partial(self._has_enough, lookout, lookout.published))
            self._check_open(lookout)
            self._report()
        self._report(last=True)
        return self.published

    def _has_enough(self, lookout: Lookout, seen: int) -> bool:
        """Whether it is complete, or there are more bytes than `seen` to tell somebody of."""
        return lookout.is_complete or (self._tell is not None and lookout.published > seen)

    def tell(self) -> int:
        """Bytes from the beginning of the blob to the next byte to read."""
        return self._position

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, also ahead of the last byte that has arrived; the new position.

        With `SEEK_END` this waits until the size is known.
        """
        base = 0
        if whence == os.SEEK_CUR:
            base = self._position
        elif whence == os.SEEK_END:
            while (size := self.size) is None:
                await self._readable(self.published + 1)
            base = size
        elif whence != os.SEEK_SET:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if base + offset < 0:
            raise ValueError(f"a position is not negative: {base + offset}")
        self._position = base + offset
        return self._position

    def __reduce__(self) -> tuple[Any, ...]:
        """Raises:
        TypeError: always, because an event loop belongs to one process.
        """
        raise TypeError(
            f"the blob {self.key[:80]!r} belongs to tasks of this process, and an AsyncBlob cannot "
            "be pickled: hand on the key, and call `Store.aopen` in the other process"
        )

    def __repr__(self) -> str:
        size = "?" if self.size is None else self.size
        return f"<AsyncBlob {self.key[:80]!r} {self.role} at {self._position}, of {size}>"


def _open_again(
    flight: tuple[object, ...],
    stored: Callable[..., Stored | None],
    was: tuple[int, Description],
) -> int | None:
    if (lookout := Lookout.find(flight)) is not None:
        lookout.leave()
        return None
    if (found := stored(again=True)) is None:
        return None
    fd, *now = found
    if tuple(now) == was:
        return fd
    os.close(fd)
    return None


def _has_news(lookout: Lookout, view: View, *, or_size: bool) -> bool:
    published, size, is_complete, fd = lookout.view
    is_same = (published, is_complete, fd) == (view.published, view.is_complete, view.fd)
    return not is_same or (or_size and size is not None)


async def _pread(fd: int, count: int, offset: int) -> bytes:
    buffer = bytearray(count)
    try:
        if os.preadv(fd, [buffer], offset, os.RWF_NOWAIT) == count:
            return bytes(buffer)
    except BlockingIOError:
        pass
    except OSError:  # a file system without RWF_NOWAIT, such as tmpfs, which is in memory
        return os.pread(fd, count, offset)
    try:
        mine = os.dup(fd)  # the thread reads from it even if the task is cancelled and closes `fd`
    except OSError:  # no descriptor is left: a moment's wait is better than no bytes
        return os.pread(fd, count, offset)
    with ExitStack() as undo:
        undo.callback(os.close, mine)
        try:
            reading = in_thread(partial(_pread_and_close, mine, count, offset), _READERS)
        except OutOfResources:  # no thread: likewise
            return os.pread(fd, count, offset)
        undo.pop_all()
    return await reading


def _pread_and_close(fd: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)
