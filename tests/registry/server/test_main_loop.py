"""A worker that has nothing to do is not woken to look whether it is to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import uvicorn
import uvloop

from shmstream.asgi.messages import Receive, Scope, Send
from shmstream.registry.server.accepting import Server

PATIENCE = 60.0  # s

uvloop.new_event_loop().close()  # libuv makes a pipe for the signals of a process, once


class _Nothing:
    """An application without any answer."""

    def stop(self) -> None: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class _Counting(Server):
    """Counts how often it looks whether it is to stop."""

    looks = 0

    async def on_tick(self, counter: int) -> bool:
        self.looks += 1
        return await super().on_tick(counter)


@contextmanager
def _handled(server: Server) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def server() -> Iterator[_Counting]:
    with socket.socket() as listener:
        config = uvicorn.Config(cast("Any", _Nothing()), lifespan="off", log_config=None)
        config.load()
        yield _Counting(config, _Nothing(), listener, 0.0, cast("Any", None))


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_idle_worker_looks_once_a_second_and_stops_at_once(server: _Counting, make: Any) -> None:
    async def main() -> None:
        server._loop = asyncio.get_running_loop()
        began = time.monotonic()
        running = asyncio.create_task(server.main_loop())
        while time.monotonic() < began + 0.8:
            await asyncio.sleep(0.05)
        assert server.looks <= 1 + (time.monotonic() - began) / 1.0
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, PATIENCE)
        assert server.should_exit

    with _handled(server), asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())
        os.kill(os.getpid(), signal.SIGTERM)  # the loop is about to be closed
    server.handle_exit(signal.SIGTERM, None)  # it is closed


def test_a_signal_before_the_wait_is_not_lost(
    server: _Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the look and the wait."""
    has_come = asyncio.Event()

    async def look(_: int) -> bool:
        if server.should_exit:
            return True
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(server._signal.wait(), PATIENCE)
        has_come.set()
        return False

    async def main() -> None:
        server._loop = asyncio.get_running_loop()
        monkeypatch.setattr(server, "on_tick", look)
        await asyncio.wait_for(server.main_loop(), PATIENCE)

    with _handled(server):
        asyncio.run(main())
    assert has_come.is_set()
