"""A lookout: one thread that watches one flight for all asyncio tasks of this process.

Semaphores block, and an event loop must not. The lookout has one place among the flight's readers.
It waits for bytes, notes how far the blob is, and tells every event loop once; tasks that wait
there go on. Who uses it is counted: the last one to leave ends it.

    lookout                                       task
    1 note the view, or the error                 1 leave a future in its loop's list
    2 does anybody wait in a loop's list?         2 enough? take it back, and go on
      have that loop resolve them                 3 await it

Each stores before it looks, so one of them sees the other. Only the loop's own thread changes its
list.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from shmstream import threads
from shmstream.blob import Blob
from shmstream.errors import WriterStalled
from shmstream.flight import Role

_TICK = 0.25  # s; how soon a lookout notices that nobody is left


class View(NamedTuple):
    """How far the blob is, and in which file.

    Taken as one: by the time a reader has loaded one part of it, another part may have changed.
    """

    published: int = 0
    fd: int = -1
    is_complete: bool = False


class Lookout:
    """One thread that watches one flight for all tasks of this process. Counts who uses it."""

    def __init__(self, key: tuple[object, ...], opener: Callable[[float], Blob]) -> None:
        self._key = key
        self._opener = opener
        self._lock = threading.Lock()  # guards what is open and whether this has ended
        self._waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        self._joins = 0
        self._fds: list[int] = []
        self._users = 0
        self._ended = False
        self.error: BaseException | None = None
        self.is_open = False
        self.view = View()
        """Its descriptor is open for as long as somebody uses this."""
        self.size: int | None = None
        self.role = Role.FOLLOWS
        self.media_type: str | None = None
        self.validator: str | None = None
        self.spans: OrderedDict[int, bytes] = OrderedDict()
        self._thread = threads.Call(self._run, "shmstream-lookout")

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        return self.view.published

    @property
    def is_complete(self) -> bool:
        """Whether there will be no more."""
        return self.view.is_complete

    @classmethod
    def join(cls, key: tuple[object, ...], opener: Callable[[float], Blob]) -> tuple[Lookout, bool]:
        """The lookout for that flight, which is to be left again; and whether to `start` it."""
        with _registry_lock:
            lookout = _registry.get(key)
            is_new = lookout is None or lookout._ended
            if lookout is None or is_new:
                lookout = _registry[key] = cls(key, opener)
            lookout._users += 1
            return lookout, is_new

    def start(self) -> None:
        """Start its thread. May wait for that (`threads.is_ready`), which no event loop should."""
        try:
            self._thread.start()
        except BaseException as error:  # noqa: BLE001  none can be had
            self._end(error)

    def leave(self) -> None:
        """One user less; the last one ends it."""
        with _registry_lock:
            self._users -= 1
            if self._users:
                return
            if _registry.get(self._key) is self:
                del _registry[self._key]
        with self._lock:
            if self._ended:
                self._close_files()
            self._ended = True

    def _close_files(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.spans.clear()

    def _run(self) -> None:
        try:
            with self._opener(_TICK) as blob:
                while not self._ended and not self.is_complete:
                    self._note(blob)
                    try:
                        if not self.is_complete:
                            blob.wait_past(self.published)
                    except WriterStalled:  # each task has its own patience
                        self._tell()
        except BaseException as error:  # noqa: BLE001  whatever it is, the tasks are to know it
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self.error = error
        with self._lock:
            if self._ended:  # everybody has left
                self._close_files()
            self._ended = True
        self._tell()

    def _note(self, blob: Blob) -> None:
        # In this order: after `is_complete`, `published` is final, and until something is published
        # the file may be replaced by another. Once the size is known, so is what else is said.
        is_complete, published, size = blob.is_complete, blob.published, blob.size
        if not self.view.published or blob.joins != self._joins:
            self._joins = blob.joins
            self._look_at(blob)
        self.size, self.role = size, blob.role
        self.view = View(published, self._fds[-1], is_complete)
        self.is_open = True
        # Tasks may have read so far: what is joined when the leader dies must have the same bytes.
        blob.seek(published)
        self._tell()

    def _look_at(self, blob: Blob) -> None:
        """Note which file it is, and what the source says of it."""
        fd = blob.duplicate()
        if self._fds and os.path.samestat(os.fstat(self._fds[-1]), os.fstat(fd)):
            os.close(fd)
        else:  # the first, or another file after the leader has changed
            self._fds.append(fd)
        self.media_type, self.validator = blob.media_type, blob.validator

    def _tell(self) -> None:
        """Have the tasks that wait go on."""
        for loop, waiting in list(self._waiting.items()):
            if waiting:
                try:
                    loop.call_soon_threadsafe(_resolve, waiting)
                except RuntimeError:  # it was closed, and its tasks with it
                    waiting.clear()

    def enough(self, want: int) -> bool:
        """Whether there is no need to wait for `want` bytes: they are there, or never will be."""
        return (self.is_open and self.published >= want) or self.is_complete or self._ended

    async def wait(self, want: int) -> None:
        """Wait until `enough`, or for any news, or for a look of the lookout's that brings none."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = []
        future = loop.create_future()
        waiting.append(future)
        try:
            if not self.enough(want):
                await future
        finally:
            if not future.done() or future.cancelled():  # else it was taken from there
                with suppress(ValueError):
                    waiting.remove(future)


def _resolve(waiting: list[asyncio.Future[None]]) -> None:
    """In the loop's own thread: all that wait there go on."""
    futures = waiting[:]
    waiting.clear()
    for future in futures:
        if not future.done():  # else it was cancelled
            future.set_result(None)


# Of this process.

_registry: dict[tuple[object, ...], Lookout] = {}
_registry_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: the threads are the parent's."""
    global _registry, _registry_lock
    _registry, _registry_lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_forget)
