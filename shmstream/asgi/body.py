"""Sending the body of a response: waits for the client, and for the blob, and mistakes neither.

    by kernel   the server sends spans of the file (`http.response.zerocopysend`), so their bytes
                never enter this process
    by hand     the bytes are read and handed on: where the server has no such extension, where the
                size is not known yet, or where something in between, such as a middleware that
                compresses, keeps what it does not know to itself
    passed on   pieces that are in no file at all (passing.py)

The last byte is sent only when the blob is complete (I7): its flight may still fail, and a body
that has come to its end would say that it has not.

Whether a client takes anything is asked of the server, if that is ours (server.py), for one write
may take a slow client long. Of others it is only known that a write has gone through.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Coroutine, Mapping
from typing import Any

from shmstream.asgi.messages import SERVER, ZERO_COPY, Message, Send
from shmstream.flight.async_blob import AsyncBlob

_PIECE = 1 << 17  # bytes; what is read to be handed on at one time
_SPAN = 2 << 20  # bytes; what the kernel is told to send at one time


class Sending:
    """Sends bytes of a blob to a client, as long as it takes some."""

    def __init__(
        self,
        send: Send,
        timeout: float,
        extensions: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """`timeout`: seconds in which the client must take something."""
        self._send = send
        self._timeout = timeout
        self._extensions = extensions
        self._server = extensions.get(SERVER, {})
        self._writing_since: float | None = None
        self.position: int = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.Handle
        self._mark: object = None
        self._marked = 0.0
        self._cut = False
        self._is_over = False  # the server has the end of the body

    async def send(self, blob: AsyncBlob, start: int, end: int | None) -> None:
        """Send the body, from `start` on; `end` is None where the blob's size is not known.

        Call it when the head was sent.

        Raises:
            ConnectionAbortedError: the client took nothing for too long.
            StreamBroken: as `AsyncBlob.read1`. Everything before `position` was sent.
        """
        self.position = start
        await self._watch(self._send_blob(blob, end))

    async def pass_on(self, pieces: AsyncIterable[bytes]) -> None:
        """Send the body, or the rest of it after `send` has failed.

        Raises:
            ConnectionAbortedError: the client took nothing for too long.
            ShmstreamError: what `pieces` raises.
        """
        await self._watch(self._send_pieces(pieces))

    async def _watch(self, sending: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_soon(self._look_later)  # if it has to wait
        try:
            await sending
            if not self._is_over:
                await self._write({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if not self._cut or self._task is None:
                raise
            self._task.uncancel()
            reason = f"the client took nothing for {self._timeout:g} s"
            raise ConnectionAbortedError(reason) from None
        finally:
            self._timer.cancel()

    async def _send_blob(self, blob: AsyncBlob, end: int | None) -> None:
        zero_copy = ZERO_COPY in self._extensions
        if end is not None and zero_copy and self._has_reached_server("http.response.start"):
            await self._by_kernel(blob, end)
        if not self._is_over:
            await self._by_hand(blob, end)

    async def _send_pieces(self, pieces: AsyncIterable[bytes]) -> None:
        async for data in pieces:
            await self._write({"type": "http.response.body", "body": data, "more_body": True})

    def _has_reached_server(self, kind: str) -> bool:
        """Whether the message that was sent last, of that kind, has; ours can tell."""
        return bool(self._server.get("last", kind) == kind)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout / 4, self._look)

    def _look(self) -> None:
        """One timer for all writes: they are many, and one that takes too long is rare."""
        now = time.monotonic()
        taken = self._server.get("taken")
        mark = (self._writing_since, taken() if taken else None)
        if self._writing_since is None or mark != self._mark:
            self._mark, self._marked = mark, now
        if now - self._marked >= self._timeout and self._task is not None:
            self._cut = self._task.cancel()
        else:
            self._look_later()

    async def _there(self, blob: AsyncBlob, end: int | None) -> int:
        """How far can be sent, waiting for a byte more than `position`; that itself at the end."""
        position = self.position
        there = await blob.wait_past(position)
        if end is not None:
            there = min(there, end)
        if there == blob.size and not blob.is_complete:
            if there - position > 1:
                return there - 1
            await blob.wait_past(there)
        return max(there, position)

    async def _by_hand(self, blob: AsyncBlob, end: int | None) -> None:
        await blob.seek(self.position)
        while end is None or self.position < end:
            there = await self._there(blob, end)
            if there == self.position:
                break
            data = await blob.read1(min(there - self.position, _PIECE))
            await self._write({"type": "http.response.body", "body": data, "more_body": True})
            self.position += len(data)

    async def _by_kernel(self, blob: AsyncBlob, end: int) -> None:
        """Not to the end if such messages do not reach the server."""
        while self.position < end:
            count = min(await self._there(blob, end) - self.position, _SPAN)
            if count == 0:
                break
            is_last = self.position + count == end
            await self._write(
                {
                    "type": ZERO_COPY,
                    "file": blob.descriptor,
                    "offset": self.position,
                    "count": count,
                    "more_body": not is_last,
                }
            )
            if not self._has_reached_server(ZERO_COPY):
                break
            self.position += count
            self._is_over = is_last

    async def _write(self, message: Message) -> None:
        """Have the server send it."""
        self._writing_since = time.monotonic()
        await self._send(message)
        self._writing_since = None
