"""What a worker does only when the supervisor is sure to hear of it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from shmstream.registry.server.channel import Channel, Kind, Message
from shmstream.registry.server.connections import Table
from shmstream.registry.server.kept import Kept, KeptConnection


class Post:
    """What a worker and the supervisor share; the supervisor hears nothing at first."""

    def __init__(self) -> None:
        self.supervisor, self._other = Channel.pair()
        self.channel = Channel(self._other)
        self.table = Table.make(10_000)
        self.adopted: list[KeptConnection] = []
        self.were_new: list[bool] = []

    def kept(self) -> Kept:
        return Kept(self.table, self.channel, self._adopt, lambda: None)

    def _adopt(self, connection: socket.socket, keeping: KeptConnection, is_new: bool) -> None:
        connection.close()
        self.adopted.append(keeping)
        self.were_new.append(is_new)

    def give(self, client: socket.socket, serial: int, last: bytes = b"") -> None:
        """Give the worker a connection."""
        self.supervisor.send(Message(Kind.ADOPT, 0, serial, last, client.fileno()))

    def fill(self, kept: Kept) -> None:
        """Say something until the kernel takes no more messages."""
        while not self.channel.is_waiting:
            kept._send(Message(Kind.READY))

    async def hear(self) -> list[Message]:
        """Hear all that the worker has said, until the loop has nothing more to send."""
        heard: list[Message] = []
        while True:
            while (message := self.supervisor.receive()) is not None:
                if message.descriptor >= 0:
                    os.close(message.descriptor)
                heard.append(message)
            if not self.channel.is_waiting:
                return heard
            await asyncio.sleep(0)

    def close(self) -> None:
        self.supervisor.close()
        self.channel.close()
        self.adopted.clear()
        self.table.close()
        del self.table  # pytest keeps this object, and its records keep the memory


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.close()


def test_a_record_is_used_again_only_when_its_end_was_told(post: Post) -> None:
    """Else a dead worker's old connection would go on with the record of another one."""

    async def go() -> None:
        kept = post.kept()
        one, other = socket.socketpair()
        with one, other:
            post.give(other, 1)
            while not post.adopted:
                await asyncio.sleep(0)
            [first] = post.adopted
            post.fill(kept)
            first.close()
            kept._beat()
            post.give(other, 2)
            for _ in range(5):  # the loop hears it in the first turn
                await asyncio.sleep(0)
            assert len(post.adopted) == 1
            heard = await post.hear()
            [_, second] = post.adopted
            assert second._index != first._index, "CLOSED waited in this process"
            post.give(other, 3)
            while len(post.adopted) < 3:
                await asyncio.sleep(0)
            assert post.adopted[2]._index == first._index
        assert [each.kind for each in heard[-2:]] == [Kind.CLOSED, Kind.ADOPTED]
        assert list(heard[-2].indices) == [first._index]
        assert heard[-1].index == second._index
        assert post.were_new == [True] * 3
        kept.close()

    asyncio.run(go())


def test_an_adopted_connection_is_touched_only_when_that_was_told(post: Post) -> None:
    """Else the supervisor would give the connection away with what the worker before it did."""

    async def go() -> None:
        kept = post.kept()
        one, other = socket.socketpair()
        with one, other:
            post.fill(kept)
            post.give(other, 7, bytes(64))
            for _ in range(5):  # the loop hears it in the first turn
                await asyncio.sleep(0)
            assert post.adopted == []
            heard = await post.hear()
            assert post.were_new == [False]
        assert (heard[-1].kind, heard[-1].serial) == (Kind.ADOPTED, 7)
        kept.close()

    asyncio.run(go())


def test_an_adopted_connection_is_not_lost_with_the_supervisor(post: Post) -> None:
    async def go() -> None:
        kept = post.kept()
        one, other = socket.socketpair()
        with one, other:
            post.fill(kept)
            post.give(other, 7)
            post.supervisor.close()
            while not post.adopted:
                await asyncio.sleep(0)

    asyncio.run(go())


def test_ends_are_told_together(post: Post) -> None:
    """Ten times a second, or if there are many; while the worker ends, each at once."""

    async def go() -> None:
        kept = post.kept()
        kept.ready()
        one, other = socket.socketpair()
        with one, other:
            for serial in range(20):
                post.give(other, serial)
            while len(post.adopted) < 20:
                await asyncio.sleep(0)
        await post.hear()
        for keeping in post.adopted[:16]:
            keeping.close()
        [told] = await post.hear()
        assert list(told.indices) == [each._index for each in post.adopted[:16]]
        for keeping in post.adopted[16:18]:
            keeping.close()
        assert await post.hear() == []
        while not (heard := await post.hear()):
            await asyncio.sleep(0)
        [told] = heard
        assert list(told.indices) == [each._index for each in post.adopted[16:18]]
        post.supervisor.send(Message(Kind.STAY))
        await kept.end(60)
        for keeping in post.adopted[18:]:
            keeping.close()
        heard = await post.hear()
        assert [list(each.indices) for each in heard if each.kind == Kind.CLOSED] == [
            [each._index] for each in post.adopted[18:]
        ]
        kept.close()

    asyncio.run(go())
