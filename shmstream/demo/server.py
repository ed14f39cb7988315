"""The registry of the demo's third act: `shmstream serve`, which ends with the demo.

parent                           python -m shmstream.demo.server SETTINGS
<--- a line ---    what `serve` tells: where it listens
the end of standard input --->   ends, with its workers
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from shmstream.demo.parent import ROOT, DemoFailed
from shmstream.registry.settings import Settings, Upstream
from shmstream.system.signals import undisturbed

_PATIENCE = 15.0  # s; for its end


class Server:
    """The parent's hand on it, which ends with the `with` block. `url` is where it listens."""

    def __init__(self, upstream: str, folder: Path, workers: int) -> None:
        """Its store and its log are in `folder`."""
        settings = Settings(
            (Upstream(None, upstream),),
            store=str(folder / "store"),
            workers=workers,
            listen="127.0.0.1:0",
            grace=0.0,
            access_log=False,
        )
        self.url = ""
        self._log = folder / "serve.log"
        with undisturbed(), self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shmstream.demo.server", settings.to_json()],
                cwd=ROOT,
                env={**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline().decode()
            found = re.search(r" at (http://\S+) with ", line)
            if found is None:
                raise DemoFailed(f"the server has ended: {self._log.read_text()[-2000:]}")
            self.url = found[1]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as ending:  # from the last to the first
            ending.callback(self.process.kill)
            ending.callback(self._wait)
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                ending.callback(pipe.close)

    def _wait(self) -> None:
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main() -> None:
    """Be the server."""
    from shmstream.registry.server.serve import serve

    # Before there is a second thread: `serve` waits for signals, and no other is to get them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    good = serve(Settings.from_json(sys.argv[1]), lambda line: print(line, flush=True))  # noqa: T201
    os._exit(0 if good else 1)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
