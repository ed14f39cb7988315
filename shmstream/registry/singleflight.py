"""Blocking questions for asyncio: in a few threads, and identical ones asked once.

However many tasks of this process want to know the same thing at the same time, one thread asks,
and all get its answer. A task that is cancelled leaves the others theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")

_THREADS = 16


class Together:
    """A few threads that ask. Close it when nobody asks any more."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, "shmstream-registry")
        self._lock = threading.Lock()  # guards `_asked`
        self._asked: dict[Hashable, Future[object]] = {}

    async def ask(self, key: Hashable, call: Callable[[], T]) -> T:
        """What `call` returns or raises, or what another call under the same key is about to."""
        with self._lock:
            future = self._asked.get(key)
            if future is None:
                future = self._asked[key] = self._threads.submit(self._run, key, call)
        return cast("T", await asyncio.shield(asyncio.wrap_future(future)))

    def _run(self, key: Hashable, call: Callable[[], T]) -> T:
        try:
            return call()
        finally:
            with self._lock:
                del self._asked[key]

    def close(self) -> None:
        """Let those who ask end, and begin nothing more. Does not wait for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
