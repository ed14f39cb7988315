"""One question at a time, however many tasks ask it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shmstream.upstreams.singleflight import Together


def test_what_is_asked_together_is_asked_once() -> None:
    together = Together("test")
    gate = threading.Event()
    calls: list[str] = []

    def ask() -> str:
        calls.append("asked")
        assert gate.wait(60)
        return "answer"

    def fail() -> str:
        raise LookupError("no")

    async def main() -> None:
        tasks = [asyncio.ensure_future(together.ask("key", ask)) for _ in range(50)]
        other = asyncio.ensure_future(together.ask("another", lambda: "other"))
        assert await other == "other"
        tasks[0].cancel()  # a task that leaves takes nothing from the others
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        gate.set()
        assert set(await asyncio.gather(*tasks[1:])) == {"answer"}
        assert calls == ["asked"]
        assert await together.ask("key", lambda: "anew") == "anew"
        failing = [asyncio.ensure_future(together.ask("key", fail)) for _ in range(5)]
        for task in failing:
            with pytest.raises(LookupError):
                await task

    asyncio.run(main())
    assert together._asked == {}
    together.close()


def test_what_is_waited_for_is_cancelled_and_what_is_asked_later_is_answered() -> None:
    together = Together("test", threads=1)
    gate, asked = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        assert gate.wait(60)

    async def main() -> None:
        waiting = [asyncio.ensure_future(together.ask(key, hang)) for key in ("a", "b", "b")]
        while not asked.is_set():
            await asyncio.sleep(0.001)
        together.close()
        later = asyncio.ensure_future(together.ask("b", lambda: "answer"))
        for task in waiting:
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.set()
        assert await later == "answer"

    asyncio.run(main())
    assert together._asked == {}
