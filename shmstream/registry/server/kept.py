"""`Kept`: the connections of one worker that the supervisor keeps duplicates of.

The supervisor gives the worker each connection, a new one or that of a worker that has ended
(`keeper`). The worker has a record in its table for each: a `KeptConnection`.

Connections that the worker has closed are told together, ten times a second: each message wakes the
supervisor. Until then the duplicates of these connections stay, and their records are not used.

If the supervisor is slow, messages wait in this process, and are lost if it is killed. So two
things are done only when the kernel has the message: a record is used for another connection after
CLOSED, and an adopted connection is touched after ADOPTED.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

from shmstream.registry.server.channel import Channel, Kind, Message
from shmstream.registry.server.connections import Record, Table

_BEAT = 0.1  # s
_MOST_CLOSED = 16  # connections; as many are told at once
_EMPTY = 64  # bytes; more than a response has before its text

_log = logging.getLogger("shmstream")


class KeptConnection:
    """The record of one connection, and how the supervisor is told of the connection."""

    def __init__(self, kept: Kept, index: int, record: Record) -> None:
        self._kept = kept
        self._index = index
        self.record: Record = record

    def close(self) -> None:
        """Have the connection kept no more. Call it once, and do not use the record after it."""
        self._kept.free(self._index)

    def hand_over(self, connection: socket.socket) -> None:
        """Have another worker go on with the connection. As `close`; the caller closes its socket.

        Raises:
            OSError: no descriptor is free. Nothing has happened.
        """
        self._kept.hand_over(self._index, connection)


class Kept:
    """All kept connections of this worker. For one event loop."""

    def __init__(
        self,
        table: Table,
        channel: Channel,
        adopt: Callable[[socket.socket, KeptConnection, bool], object],
        leave: Callable[[], object],
    ) -> None:
        """`adopt` begins with a new connection, or goes on with one of another worker: its last
        argument says which. It must not block or raise.

        `leave` is called when this worker is to hand its connections over when it stops.
        """
        self._table = table
        self._channel = channel
        self._adopt = adopt
        self._leave = leave
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._free = list(range(table.records - 1, -1, -1))
        self._closed: list[int] = []  # records of connections that were closed, still to be told
        self._records: dict[int, Record] = {}  # those that were used before, or are
        self._loop = asyncio.get_running_loop()
        self._is_waiting = False
        self._is_over = False
        self._loop.add_reader(channel.fileno(), self._hear)

    def ready(self) -> None:
        """Tell the supervisor that this worker takes connections."""
        self._beat()
        self._send(Message(Kind.READY))

    def _beat(self) -> None:
        """Tell that this worker makes progress, ten times a second, also while it stops."""
        if not self._is_over:
            self._table.beat()
            self._loop.call_later(_BEAT, self._beat)
            self._tell_closed()

    def _keeping(self, last: bytes) -> KeptConnection:
        """A free record for a connection. It has that last response; none if that is empty."""
        index = self._free.pop()
        if (record := self._records.get(index)) is None:
            record = self._records[index] = self._table.record(index)
        record.load(last or bytes(_EMPTY))
        return KeptConnection(self, index, record)

    def free(self, index: int) -> None:
        """The connection of that index is kept no more."""
        self._closed.append(index)
        if len(self._closed) >= _MOST_CLOSED or self._answered.done():
            self._tell_closed()

    def _tell_closed(self) -> None:
        if self._closed:
            closed = [*self._closed]
            self._send(Message.closed(closed), partial(self._free.extend, closed))
            self._closed = self._closed[len(closed) :]  # only now: sending may fail

    def hand_over(self, index: int, connection: socket.socket) -> None:
        """Another worker goes on. The supervisor reads that record later, so it stays as it is.

        The supervisor gets the connection once more: it may have kept none of it, for want of room.

        Raises:
            OSError: no descriptor is free.
        """
        self._send(Message(Kind.HAND_OVER, index, descriptor=connection.fileno()))

    def _send(self, message: Message, then: Callable[[], object] = lambda: None) -> None:
        if not self._is_over:
            self._channel.send(message, then)
            if self._channel.is_waiting and not self._is_waiting:
                self._is_waiting = True
                self._loop.add_writer(self._channel.fileno(), self._flush)

    def _flush(self) -> None:
        self._channel.flush()
        if not self._channel.is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(self._channel.fileno())

    def _hear(self) -> None:
        try:
            while not self._is_over and (message := self._channel.receive()) is not None:
                if message.kind == Kind.ADOPT:
                    self._take_over(message)
                elif message.kind in (Kind.LEAVE, Kind.STAY):
                    self._answer(leaves=message.kind == Kind.LEAVE)
        except EOFError:  # the supervisor is gone: this worker is about to end
            self.close()

    def _answer(self, *, leaves: bool) -> None:
        if leaves:
            self._leave()
        if not self._answered.done():
            self._answered.set_result(None)
            self._tell_closed()  # from now on each at once: this worker is about to end

    async def end(self, patience: float) -> None:
        """Ask the supervisor whether this worker is to leave, if it has not said so before."""
        if not (self._is_over or self._answered.done()):
            self._send(Message(Kind.ENDING))
            await asyncio.wait([self._answered], timeout=patience)

    def _take_over(self, message: Message) -> None:
        if message.descriptor < 0:
            self._refuse(message, "too many open files")
        elif not self._free:
            os.close(message.descriptor)
            self._refuse(message, "this worker has too many")
        else:
            self._adopt_it(socket.socket(fileno=message.descriptor), message)

    def _adopt_it(self, connection: socket.socket, message: Message) -> None:
        keeping = self._keeping(message.payload)
        told = Message(Kind.ADOPTED, keeping._index, message.serial)
        self._send(told, partial(self._adopt, connection, keeping, not message.payload))

    def _refuse(self, message: Message, reason: str) -> None:
        _log.error("a connection cannot be taken over: %s", reason)
        self._send(Message(Kind.REFUSED, 0, message.serial))

    def close(self) -> None:
        """Tell the supervisor nothing any more. Idempotent."""
        if not self._is_over:
            self._is_over = True
            self._answer(leaves=False)
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
            self._channel.close()
            self._table.close()
