"""What is measured as shmstream: a small ASGI application on the server of `shmstream serve`.

GET /<rate>/<name>    the blob <name> of the origin, streamed while it arrives

python -m bench.peers.blob_app    as the environment says: PEERS_PORT, PEERS_ORIGIN (its port),
                            PEERS_STORE (a folder), PEERS_WORKERS, PEERS_KEYS: "sha256", and
                            every blob is verified, or "name", and none is hashed, as with a
                            proxy

Each worker is a fork that calls `main`, with its number and descriptor in `sys.argv`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import shmstream.sources.http  # noqa: F401  a server imports what it needs before it serves
from shmstream import Store
from shmstream.asgi.response import InFlightResponse
from shmstream.registry.server import accepting, serve, worker  # noqa: F401  likewise
from shmstream.registry.settings import Settings, Upstream

if TYPE_CHECKING:
    from shmstream.asgi.response import Receive, Scope, Send

_MODULE = "bench.peers.blob_app"
_origin = f"http://127.0.0.1:{os.environ['PEERS_ORIGIN']}"
_is_verified = os.environ["PEERS_KEYS"] == "sha256"


class _Blob(InFlightResponse):
    _repeatable = True  # as in the registry: all clients get the same


class BlobApp:
    """Answers with the blobs of the origin."""

    def __init__(self, settings: Settings) -> None:
        self._store = Store(
            settings.store,
            durable=False,  # as with the peers, nothing is synced
            publish_bytes=4 << 20,  # as `shmstream serve` has it
            publish_interval=0.2,  # likewise
            connections=1,  # as the peers have it
            hash_named=False,  # likewise; a blob whose key is its digest is verified all the same
        )

    def stop(self) -> None:
        """There is nothing to stop."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live."""
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        path: str = scope["path"]
        # The name is the SHA-256 of the blob, and alone it is a digest, too. Proxies take the path.
        key = f"sha256:{path.rpartition('/')[2]}" if _is_verified else path
        await _Blob(self._store, key, _origin + path)(scope, receive, send)


def main() -> None:
    """Be the server, or one of its workers."""
    if len(sys.argv) > 1:
        worker.main(BlobApp)
        return
    settings = Settings(
        (Upstream(None, _origin),),
        os.environ["PEERS_STORE"],
        listen=f"127.0.0.1:{os.environ['PEERS_PORT']}",
        workers=int(os.environ["PEERS_WORKERS"]),
        grace=0.0,
        access_log=False,
    )
    serve.serve(settings, print, _MODULE)


if __name__ == "__main__":
    main()
