"""The programs on the hosts, and their handles: `python -m bench.cluster.member WHAT JSON`.

They talk with the parent in lines of JSON over pipes, because their network is another one.
"""

from __future__ import annotations

import gc
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
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.closing import Closing
from bench.report import CheckFailed
from shmstream import Cluster, DigestMismatch, ShmstreamError, Store
from shmstream.asgi.response import InFlightResponse
from shmstream.cluster.endpoint import Endpoint
from shmstream.server import Protocol
from shmstream.sources.origin import Request, Server

_ROOT = Path(__file__).parents[2]
_PATIENCE = 180.0  # s
_TRIES = 3


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


@cache
def blob(size: int, seed: int) -> bytes:
    """The bytes of a blob of the origin."""
    block = hashlib.sha256(str(seed).encode()).digest() * 32768  # a MiB
    pieces = (each.to_bytes(4, "big") + block[4:] for each in range(size // len(block)))
    return b"".join(pieces)


class _Origin(Server):
    most = 64 << 10

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.released.set()

    def answer(self, channel: socket.socket, request: Request) -> bool:
        """Answer with a blob, or with a little to warm up, for which no client waits."""
        _, size, seed = request.path.split("/")
        data = memoryview(blob(int(size), int(seed)) or b"warm")
        status, part, told = request.part(len(data), tag := f'"{size}-{seed}"')
        if size != "0":
            self.released.wait()
        headers = {"Content-Length": str(len(part)), "ETag": tag, **told}
        if not self.send_head(channel, request, status, headers):
            return True
        rest = data[part.start : part.stop]
        return self.send_body(
            request, len(part), lambda first, last: channel.send(rest[first:last])
        )

    def gets(self) -> list[Request]:
        """The requests for blobs."""
        gets = [each for each in self.asked if each.method == "GET"]
        return [each for each in gets if not each.path.startswith("/0/")]


def origin() -> None:
    """Serve blobs at `/SIZE/SEED`, with ranges.

    Orders: `counts`; `[size, seed]` for a key; `hold` and `release` those that ask for a blob.
    """
    server = _Origin()
    listener = socket.create_server(("", 80), backlog=128)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)  # `sent` is about sent
    server.start(listener)
    _say({"ready": os.getpid()})
    for line in sys.stdin:
        order = json.loads(line)
        if order == "counts":
            _say({"requests": [vars(each) for each in server.gets()]})
        elif order in ("hold", "release"):
            (server.released.clear if order == "hold" else server.released.set)()
            _say({})
        else:
            _say({"key": "sha256:" + hashlib.sha256(blob(*order)).hexdigest()})


def cache_of_ours(folder: str, upstream: str) -> None:
    """One shmstream in front of all nodes: what comes is streamed to all clients."""
    import uvicorn

    store = Store(folder, connections=1)  # the origin's link is full with one

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            key = f"{upstream}{scope['path']}"
            await InFlightResponse(store, key, key)(scope, receive, send)

    uvicorn.run(app, host="0.0.0.0", port=80, log_level="error", lifespan="off", http=Protocol)


def node(
    folder: str, cluster: dict[str, Any] | None, warm: str, log: str | None, *, lies: bool
) -> None:
    """A process of a node. Orders: a list of keys and URLs, or `evict`.

    It says its first byte, and its end. Before, it has downloaded a little from `warm`, so that
    what a first download has to import is not measured. The name of that blob is its own: a process
    that finds it in the store downloads nothing.
    """
    if log is not None:
        form = "%(asctime)s.%(msecs)03d %(process)d %(message)s"
        logging.basicConfig(level="DEBUG", filename=log, format=form)
        logging.getLogger("urllib3").setLevel("WARNING")
    if lies:
        _lie()
    store = Store(
        folder,
        cluster=None if cluster is None else Cluster(**cluster),
        publish_bytes=4 << 20,  # as `serve`
        publish_interval=0.2,
        connections=1,  # the origin's link is full with one
    )
    store.fetch(f"warm-{os.getpid()}", warm)
    gc.collect()  # else it is due just then: this process has imported much
    _say({"ready": os.getpid()})
    for line in sys.stdin:
        order = json.loads(line)
        if order == "evict":
            for _, entry in store.blobs():
                os.unlink(entry.path)  # without a word to the directory
            _say({"evicted": True})
        else:
            _say(_read_all(store, order))


def _lie() -> None:
    """Give each peer one wrong byte."""
    copy = Endpoint._copy

    def lie(self: Endpoint, talk: socket.socket, blob: Any, start: int) -> None:
        blob.seek(start)
        first = blob.read(1)
        talk.sendall(bytes([first[0] ^ 1]))
        copy(self, talk, blob, start + 1)

    Endpoint._copy = lie  # type: ignore[method-assign]


def _read_all(store: Store, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Read these blobs at the same time; the first byte, and the end, of the last of them."""
    began, is_first, lock = time.monotonic(), [True], threading.Lock()
    done: list[dict[str, Any]] = []

    def tell_first(role: str) -> None:
        with lock:
            if is_first.pop() if is_first else False:
                _say({"began": began, "first": time.monotonic(), "role": role})

    def read(key: str, url: str) -> None:
        done.append(_read(store, key, url, tell_first))

    threads = [threading.Thread(target=read, args=each) for each in pairs]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    tell_first("none")
    return {
        "right": all(each["right"] for each in done),
        "errors": [error for each in done for error in each["errors"]],
        "pause": max(each["pause"] for each in done),
        "end": time.monotonic(),
    }


def _read(store: Store, key: str, url: str, tell_first: Callable[[str], None]) -> dict[str, Any]:
    """Read one blob; again, as a client does, if its bytes were wrong."""
    errors: list[str] = []
    pause, is_right = 0.0, False
    while not is_right and len(errors) < _TRIES:
        running, last = hashlib.sha256(), 0.0
        try:
            with store.open(key, url) as blob:
                for data in blob:
                    now = time.monotonic()
                    if not last:
                        tell_first(blob.role)
                    else:
                        pause = max(pause, now - last)
                    last = now
                    running.update(data)
            is_right = key == f"sha256:{running.hexdigest()}"
        except DigestMismatch as failure:
            errors.append(repr(failure))
        except ShmstreamError as failure:
            errors.append(repr(failure))
            break
    return {"right": is_right, "errors": errors, "pause": pause}


_PROGRAMS: dict[str, Callable[..., None]] = {"origin": origin, "node": node, "cache": cache_of_ours}


if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2]))
