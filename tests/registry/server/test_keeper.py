"""The keeper, with workers that are only the other ends of its channels."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from shmstream.registry.server import keeper as room
from shmstream.registry.server.channel import Channel, Kind, Message
from shmstream.registry.server.connections import Table
from shmstream.registry.server.keeper import Keeper
from tests.support.interpreters import wait_until


class Worker:
    """Says what a worker says, when the test wants it."""

    def __init__(self, keeper: Keeper, number: int, *, is_ready: bool = True) -> None:
        self._keeper = keeper
        self.number = number
        end, table = keeper.enlist(number)
        self.channel = Channel(end)
        attached = Table.attach(os.dup(table))
        assert attached is not None
        self.table = attached
        if is_ready:
            self.say(Kind.READY)
            wait_until(lambda: keeper.is_ready(number))

    def say(self, kind: Kind, index: int = 0, serial: int = 0, descriptor: int = -1) -> None:
        self.channel.send(Message(kind, index, serial, b"", descriptor))

    def take(self, index: int = 0) -> socket.socket:
        """Take a new connection; its client."""
        others = [each for number, each in self._keeper._stations.items() if number != self.number]
        for each in others:
            each.table._header.progress = 1  # they are silent, so this worker gets the next one
        client = arrive(self._keeper)
        message = self.adopt(index)
        for each in others:
            each.table._header.progress = 0
        assert message.payload == b""
        return client

    def close_of(self, *indices: int) -> None:
        self.channel.send(Message.closed(indices))

    def hear(self) -> Message:
        found: list[Message] = []

        def look() -> bool:
            if (message := self.channel.receive()) is not None:
                found.append(message)
            return bool(found)

        wait_until(look)
        return found[0]

    def adopt(self, index: int = 0) -> Message:
        """Adopt what comes; the message."""
        message = self.hear()
        assert message.kind == Kind.ADOPT
        os.close(message.descriptor)
        self.table.record(index).load(message.payload)
        self.say(Kind.ADOPTED, index, message.serial)
        return message

    def close(self) -> None:
        self.channel.close()
        self.table.close()

    def die(self) -> None:
        self.close()
        self._keeper.ended(self.number)


def arrive(keeper: Keeper) -> socket.socket:
    """A client that has just come."""
    return socket.create_connection(keeper._listener.getsockname())


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def is_closed(client: socket.socket) -> bool:
    """Whether no process has the other end any more."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


Hire = Callable[..., Worker]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with running(records=8, most=6) as keeper:
        yield keeper


@contextmanager
def running(**sizes: int) -> Iterator[Keeper]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        keeper = Keeper(**{"most_each": 1000, **sizes}, listener=listener)
        keeper.start(lambda: None)
        try:
            yield keeper
        finally:
            keeper.close()
            wait_until(lambda: keeper._epoll.closed)
    gc.collect()


@pytest.fixture
def hire(keeper: Keeper) -> Iterator[Hire]:
    hired: list[Worker] = []

    def one(*, is_ready: bool = True) -> Worker:
        hired.append(Worker(keeper, len(hired), is_ready=is_ready))
        return hired[-1]

    yield one
    for each in hired:
        each.close()


def test_a_dead_workers_connection_goes_to_the_worker_with_the_fewest(
    keeper: Keeper, hire: Hire
) -> None:
    dying, busy, idle = hire(), hire(), hire()
    clients = [dying.take(1), busy.take(1), busy.take(2)]
    dying.table.record(1).begin(0, 0, 0, b"what it was doing", 0, is_last=False)
    wait_until(lambda: keeper.kept == 3)
    dying.die()
    message = idle.adopt(5)
    assert b"what it was doing" in message.payload
    assert idle.table.record(5).last.text == b"what it was doing"
    assert keeper.kept == 3
    assert not any(map(is_closed, clients))
    idle.close_of(5)
    wait_until(lambda: is_closed(clients[0]))
    assert keeper.kept == 2
    for client in clients:
        client.close()


