"""What operators look at."""

from __future__ import annotations

from shmstream.asgi import Receive, Scope, Send
from shmstream.registry.settings import Settings
from shmstream.store import Store


class Operations:
    """`/healthz`: this process is alive."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer one request."""
        status, body = (200, b"alive\n") if scope["path"] == "/healthz" else (404, b"not found\n")
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
