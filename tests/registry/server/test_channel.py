"""Messages between the supervisor and a worker."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from shmstream.registry.server.channel import Channel, Kind, Message


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    both = one, Channel(other)
    yield both
    for each in both:
        each.close()


def waits(channel: Channel) -> int:
    """How many messages wait."""
    return len(channel._waiting)


def test_nobody_waits_and_nothing_is_lost(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    assert there.receive() is None
    read, write = os.pipe()
    count = 0
    while waits(here) == 0:
        here.send(Message(Kind.ADOPT, 1, count, bytes(2000), write))
        count += 1
    here.send(Message(Kind.CLOSED, 7))
    os.close(write)
    got: list[Message] = []
    while waits(here) or len(got) <= count:
        while (message := there.receive()) is not None:
            got.append(message)
            if message.descriptor >= 0:
                os.close(message.descriptor)
        here.flush()
    assert [each.serial for each in got[:-1]] == list(range(count))
    assert all(each.payload == bytes(2000) for each in got[:-1])
    assert (got[-1].kind, got[-1].index, got[-1].descriptor) == (Kind.CLOSED, 7, -1)
    assert os.read(read, 1) == b"", "no copy of the other end is left"
    os.close(read)


def test_what_was_sent_before_the_end_arrives(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here.send(Message(Kind.HAND_OVER, 3, descriptor=0))
    here.close()
    message = there.receive()
    assert message is not None
    assert os.get_inheritable(message.descriptor) is False
    os.close(message.descriptor)
    for _ in range(2):
        with pytest.raises(EOFError):
            there.receive()
    there.send(Message(Kind.LEAVE))  # there is no one to hear it
    assert waits(there) == 0


def test_what_was_sent_arrives_although_the_other_end_has_not_read_all(
    ends: tuple[Channel, Channel],
) -> None:
    """A worker is killed before it has read what the supervisor has sent."""
    here, there = ends
    there.send(Message(Kind.LEAVE))
    here.send(Message(Kind.CLOSED, 1))
    here.send(Message(Kind.CLOSED, 2))
    here.close()
    assert [message.index for _ in range(2) if (message := there.receive())] == [1, 2]
    with pytest.raises(EOFError):
        there.receive()


def test_messages_that_wait_are_dropped_at_the_end(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    one, other = socket.socketpair()
    with one:
        while waits(here) == 0:
            here.send(Message(Kind.ADOPT, payload=bytes(5000), descriptor=other.fileno()))
        other.close()
        here.close()
        there.close()
        assert one.recv(1) == b""
