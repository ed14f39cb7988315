"""A local S3 server: moto's, in an interpreter of its own, which tells what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from tests.support.interpreters import Interpreter, Link

OPTIONS = {"key": "testing", "secret": "testing"}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # so that it answers `Expect: 100-continue`

    def log_message(self, *arguments: Any) -> None:
        pass


def serve(link: Link) -> None:
    """Serves until the test's end. Says its port, then at each word [method, path, range] of all
    requests so far.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    application = DomainDispatcherApplication(create_backend_app)
    log: list[tuple[str, str, str | None]] = []

    def logged(environ: dict[str, Any], begin: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        log.append((environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE")))
        answer: Iterable[bytes] = application(environ, begin)
        return answer

    server = make_server("127.0.0.1", 0, logged, _Server, _Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    link.say(server.server_port)
    while True:
        try:
            link.hear()
        except EOFError:
            return
        link.say(log)


class S3:
    """The server, as a test sees it."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self.options = {**OPTIONS, "endpoint_url": f"http://127.0.0.1:{interpreter.hear()}"}
        """Options of s3fs with which it is reached."""

    def requests(self, method: str, path: str) -> list[str | None]:
        """The ranges of all requests of that method for a path."""
        self._interpreter.say("tell")
        return [
            ranged
            for how, what, ranged in self._interpreter.hear()
            if (how, what) == (method, path)
        ]


@contextmanager
def serving() -> Iterator[S3]:
    """A server with nothing in it."""
    with Interpreter(serve) as interpreter:
        yield S3(interpreter)
        interpreter.finish()
