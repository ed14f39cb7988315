"""The raw limit's program: it does only what must be done, so no server can cost much less.

    python raw_limit.py PORT ORIGIN FOLDER

The kernel moves the bytes from the origin's connection to a file (splice), and from the file to the
connection of each client (sendfile). Each byte is hashed once, and the last bytes of a blob go out
when its name fits. One thread waits for all connections. As with shmstream's server, clients get
the first bytes at once, and later bytes when 4 MiB have gathered or 0.2 s have passed.

Nothing else is done. There are no other processes, ranges, conditions, retries, limits and logs,
and there is no answer but 200. An error ends the program. The files are gone when it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable

_MIB = 1 << 20
_PUBLISH_BYTES = 4 * _MIB
_PUBLISH_INTERVAL = 0.2  # s
_HEAD = 64 << 10
_END_OF_HEAD = b"\r\n\r\n"


class _Blob:
    """A file that grows while the origin sends it, with the clients that wait for more of it."""

    def __init__(self, path: str, origin: int, folder: str) -> None:
        self.clients: set[_Client] = set()
        self.published = 0
        self.arrived = 0
        self._since = 0.0  # the time of the last publishing
        self._digest = path.rpartition("/")[2]
        self._running = hashlib.sha256()
        self._buffer = memoryview(bytearray(256 << 10))
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open until the end)
        self.upstream = socket.create_connection(("127.0.0.1", origin))
        self.upstream.sendall(f"GET {path} HTTP/1.1\r\nHost: origin\r\n\r\n".encode())
        self.size = self._read_head()
        self._pipe = os.pipe()
        fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _MIB)

    def _read_head(self) -> int:
        """Read the head of the response, and nothing behind it; the length of the body."""
        while _END_OF_HEAD not in (seen := self.upstream.recv(_HEAD, socket.MSG_PEEK)):
            pass
        head = self.upstream.recv(seen.index(_END_OF_HEAD) + len(_END_OF_HEAD))
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        return int(fields[b"content-length"])

    def receive(self) -> bool:
        """Move into the file what has come; whether it was the end."""
        wanted = min(self.size - self.arrived, _MIB)
        count = os.splice(self.upstream.fileno(), self._pipe[1], wanted)
        if not count:
            raise SystemExit("the origin has ended in the middle of a blob")
        while count:
            moved = os.splice(self._pipe[0], self.file.fileno(), count, offset_dst=self.arrived)
            self.arrived += moved
            count -= moved
        return self.arrived == self.size

    def close(self) -> None:
        """Let go of all but the file."""
        self.upstream.close()
        for end in self._pipe:
            os.close(end)

    def due(self) -> float:
        """The time at which more is to be published."""
        waiting = self.arrived - self.published
        if not waiting:
            return math.inf
        at_once = self.arrived == self.size or not self.published or waiting >= _PUBLISH_BYTES
        return 0.0 if at_once else self._since + _PUBLISH_INTERVAL

    def publish(self) -> None:
        """Hash what has arrived, and let the clients have it."""
        position = self.published
        while position < self.arrived:
            count = os.preadv(self.file.fileno(), [self._buffer], position)
            self._running.update(self._buffer[:count])
            position += count
        if position == self.size and self._running.hexdigest() != self._digest:
            raise SystemExit("the origin gave a wrong blob")
        self.published = position
        self._since = time.monotonic()


class _Client:
    """A connection of a client; `position` is how much of its blob it has got."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.position = 0


class _RawLimit:
    def __init__(self, port: int, origin: int, folder: str) -> None:
        self._origin = origin
        self._folder = folder
        self._blobs: dict[str, _Blob] = {}
        self._arriving: set[_Blob] = set()
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._wait(self._listener, select.EPOLLIN, self._accept)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            due = min((blob.due() for blob in self._arriving), default=math.inf)
            patience = -1 if due == math.inf else max(due - time.monotonic(), 0.0)
            for descriptor, _ in self._poll.poll(patience):
                self._ready[descriptor]()
            now = time.monotonic()
            for blob in [each for each in self._arriving if each.due() <= now]:
                blob.publish()
                if blob.published == blob.size:
                    self._arriving.remove(blob)
                    blob.close()
                for client in list(blob.clients):
                    self._send(client, blob)

    def _wait(self, connection: socket.socket, event: int, then: Callable[[], None]) -> None:
        """Call `then` each time when the connection has this event."""
        descriptor = connection.fileno()
        (self._poll.modify if descriptor in self._ready else self._poll.register)(descriptor, event)
        self._ready[descriptor] = then

    def _forget(self, connection: socket.socket) -> None:
        self._poll.unregister(connection.fileno())
        del self._ready[connection.fileno()]

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(connection)
        self._wait(connection, select.EPOLLIN, lambda: self._read(client))

    def _read(self, client: _Client) -> None:
        """Read a request, which comes in one piece; the next one comes after the response."""
        request = client.connection.recv(_HEAD)
        if not request:
            self._leave(client)
            return
        path = request.split(b" ", 2)[1].decode()
        blob = self._blobs.get(path) or self._begin(path)
        client.position = 0
        client.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % blob.size)
        self._send(client, blob)

    def _leave(self, client: _Client, blob: _Blob | None = None) -> None:
        if blob is not None:
            blob.clients.discard(client)
        self._forget(client.connection)
        client.connection.close()

    def _begin(self, path: str) -> _Blob:
        blob = self._blobs[path] = _Blob(path, self._origin, self._folder)
        self._arriving.add(blob)

        def receive() -> None:
            if blob.receive():
                self._forget(blob.upstream)

        self._wait(blob.upstream, select.EPOLLIN, receive)
        return blob

    def _send(self, client: _Client, blob: _Blob) -> None:
        """Send what is published; go on when the client has room, or when more is published."""
        connection = client.connection
        blob.clients.discard(client)
        while count := blob.published - client.position:
            try:
                client.position += os.sendfile(
                    connection.fileno(), blob.file.fileno(), client.position, count
                )
            except BlockingIOError:
                self._wait(connection, select.EPOLLOUT, lambda: self._send(client, blob))
                return
        if client.position < blob.size:
            blob.clients.add(client)
            self._wait(connection, 0, lambda: self._leave(client, blob))  # at an error, or its end
        else:
            self._wait(connection, select.EPOLLIN, lambda: self._read(client))


if __name__ == "__main__":
    _port, _origin, _folder = sys.argv[1:]
    _RawLimit(int(_port), int(_origin), _folder).run()
