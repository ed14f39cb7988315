"""Sending the body of a response: waits for the client and for the blob, and confuses neither.

    by kernel   the server sends spans of the file (`http.response.zerocopysend`), so their bytes
                never enter this process
    by hand     the bytes are read and handed on: if the server lacks that extension, if the size is
                not known yet, or if a middleware, such as one that compresses, drops messages that
                it does not know
    passed on   pieces that are in no file at all (`pass_through`)

The last byte is sent only when the blob is complete (I7). Until then its flight may fail, and a
body that has ended would tell the client that it did not. If a new flight has another size than the
client was told (`flight/leader`), the body breaks off.

A slow client may take long for one write. So our own server (`protocol`) is asked whether the
client takes anything. Other servers only show that a write has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Coroutine, Mapping
from typing import Any

from shmstream.asgi.messages import SERVER, ZERO_COPY, Message, Send
from shmstream.errors import SizeMismatch
from shmstream.flight.async_blob import AsyncBlob
from shmstream.flight.blob import Blob

_PIECE = 1 << 17  # bytes; the most that is read and handed on at one time
_SPAN = 4 << 20  # bytes; the most that the kernel is told to send at one time


def check_size(blob: AsyncBlob | Blob, told: int | None) -> None:
    """Raises:
    SizeMismatch: the blob has another size by now than a client was told, if it was told one.
    """
    if told is not None and blob.size != told:
        size = blob.size or blob.published
        reason = f"its first source told {told} bytes, and it goes on with {size}"
        raise SizeMismatch(blob.key, blob.tell(), reason, told, size)


class Sending:
    """Sends bytes of a blob to a client, as long as the client takes some."""

    def __init__(
        self,
        send: Send,
        timeout: float,
        extensions: Mapping[str, dict[str, Any]],
    ) -> None:
        """`timeout`: seconds in which the client must take some bytes."""
        self._send = send
        self._timeout = timeout
        self._extensions = extensions
        self.server: dict[str, Any] = extensions.get(SERVER, {})
        """What our own server says of this request (`messages.SERVER`); empty for others."""
        self._writing_since: float | None = None
        self.size: int | None = None
        """The size of the blob that the client was told; None: that of when `send` is called."""
        self.position: int = 0
        self.task: asyncio.Task[Any] | None = None
        """The task that sends; None: that of when `send` or `pass_on` is called."""
        self._timer: asyncio.Handle
        self._mark: object = None
        self._marked = 0.0
        self._cut = False
        self._is_over = False  # the server was given the end of the body

    async def send(self, blob: AsyncBlob, start: int, end: int | None) -> None:
        """Send the body, from `start` on; `end` is None if the blob's size is not known.

        Call it after the head was sent.

        Raises:
            ConnectionAbortedError: the client took nothing for `timeout` seconds.
            StreamBroken: as `AsyncBlob.read1`. All bytes before `position` were sent.
        """
        self.size = blob.size if self.size is None else self.size
        jump = self.server.get("jump")
        self.position = start if jump is None else start + jump()
        zero_copy = ZERO_COPY in self._extensions
        if end is not None and zero_copy and self._has_reached_server("http.response.start"):
            await self._watch(self._by_kernel(blob, end))
        else:
            await self._watch(self._by_hand(blob, end))

    async def pass_on(self, pieces: AsyncIterable[bytes]) -> None:
        """Send the body, or the rest of it after `send` has failed.

        Raises:
            ConnectionAbortedError: the client took nothing for `timeout` seconds.
            ShmstreamError: what `pieces` raises.
        """
        await self._watch(self._send_pieces(pieces))

    async def _watch(self, sending: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.get_running_loop()
        if self.task is None:
            self.task = asyncio.current_task(loop)
        self._timer = loop.call_soon(self._look_later)  # only if this waits
        try:
            await sending
            if not self._is_over:
                await self._write({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if not self._cut or self.task is None:
                raise
            self.task.uncancel()
            reason = f"the client took nothing for {self._timeout:g} s"
            raise ConnectionAbortedError(reason) from None
        finally:
            self._timer.cancel()

    async def _send_pieces(self, pieces: AsyncIterable[bytes]) -> None:
        async for data in pieces:
            await self._write({"type": "http.response.body", "body": data, "more_body": True})

    def _has_reached_server(self, kind: str) -> bool:
        """Whether the last message, of that kind, reached the server; True if it does not tell."""
        return bool(self.server.get("last", kind) == kind)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout / 4, self._look)

    def _look(self) -> None:
        """Cut a client that took nothing. One timer serves all writes, because they are many."""
        now = time.monotonic()
        taken = self.server.get("taken")
        mark = (self._writing_since, taken() if taken else None)
        if self._writing_since is None or mark != self._mark:
            self._mark, self._marked = mark, now
        if now - self._marked >= self._timeout and self.task is not None:
            self._cut = self.task.cancel()
        else:
            self._look_later()

    async def _there(self, blob: AsyncBlob, end: int | None) -> int:
        """Wait for a byte past `position`; how far can be sent, which is `position` at the end."""
        position = self.position
        there = await blob.wait_past(position)
        if (size := blob.size) != self.size:
            check_size(blob, self.size)
        if end is not None and there > end:
            there = end
        if there == size and not blob.is_complete:
            if there - position > 1:
                return there - 1
            await blob.wait_past(there)
            check_size(blob, self.size)
        return there if there > position else position

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
        """What is left if zero-copy messages do not reach the server goes by hand."""
        while self.position < end:
            count = await self._there(blob, end) - self.position
            if count == 0:
                break
            if count > _SPAN:
                count = _SPAN
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
        if not self._is_over:
            await self._by_hand(blob, end)

    async def _write(self, message: Message) -> None:
        """Give a message to the server, and note since when it is being written."""
        self._writing_since = time.monotonic()
        await self._send(message)
        self._writing_since = None
