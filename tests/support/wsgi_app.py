"""A WSGI application that gives one blob of a store; `/ping` answers at once.

It is told by the environment: STORE, KEY and URL. The first line of a blob's body is the pid of the
worker that answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from shmstream import Blob, Store

store = Store(os.environ["STORE"], durable=False)


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    if environ["PATH_INFO"] == "/ping":
        return iter([b"%d\n" % os.getpid()])
    return give(store.open(os.environ["KEY"], os.environ["URL"], stall_timeout=60))


def give(blob: Blob) -> Iterator[bytes]:
    with blob:
        yield b"%d\n" % os.getpid()
        yield from blob
