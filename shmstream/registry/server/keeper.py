"""`Keeper`: the supervisor keeps a duplicate of the client connections of its workers.

A connection lives as long as any process has a descriptor of it. So when a worker is killed, its
connections live on here, and the keeper gives each of them to the worker that has the fewest. It
reads and writes no byte of a client. A thread of its own does all this (`_run`); `connections` says
what the next worker finds.

The keeper also accepts the new connections. If a worker accepted one, the worker could be killed
before it has sent a duplicate. So a new connection is given to a worker in the same way as a
connection of a dead worker is. No worker asks for it, because each message between two processes
costs as much as a small response. But no connection may wait for a worker that is stuck:

    the keeper                                       of new connections, a stuck worker then has
    1 gives a new connection to the worker that      `_UNANSWERED` at most that it has not
      has the fewest not adopted yet; of several     adopted
      such workers, to that with the fewest in
      all; no worker has more than `_UNANSWERED`
      that it has not adopted
    2 gives none to a worker without progress for    no further one
      `_SILENT` seconds
    3 takes back connections that such a worker      only the one that it had received and not
      has not received, if another worker makes      yet adopted: that one waits until the worker
      progress: the keeper has a duplicate of the    goes on or is killed
      worker's end of the channel, and receives
      the messages from it
    4 accepts no connection if no worker may have    (all are stuck or full) new connections wait
      one, and looks again at the next message,      in the listening socket
      or after `_LOOK` seconds

The kernel gives each message to one receiver only. So either the worker has received a connection,
and no other worker gets it; or the keeper has received it, and the worker will never see it.

A worker sends CLOSED when the keeper is to drop the duplicate: either the worker has closed the
connection, or it uses the connection in a way that no other worker can go on with. The worker tells
that a little later, for several connections in one message. If it is killed before that, the next
worker gets a connection that is shut down, and closes it; or a connection to which more was written
than its record says, and gives it up.

Beyond `most` connections there is no duplicate. But a worker that hands a connection over sends its
own duplicate (HAND_OVER), so a planned end cuts none of them. A connection is kept by the keeper in
one place at a time:

    (first)     it is new; or its worker has ended, or sends HAND_OVER: then the last response in
                its record is copied out of the table
    ADOPT       it is on its way to a worker: `coming`, by a serial number, with that copy
    ADOPTED     it is in the table of that worker: `clients`, by the index of its record

    the worker that adopts                           if it is killed after this step
    1 receives ADOPT                                 it was never touched: the copy goes to another.
                                                     (If it answers REFUSED: the same)
    2 fills a record with the copy                   the same
    3 sends ADOPTED                                  its record is read, which is the copy
    4 reads, writes, changes its record              its record is read

So ADOPTED comes before everything that changes the connection, and everything that a dead worker
has sent is read before its connections are given away. If two workers die one after the other, the
steps are the same twice. If no worker is ready, connections wait here until one is, for
`_PATIENCE`. A connection that all ready workers have refused is closed; a new one is tried again
after a second.

A request that kills each worker must not kill all of them for ever: a connection with a request
under way is closed if more than `_DEATHS` workers have died with it in a row, and not a byte has
moved. A worker that dies before ADOPTED does not count.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from itertools import count

from shmstream.registry.server.acceptor import NO_LISTENER
from shmstream.registry.server.channel import Channel, Kind, Message
from shmstream.registry.server.connections import Response, Step, Table, continuation
from shmstream.system import tcp
from shmstream.system.threads import Call

_DEATHS = 4
_PATIENCE = 30.0  # s
_AGAIN = 1.0  # s; between two tries to give connections that no worker has; after one without room
_LOOK = 0.1  # s; between two looks whether a worker may have a new connection
_UNANSWERED = 4  # new connections
_SILENT = 0.5  # s

_log = logging.getLogger("shmstream")


class _Client:
    """One connection. `last` is the copy of its record's last response, while it has no record."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.last = b""
        self.deaths = 0
        self.progress = (-1, -1)
        self.refused: set[_Station] = set()  # workers that cannot go on with it
        self.until = 0.0  # on the monotonic clock; when it is closed if no worker has it by then

    def survive(self) -> bool:
        """Its worker has died: False if its request seems to kill workers."""
        written, taken = tcp.written(self.connection), tcp.taken(self.connection)
        step = continuation(Response.of(self.last), written, taken).step
        is_idle = step in (Step.WAIT, Step.END) and not tcp.waiting(self.connection)
        if is_idle or self.progress != (written, taken):
            self.deaths = 0
        self.deaths += 1
        self.progress = written, taken
        return self.deaths <= _DEATHS


