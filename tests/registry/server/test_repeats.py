"""Responses that a worker makes without the application: only where nothing is different by it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store
from shmstream.asgi.messages import Ready
from shmstream.registry.server.repeats import Repeat, Repeats
from tests.support.hits import ASKED, be_registry, give_blobs
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.narrow import connect as connect_to
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 60_000
KEY = digest(1, SIZE)
BODY = content(1, SIZE)
PATH = f"/v2/team/app/blobs/{KEY}"
SHORT = digest(2, 100)
"""A blob that is copied behind its head."""

Start = Callable[..., Interpreter]


class Asking:
    """A connection to a worker."""

    def __init__(self, port: int, *, is_narrow: bool = False) -> None:
        self.socket = connect_to(("127.0.0.1", port), PATIENCE, is_narrow=is_narrow)
        self._come = b""

    def say(self, path: str, *lines: str, first: str = "GET {} HTTP/1.1") -> bytes:
        """The head of a request, which was sent."""
        head = "\r\n".join([first.format(path), "Host: here", *lines, "", ""]).encode()
        self.socket.sendall(head)
        return head

    def hear(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next response."""
        while b"\r\n\r\n" not in self._come:
            self._more()
        head, _, self._come = self._come.partition(b"\r\n\r\n")
        assert head.count(b"HTTP/1.1 ") == 1, head
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        length = int(headers["content-length"]) if has_body else 0
        while len(self._come) < length:
            self._more()
        body, self._come = self._come[:length], self._come[length:]
        return int(status.split()[1]), headers, body

    def _more(self) -> None:
        data = self.socket.recv(1 << 18)
        assert data, f"cut after {self._come[:200]!r}"
        self._come += data

    def ask(self, path: str, *lines: str) -> tuple[int, dict[str, str], bytes]:
        self.say(path, *lines)
        return self.hear()

    def asked(self, path: str = f"/{KEY}", *lines: str) -> int:
        """How often the application was asked until it made that answer, which is right."""
        status, headers, body = self.ask(path, *lines)
        assert (status, body) == (200, BODY)
        return int(headers[ASKED])

    def is_over(self) -> bool:
        """Wait for the end, before which nothing comes."""
        return self._come == b"" and self.socket.recv(1) == b""

    def close(self) -> None:
        self.socket.close()


