"""`shmstream.wsgi` in real applications, on real servers, with real clients."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from bench import nginx
from bench.server import Port
from bench.server import Server as Front
from shmstream import BlobAborted, Store
from shmstream.wsgi import InFlightResponse
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.nginx import needed
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 2 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
ROOT = Path(__file__).parents[1]


class Server:
    """gunicorn with two workers, or waitress, which is one process."""

    def __init__(
        self, store: Store, origin: Origin, application: str, kind: str, options: dict[str, Any]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            command = [sys.executable, "-W", "ignore", *_arguments(kind, listener, application)]
            told = {
                "TEST_STORE": store.folder,
                "TEST_ORIGIN": origin.url(""),
                "TEST_OPTIONS": json.dumps(options),
            }
            descriptor = listener.fileno()
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **told}, pass_fds=[descriptor]
            )

    def open(self, method: str, path: str, **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers={**named, "Connection": "close"})
        return connection.getresponse()

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, Any, bytes]:
        with self.open(method, path, **headers) as answer:
            return answer.status, answer.headers, answer.read()

    def close(self) -> None:
        self._process.terminate()
        assert self._process.wait(PATIENCE) == 0


def _arguments(kind: str, listener: socket.socket, application: str) -> list[str]:
    module = "tests.support.wsgi_responses"
    if kind == "waitress":
        call = f"by_waitress({application!r}, {listener.fileno()})"
        return ["-c", f"from {module} import by_waitress; {call}"]
    return [
        "-m", "gunicorn", "-k", kind, "-w", "2", *(["--threads", "4"] if kind == "gthread" else []),
        "--bind", f"fd://{listener.fileno()}", "--log-level", "critical",
        "--graceful-timeout", "1", f"{module}:{application}",
    ]  # fmt: skip


Serve = Callable[..., Server]


@pytest.fixture
def serve(store: Store, origin: Origin) -> Iterator[Serve]:
    origin.serve("/blob", seed=1, size=SIZE, media_type="application/x-test")
    running: list[Server] = []

    def start(application: str = "bare", kind: str = "gthread", **options: Any) -> Server:
        running.append(Server(store, origin, application, kind, options))
        return running[-1]

    yield start
    for each in running:
        each.close()
    wait_until(lambda: not store.flights())
    store.gc()


@pytest.mark.parametrize(
    ("application", "kind", "path"),
    [
        ("bare", "sync", "/blob"),
        ("flask()", "gthread", "/blob"),
        ("flask()", "sync", "/plain"),
        ("django()", "gthread", "/blob"),
        ("bare", "waitress", "/blob"),
        ("flask()", "waitress", "/blob"),
        ("django()", "waitress", "/blob"),
    ],
)
def test_frameworks_under_servers(
    application: str, kind: str, path: str, serve: Serve, store: Store, origin: Origin
) -> None:
    server = serve(application, kind, filename="model.bin")
    url = f"{path}/{KEY}"
    status, headers, body = server.ask("HEAD", url)
    assert (status, headers["content-length"], body) == (200, str(SIZE), b"")
    assert KEY not in store
    origin.change("/blob", stall_after=MIB)
    with server.open("GET", url) as answer:  # while it arrives
        assert answer.status == 200
        assert answer.headers["content-length"] == str(SIZE)
        assert answer.headers["content-type"] == "application/x-test"
        assert answer.headers["content-disposition"] == 'attachment; filename="model.bin"'
        first = answer.read(500_000)
        with server.open("GET", url, Range="bytes=1000-2999") as part:
            assert (part.status, part.read()) == (206, DATA[1000:3000])
            assert part.headers["content-range"] == f"bytes 1000-2999/{SIZE}"
        origin.release()
        assert sha256(first + answer.read()) == sha256(DATA)
    wait_until(lambda: KEY in store)
    for wanted, expected in [({}, DATA), ({"Range": "bytes=-1000"}, DATA[-1000:])]:
        status, headers, body = server.ask("GET", url, **wanted)
        assert (status, sha256(body)) == (206 if wanted else 200, sha256(expected))
        assert headers["etag"] == f'"{KEY}"'
        assert headers["content-length"] == str(len(expected))
    assert server.ask("GET", url, If_None_Match=f'"{KEY}"')[0] == 304
    assert server.ask("GET", url, Range=f"bytes={SIZE}-")[0] == 416
    assert server.ask("GET", f"{path}/absent")[0] == 404
    assert server.ask("GET", f"{path}/sha256:12")[0] == 404
    assert len(origin.requests("/blob")) == 2  # HEAD and GET


@pytest.mark.parametrize("kind", ["gthread", "waitress"])
def test_what_a_producer_writes(kind: str, serve: Serve, store: Store) -> None:
    """A client that comes before the producer; no length is known, so it comes in chunks."""
    server = serve("bare", kind, wait_for=30)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("GET", "/blob/report")
    with store.create("report") as blob:
        blob.write(DATA[:1000])
        blob.flush()
        answer = connection.getresponse()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.read(1000) == DATA[:1000]
        status, headers, body = server.ask("GET", "/blob/report", Range="bytes=10-19")
        assert (status, headers["content-range"], body) == (206, "bytes 10-19/*", DATA[10:20])
        blob.write(DATA[1000:])
    assert answer.read() == DATA[1000:]
    connection.close()


@pytest.mark.parametrize("kind", ["sync", "gthread", "waitress"])
def test_a_flight_that_fails(kind: str, serve: Serve, store: Store) -> None:
    """No client takes half a blob for the whole."""
    server = serve("bare", kind, wait_for=30)
    for size in (SIZE, None):
        with pytest.raises(ZeroDivisionError), store.create("report", size) as blob:
            blob.write(DATA[:1000])
            blob.flush()
            answer = server.open("GET", "/blob/report")
            assert answer.read(500) == DATA[:500]
            raise ZeroDivisionError
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        answer.close()


def test_a_client_that_leaves(serve: Serve, store: Store, origin: Origin) -> None:
    server = serve("bare")
    origin.change("/blob", stall_after=MIB)
    with server.open("GET", f"/blob/{KEY}") as answer:
        answer.read(1000)
    origin.release()
    wait_until(lambda: KEY in store)  # its flight goes on


def test_nginx_sends_what_is_complete(serve: Serve, store: Store, tmp_path: Path) -> None:
    needed()
    server = serve("bare", x_accel="/inner/")
    store.fetch(KEY, [DATA])
    store.fetch("report", [DATA])
    (tmp_path / "nginx").mkdir()
    with Port() as port:
        command = nginx.command(
            tmp_path / "nginx",
            f"""access_log off;
            server {{
                listen 127.0.0.1:{port.number};
                location / {{ proxy_pass http://127.0.0.1:{server.port}; }}
                location /inner/ {{ internal; alias {store.folder}/; }}
            }}""",
        )
        front = Front(command, port, tmp_path / "said")
        try:
            for key in (KEY, "report"):
                connection = http.client.HTTPConnection("127.0.0.1", port.number, timeout=PATIENCE)
                for headers, part in (({}, DATA), ({"Range": "bytes=10-99"}, DATA[10:100])):
                    connection.request("GET", f"/blob/{key}", headers=headers)
                    answer = connection.getresponse()
                    assert sha256(answer.read()) == sha256(part)
                    assert answer.status == (206 if headers else 200)
                connection.close()
                assert server.ask("GET", f"/blob/{key}")[2] == b""  # nginx has sent them
        finally:
            front.close()


# Any WSGI server.


def call(response: InFlightResponse, **environ: str) -> tuple[str, dict[str, str], Any]:
    """What a server sees that checks every rule of WSGI."""
    told: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        told.extend([status, dict(headers)])

    request = {
        "REQUEST_METHOD": "GET", "SERVER_NAME": "here", "SERVER_PORT": "80", "PATH_INFO": "/",
        "SERVER_PROTOCOL": "HTTP/1.1", "SCRIPT_NAME": "", "QUERY_STRING": "",
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": None,
        "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": True,
        "wsgi.run_once": False, **environ,
    }  # fmt: skip
    body = response(request, start_response)
    return told[0], told[1], body


def test_it_keeps_the_rules(store: Store) -> None:
    class Input:
        def read(self, _: int) -> bytes:
            return b""

        readline = readlines = __iter__ = read

    def start_response(_status: str, _headers: Any, _error: Any = None) -> Any:
        return lambda _data: None

    checked: Any = validator(InFlightResponse(store, KEY, [DATA]))
    environ = {
        "REQUEST_METHOD": "GET", "SERVER_NAME": "here", "SERVER_PORT": "80", "PATH_INFO": "/",
        "SERVER_PROTOCOL": "HTTP/1.1", "SCRIPT_NAME": "", "QUERY_STRING": "",
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": Input(),
        "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }  # fmt: skip
    body = checked(environ, start_response)
    assert b"".join(body) == DATA
    body.close()


@contextmanager
def produced(store: Store) -> Iterator[Any]:
    with store.create("report") as blob:
        blob.write(DATA[:1000])
        blob.flush()
        yield blob


def test_its_body_is_closed(store: Store) -> None:
    with produced(store):
        status, headers, body = call(InFlightResponse(store, "report"))
        assert (status, "content-length" in headers) == ("200 OK", False)
        assert next(body) == DATA[:1000]
        body.close()
        assert store.flights()[0].followers == ()
    for method in ("HEAD", "POST"):
        _, headers, body = call(InFlightResponse(store, "report"), REQUEST_METHOD=method)
        assert list(body) == []
    assert headers["allow"] == "GET, HEAD"


def test_without_room(folder: str, origin: Origin) -> None:
    """For the flight; then for its rest. The clients notice nothing, and nothing is kept."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    for key in (KEY, "a name"):
        small = InFlightResponse(make_store(folder, {"max_bytes": 1000}), key, url)
        for headers, status, part in [
            ({}, "200 OK", DATA),
            ({"HTTP_RANGE": "bytes=1000-1999"}, "206 Partial Content", DATA[1000:2000]),
        ]:
            told, said, body = call(small, **headers)
            assert (told, said["content-length"]) == (status, str(len(part)))
            assert sha256(b"".join(body)) == sha256(part)
            body.close()
            body.close()
        told, _, body = call(small, REQUEST_METHOD="HEAD")
        assert (told, list(body)) == ("200 OK", [])
    store = make_store(folder, {"max_bytes": MIB})
    origin.serve("/unknown", seed=1, size=SIZE, framing="chunked")
    told, _, body = call(InFlightResponse(store, KEY, origin.url("/unknown")))
    assert sha256(b"".join(body)) == sha256(DATA)
    body.close()
    none = make_store(folder, {"max_bytes": 1000, "max_pass_through": 0})
    assert call(InFlightResponse(none, KEY, url))[0] == "503 Service Unavailable"
    assert store.blobs() == []


class Wrapper:
    """A `wsgi.file_wrapper`."""

    def __init__(self, file: Any, size: int) -> None:
        self.file, self.size = file, size
        self.close = file.close


def test_the_server_sends_whole_files(store: Store) -> None:
    store.fetch("report", [DATA])
    environ: Any = {"wsgi.file_wrapper": Wrapper}
    _, _, body = call(InFlightResponse(store, "report"), **environ)
    assert os.pread(body.file.fileno(), 10, 0) == DATA[:10]
    assert os.lseek(body.file.fileno(), 0, os.SEEK_CUR) == 0
    body.close()
    _, _, body = call(InFlightResponse(store, "report"), **environ, HTTP_RANGE="bytes=1-")
    assert b"".join(body) == DATA[1:]
    body.close()


def test_a_client_of_http_1_0_waits_for_the_length(store: Store) -> None:
    store.fetch("report", [DATA])
    _, headers, body = call(InFlightResponse(store, "report"), SERVER_PROTOCOL="HTTP/1.0")
    assert headers["content-length"] == str(SIZE)
    assert b"".join(body) == DATA
    body.close()


def test_the_last_byte_waits_for_the_end(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.create("report", size=MIB) as blob:
        blob.write(DATA[:MIB])
        blob.flush()
        _, _, body = call(InFlightResponse(store, "report"))
        got = sum(len(next(body)) for _ in range(7))
        assert got < MIB
        raise ZeroDivisionError
    with pytest.raises(BlobAborted):
        for data in body:
            got += len(data)
    assert got < MIB
    body.close()


@pytest.mark.parametrize(
    "wrong",
    [{"filename": "a\nb"}, {"last_modified": "never"}, {"wait_for": -1}, {"x_accel": "a"}],
)
def test_wrong_arguments(wrong: dict[str, Any], store: Store) -> None:
    with pytest.raises(ValueError, match=r"not|no "):
        InFlightResponse(store, KEY, **wrong)