def test_a_new_connection_goes_to_the_worker_with_the_fewest(keeper: Keeper, hire: Hire) -> None:
    first, second = hire(), hire()
    with first.take() as one, arrive(keeper) as other:
        assert second.adopt().payload == b""
        wait_until(lambda: keeper.kept == 2)
        keeper._listener.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not keeper._is_accepting)
        assert not is_closed(one)
        assert not is_closed(other)


def test_a_worker_that_answers_nothing_gets_few() -> None:
    """Another worker gets the rest; what no worker may have stays in the listening socket."""
    with running(records=16, most=16) as keeper:
        stuck, awake = Worker(keeper, 0), Worker(keeper, 1)
        clients = [arrive(keeper) for _ in range(10)]
        wait_until(lambda: not keeper._is_accepting)
        assert keeper.kept == 8, "two are not accepted"
        assert len(keeper._stations[stuck.number].coming) == room._UNANSWERED == 4
        for index in range(6):
            awake.adopt(index)
        stuck.die()
        for index in range(6, 10):
            awake.adopt(index)
        wait_until(lambda: keeper.kept == 10)
        assert not any(map(is_closed, clients))
        for client in clients:
            client.close()
        awake.close()


def test_a_silent_worker_gets_none(keeper: Keeper, hire: Hire) -> None:
    """If all are silent, new connections wait until one makes progress."""
    silent, awake = hire(), hire()
    silent.table._header.progress = 1
    clients = [arrive(keeper) for _ in range(2)]
    for index in range(2):
        awake.adopt(index)
    awake.table._header.progress = 1
    clients.append(arrive(keeper))
    wait_until(lambda: not keeper._is_accepting)
    assert keeper.kept == 2

    def is_given() -> bool:
        silent.table.beat()  # again and again, as a worker that goes on
        return keeper.kept == 3

    wait_until(is_given)
    silent.adopt()
    for client in clients:
        client.close()


def test_a_stuck_worker_loses_what_it_has_not_received(keeper: Keeper, hire: Hire) -> None:
    """Another worker gets the connection, as soon as there is one; an order of the keeper stays."""
    stuck = hire()
    client = arrive(keeper)
    wait_until(lambda: keeper.kept == 1)
    keeper.leave(stuck.number)
    stuck.table._header.progress = 1
    late = hire()
    assert late.adopt().payload == b""
    assert stuck.hear().kind == Kind.LEAVE
    assert stuck.channel.receive() is None
    assert keeper.kept == 1
    assert not is_closed(client)
    client.close()


def test_a_stuck_worker_loses_what_it_was_left(keeper: Keeper, hire: Hire) -> None:
    """Another worker has died, and the thread of the keeper waits for nothing."""
    dying, stuck, awake = hire(), hire(), hire()
    with dying.take() as client, awake.take():
        wait_until(lambda: keeper.kept == 2)
        dying.die()  # `stuck` has the fewest
        stuck.table._header.progress = 1
        assert awake.adopt(1).payload != b""
        assert not is_closed(client)


def test_a_stuck_worker_keeps_its_clients_when_the_server_stops(keeper: Keeper, hire: Hire) -> None:
    stuck = hire()
    client = arrive(keeper)
    wait_until(lambda: keeper.kept == 1)
    hire()
    keeper.stop()
    stuck.table._header.progress = 1
    with keeper._lock:
        keeper._look_around()
    assert not is_closed(client)
    assert stuck.adopt().payload == b""
    client.close()


