"""Blocking questions for asyncio: asked in a few threads, and identical ones asked once.

However many tasks ask the same question at the same time, one thread asks it, and all tasks get its
answer. The thread has the context variables of the first task. Cancelling one task does not disturb
the others. The threads stay as long as the process lives, so a task that asks after `close` gets an
answer, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextvars import copy_context
from functools import partial
from typing import TypeVar, cast

from shmstream.system.threads import in_thread

T = TypeVar("T")

_THREADS = 64  # questions at one time: a server that takes its time must not keep others waiting


class Together:
    """Asks in at most `threads` threads, which have that `name`. For one event loop."""

    def __init__(self, name: str, threads: int = _THREADS) -> None:
        self._kind = (name, threads)
        self._asked: dict[Hashable, asyncio.Future[object]] = {}

    async def ask(self, key: Hashable, call: Callable[[], T]) -> T:
        """Return or raise what `call` does, or a call under the same key that is in progress."""
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = in_thread(partial(copy_context().run, call), self._kind)
            future.add_done_callback(partial(self._forget, key))
        return cast("T", await asyncio.shield(future))

    def is_asked(self, key: Hashable) -> bool:
        """Whether a call under that key is in progress, or waits for a thread."""
        return key in self._asked

    @property
    def pending(self) -> int:
        """How many calls are in progress, or wait for a thread."""
        return len(self._asked)

    def _forget(self, key: Hashable, future: asyncio.Future[object]) -> None:
        if self._asked.get(key) is future:
            del self._asked[key]

    def close(self) -> None:
        """Cancel all waiting. A call that a thread has begun goes on; its result is dropped."""
        asked, self._asked = self._asked, {}
        for future in asked.values():
            future.cancel()
