"""The fault origin: a real HTTP/1.1 server that fails in the way a test tells it to.

It runs in an interpreter of its own, on a free port of 127.0.0.1, with a thread per connection, so
any number of client processes can hit it. The test drives it through `Origin`:

    origin.serve("/blob", seed=1, size=100_000)                    the blob `content(1, 100_000)`
    origin.change("/blob", first=0, count=1, reset_after=1000)     ... whose first request is reset
    origin.refuse(), origin.accept()                               no server there for a while
    origin.requests("/blob")                                       what it was asked, and gave

A path answers as its `Behaviour` says. `change` replaces fields of the behaviour for some of the
path's requests, which are counted from 0. A stall ends at `release`, when the client leaves, or
with the test. The origin is a proxy as well: for absolute URLs that are served as paths, and for
CONNECT to any address.

The process ends with the test process, even if that is killed: then its standard input ends, or it
has another parent.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest

from shmstream.sources.http import close_pools
from shmstream.sources.origin import Request, Server, reset_on_close
from tests.support.interpreters import Interpreter, Link, wait_until
from tests.support.roles import content


@dataclass
class Behaviour:
    """How a path answers. An `*_after` is a number of body bytes; -1 is before the head."""

    seed: int = 0
    size: int = 0
    text: str | None = None  # instead of `content(seed, size)`
    file: str | None = None  # likewise: the path of a file with the bytes
    etag: str | None = "auto"  # auto: a strong one that seed and size decide
    last_modified: str | None = None
    media_type: str | None = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True  # else Range is ignored
    if_range: bool = True  # else If-Range is ignored
    framing: str = "length"  # or "chunked" or "close"
    content_length: str | None = None  # a lie
    content_range: str | None = None  # a lie
    reason: str | None = None  # behind the status
    status: int | None = None  # instead of the blob, with a short text
    says: str | None = None  # that text, of `media_type`
    range_status: int | None = None  # for requests with a range, with a short text
    range_resets: bool = False  # a request with a range ends with RST, before the head
    rest_is_all: bool = False  # a range is answered with 200, as if the rest were the whole blob
    all_is_rest: bool = False  # a range is answered with the whole blob, as if it were the rest
    for_ranges: dict[str, Any] = field(default_factory=dict)  # other fields for such requests
    rate: int | None = None  # bytes/s
    at_once: int | None = None  # so many requests are answered at one time ...
    beyond: int | None = None  # ... the others with this status; None: they wait for their turn
    in_time: tuple[int, float] | None = None  # so many requests in so many seconds; then 429
    reset_after: int | None = None  # then RST
    close_after: int | None = None  # then FIN
    stall_after: int | None = None  # then nothing, for `stall_for` seconds
    stall_for: float | None = None  # None: until `release`
    urgent_after: int | None = None  # then a byte out of band, which is none of the body
    extra: int = 0  # bytes after the end
    wrong_at: int | None = None  # this byte of the blob is another

    def body(self) -> bytes:
        data = _content(self.seed, self.size) if self.text is None else self.text.encode()
        if self.file is not None:
            data = Path(self.file).read_bytes()
        if self.wrong_at is not None:
            flipped = bytes([data[self.wrong_at] ^ 0xFF])
            data = data[: self.wrong_at] + flipped + data[self.wrong_at + 1 :]
        return data

    def tag(self) -> str | None:
        return f'"{self.seed}-{self.size}"' if self.etag == "auto" else self.etag


_content = lru_cache(8)(content)


# The server's side.


class _Server(Server):
    least = most = 16 * 1024  # bytes

    def __init__(self, certificate: str | None) -> None:
        tls = None
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
        super().__init__(tls)
        # The lock guards these, too.
        self.paths: dict[str, Behaviour] = {}
        self.changes: dict[str, list[tuple[int, int | None, dict[str, Any]]]] = {}
        # Of a connection's request: how it is answered, and what ends its stall.
        self.current: dict[int, tuple[Behaviour, threading.Event]] = {}
        self.answering: dict[str, int] = {}  # requests for a path
        self.came: dict[str, list[float]] = {}  # when those came that were not refused
        self.released = threading.Event()
        # Never listens: it keeps the port while the server refuses.
        self.place = bound()
        self.port: int = self.place.getsockname()[1]
        self.refuses = True
        self.listen()

    # Orders of the test. The result of each is told to the test.

    def serve(self, path: str, **behaviour: Any) -> None:
        with self.lock:
            self.paths[path] = Behaviour(**behaviour)
            self.changes.pop(path, None)

    def change(self, path: str, first: int, count: int | None, fields: dict[str, Any]) -> None:
        with self.lock:
            replace(self.paths[path], **fields)
            self.changes.setdefault(path, []).append((first, count, fields))

    def log(self) -> list[dict[str, Any]]:
        with self.lock:
            return [{**vars(request)} for request in self.asked]

    def refuse(self) -> None:
        if not self.refuses:
            self.stop()
            self.refuses = True
        self.cut()

    def listen(self) -> None:
        if self.refuses:
            listener = bound(self.port)
            listener.listen(128)
            self.start(listener)
            self.refuses = False

    def release(self) -> None:
        with self.lock:
            self.released.set()
            self.released = threading.Event()

    def reset(self) -> None:
        self.listen()
        self.release()
        self.cut_and_wait()
        with self.lock:
            self.paths.clear()
            self.changes.clear()
            self.came.clear()
            self.answering.clear()
            self.asked.clear()

    # Connections.

    def _converse(self, channel: socket.socket, number: int, host: str, port: int) -> None:
        with suppress(ValueError):  # the client is no HTTP client, or TLS was cut
            super()._converse(channel, number, host, port)

    def note(self, request: Request) -> None:
        """A request is answered as its path behaves when it comes.

        From here on the test sees it, so from here on `release` ends its stall: that may come
        before the stall, and before the answer begins.
        """
        if not request.over:
            behaviour = self._behaviour(request.path, request.number)
            self.current[request.connection] = behaviour, self.released

    def answer(self, channel: socket.socket, request: Request) -> bool:
        if request.method == "CONNECT":
            request.status = 200
            _tunnel(channel, request.path)
            return False
        return _Answer(self, channel, request, *self.current.pop(request.connection)).send()

    def _behaviour(self, path: str, number: int) -> Behaviour:
        behaviour = self.paths.get(path) or self.paths.get(path.partition("?")[0])
        if behaviour is None:
            return Behaviour(status=404)
        for first, count, fields in self.changes.get(path, []):
            if first <= number and (count is None or number < first + count):
                behaviour = replace(behaviour, **fields)
        return behaviour


class _Answer:
    """One answer: the head follows HTTP, the body goes on until a fault."""

    def __init__(
        self,
        server: _Server,
        channel: socket.socket,
        request: Request,
        behaviour: Behaviour,
        released: threading.Event,
    ) -> None:
        self.server = server
        self.channel = channel
        self.request = request
        self.does = behaviour
        self.released = released

    def send(self) -> bool:
        if self.does.in_time is not None and (seconds := self._wait_of_too_many()):
            headers = {"Retry-After": str(seconds)}
            self.does = replace(self.does, status=429, headers=headers, stall_after=None)
        if self.does.at_once is None:
            return self._send()
        if not self._begins(self.does.at_once):
            if self.does.beyond is not None:
                self.does = replace(self.does, status=self.does.beyond)
                return self._send()
            self._stall(lambda: self._begins(self.does.at_once or 0))
        try:
            return self._send()
        finally:
            with self.server.lock:
                self.server.answering[self.request.path] -= 1

    def _begins(self, most: int) -> bool:
        """Whether fewer than `most` are answered; then this is one of them."""
        path, answering = self.request.path, self.server.answering
        with self.server.lock:
            if answering.get(path, 0) >= most:
                return False
            answering[path] = answering.get(path, 0) + 1
            return True

    def _wait_of_too_many(self) -> int:
        """0, or in how many seconds this client may ask again."""
        assert self.does.in_time is not None
        most, within = self.does.in_time
        now = time.monotonic()
        with self.server.lock:
            came = self.server.came.setdefault(self.request.path, [])
            came[:] = [each for each in came if now - each < within]
            if len(came) >= most:
                return int(came[0] + within - now) + 1
            came.append(now)
            return 0

    def _send(self) -> bool:
        if not self._goes_on(-1):
            return False
        if self.request.range is not None and self.does.range_resets:
            reset_on_close(self.channel)
            return False
        if self.request.range is not None:
            self.does = replace(self.does, **self.does.for_ranges)
        status = self.does.status
        if self.request.range is not None and self.does.range_status is not None:
            status = self.does.range_status
        status, headers, body = self._blob() if status is None else self._text(status)
        framing = self.does.framing if status in (200, 206, 416) else "length"
        if framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif framing == "close":
            headers["Connection"] = "close"
        else:
            headers["Content-Length"] = self.does.content_length or str(len(body))
        headers |= self.does.headers
        if not self.server.send_head(self.channel, self.request, status, headers, self.does.reason):
            return True
        body += bytes(self.does.extra)
        return self._send_body(body, chunked=framing == "chunked") and framing != "close"

    def _blob(self) -> tuple[int, dict[str, str], bytes]:
        does = self.does
        body = does.body()
        headers = {"Date": formatdate(usegmt=True)}
        if does.media_type:
            headers["Content-Type"] = does.media_type
        if tag := does.tag():
            headers["ETag"] = tag
        if does.last_modified:
            headers["Last-Modified"] = does.last_modified
        if not does.ranges:
            return 200, headers, body
        headers["Accept-Ranges"] = "bytes"
        condition = None if does.if_range else self.request.headers.get("if-range")
        status, part, told = self.request.part(len(body), tag, does.last_modified, condition)
        headers |= told
        if status == 416:
            return 416, headers, b"no such range"
        if does.rest_is_all:
            headers.pop("Content-Range", None)
            return 200, headers, body[part.start : part.stop]
        if status == 206 and does.content_range is not None:
            headers["Content-Range"] = does.content_range
        return status, headers, body if does.all_is_rest else body[part.start : part.stop]

    def _text(self, status: int) -> tuple[int, dict[str, str], bytes]:
        if self.does.says is not None:
            return status, {"Content-Type": self.does.media_type or ""}, self.does.says.encode()
        return status, {"Content-Type": "text/plain"}, b"as the test told me\n"

    def _send_body(self, body: bytes, *, chunked: bool) -> bool:
        does, whole = self.does, memoryview(body)
        faults = (does.reset_after, does.close_after, does.stall_after, does.urgent_after)
        stops = {at: partial(self._goes_on, at) for at in faults if at is not None}

        def send(first: int, last: int) -> int:
            if not chunked:
                return self.channel.send(whole[first:last])
            self.channel.sendall(b"%x\r\n%b\r\n" % (last - first, body[first:last]))
            return last - first

        goes_on = self.server.send_body(self.request, len(body), send, does.rate or 0, stops)
        if goes_on and chunked:
            self.channel.sendall(b"0\r\n\r\n")
        return goes_on

    def _goes_on(self, position: int) -> bool:
        """Do the fault of this position, if any; False if the answer ends with it."""
        if self.does.stall_after == position:
            self._stall()
        if self.does.urgent_after == position:
            self.channel.send(b"!", socket.MSG_OOB)
        if self.does.reset_after == position:
            reset_on_close(self.channel)
            return False
        return self.does.close_after != position

    def _stall(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait until the time is over or the test calls `release`; an error if the client left."""
        deadline = time.monotonic() + (self.does.stall_for or float("inf"))
        while (
            not is_over()
            and not self.released.is_set()
            and (left := deadline - time.monotonic()) > 0
        ):
            if select.select([self.channel], [], [], min(left, 0.01))[0]:
                raise ConnectionResetError("the client has gone")


