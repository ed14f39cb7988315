"""The registry of the demo's third act: `shmstream serve`, which ends with the demo."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

from shmstream.demo.process import Child, DemoFailed
from shmstream.registry.settings import Settings, Upstream


class Server(Child):
    """The parent's hand on it. `url` is where it listens; its store and its log are in `folder`."""

    patience: float = 15.0

    def __init__(self, upstream: str, folder: Path, workers: int) -> None:
        settings = Settings(
            (Upstream(None, upstream),),
            store=str(folder / "store"),
            workers=workers,
            listen="127.0.0.1:0",
            grace=0.0,
            access_log=False,
        )
        log = folder / "serve.log"
        super().__init__(_main, settings.to_json(), log)
        told = re.search(r" at (http://\S+) with ", self.hear() or "")
        if told is None:
            self.close()
            raise DemoFailed(f"the server has ended: {log.read_text()[-2000:]}")
        self.url: str = told[1]


def _main(pipe: Connection, settings: str, log: Path) -> None:
    from shmstream.registry.server.serve import serve

    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)

    def end_with_the_pipe() -> None:
        with suppress(EOFError):
            pipe.recv()
        os.kill(os.getpid(), signal.SIGTERM)

    # `serve` waits for these signals, and no other thread may get them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    Thread(target=end_with_the_pipe, daemon=True).start()
    os._exit(0 if serve(Settings.from_json(settings), pipe.send) else 1)
