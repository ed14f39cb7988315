"""What is measured as shmstream: a small ASGI application on uvicorn, with all that it offers.

GET /<rate>/<name>    the blob <name> of the origin, streamed while it arrives

python -m bench.peers.blob_app    as the environment says: PEERS_PORT, PEERS_ORIGIN (its port),
                            PEERS_STORE (a folder), PEERS_WORKERS, PEERS_KEYS: "sha256", and
                            every blob is verified, or "name", and none is, as with a proxy
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import uvicorn

from shmstream import Store
from shmstream.asgi.response import InFlightResponse
from shmstream.server import Protocol, make_room

if TYPE_CHECKING:
    from shmstream.asgi.response import Receive, Scope, Send

_origin = f"http://127.0.0.1:{os.environ['PEERS_ORIGIN']}"
_prefix = "sha256:" if os.environ["PEERS_KEYS"] == "sha256" else ""
_store = Store(
    os.environ["PEERS_STORE"],
    durable=False,  # as with the peers, nothing is synced
    publish_bytes=4 << 20,  # as `shmstream serve` has it
    publish_interval=0.2,  # likewise
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request."""
    path: str = scope["path"]
    key = _prefix + path.rpartition("/")[2]
    await InFlightResponse(_store, key, _origin + path)(scope, receive, send)


make_room()  # as `shmstream serve` does
gc.freeze()  # what is here by now stays: a full collection need not go through it (docs/serving.md)


if __name__ == "__main__":
    uvicorn.run(
        "bench.peers.blob_app:app",
        host="127.0.0.1",
        port=int(os.environ["PEERS_PORT"]),
        workers=int(os.environ["PEERS_WORKERS"]),
        loop="uvloop",
        http=Protocol,
        lifespan="off",
        proxy_headers=False,  # there is none in front, or nobody asks whose client it is
        log_level="warning",
        access_log=False,
    )
