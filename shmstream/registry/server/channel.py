"""`Channel`: short messages between the supervisor and one worker, some with a connection.

Neither end ever waits for the other: what the kernel does not take at once waits in a queue, in
order. The owner of an end calls `flush` when it can be written, as long as `is_waiting`. What the
kernel has taken before one end was killed still reaches the other end; what waits in the queue is
lost with it. So what must not be done before a message is safe is given to `send` as `then`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

_HEAD = struct.Struct("=QQQ")
_MOST = 8192  # bytes of a message
_ROOM = socket.CMSG_LEN(4)  # bytes; for one descriptor


class Kind(IntEnum):
    """What a message means. `index` is of a record in the worker's table.

    The response of ADOPT is the last one of a connection of another worker; it is empty if the
    connection is new.
    """

    READY = 1  # worker: takes connections from now on
    CLOSED = 2  # worker: it does not want these connections to be kept any more; `indices`
    ADOPT = 3  # supervisor: take this connection; serial, descriptor, response
    ADOPTED = 4  # worker: has it, and has not touched it before; index, serial
    REFUSED = 5  # worker: cannot go on with this connection; serial
    ENDING = 6  # worker: it is about to end, and waits for one of the next two
    STAY = 7  # supervisor: let your clients finish
    LEAVE = 8  # supervisor: hand your connections over when you stop
    HAND_OVER = 9  # worker: it will not touch this connection any more; index, descriptor


@dataclass
class Message:
    """One message. The receiver owns the descriptor, which is -1 if there is none."""

    kind: int
    index: int = 0
    serial: int = 0
    payload: bytes = b""
    descriptor: int = -1

    @classmethod
    def closed(cls, indices: Sequence[int]) -> Message:
        """CLOSED, of these records."""
        return cls(Kind.CLOSED, payload=array("Q", indices).tobytes())

    @property
    def indices(self) -> Sequence[int]:
        """The records that CLOSED is of."""
        return array("Q", self.payload)


def _nothing() -> None:
    pass


class Channel:
    """One end of a pair of sockets."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._waiting: deque[tuple[Message, Callable[[], object]]] = deque()
        self._is_over = False

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """One end, and a socket for the other end.

        Raises:
            OSError: there are no descriptors.
        """
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), other

    def fileno(self) -> int:
        """The descriptor, to wait for; -1 after `close`."""
        return self._socket.fileno()

    @property
    def is_waiting(self) -> bool:
        """Whether there are messages that the kernel has not taken yet."""
        return bool(self._waiting)

    def send(self, message: Message, then: Callable[[], object] = _nothing) -> None:
        """Send a message; dropped if the other end is gone. The caller keeps its descriptor.

        `then` is called when the kernel has taken the message, or the other end is gone.

        Raises:
            OSError: a descriptor is needed, and there is none.
        """
        if self._is_over or (not self._waiting and self._send_now(message)):
            then()
            return
        if message.descriptor >= 0:
            message.descriptor = os.dup(message.descriptor)
        self._waiting.append((message, then))

    def _send_now(self, message: Message) -> bool:
        """False if the kernel takes nothing just now."""
        data = _HEAD.pack(message.kind, message.index, message.serial) + message.payload
        try:
            if message.descriptor < 0:
                self._socket.send(data)
            else:
                socket.send_fds(self._socket, [data], [message.descriptor])
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # of descriptors that no process has received yet
                return False
            if not isinstance(error, ConnectionError):
                raise
            self._is_over = True
        return True

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        while self._waiting and (self._is_over or self._send_now(self._waiting[0][0])):
            self._drop()

    def receive(self) -> Message | None:
        """The next message; None if there is none just now.

        Raises:
            EOFError: the other end is gone, and has sent nothing more.
        """
        try:
            data, others, _, _ = self._socket.recvmsg(_MOST, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The other end was closed, and had not read all. The kernel tells that once, before it
            # gives what the other end had sent.
            return self.receive()
        if len(data) < _HEAD.size:
            raise EOFError("the other end of the channel is gone")
        kind, index, serial = _HEAD.unpack_from(data)
        descriptor = -1
        for _, _, numbers in others:
            descriptor = int.from_bytes(numbers[:4], sys.byteorder)
        return Message(kind, index, serial, data[_HEAD.size :], descriptor)

    def close(self) -> None:
        """Drop what waits. Idempotent."""
        self._is_over = True
        while self._waiting:
            self._drop()
        self._socket.close()

    def _drop(self) -> None:
        """The message that waits longest is done with."""
        message, then = self._waiting.popleft()
        if message.descriptor >= 0:
            os.close(message.descriptor)
        then()