class Workers:
    """Workers of one test, and connections to them."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._open: list[Asking] = []
        self._started: list[Interpreter] = []

    def begin(
        self, role: Callable[..., None], *arguments: object, is_narrow: bool = False
    ) -> Callable[[], Asking]:
        """Start a worker; what connects to it."""
        self._started.append(self._start(role, *arguments))
        port = self._started[-1].hear()

        def connect() -> Asking:
            self._open.append(Asking(port, is_narrow=is_narrow))
            return self._open[-1]

        return connect

    def end(self) -> list[str]:
        """End all workers; what they wrote to standard error."""
        for each in self._open:
            each.close()
        said = []
        for worker in self._started:
            worker.say("end")
            said.append(worker.finish())
        self._open, self._started = [], []
        return said


@pytest.fixture
def workers(start: Start) -> Iterator[Workers]:
    found = Workers(start)
    yield found
    for said in found.end():
        assert "Traceback" not in said, said


@pytest.fixture
def connect(workers: Workers, folder: str, store: Store) -> Callable[[], Asking]:
    """Connects to a worker that has two blobs."""
    for key, seed, size in ((KEY, 1, SIZE), (SHORT, 2, 100)):
        with store.create(key) as blob:
            blob.write(content(seed, size))
    return workers.begin(give_blobs, folder, None)


def test_equal_requests_get_it_again(connect: Callable[[], Asking]) -> None:
    client = connect()
    status, headers, body = client.ask(f"/{KEY}")
    assert (status, body) == (200, BODY)
    for each in (client, client, connect()):
        assert each.ask(f"/{KEY}") == (200, headers, BODY)
    assert client.asked(f"/{KEY}", "Accept: */*") == 2, "another head"
    first = client.ask(f"/{SHORT}")
    assert first[2] == content(2, 100)
    assert client.ask(f"/{SHORT}") == first


def test_several_requests_in_one_segment(connect: Callable[[], Asking]) -> None:
    client = connect()
    head = client.say(f"/{KEY}")
    client.hear()
    for count in (3, 1, 4):
        client.socket.sendall(head * count)
        for _ in range(count):
            assert client.hear()[2] == BODY
    client.socket.sendall(head + head[:20])
    assert client.hear()[2] == BODY
    client.socket.sendall(head[20:])
    assert client.hear()[2] == BODY


def test_two_heads_that_end_with_a_bare_line_feed(
    workers: Workers, folder: str, store: Store
) -> None:
    """The parser sees two requests, and we see no whole head: both are answered each time."""
    with store.create(KEY) as blob:
        blob.write(BODY)
    client = workers.begin(give_blobs, folder, None, True)()
    head = f"GET /{KEY} HTTP/1.1\r\nHost: here\r\n\n".encode()
    for _ in range(3):
        client.socket.sendall(2 * head)
        assert [client.hear()[2], client.hear()[2]] == [BODY, BODY]


def test_a_head_in_two_pieces(connect: Callable[[], Asking]) -> None:
    """Another client has its answer meanwhile, so the worker has seen the first piece."""
    client, other = connect(), connect()
    head = client.say(f"/{KEY}")
    client.hear()
    for cut in (1, 30, len(head) - 1):
        client.socket.sendall(head[:cut])
        assert other.ask(f"/{KEY}")[2] == BODY
        client.socket.sendall(head[cut:])
        assert client.hear()[2] == BODY


@pytest.mark.parametrize(
    ("first", "line"),
    [("GET {} HTTP/1.0", ""), ("GET {} HTTP/1.1", "Connection: close")],
)
def test_a_connection_that_ends_with_the_response(
    connect: Callable[[], Asking], first: str, line: str
) -> None:
    found = []
    for _ in range(3):
        client = connect()
        client.say(f"/{KEY}", *filter(None, [line]), first=first)
        _, headers, body = client.hear()
        assert body == BODY
        found.append(headers[ASKED])
        assert client.is_over()
    assert found == ["1", "2", "3"]


def test_other_responses_are_made_by_the_application(connect: Callable[[], Asking]) -> None:
    client, found = connect(), []
    for _ in range(2):
        client.say(f"/{KEY}", first="HEAD {} HTTP/1.1")
        found.append(client.hear(has_body=False)[1][ASKED])
        found.append(client.ask(f"/{KEY}", "Range: bytes=0-99")[1][ASKED])
        found.append(str(client.asked(f"/{KEY}", "Content-Length: 0")))
        found.append(str(client.asked(f"/{KEY}", "X-Forwarded-For: 192.0.2.1")))
        found.append(str(client.asked(f"/{KEY}", "Authorization: Basic eDp5")))
        found.append(str(client.asked(f"/{KEY}", "Cookie: a=b")))
    assert found == [str(number) for number in range(1, 13)]


def test_a_client_that_ends_its_side(connect: Callable[[], Asking]) -> None:
    connect().ask(f"/{KEY}")
    client = connect()
    client.say(f"/{KEY}")
    client.socket.shutdown(socket.SHUT_WR)
    status, headers, body = client.hear()
    assert (status, headers[ASKED], body) == (200, "1", BODY)
    assert client.is_over()


def test_a_connection_without_a_request_is_closed(connect: Callable[[], Asking]) -> None:
    """Also if all of its requests were answered without the application; and no 408 is sent."""
    client = connect()
    assert [client.asked() for _ in range(3)] == [1, 1, 1]
    other = connect()
    assert [other.asked() for _ in range(3)] == [1, 1, 1]
    assert client.is_over()
    assert other.is_over()


def test_a_client_that_leaves(connect: Callable[[], Asking]) -> None:
    client = connect()
    client.asked()
    for _ in range(5):
        other = connect()
        other.say(f"/{KEY}")
        other.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        other.close()
        assert client.ask(f"/{KEY}")[2] == BODY


def test_an_evicted_blob_is_given_no_more(connect: Callable[[], Asking], store: Store) -> None:
    client = connect()
    assert [client.asked(), client.asked()] == [1, 1]
    (Path(store.folder) / "blobs" / KEY.replace(":", "/")).write_bytes(b"too short")
    status, headers, body = client.ask(f"/{KEY}")
    assert (status, headers[ASKED], body) == (200, "2", b"too short"), "nobody hashes it"
    store.remove(KEY)
    status, headers, _ = client.ask("/named")
    assert status == 404
    with store.create(KEY) as blob:
        blob.write(BODY)
    assert [client.asked(), client.asked()] == [4, 4]


def test_a_blob_that_was_replaced(
    connect: Callable[[], Asking], store: Store, origin: Origin
) -> None:
    """By another one of the same size, under the same name."""
    store.fetch("named", origin.serve("/named", seed=1, size=SIZE))
    client = connect()
    assert [client.asked("/named"), client.asked("/named")] == [1, 1]
    with store.create("named", replace=True) as blob:
        blob.write(content(5, SIZE))
    for asked in ("2", "3"):  # it has no ETag now
        status, headers, body = client.ask("/named")
        assert (status, headers[ASKED], body) == (200, asked, content(5, SIZE))


async def is_offered(store: Store, key: str) -> bool:
    """Whether a stored blob may be given again."""
    async with store.aopen(key) as blob:
        return blob.again() is not None


def test_a_blob_that_nothing_tells_from_another(store: Store, origin: Origin) -> None:
    """It may be replaced by another one of its size; so it is not given again."""
    for key in ("mine", SHORT):
        with store.create(key) as blob:
            blob.write(content(2, 100))
    facts: list[dict[str, Any]] = [
        {},
        {"etag": 'W/"weak"'},
        {"etag": None, "last_modified": "Mon, 30 Nov 2026 12:00:00 GMT"},
    ]
    for number, each in enumerate(facts):
        store.fetch(f"{number}", origin.serve(f"/{number}", seed=1, size=SIZE, **each))
    keys = (SHORT, "mine", "0", "1", "2")
    found = [asyncio.run(is_offered(store, key)) for key in keys]
    assert found == [True, False, True, False, False]


def test_a_client_too_many(workers: Workers, folder: str, store: Store) -> None:
    with store.create(KEY) as blob:
        blob.write(BODY)
    connect = workers.begin(give_blobs, folder, 2)
    client = connect()
    assert [client.asked(), client.asked()] == [1, 1]
    other = connect()
    other.say(f"/{KEY}")
    assert other.hear(has_body=False)[0] == 503
    other.close()
    wait_until(lambda: connect_and_ask(connect) == 503)


def connect_and_ask(connect: Callable[[], Asking]) -> int:
    client = connect()
    client.say(f"/{KEY}")
    status = client.hear(has_body=False)[0]
    client.close()
    return status


# The registry.


def lines_of(said: str, path: str = PATH) -> list[dict[str, object]]:
    """The lines of the access log for a path."""
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [each for each in found if each["path"] == path]


def metrics_of(client: Asking) -> dict[str, float]:
    text = client.ask("/metrics")[2].decode()
    found = re.findall(r"^(shmstream_\w+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def sent_so(client: Asking) -> list[int]:
    """How many responses were made without the application, as a whole and in part."""
    return [int(each) for each in client.ask("/short")[2].split()]


@pytest.fixture
def upstream(origin: Origin) -> str:
    origin.serve(PATH, seed=1, size=SIZE)
    return origin.url("").rstrip("/")


def test_each_response_of_a_registry_is_counted_and_logged(
    workers: Workers, folder: str, upstream: str
) -> None:
    client = workers.begin(be_registry, folder, upstream, None)()
    lines = "User-Agent: a test", "X-Request-Id: mine"
    assert client.ask(PATH, *lines)[2] == BODY
    usual = client.ask(PATH, *lines)
    before = metrics_of(client)
    again = client.ask(PATH, *lines)
    after = metrics_of(client)
    assert again == usual
    assert again[1]["x-request-id"] == "mine"
    assert sent_so(client) == [1, 0]
    grown = {name: after[name] - before.get(name, 0) for name in after}
    label = upstream.removeprefix("http://")
    hit = f'cache="hit",method="GET",route="blob",status="200",upstream="{label}"'
    assert grown[f"shmstream_requests_total{{{hit}}}"] == 1
    assert grown[f'shmstream_served_bytes_total{{route="blob",upstream="{label}"}}'] == SIZE
    assert grown['shmstream_ttfb_seconds_count{route="blob"}'] == 1
    assert client.ask(PATH)[2] == BODY
    assert client.ask(PATH)[2] == BODY
    [said] = workers.end()
    _, first, second, third, fourth = lines_of(said)
    for one, other in ((first, second), (third, fourth)):
        assert (one["request_id"] == other["request_id"]) == ("user_agent" in one)
        for name in ("time", "duration", "ttfb", "request_id"):
            assert None not in (one.pop(name), other.pop(name))
        assert one == other
    assert (first["bytes"], first["complete"], first["cache"]) == (SIZE, True, "hit")


def test_a_blob_of_a_registry_that_was_evicted(
    workers: Workers, folder: str, upstream: str, origin: Origin
) -> None:
    client = workers.begin(be_registry, folder, upstream, None)()
    for _ in range(3):
        assert client.ask(PATH)[2] == BODY
    assert sent_so(client) == [1, 0]
    assert Store(folder).remove(KEY)
    assert client.ask(PATH)[2] == BODY
    assert len([each for each in origin.requests(PATH) if each.method == "GET"]) == 2


def test_a_grant_that_is_gone(workers: Workers, folder: str, upstream: str, origin: Origin) -> None:
    """The upstream is asked again, and refuses."""
    client = workers.begin(be_registry, folder, upstream, None)()
    for _ in range(3):
        assert client.ask(PATH)[2] == BODY
    assert sent_so(client) == [1, 0]
    for note in (Path(folder) / "registry" / "grants").iterdir():
        note.unlink()
    origin.change(PATH, status=404)
    assert client.ask(PATH)[0] == 404
    assert sent_so(client) == [1, 0]


def test_a_token_that_was_changed(
    workers: Workers, folder: str, upstream: str, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("ci a-token-of-the-ci\n")
    client = workers.begin(be_registry, folder, upstream, str(tokens))()
    told = "Authorization: Bearer a-token-of-the-ci"
    for _ in range(4):
        assert client.ask(PATH, told)[2] == BODY
    assert client.ask(PATH)[0] == 401
    tokens.write_text("ci another-token-of-the-ci\n")
    assert client.ask(PATH, told)[0] == 401
    assert sent_so(client) == [0, 0]


def test_a_client_that_takes_little_at_one_time(
    workers: Workers, folder: str, upstream: str
) -> None:
    """What the kernel does not take is sent in the usual way, and counted once."""
    client = workers.begin(be_registry, folder, upstream, None, True, is_narrow=True)()
    for _ in range(20):
        assert client.ask(PATH)[2] == BODY
    whole, part = sent_so(client)
    assert part > 0, (whole, part)
    label = upstream.removeprefix("http://")
    name = f'shmstream_served_bytes_total{{route="blob",upstream="{label}"}}'
    assert metrics_of(client)[name] == 20 * SIZE
    [said] = workers.end()
    lines = lines_of(said)
    assert [(each["bytes"], each["complete"]) for each in lines] == [(SIZE, True)] * 20
    assert whole + part < 20


# What is known.


def repeat() -> Repeat:
    return Repeat(lambda _: Ready(-1, 1), [(b"content-length", b"1")], 1)


def test_only_some_heads_are_known() -> None:
    repeats = Repeats(most=3)
    for number in range(5):
        repeats.remember(b"%d" % number, [], repeat())
    assert [repeats.find(b"%d" % number) is not None for number in range(5)] == [0, 0, 1, 1, 1]
    repeats.remember(b"3", [], repeat())
    repeats.remember(b"5", [], repeat())
    assert [repeats.find(b"%d" % number) is not None for number in (3, 4, 5)] == [1, 1, 1]
    repeats.forget(b"3")
    repeats.forget(b"3")
    assert repeats.find(b"3") is None


def test_heads_have_a_bound_in_bytes() -> None:
    repeats = Repeats(most=10_000)
    heads = [b"%08d" % number * 512 for number in range(100)]
    for head in heads:
        repeats.remember(head, [], repeat())
    known = [head for head in heads if repeats.find(head) is not None]
    assert known == heads[-64:]
    for head in known:
        repeats.forget(head)
    assert repeats._size == 0


def test_a_head_has_the_headers_of_the_server_of_now() -> None:
    one, of_server = repeat(), [(b"date", b"today")]
    first = one.head(of_server)
    assert first == b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 1\r\n\r\n"
    assert one.head(of_server) is first
    assert b"tomorrow" in one.head([(b"date", b"tomorrow")])
