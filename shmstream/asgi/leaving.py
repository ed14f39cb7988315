"""`Leaving`: the work for a client ends when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from shmstream.asgi.messages import Receive

_Undo = Callable[[], object]
_DROPPED = 64 << 20  # bytes of a request's body; with a longer one, the client is not watched


class Leaving:
    """Inside, a client that leaves cancels the task, and the block ends without an error.

    Our own server calls back (`when_lost`). Another server is asked by `receive`, in a second task.
    That task starts only if the block waits for something, because it costs a tenth of a small
    response.
    """

    def __init__(
        self, receive: Receive, when_lost: Callable[[Callable[[], None]], _Undo] | None
    ) -> None:
        self._receive = receive
        self._when_lost = when_lost
        self._left = False

    def __enter__(self) -> asyncio.Task[Any] | None:
        """The task that the client cancels."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        if self._when_lost is not None:
            self._stop = self._when_lost(self._leave)
        else:
            self._stop = loop.call_soon(self._begin).cancel
        return self._task

    def _begin(self) -> None:
        self._stop = asyncio.ensure_future(self._watch()).cancel

    async def _watch(self) -> None:
        dropped = 0
        while (message := await self._receive())["type"] != "http.disconnect":
            dropped += len(message.get("body", b""))  # of the request's body, which nobody needs
            if dropped > _DROPPED:
                return  # the server reads no more, and the client is noticed when a write fails
        self._leave()

    def _leave(self) -> None:
        if self._task is not None:
            self._left = self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._stop()
        if not self._left or self._task is None:
            return False
        # If somebody else has cancelled the task as well, that cancellation goes on.
        return self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)
