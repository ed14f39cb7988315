"""`Transport`: a connection whose bytes its protocol reads by itself, and only when it wants to.

The transports of asyncio and uvloop read whatever has come, and keep for a while what they are told
to write. If the process is killed, both are lost. This transport reads nothing: it tells its
protocol that bytes have come. What it is told to write goes to the kernel at once; only what the
kernel does not take waits here, and then the protocol is told to pause.

`release` gives the connection up without a trace, so that another process can go on with it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Protocol


class Reads(Protocol):
    """A protocol that reads by itself."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As `asyncio.Protocol`."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As `asyncio.Protocol`; the socket is still open."""

    def pause_writing(self) -> None:
        """As `asyncio.Protocol`: the kernel does not take everything."""

    def resume_writing(self) -> None:
        """As `asyncio.Protocol`: the kernel has taken everything."""

    def readable(self) -> None:
        """Bytes have come, or the end, or an error."""


class Transport(asyncio.Transport):
    """Of one accepted connection, a non-blocking socket. For one event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: socket.socket, protocol: Reads
    ) -> None:
        super().__init__({"socket": connection})
        self._loop = loop
        self._socket = connection
        self._fd = connection.fileno()
        self._protocol = protocol
        self._buffer = bytearray()
        self._is_reading = False
        self._is_closing = False
        self._is_lost = False  # no byte is written any more
        protocol.connection_made(self)
        self.resume_reading()

    # Reading.

    def pause_reading(self) -> None:
        """Do not tell the protocol that bytes have come. Idempotent."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Tell the protocol when bytes have come. Idempotent."""
        if not self._is_reading and not self._is_closing:
            self._is_reading = True
            self._loop.add_reader(self._fd, self._protocol.readable)

    def is_reading(self) -> bool:
        """Whether the protocol is told when bytes have come."""
        return self._is_reading

    # Writing.

    def write(self, data: bytes | bytearray | memoryview, *, more: bool = False) -> None:
        """Write bytes; those that the kernel does not take wait. With `more` others follow at once,
        so that the kernel may send them together.
        """
        if self._is_lost or not data:
            return
        if not self._buffer:
            try:
                sent = self._socket.send(data, socket.MSG_MORE if more else 0)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._flush)
            self._protocol.pause_writing()
        self._buffer += data

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        del self._buffer[:sent]
        if not self._buffer:
            self._loop.remove_writer(self._fd)
            self._protocol.resume_writing()
            if self._is_closing:
                self._lose(None)

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._buffer)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Does nothing: the protocol is told to pause as soon as anything waits."""

    def can_write_eof(self) -> bool:
        """True: the connection can be half closed."""
        return True

    def write_eof(self) -> None:
        """Half close the connection. Only if nothing waits."""
        if not self._is_lost:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._lose(error)

    # The end.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`socket` is the connection."""
        return self._socket if name == "socket" else default

    def is_closing(self) -> bool:
        """Whether the connection is closing or closed."""
        return self._is_closing

    def close(self) -> None:
        """Close the connection when the kernel has taken everything. Idempotent."""
        if not self._is_closing:
            self._is_closing = True
            self.pause_reading()
            if not self._buffer:
                self._lose(None)

    def abort(self) -> None:
        """Close the connection now. Idempotent."""
        self._lose(None)

    def _lose(self, error: OSError | None) -> None:
        """Have the protocol told, once, that the connection is lost."""
        if not self._is_lost:
            self._stop()
            self._loop.call_soon(self._tell, error)

    def _stop(self) -> None:
        self._is_lost = self._is_closing = True
        self.pause_reading()
        if self._buffer:
            self._buffer.clear()
            self._loop.remove_writer(self._fd)

    def _tell(self, error: OSError | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._socket.close()

    def release(self) -> None:
        """Leave the connection as it is, and tell the protocol nothing. Only if it is not lost."""
        self._stop()
        self._socket.close()