class _Station:
    """One worker, as far as the keeper is concerned."""

    def __init__(self, number: int, channel: Channel, other: Channel, table: Table) -> None:
        self.number = number
        self.channel = channel
        self.other = other  # a duplicate of the worker's end
        self.table = table
        self.clients: dict[int, _Client] = {}
        self.coming: dict[int, _Client] = {}
        self.unkept: set[int] = set()  # records of connections that have no duplicate
        self.is_ready = False
        self.leaves = False  # it was told to hand its connections over
        self.is_full = False  # the kernel takes no more messages to it just now
        self.shut_until = 0.0  # on the monotonic clock; it gets no new connection before

    @property
    def load(self) -> int:
        return len(self.clients) + len(self.coming) + len(self.unkept)

    @property
    def is_awake(self) -> bool:
        """Whether its worker takes connections, and makes progress."""
        return self.is_ready and self.table.silence < _SILENT


class Keeper:
    """All kept connections. Its methods are for the thread of the supervisor."""

    def __init__(self, records: int, most: int, listener: socket.socket, most_each: int) -> None:
        """`records`: of the table of each worker. `most`: connections that are kept.

        New connections come from `listener`, which the caller closes after `stop`. A worker that
        has `most_each` connections gets no new one.
        """
        self._records = records
        self._most = most
        self._most_each = most_each
        self._listener = listener
        self._listener_fd = listener.fileno()
        self._is_accepting = False  # the thread waits for new connections
        self._shut_until = 0.0  # on the monotonic clock; none is accepted before
        listener.setblocking(False)
        self._lock = threading.Lock()  # guards all below
        self._stations: dict[int, _Station] = {}  # by the number of the worker
        self._by_descriptor: dict[int, _Station] = {}  # the same, by the descriptor of the channel
        self._homeless: list[_Client] = []
        self._tries_at = 0.0  # on the monotonic clock; when workers are asked again
        self._serials = count(1)
        self._ready: Callable[[], object] = lambda: None
        self._is_over = False
        self._has_ended = False
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # wakes the thread
        self._epoll = select.epoll()
        self._epoll.register(self._alarm, select.EPOLLIN)

    def start(self, ready: Callable[[], object]) -> None:
        """Begin, once. `ready` is called, in another thread, when a worker is ready.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._ready = ready
        Call(self._run, "shmstream-keeper").start()

    # The workers.

    def enlist(self, number: int) -> tuple[socket.socket, int]:
        """What a new worker of that number needs: its end of a channel, and the table's descriptor.

        The caller gives both to the worker, and closes the first. If there is no worker after all,
        call `ended`.

        Raises:
            OSError: there are no descriptors, or there is no memory.
        """
        with ExitStack() as undo:
            table = Table.make(self._records)
            undo.callback(table.close)
            channel, other = Channel.pair()
            undo.callback(channel.close)
            undo.callback(other.close)
            station = _Station(number, channel, Channel(other.dup()), table)
            undo.pop_all()
        with self._lock:
            self._stations[number] = station
            self._by_descriptor[channel.fileno()] = station
            self._epoll.register(channel.fileno(), select.EPOLLIN)
        return other, table.descriptor

    def ended(self, number: int) -> None:
        """The worker of that number has ended, in whatever way: others get its connections.

        Idempotent.
        """
        with self._lock:
            if (station := self._stations.get(number)) is None:
                return
            self._listen(station)
            del self._stations[number]
            for index, client in station.clients.items():
                client.last = station.table.record(index).last.copy()
            self._dismiss(station)
            for client in station.coming.values():  # it has not touched these
                self._place(client)
            for client in station.clients.values():
                self._inherit(client)
            os.eventfd_write(self._alarm, 1)  # for `_relieve`: the next worker may be stuck

    def leave(self, number: int) -> None:
        """Have the worker of that number hand its connections over when it stops."""
        with self._lock:
            if (station := self._stations.get(number)) is not None:
                station.is_ready = False
                station.leaves = True
                self._send(station, Message(Kind.LEAVE))

    def is_ready(self, number: int) -> bool:
        """Whether the worker of that number takes connections."""
        with self._lock:
            station = self._stations.get(number)
            return station is not None and station.is_ready

    def silence(self, number: int) -> float:
        """Seconds since the worker of that number has made progress; 0 before the first time."""
        with self._lock:
            station = self._stations.get(number)
            return 0.0 if station is None else station.table.silence

    @property
    def kept(self) -> int:
        """How many connections are kept."""
        with self._lock:
            return self._count()

    def still(self) -> AbstractContextManager[object]:
        """The thread handles no message meanwhile, and holds no lock: so this process may fork."""
        return self._lock

    def stop(self) -> None:
        """The server stops: no connection is given to a worker any more. Idempotent.

        Connections that no worker has are closed.
        """
        with self._lock:
            self._is_over = True
            self._set_accepting(False)
            for client in self._homeless:
                client.connection.close()
            self._homeless.clear()

    def close(self) -> None:
        """Close all duplicates, and end the thread. Once, after `start`."""
        self.stop()
        with self._lock:
            for station in self._stations.values():
                for client in (*station.clients.values(), *station.coming.values()):
                    client.connection.close()
                self._dismiss(station)
            self._stations.clear()
            self._has_ended = True
            os.eventfd_write(self._alarm, 1)

    # What happens under the lock.

    def _count(self) -> int:
        load = sum(each.load - len(each.unkept) for each in self._stations.values())
        return load + len(self._homeless)

    def _taker(self) -> _Station | None:
        """The worker that gets the next new connection; None: it stays in the listening socket."""
        now = time.monotonic()
        if self._is_over or self._homeless or now < self._shut_until:
            return None
        free = [
            each
            for each in self._stations.values()
            if len(each.coming) < _UNANSWERED and each.load < self._most_each
            if each.is_awake and now >= each.shut_until
        ]
        return min(free, key=lambda each: (len(each.coming), each.load), default=None)

    def _set_accepting(self, wanted: bool) -> None:
        """Have the thread woken by new connections, or not."""
        if wanted != self._is_accepting:
            self._is_accepting = wanted
            if wanted:
                self._epoll.register(self._listener_fd, select.EPOLLIN)
            else:
                self._epoll.unregister(self._listener_fd)

    def _accept(self) -> None:
        """Give a new connection to a worker, if there is one that may have it."""
        if (station := self._taker()) is None:
            self._set_accepting(False)
            return
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # its client has left
            pass
        except OSError as error:
            self._set_accepting(False)
            if error.errno in NO_LISTENER:
                self._shut_until = float("inf")
            else:
                _log.error("no connection can be taken: %s", error.strerror)
                self._shut_until = time.monotonic() + _AGAIN
        else:
            self._give(station, _Client(connection))

    def _dismiss(self, station: _Station) -> None:
        del self._by_descriptor[station.channel.fileno()]
        self._epoll.unregister(station.channel.fileno())
        station.channel.close()
        station.other.close()
        station.table.close()

    def _inherit(self, client: _Client) -> None:
        """A worker has died: another one goes on with its connection."""
        is_good = False
        with suppress(OSError):  # it is broken anyway
            is_good = client.survive()
            if not is_good:
                _log.error("%d workers died with one request: its client is cut", client.deaths)
        if is_good:
            self._place(client)
        else:
            client.connection.close()

    def _place(self, client: _Client) -> None:
        """Give a connection to the worker with the fewest."""
        ready = {each for each in self._stations.values() if each.is_ready} - client.refused
        ready = {each for each in ready if each.is_awake} or ready
        if self._is_over or (client.refused and not ready and client.last):
            client.connection.close()
        elif not ready:
            client.until = client.until or time.monotonic() + _PATIENCE
            self._homeless.append(client)
            os.eventfd_write(self._alarm, 1)
        else:
            self._give(min(ready, key=lambda each: each.load), client)

    def _give(self, station: _Station, client: _Client) -> None:
        serial = next(self._serials)
        station.coming[serial] = client
        descriptor = client.connection.fileno()
        self._send(station, Message(Kind.ADOPT, 0, serial, client.last, descriptor))

    def _send(self, station: _Station, message: Message) -> None:
        try:
            station.channel.send(message)
        except OSError as error:  # no descriptor is free
            _log.error("a connection cannot be handed over: %s", error.strerror)
            if (client := station.coming.pop(message.serial, None)) is not None:
                client.connection.close()
        self._wait_for(station)

    def _wait_for(self, station: _Station) -> None:
        if (is_full := station.channel.is_waiting) != station.is_full:
            station.is_full = is_full
            events = select.EPOLLIN | (select.EPOLLOUT if is_full else 0)
            self._epoll.modify(station.channel.fileno(), events)

    def _listen(self, station: _Station) -> None:
        """Do what the worker has said until now.

        The channel never ends before `_dismiss`, because the keeper has its other end, too.
        """
        while (message := station.channel.receive()) is not None:
            self._hear(station, message)

    def _hear(self, station: _Station, message: Message) -> None:
        sent = (
            _Client(socket.socket(fileno=message.descriptor)) if message.descriptor >= 0 else None
        )
        if message.kind == Kind.CLOSED:
            for index in message.indices:
                station.unkept.discard(index)
                if (client := station.clients.pop(index, None)) is not None:
                    client.connection.close()
        elif message.kind == Kind.HAND_OVER:
            self._was_given_up(station, message.index, sent)
        elif message.kind in (Kind.ADOPTED, Kind.REFUSED):
            self._was_taken(station, message)
        elif message.kind == Kind.ENDING:
            station.is_ready = False
            is_alone = len(self._stations) == 1  # then the next worker starts when it has ended
            others = any(each.is_ready for each in self._stations.values())
            leaves = (others or is_alone) and not self._is_over
            self._send(station, Message(Kind.LEAVE if leaves else Kind.STAY))
        elif message.kind == Kind.READY:
            self._welcome(station)

    def _welcome(self, station: _Station) -> None:
        station.is_ready = not station.leaves
        self._try_again()
        self._ready()

    def _try_again(self) -> None:
        """Give the connections that no worker has to workers, also to those that refused them."""
        homeless, self._homeless = self._homeless, []
        for client in homeless:
            client.refused.clear()
            self._place(client)

    def _keep(self, station: _Station, index: int, client: _Client) -> None:
        client.last = b""
        client.until = 0.0
        client.refused.clear()
        if self._count() < self._most and not self._is_over:
            station.clients[index] = client
        else:
            station.unkept.add(index)
            client.connection.close()

    def _was_given_up(self, station: _Station, index: int, sent: _Client | None) -> None:
        """Its worker will not touch a connection any more. If it is not kept, it has just come."""
        client = station.clients.pop(index, sent)
        station.unkept.discard(index)
        if sent is not None and client is not sent:
            sent.connection.close()
        if client is not None:
            client.last = station.table.record(index).last.copy()
            self._place(client)

    def _was_taken(self, station: _Station, message: Message) -> None:
        client = station.coming.pop(message.serial, None)
        if client is None:
            pass
        elif message.kind == Kind.ADOPTED:
            self._keep(station, message.index, client)
        else:
            if not client.last:  # a new one: the worker lacks descriptors, mostly
                station.shut_until = time.monotonic() + _AGAIN
            client.refused.add(station)
            self._place(client)

    def _take_back(self, station: _Station) -> None:
        """Give other workers the connections that its worker has not received."""
        for message in [*iter(station.other.receive, None)]:
            if message.descriptor >= 0:
                os.close(message.descriptor)  # there is a duplicate
            if message.kind != Kind.ADOPT:
                self._send(station, message)
            elif (client := station.coming.pop(message.serial, None)) is not None:
                self._place(client)

    def _relieve(self) -> None:
        """Take connections back from workers that are stuck, if other workers are not.

        Not when the server stops: nobody else gets them then, and the worker may still go on.
        """
        stations = self._stations.values()
        stuck = [each for each in stations if each.coming and each.table.silence >= _SILENT]
        if stuck and not self._is_over and any(each.is_awake for each in stations):
            for station in stuck:
                self._take_back(station)

    # The thread.

    def _attend(self, descriptor: int) -> None:
        if descriptor == self._alarm:
            os.eventfd_read(self._alarm)
        elif descriptor == self._listener_fd:
            self._accept()
        elif (station := self._by_descriptor.get(descriptor)) is not None:
            self._listen(station)
            station.channel.flush()
            self._wait_for(station)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # noqa: BLE001  this thread serves all workers
            _log.exception("the keeper has failed")

    def _look_around(self) -> None:
        self._look_after_homeless()
        self._relieve()
        if not self._is_accepting and self._taker() is not None:
            self._set_accepting(True)

    def _look_after_homeless(self) -> None:
        """Close the connections that have waited too long; try the others once a second."""
        now = time.monotonic()
        late = [each for each in self._homeless if now > each.until]
        if late:
            _log.error("no worker can go on with %d connections", len(late))
        for client in late:
            self._homeless.remove(client)
            client.connection.close()
        if self._homeless and now > self._tries_at:
            self._tries_at = now + _AGAIN
            self._try_again()

    def _run(self) -> None:
        while not self._has_ended:
            all_is_well = (self._is_accepting or self._is_over) and not (
                self._homeless or any(each.coming for each in [*self._stations.values()])
            )
            ready = self._epoll.poll(None if all_is_well else _LOOK)
            with self._lock:
                for descriptor, _ in ready:
                    self._try(partial(self._attend, descriptor))
                self._try(self._look_around)
        self._epoll.close()
        os.close(self._alarm)
