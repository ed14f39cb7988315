"""One worker process: `python -m shmstream.registry.server.worker NUMBER LISTENER`, or a fork.

The settings are in the environment; LISTENER is the descriptor of the listening socket. If the
supervisor keeps connections, the descriptors of its keeper are in the environment, too. The worker
ends at SIGTERM, or when its standard input ends, because then the parent is gone. Its clients have
`grace` seconds to finish. The flights that it leads are handed over to other workers.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from shmstream.errors import ShmstreamError
from shmstream.registry.ops.processes import name_worker
from shmstream.registry.server.acceptor import Counts
from shmstream.registry.server.channel import Channel
from shmstream.registry.server.connections import Table
from shmstream.registry.server.error_log import log_to_stderr
from shmstream.registry.settings import BadSetting, Settings
from shmstream.system.descriptors import make_room
from shmstream.system.threads import Call

if TYPE_CHECKING:
    from shmstream.registry.server.accepting import Post, Served, Share

CANNOT_START = 3
"""Exit code: start-up failed and was logged; restarting would fail the same way."""
WORKER = "shmstream.registry.server.worker"
"""The program that is a worker of the registry."""
POST = "SHMSTREAM_POST"
"""The environment variable with the descriptors of a channel and a table of the keeper."""
CONNECTIONS = "connections"
"""The file, beside the metrics, in which workers tell their counts of connections."""
LAST_PATIENCE = 10.0
"""Seconds after `grace` in which a worker must have ended."""

_log = logging.getLogger("shmstream")


def prepare() -> None:
    """Import what a worker of the registry needs, also for its first clients."""
    importlib.import_module("encodings.idna")
    for each in ("application", "server.accepting"):
        importlib.import_module(f"shmstream.registry.{each}")
    for each in ("lifespan.on", "loops.uvloop"):
        importlib.import_module(f"uvicorn.{each}")


def main(make: Callable[[Settings], Served] | None = None) -> None:
    """Run one worker, of the application that `make` makes; None: of the registry."""
    number, listener = sys.argv[1:]
    name_worker(number)
    post = os.environ.pop(POST, "").split()
    os.environ["SHMSTREAM_WORKER"] = number
    settings = Settings.from_environment()
    level = os.environ.get("SHMSTREAM_LOG_LEVEL", "WARNING")
    log_to_stderr(f"worker {os.getpid()} ", level, as_json=settings.log_format == "json")
    Call(partial(_end_with_parent, settings.grace), "shmstream-parent").start()
    with socket.socket(fileno=int(listener)) as connections:
        code = _serve(make, settings, connections, int(number), [*map(int, post)])
    logging.shutdown()
    os._exit(code)  # does not wait for a thread that waits for a disk or an upstream


def _registry(settings: Settings) -> Served:
    from shmstream.registry.application import Application

    return Application(settings)


def _serve(
    make: Callable[[Settings], Served] | None,
    settings: Settings,
    listener: socket.socket,
    number: int,
    post: Sequence[int],
) -> int:
    """Serve until a signal; the exit code."""
    from shmstream.registry.server.accepting import Server, configuration

    logging.getLogger("uvicorn.error").addFilter(_is_news)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of pools that are full
    make_room()
    try:
        app = (make or _registry)(settings)
        config = configuration(settings, app)
    except (ShmstreamError, BadSetting, OSError) as error:  # ssl.SSLError is one
        _log.error("%s", error)
        return CANNOT_START
    gc.freeze()  # the objects so far stay for good; collections need not visit them
    server = Server(config, app, listener, settings.grace, _share(settings, number, post))
    # At its end uvicorn restores this handler and raises the signal again, which does nothing then.
    signal.signal(signal.SIGTERM, server.handle_exit)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent blocked them, to wait for them
    server.run(sockets=[listener])
    return 0


def _share(settings: Settings, number: int, post: Sequence[int]) -> Share | Post:
    """How this worker gets its connections. `post` has the descriptors of a keeper, if any."""
    from shmstream.registry.server.accepting import Post, Share, most_connections

    if post:
        channel, table = post
        end = socket.socket(fileno=channel)
        if (attached := Table.attach(table)) is not None:
            return Post(Channel(end), attached)
        end.close()  # the supervisor is of another version
    path = os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], CONNECTIONS)
    return Share(Counts(path, number), most_connections(settings))


def _is_news(record: logging.LogRecord) -> bool:
    """False for a message about a response that was cut: the application has logged it."""
    return record.msg != "ASGI callable returned without completing response." and (
        record.msg != "Cancel %s running task(s), timeout graceful shutdown exceeded"
    )


def _end_with_parent(grace: float) -> None:
    """Wait for the end of standard input, whose other end only the parent has."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace + LAST_PATIENCE)
    os._exit(1)


if __name__ == "__main__":
    main()
