"""The least that a cold small blob must cost in Python: an ASGI application for uvicorn.

    GET /<rate>/<name>    the blob <name> of the origin, asked for each time

urllib3 in a thread, SHA-256, a temporary file, a rename, the response. It has no protocol, no
coordination and no promises, and nothing is synced, as with all peers. It needs the environment:
PEERS_ORIGIN (a port), PEERS_STORE (a folder).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import urllib3

if TYPE_CHECKING:
    from shmstream.asgi.response import Receive, Scope, Send

_THREADS, _CONNECTIONS = 8, 16
_origin = f"http://127.0.0.1:{os.environ['PEERS_ORIGIN']}"
_folder = os.environ["PEERS_STORE"]
_pool = urllib3.PoolManager(maxsize=_CONNECTIONS)
_threads = ThreadPoolExecutor(_THREADS)
_numbers = itertools.count()


def _pull(path: str) -> bytes:
    response = _pool.request(
        "GET", _origin + path, headers={"Accept-Encoding": "identity"},
        preload_content=False, decode_content=False,
    )  # fmt: skip
    data = response.read()
    response.release_conn()
    name = path.rpartition("/")[2]
    if hashlib.sha256(data).hexdigest() != name:
        raise ValueError(name)
    temporary = f"{_folder}/{os.getpid()}-{next(_numbers)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(fd, data)
    os.close(fd)
    os.rename(temporary, f"{_folder}/{name}")
    return data


async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """Answer one request."""
    data = await asyncio.get_running_loop().run_in_executor(_threads, _pull, scope["path"])
    length = str(len(data)).encode()
    await send({
        "type": "http.response.start", "status": 200, "headers": [(b"content-length", length)],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": data})
