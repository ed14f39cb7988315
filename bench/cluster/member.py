"""The programs on the hosts: `python -m bench.cluster.member origin|node JSON`, and their handles.

They talk with the parent in lines of JSON over pipes, because their network is another one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.closing import Closing
from bench.report import CheckFailed
from shmstream import Cluster, ShmstreamError, Store

_ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0  # s


class Member(Closing):
    """A program on a host."""

    def __init__(self, within: Sequence[str], what: str, **arguments: object) -> None:
        command = [*within, sys.executable, "-m", "bench.cluster.member", what]
        self.process = subprocess.Popen(
            [*command, json.dumps(arguments)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._heard = b""

    def say(self, value: object) -> None:
        """Give an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            CheckFailed: it ended, or says nothing.
        """
        assert self.process.stdout is not None
        out, until = self.process.stdout.fileno(), time.monotonic() + _PATIENCE
        while b"\n" not in self._heard:
            if not select.select([out], [], [], max(until - time.monotonic(), 0.0))[0]:
                raise CheckFailed("a member says nothing")
            if not (more := os.read(out, 65536)):
                raise CheckFailed("a member has ended")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        """Kill it. Idempotent."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


_saying = threading.Lock()


def _say(value: object) -> None:
    with _saying:
        print(json.dumps(value), flush=True)


def origin(size: int, seed: int) -> None:
    """Serve one blob, with ranges. Orders: `counts`, `refuse`, `accept`."""
    block = hashlib.sha256(str(seed).encode()).digest() * 32768  # a MiB
    data = b"".join(bytes([each % 256]) + block[1:] for each in range(size // len(block)))
    log: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            span = self.headers.get("range", "bytes=0-")
            start = int(span.removeprefix("bytes=").partition("-")[0])
            entry: dict[str, Any] = {"client": self.client_address[0], "start": start, "sent": 0}
            log.append(entry)
            self.send_response(206 if start else 200)
            self.send_header("content-length", str(len(data) - start))
            self.send_header("etag", '"1"')
            if start:
                self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            try:
                for at in range(start, len(data), 65536):
                    piece = memoryview(data)[at : at + 65536]
                    self.connection.sendall(piece)
                    entry["sent"] += len(piece)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("", 80), Handler)
    server.daemon_threads = True
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)  # `sent` is about sent
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _say({"key": "sha256:" + hashlib.sha256(data).hexdigest()})
    for line in sys.stdin:
        if json.loads(line) == "counts":
            _say({"requests": log})


def node(folder: str, cluster: dict[str, Any] | None, log: str | None = None) -> None:
    """A process of a node. Orders: `[key, url]`; it says its first byte, and its end."""
    if log is not None:
        form = "%(asctime)s.%(msecs)03d %(process)d %(message)s"
        logging.basicConfig(level="DEBUG", filename=log, format=form)
        logging.getLogger("urllib3").setLevel("WARNING")
    store = Store(
        folder,
        cluster=None if cluster is None else Cluster(**cluster),
        publish_bytes=4 << 20,  # as `serve`
        publish_interval=0.2,
    )
    _say({"ready": os.getpid()})
    for line in sys.stdin:
        key, url = json.loads(line)
        _say(_read(store, key, url))


def _read(store: Store, key: str, url: str) -> dict[str, Any]:
    running, began = hashlib.sha256(), time.monotonic()
    last, pause, size, error = began, 0.0, 0, None
    try:
        with store.open(key, url) as blob:
            for data in blob:
                now = time.monotonic()
                if not size:
                    _say({"first": now - began, "role": blob.role})
                else:
                    pause = max(pause, now - last)
                last, size = now, size + len(data)
                running.update(data)
    except ShmstreamError as failure:
        error = repr(failure)
    if not size:
        _say({"first": time.monotonic() - began, "role": "none"})
    is_right = error is None and key == f"sha256:{running.hexdigest()}"
    return {
        "right": is_right, "size": size, "error": error, "pause": pause,
        "took": time.monotonic() - began, "end": time.monotonic(),
    }  # fmt: skip


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    origin(**given) if sys.argv[1] == "origin" else node(**given)
