"""The clients: plain sockets in processes of their own, each reading into a buffer of 256 KiB.

A client is a connection on which one `Ask` follows another, each not before its time. A process has
many clients and waits for all at once (`epoll`), so that clients cost as little as possible and
leave the processors to the server. The outcome of each ask is an `Answer`.
"""

from __future__ import annotations

import hashlib
import heapq
import select
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from bench.crew import Crew, Gate
from bench.report import KIB

_BUFFER = 256 * KIB
_CONNECTS_IN = 5.0  # s
_ONCE = select.EPOLLIN | select.EPOLLONESHOT
_SIPS = 10  # a second, of a client that reads slowly


class Ending(StrEnum):
    """How an ask ended."""

    WHOLE = "whole"  # as many bytes as were promised
    CUT = "cut"  # fewer, and no more will come
    REFUSED = "refused"  # an error status, or no answer at all
    HANGS = "hangs"  # fewer, and nobody says that no more will come
    LEFT = "left"  # it had what it wanted, and left


@dataclass(frozen=True)
class Ask:
    """What a client asks for, and how it behaves.

    Attributes:
        path: of the blob.
        at: seconds after the beginning; earlier if the one before on its connection was later.
        start: the range from this byte on; None: all of the blob.
        pace: bytes a second that it reads at most, and it leaves when only such clients are left;
            0: as they come.
        leaves_at: bytes after which it leaves; None: it stays.
    """

    path: str
    at: float = 0.0
    start: int | None = None
    pace: int = 0
    leaves_at: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came of an ask. Times are seconds.

    Attributes:
        ending: how it went.
        status: of HTTP; 0: none came.
        began: when it was asked, by the monotonic clock, which all processes share.
        first: from then until the first byte of the body; None: none came.
        took: from then to its ending.
        count: bytes of the body that came.
        pause: the longest time without a byte after the first one.
        digest: SHA-256 of these bytes, in hex; empty where nobody hashed.
        port: of the client.
    """

    ending: Ending
    status: int
    began: float
    first: float | None
    took: float
    count: int
    pause: float
    digest: str
    port: int


Queues = Sequence[Sequence[Ask]]
_Wait = socket.socket | float  # for its bytes, or for a time
_Fields = dict[str, str]  # of a head, in small letters


def ask_all(
    crew: Crew, processes: int, port: int, queues: Queues, *, hashing: bool, patience: float,
    before: Gate | None = None,
) -> list[list[Answer]]:  # fmt: skip
    """Have `processes` of the crew ask, with a connection for each queue; the answers, alike.

    A client without an ending `patience` seconds after the beginning hangs. `before` as for
    `Crew.run`.
    """
    processes = min(processes, len(queues))
    shares = [queues[index::processes] for index in range(processes)]
    jobs = [partial(_run, port, share, hashing, patience) for share in shares]
    told = [iter(answers) for answers in crew.run(jobs, before)]
    return [next(told[index % processes]) for index in range(len(queues))]


def _run(
    port: int, queues: Queues, hashing: bool, patience: float, gate: Gate
) -> list[list[Answer]]:
    """The clients of one process, until everybody has an answer to everything, or must stop."""
    buffer = memoryview(bytearray(_BUFFER))
    clients = [_Client(port, queue, buffer, hashing) for queue in queues]
    with select.epoll() as poll:
        room = _Room(poll, clients)
        gate()
        room.run(time.monotonic() + patience)
    for client in clients:
        client.stop()
    return [client.answers for client in clients]


class _Room:
    """Clients that wait together, for bytes or for their time."""

    def __init__(self, poll: select.epoll, clients: Sequence[_Client]) -> None:
        self._poll = poll
        self._clients = clients
        self._busy = {client for client in clients if not client.is_slow}
        self._due: list[tuple[float, int, _Client]] = []  # a heap
        self._reading: dict[int, _Client] = {}

    def run(self, over: float) -> None:
        """Until all but the slow ones are done, or until the clock says `over`."""
        for client in self._clients:
            self._go_on(client)
        while self._busy and (now := time.monotonic()) < over:
            while self._due and self._due[0][0] <= now:
                self._go_on(heapq.heappop(self._due)[2])
            until = min(over, self._due[0][0] if self._due else over)
            for descriptor, _ in self._poll.poll(max(until - time.monotonic(), 0)):
                self._go_on(self._reading[descriptor])

    def _go_on(self, client: _Client) -> None:
        match next(client.steps, None):
            case None:
                self._busy.discard(client)
            case float(when):
                heapq.heappush(self._due, (when, id(client), client))
            case socket.socket() as connection:
                self._reading[connection.fileno()] = client
                try:
                    self._poll.modify(connection, _ONCE)
                except FileNotFoundError:  # it is new
                    self._poll.register(connection, _ONCE)


class _Client:
    """One connection, on which one ask follows another. `steps` yields what it waits for."""

    def __init__(self, port: int, queue: Sequence[Ask], buffer: memoryview, hashing: bool) -> None:
        self.answers: list[Answer] = []
        self.is_slow = any(ask.pace for ask in queue)
        self.steps = self._steps(queue)
        self._server = port
        self._queue = queue
        self._buffer = buffer
        self._hashing = hashing
        self._connection: socket.socket | None = None
        self._port = 0
        self._begin()

    def _steps(self, queue: Sequence[Ask]) -> Iterator[_Wait]:
        began = time.monotonic()
        for ask in queue:
            if (when := began + ask.at) > time.monotonic():
                yield when
            self._begin()
            ending = yield from self._ask(ask)
            self._end(ending)
        self._hang_up()

    def _begin(self) -> None:
        self._began = self._latest = time.monotonic()
        self._first: float | None = None
        self._pause = 0.0
        self._status = self._count = 0
        self._hash = hashlib.sha256() if self._hashing else None

    def _ask(self, ask: Ask) -> Generator[_Wait, None, Ending]:
        span = "" if ask.start is None else f"Range: bytes={ask.start}-\r\n"
        request = f"GET {ask.path} HTTP/1.1\r\nHost: blobs\r\n{span}\r\n".encode()
        kept = self._connection
        try:
            connection = kept or self._connect(ask)
            connection.sendall(request)
            fields, body = yield from self._read_head(connection)
            if not fields and kept is not None:  # which the server has ended in between
                self._hang_up()
                connection = self._connect(ask)
                connection.sendall(request)
                fields, body = yield from self._read_head(connection)
        except OSError:
            fields, body = {}, 0
        if self._status not in (200, 206):
            self._hang_up()
            return Ending.REFUSED
        promised = int(fields["content-length"])  # the origin always has one
        self._note(body)
        ending = yield from self._read_body(connection, ask, promised)
        if ending != Ending.WHOLE or fields.get("connection") == "close":
            self._hang_up()
        return ending

    def _connect(self, ask: Ask) -> socket.socket:
        connection = socket.socket()
        if ask.pace:  # or the kernel would read ahead for it
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        connection.settimeout(_CONNECTS_IN)
        connection.connect(("127.0.0.1", self._server))
        connection.setblocking(False)
        self._connection, self._port = connection, connection.getsockname()[1]
        return connection

    def _read_head(self, connection: socket.socket) -> Generator[_Wait, None, tuple[_Fields, int]]:
        """The fields of the head, none if none came; the body's first bytes are in the buffer."""
        head = b""
        while b"\r\n\r\n" not in head:
            yield connection
            count = _receive(connection, self._buffer)
            if count == 0:
                return {}, 0
            head += self._buffer[:count]
        head, _, body = head.partition(b"\r\n\r\n")
        self._buffer[: len(body)] = body
        first, *lines = head.decode("latin-1").split("\r\n")
        self._status = int(first.split(" ")[1])
        fields = (line.partition(":") for line in lines)
        return {name.lower(): value.strip().lower() for name, _, value in fields}, len(body)

    def _read_body(
        self, connection: socket.socket, ask: Ask, promised: int
    ) -> Generator[_Wait, None, Ending]:
        most = ask.pace // _SIPS if ask.pace else _BUFFER
        while self._count < promised:
            if ask.leaves_at is not None and self._count >= ask.leaves_at:
                return Ending.LEFT
            yield connection
            count = _receive(connection, self._buffer[:most])
            if count == 0:
                return Ending.CUT
            self._note(count)
            if ask.pace:
                yield time.monotonic() + count / ask.pace
        return Ending.WHOLE

    def _note(self, count: int) -> None:
        """So many bytes of the body are in the buffer."""
        if count:
            now = time.monotonic()
            if self._first is None:
                self._first = now
            else:
                self._pause = max(self._pause, now - self._latest)
            self._latest = now
            self._count += count
            if self._hash is not None:
                self._hash.update(self._buffer[:count])

    def _end(self, ending: Ending) -> None:
        now = time.monotonic()
        answer = Answer(
            ending=ending,
            status=self._status,
            began=self._began,
            first=None if self._first is None else self._first - self._began,
            took=now - self._began,
            count=self._count,
            pause=self._pause if self._first is None else max(self._pause, now - self._latest),
            digest="" if self._hash is None else self._hash.hexdigest(),
            port=self._port,
        )
        self.answers.append(answer)
        self._begin()

    def stop(self) -> None:
        """Have an answer to everything that was to be asked, without any more waiting."""
        for _ in self._queue[len(self.answers) :]:
            self._end(Ending.LEFT if self.is_slow else Ending.HANGS)
        self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _receive(connection: socket.socket, buffer: memoryview) -> int:
    """Bytes that came; 0: no more will."""
    try:
        return connection.recv_into(buffer)
    except ConnectionError:
        return 0