def test_a_worker_that_lacks_descriptors_is_left_alone_for_a_moment(
    keeper: Keeper, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_AGAIN", 3600.0)  # the moment
    lacking, other = hire(), hire()
    with other.take():
        wait_until(lambda: keeper.kept == 1)
        client = arrive(keeper)
        refuse(lacking)
        other.adopt(1)
        late = arrive(keeper)
        other.adopt(2)
        assert lacking.channel.receive() is None
        for each in (client, late):
            each.close()


def test_a_worker_has_only_so_many() -> None:
    """Further ones wait in the socket until others have ended."""
    with running(records=8, most=1, most_each=2) as keeper:
        worker = Worker(keeper, 0)
        clients = [arrive(keeper) for _ in range(3)]
        worker.adopt(0)
        worker.adopt(1)
        wait_until(lambda: not keeper._is_accepting)
        wait_until(lambda: keeper.kept == 1)  # the other one counts, although it has no duplicate
        assert worker.channel.receive() is None
        worker.close_of(0, 1)
        worker.adopt(0)
        for client in clients:
            client.close()
        worker.close()


def test_the_worker_that_was_given_it_dies(keeper: Keeper, hire: Hire) -> None:
    """The connection that it did not touch is new to another worker, too."""
    with arrive(keeper) as client:
        first = hire()
        os.close(first.hear().descriptor)
        first.die()
        assert keeper.kept == 1
        assert hire().adopt().payload == b""
        assert not is_closed(client)


def test_what_a_dead_worker_has_said_counts(keeper: Keeper, hire: Hire) -> None:
    """Also what it said in its last moment."""
    dying, heir = hire(), hire()
    with dying.take(0) as one, dying.take(1) as other:
        dying.close_of(0)
        dying.die()
        heir.adopt()
        assert keeper.kept == 1
        wait_until(lambda: is_closed(one))
        assert not is_closed(other)


@pytest.mark.parametrize("said", [False, True], ids=["before", "after"])
def test_the_worker_that_adopts_dies(keeper: Keeper, hire: Hire, said: bool) -> None:
    """Before it has said that it adopted the connection, or after that and a change."""
    first, second = hire(), hire()
    with first.take() as client:
        first.table.record(0).begin(0, 0, 0, b"first", 0, is_last=False)
        wait_until(lambda: keeper.kept == 1)
        first.die()
        if said:
            second.adopt(3)
            second.table.record(3).begin(0, 0, 0, b"second", 0, is_last=False)
        else:
            os.close(second.hear().descriptor)
        second.die()
        assert keeper.kept == 1, "it waits for a worker"
        third = hire()
        third.adopt(7)
        assert third.table.record(7).last.text == (b"second" if said else b"first")
        assert not is_closed(client)


def test_a_worker_hands_over(keeper: Keeper, hire: Hire) -> None:
    leaving, staying = hire(), hire()
    with leaving.take(2) as client:
        leaving.table.record(2).begin(0, 0, 0, b"so far", 0, is_last=False)
        wait_until(lambda: keeper.kept == 1)
        keeper.leave(leaving.number)
        assert leaving.hear().kind == Kind.LEAVE
        assert not keeper.is_ready(leaving.number)
        leaving.say(Kind.HAND_OVER, 2)
        assert b"so far" in staying.adopt().payload
        leaving.die()
        assert keeper.kept == 1
        assert not is_closed(client)


def test_a_worker_that_ends_by_itself_asks(keeper: Keeper, hire: Hire) -> None:
    first, second = hire(), hire()
    first.say(Kind.ENDING)
    assert first.hear().kind == Kind.LEAVE
    assert not keeper.is_ready(first.number)
    second.say(Kind.ENDING)
    assert second.hear().kind == Kind.STAY, "no other one is ready"
    first.die()
    second.say(Kind.ENDING)
    assert second.hear().kind == Kind.LEAVE, "the next one starts when it has ended"
    third = hire()
    keeper.stop()
    third.say(Kind.ENDING)
    assert third.hear().kind == Kind.STAY, "the server stops"


def refuse(worker: Worker) -> None:
    message = worker.hear()
    os.close(message.descriptor)
    worker.say(Kind.REFUSED, serial=message.serial)


def test_a_refused_connection_goes_to_another_worker(keeper: Keeper, hire: Hire) -> None:
    """It is closed when each of the workers has refused it."""
    dying, *others = hire(), hire(), hire()
    with dying.take() as client:
        wait_until(lambda: keeper.kept == 1)
        dying.die()
        first = others[0] if keeper._stations[others[0].number].load else others[1]
        refuse(first)
        assert not is_closed(client)
        second = others[0] if first is others[1] else others[1]
        refuse(second)
        wait_until(lambda: is_closed(client))
        assert keeper.kept == 0
        assert first.channel.receive() is None


def test_workers_that_die_before_they_adopt_do_not_count(keeper: Keeper, hire: Hire) -> None:
    """All workers are killed at one time, and the request kills none."""
    workers = [hire() for _ in range(room._DEATHS + 3)]
    with workers[0].take() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: keeper.kept == 1)
        while workers:
            has_it = [each for each in workers if keeper._stations[each.number].load]
            has_it[0].die()
            workers.remove(has_it[0])
        hire().adopt()
        assert not is_closed(client)


