"""`shmstream serve` under load, with four workers: one download a blob, and no leaks.

`SHMSTREAM_PULLS` is the number of pulls in sequence, 2,000 for the whole of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import NamedTuple

import psutil
import pytest

from shmstream.stream import segment
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.serving import Serving
from tests.support.stores import digest

MIB = 1 << 20
ONE = 12 * MIB  # bytes of the blob that all clients want
PULLS = int(os.environ.get("SHMSTREAM_PULLS", "300"))

Serve = Callable[..., Serving]


class Held(NamedTuple):
    """What all processes of a server hold together."""

    processes: int
    threads: int
    descriptors: int
    memory: int  # bytes of its own
    segments: int


def held(serving: Serving) -> Held:
    server = psutil.Process(serving.process.pid)
    processes = [server, *server.children(recursive=True)]
    return Held(
        len(processes),
        sum(each.num_threads() for each in processes),
        sum(each.num_fds() for each in processes),
        sum(each.memory_full_info().uss for each in processes),
        len(segment.names()),
    )


def blob(origin: Origin, seed: int, size: int) -> str:
    """The path of a new blob, which is the same at the origin and at our server."""
    path = f"/v2/load/test/blobs/{digest(seed, size)}"
    origin.serve(path, seed=seed, size=size)
    return path


def pull(serving: Serving, path: str) -> None:
    """Read the blob to its end, and check its bytes."""
    connection, response = serving.open(path)
    with closing(connection), response:
        assert response.status == 200
        read = hashlib.sha256()
        while data := response.read(256 * 1024):
            read.update(data)
    assert path.endswith(read.hexdigest())


@pytest.mark.timeout(900)
def test_load_leaves_nothing(serve: Serve, origin: Origin) -> None:
    serving = serve("--workers", "4", "--max-flights", "64", upstream=origin.url("").rstrip("/"))
    wait_until(lambda: len(serving.workers()) == 4)
    with ThreadPoolExecutor(32) as clients:
        # Let every worker do everything once, so that it has all that it keeps for ever.
        warm = [blob(origin, seed, 3 * MIB) for seed in range(16)]
        list(clients.map(partial(pull, serving), warm * 4))
        wait_until(lambda: segment.names() == [])
        before = held(serving)

        # Each way, more bytes than the memory that may grow.
        one = blob(origin, 100, ONE)
        list(clients.map(partial(pull, serving), [one] * 32))
        many = [blob(origin, 200 + number, 3 * MIB) for number in range(64)]
        list(clients.map(partial(pull, serving), many))
    for number in range(PULLS):
        pull(serving, blob(origin, 1000 + number, 4096))
    for path in (one, *many):
        assert sum(each.method == "GET" for each in origin.requests(path)) == 1
    # Idle threads live for a while, and connections to the origin are kept.
    allowed = before._replace(
        threads=before.threads + 16,
        descriptors=before.descriptors + 40,
        memory=before.memory + 64 * MIB,
    )
    wait_until(lambda: all(now <= most for now, most in zip(held(serving), allowed, strict=True)))
    # What is served is counted a moment after the client has it.
    pulled = partial(serving.metric, "shmstream_upstream_bytes_total")
    served = partial(serving.metric, "shmstream_served_bytes_total", route="blob")
    wait_until(lambda: pulled() == served() - sum((48 * 3 * MIB, 31 * ONE)))
