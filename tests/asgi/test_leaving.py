"""The work for a client ends with the client, whatever else the client sends."""

from __future__ import annotations

import asyncio
from typing import Any

from shmstream.asgi.leaving import Leaving

MIB = 1 << 20


def test_a_body_without_an_end_is_not_read_for_ever() -> None:
    """Up to a bound it is read and dropped, so a client that sends it first gets an answer."""
    received = 0

    async def receive() -> Any:
        nonlocal received
        received += MIB
        await asyncio.sleep(0)
        return {"type": "http.request", "body": bytes(MIB), "more_body": True}

    async def main() -> None:
        with Leaving(receive, None):
            for _ in range(1000):
                await asyncio.sleep(0)

    asyncio.run(main())
    assert 32 * MIB < received < 100 * MIB


def test_a_client_that_leaves_ends_its_work() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def main() -> bool:
        with Leaving(receive, None):
            await asyncio.Event().wait()
        return True

    assert asyncio.run(asyncio.wait_for(main(), 60))
