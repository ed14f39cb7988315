"""How many calls a hit takes: a request on a kept connection for a small blob that is complete.

Most of a hit's time goes into calls of functions in Python. Their number depends on no machine.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from shmstream import Store
from tests.support.hits import COUNTED, WARM, count_a_hit
from tests.support.interpreters import PATIENCE, Interpreter
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 64 << 10
KEY = digest(1, SIZE)
MOST = {False: 216, True: 42}
"""By whether equal requests may be answered without the application. Some 45 of the larger number
are of uvicorn, and 15 of system calls. Two of each are of the test.
"""


@pytest.mark.parametrize("repeatable", [False, True], ids=["usual", "repeated"])
def test_a_hit_takes_few_calls(
    repeatable: bool, start: Callable[..., Interpreter], folder: str, store: Store
) -> None:
    body = content(1, SIZE)
    with store.create(KEY) as blob:
        blob.write(body)
    worker = start(count_a_hit, folder, repeatable)
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
    most = MOST[repeatable]
    lines = "\n".join(f"{count:7} {name}" for count, name in heard["of"])
    assert heard["calls"] <= most, f"{heard['calls']} calls, not {most}:\n{lines}"