def _tunnel(channel: socket.socket, place: str) -> None:
    """Pass bytes on in both directions, as a proxy does, until one side ends."""
    host, _, port = place.rpartition(":")
    with socket.create_connection((host, int(port))) as there:
        channel.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        while True:
            for side in select.select([channel, there], [], [])[0]:
                data = side.recv(65536)
                if not data:
                    return
                (there if side is channel else channel).sendall(data)


def bound(port: int = 0) -> socket.socket:
    """A socket at a port, 0: at a free one. It does not listen: it keeps the port for a server."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", port))
    return place


def serve(link: Link, certificate: str | None) -> None:
    """The role of the origin: it says its port, then obeys the orders of the test."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    server = _Server(certificate)
    link.say(server.port)
    while True:
        try:
            order, arguments = link.hear()
        except EOFError:
            os._exit(0)  # whatever the threads are doing
        link.say(getattr(server, order)(**arguments))


def _end_with(parent: int) -> None:
    """End with the test process, even if its forked child keeps the standard input open."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


# The test's side.


class Origin:
    """A fault origin, as the test sees it."""

    def __init__(self, certificate: Path | None = None) -> None:
        self._interpreter = Interpreter(serve, certificate and str(certificate))
        self._lock = threading.Lock()
        self.port: int = self._interpreter.hear()
        self.scheme = "http" if certificate is None else "https"
        self.pid = self._interpreter.pid

    def url(self, path: str, host: str | None = None) -> str:
        host = host or ("127.0.0.1" if self.scheme == "http" else "localhost")
        return f"{self.scheme}://{host}:{self.port}{path}"

    def serve(self, path: str, **behaviour: Any) -> str:
        """Serve `content(seed, size)` under `path` as `Behaviour` says; its URL."""
        self._order("serve", path=path, **behaviour)
        return self.url(path)

    def change(self, path: str, first: int = 0, count: int | None = None, **fields: Any) -> None:
        """Change `fields` of its `Behaviour` for `count` requests (None: all) from `first` on."""
        self._order("change", path=path, first=first, count=count, fields=fields)

    def requests(self, path: str | None = None) -> list[Request]:
        """The requests so far."""
        heard = (Request(**each) for each in self._order("log"))
        return [request for request in heard if path is None or request.path == path]

    def wait(self, path: str, condition: Callable[[list[Request]], bool]) -> list[Request]:
        """Wait until `condition` holds for the requests of this path; these requests."""
        found: list[Request] = []

        def holds() -> bool:
            found[:] = self.requests(path)
            return condition(found)

        wait_until(holds)
        return found

    def ended(self, path: str) -> list[Request]:
        """Wait until all requests of this path so far are over; these requests.

        Before that, a client may have bytes that are not yet counted as sent.
        """
        return self.wait(path, lambda requests: all(each.over for each in requests))

    def refuse(self) -> None:
        """Let there be no server: connections end, and new ones are refused."""
        self._order("refuse")

    def accept(self) -> None:
        """Let the server be back, on the same port."""
        self._order("listen")

    def cut(self) -> None:
        """End every connection."""
        self._order("cut")

    def release(self) -> None:
        """End the stalls of all requests that have begun, also those that are yet to come."""
        self._order("release")

    def reset(self) -> None:
        """Forget all connections, paths and requests."""
        self._order("reset")

    def _order(self, order: str, **arguments: Any) -> Any:
        with self._lock:
            self._interpreter.say([order, arguments])
            return self._interpreter.hear()

    def close(self) -> None:
        self._interpreter.finish()
        self._interpreter.close()


def certificate(folder: Path) -> Path:
    """A file with a key and a self-signed certificate for localhost."""
    path = folder / "certificate.pem"
    key = folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(path)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


def _origin(certificate: Path | None = None) -> Iterator[Origin]:
    server = Origin(certificate)
    yield server
    server.close()


@pytest.fixture(scope="session")
def origin_process() -> Iterator[Origin]:
    yield from _origin()


@pytest.fixture(scope="session")
def elsewhere_process() -> Iterator[Origin]:
    yield from _origin()


@pytest.fixture(scope="session")
def tls_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def tls_origin_process(tls_certificate: Path) -> Iterator[Origin]:
    yield from _origin(tls_certificate)


@pytest.fixture
def direct(as_found: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: ARG001
    """No proxy in between; at the end of the test no connection is kept."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    yield
    close_pools()


@pytest.fixture
def origin(origin_process: Origin, direct: None) -> Origin:  # noqa: ARG001
    """A fault origin that serves nothing yet."""
    origin_process.reset()
    return origin_process


@pytest.fixture
def elsewhere(elsewhere_process: Origin, direct: None) -> Origin:  # noqa: ARG001
    """Another fault origin, on another port."""
    elsewhere_process.reset()
    return elsewhere_process


@pytest.fixture
def tls_origin(tls_origin_process: Origin, direct: None) -> Origin:  # noqa: ARG001
    """A fault origin that speaks TLS as localhost, with `tls_certificate`."""
    tls_origin_process.reset()
    return tls_origin_process
