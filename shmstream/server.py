"""For a server of your own: `--http shmstream.server:Protocol` for uvicorn, and room for clients.

Protocol     uvicorn's HTTP/1.1 with zero-copy bodies and bounds on slow clients
make_room    let the process's table of descriptors grow now, and not while clients wait for it;
             call it once in each worker. `shmstream serve` does
"""

from shmstream.asgi.protocol import Protocol
from shmstream.system.descriptors import make_room

__all__ = ["Protocol", "make_room"]
