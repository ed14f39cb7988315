"""`Leaving`: a client that leaves ends what is done for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from shmstream.asgi.messages import Receive

_Undo = Callable[[], object]


class Leaving:
    """Inside, the client's leaving cancels the task, and ends the block without an error.

    Our server tells of it (`when_lost`). Of others we ask, in a task of its own; whoever never
    waits inside is not watched, for that would cost a tenth of a small response.
    """

    def __init__(
        self, receive: Receive, when_lost: Callable[[Callable[[], None]], _Undo] | None
    ) -> None:
        self._receive = receive
        self._when_lost = when_lost
        self._left = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._when_lost is not None:
            self._stop = self._when_lost(self._leave)
        else:
            self._stop = asyncio.get_running_loop().call_soon(self._begin).cancel

    def _begin(self) -> None:
        self._stop = asyncio.ensure_future(self._watch()).cancel

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # its request's body, if any, is not looked at
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
        # A cancellation that is not ours as well goes on.
        return self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError)
