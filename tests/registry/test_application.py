"""The application's end: what ends later is answered and written, and no error is printed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shmstream.registry.application import Application
from shmstream.registry.settings import Settings, Upstream
from shmstream.upstreams.notes import Notes
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 10_000
KEY = digest(1, SIZE)
BLOB = f"/v2/team/app/blobs/{KEY}"


class Life:
    """The life of an application, as a server has it; and requests, which may come at any time."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self.errors: list[dict[str, Any]] = []
        """What the event loop would print."""

    async def _receive(self) -> dict[str, Any]:
        return {"type": await self._events.get()}

    async def _send(self, message: Any) -> None:
        await self._said.put(message["type"])

    async def begin(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._living = asyncio.ensure_future(
            self._app({"type": "lifespan"}, self._receive, self._send)
        )
        await self._events.put("lifespan.startup")
        assert await self._said.get() == "lifespan.startup.complete"

    async def end(self) -> None:
        await self._events.put("lifespan.shutdown")
        assert await self._said.get() == "lifespan.shutdown.complete"
        await self._living

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body of the answer to one request."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError("nobody leaves")

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [],
        }  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            await self._app(scope, receive, send)
        return sent[0]["status"], b"".join(each.get("body", b"") for each in sent)


def live(settings: Settings, course: Callable[[Life], Awaitable[None]]) -> list[dict[str, Any]]:
    """Run an application's life; the errors of its event loop."""
    life = Life(Application(settings))

    async def main() -> None:
        await life.begin()
        await course(life)

    asyncio.run(main())
    return life.errors


def test_it_ends_in_good_order_where_no_thread_can_be_started(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a limit of memory."""
    settings = Settings((Upstream(None, "http://127.0.0.1:1"),), folder, workers=1)

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def course(life: Life) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            await life.end()

    assert live(settings, course) == []


@pytest.fixture
def settings(folder: str, origin: Origin) -> Settings:
    origin.serve(BLOB, seed=1, size=SIZE)
    return Settings((Upstream(None, origin.url("")),), folder, workers=1)


def test_what_comes_after_the_end_is_answered_and_written(
    settings: Settings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []

    def has_lines(count: int) -> bool:
        lines.extend(capfd.readouterr().out.splitlines())
        return len(lines) == count

    async def course(life: Life) -> None:
        await life.end()
        asked = ["/healthz", "/readyz", "/metrics", "/events", "/", "/v2/", BLOB, BLOB]
        answers = [await life.ask(path) for path in asked]
        assert [status for status, _ in answers] == [200, 200, 200, 503, 200, 200, 200, 200]
        assert answers[-1][1] == content(1, SIZE)
        async with asyncio.timeout(PATIENCE):
            while not has_lines(len(asked)):
                await asyncio.sleep(0.001)
        assert [json.loads(line)["path"] for line in lines] == asked

    assert live(settings, course) == []
    assert caplog.messages == []
    names = Notes(settings.store, "names")
    wait_until(lambda: names.read((KEY,)) is not None)


def test_what_is_being_asked_at_the_end_is_not_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that hangs while the server stops: its thread ends when it can, and says nothing."""
    gate, asked = threading.Event(), threading.Event()

    def hang(_: object) -> list[str]:
        asked.set()
        assert gate.wait(PATIENCE)
        return []

    monkeypatch.setattr("shmstream.registry.ops.status.Status.problems", hang)
    pending: list[asyncio.Task[tuple[int, bytes]]] = []

    async def course(life: Life) -> None:
        pending.append(asyncio.ensure_future(life.ask("/readyz")))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        await life.end()
        assert await pending[0] == (503, b"")

    try:
        assert live(settings, course) == []
    finally:
        gate.set()
    assert caplog.messages == []


def test_layers_do_not_begin_after_the_end(settings: Settings) -> None:
    async def course(life: Life) -> None:
        prefetch = life._app.registry._prefetch
        prefetch._limit = 5
        assert prefetch.has_room
        await life.end()
        assert not prefetch.has_room

    assert live(settings, course) == []