def test_only_so_many_are_kept(keeper: Keeper, hire: Hire) -> None:
    worker = hire()
    clients = [worker.take(index) for index in range(8)]
    wait_until(lambda: is_closed(clients[6]) and is_closed(clients[7]))
    assert keeper.kept == 6
    worker.close_of(0)
    wait_until(lambda: is_closed(clients[0]))
    clients.append(worker.take(0))
    wait_until(lambda: keeper.kept == 6)
    for client in clients:
        client.close()


def test_a_connection_that_was_not_kept_is_handed_over(keeper: Keeper, hire: Hire) -> None:
    """There was no room for its duplicate. It comes with the message."""
    leaving = hire()
    clients = [leaving.take(index) for index in range(7)]
    wait_until(lambda: is_closed(clients[6]))
    staying = hire()
    keeper.leave(leaving.number)
    assert leaving.hear().kind == Kind.LEAVE
    client, mine = connection()
    leaving.table.record(6).begin(0, 0, 0, b"so far", 0, is_last=False)
    leaving.say(Kind.HAND_OVER, 6, descriptor=mine.fileno())
    mine.close()
    assert b"so far" in staying.adopt().payload
    for index in range(6):
        assert not is_closed(clients[index])
        leaving.say(Kind.HAND_OVER, index, descriptor=clients[index].fileno())
        staying.adopt(index + 1)
    wait_until(lambda: keeper.kept == 6)
    for each in [*clients, client]:
        each.close()


def test_a_request_that_kills_workers_is_given_up(
    keeper: Keeper, hire: Hire, caplog: pytest.LogCaptureFixture
) -> None:
    """An idle connection survives any number of deaths."""
    worker = hire()
    with worker.take(0) as deadly, worker.take(1) as idle:
        deadly.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: keeper.kept == 2)
        for _ in range(room._DEATHS):
            heir = hire()
            worker.die()
            heir.adopt(0)
            heir.adopt(1)
            worker = heir
        last = hire()
        worker.die()
        last.adopt()
        wait_until(lambda: is_closed(deadly))
        assert not is_closed(idle)
    assert "workers died with one request" in caplog.text


def test_connections_wait_for_a_worker_but_not_for_ever(
    keeper: Keeper, hire: Hire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert room._PATIENCE == 30
    monkeypatch.setattr(room, "_PATIENCE", 0.0)
    dying = hire()
    with dying.take() as client:
        wait_until(lambda: keeper.kept == 1)
        dying.die()
        wait_until(lambda: is_closed(client))
        assert keeper.kept == 0
    assert "no worker can go on with 1 connections" in caplog.text


def test_nothing_is_given_away_when_the_server_stops(keeper: Keeper, hire: Hire) -> None:
    dying, other = hire(), hire()
    with dying.take() as client:
        wait_until(lambda: keeper.kept == 1)
        keeper.stop()
        dying.die()
        wait_until(lambda: is_closed(client))
        assert other.channel.receive() is None


def test_a_slow_worker_gets_all_in_the_end() -> None:
    """The keeper waits for nobody: what the kernel does not take waits in a queue."""
    with running(records=300, most=300) as keeper:
        dying, slow = Worker(keeper, 0), Worker(keeper, 1)
        clients = [dying.take(index) for index in range(200)]
        for index in range(200):
            dying.table.record(index).begin(0, 0, 0, bytes(1900), 0, is_last=False)
        wait_until(lambda: keeper.kept == 200)
        dying.die()
        serials = [slow.adopt(index).serial for index in range(200)]
        assert sorted(serials) == list(range(201, 401))
        for client in clients:
            client.close()
        slow.close()
