"""How many calls a hit takes: a request on a kept connection for a small blob that is complete.

Most of a hit's time goes into calls of functions in Python. Their number depends on no machine.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from shmstream import Store
from tests.support.hits import COUNTED, WARM, count_a_hit
from tests.support.interpreters import PATIENCE, Interpreter
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 64 << 10
KEY = digest(1, SIZE)
MOST = 214
"""Some 45 of these are of uvicorn, and 15 of system calls."""


def test_a_hit_takes_few_calls(
    start: Callable[..., Interpreter], folder: str, store: Store
) -> None:
    body = content(1, SIZE)
    with store.create(KEY) as blob:
        blob.write(body)
    worker = start(count_a_hit, folder, KEY)
    request = f"GET /{KEY} HTTP/1.1\r\nHost: here\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", worker.hear()), PATIENCE) as client:
        client.settimeout(PATIENCE)
        for _ in range(WARM + COUNTED + 1):
            client.sendall(request)
            got = b""
            while len(got) < got.find(b"\r\n\r\n") + 4 + SIZE:
                got += client.recv(1 << 18)
            head, _, rest = got.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert rest == body
    heard = worker.hear()
    worker.say("end")
    worker.finish()
    wakes = [count for count, name in heard["of"] if name.endswith("keeping_protocol.py readable")]
    assert wakes == [1.0]  # nothing is sent to the worker while it answers
    lines = "\n".join(f"{count:7} {name}" for count, name in heard["of"])
    assert heard["calls"] <= MOST, f"{heard['calls']} calls, not {MOST}:\n{lines}"
