"""A process of the demo: an interpreter of its own, which ends with the demo.

The two ends talk through a pipe. The end of the pipe is the end of the child, however it came; and
a child whose parent has gone ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self

from shmstream.system.signals import undisturbed


class DemoFailed(Exception):
    """The demo cannot go on; the message tells why."""


class Child:
    """Runs `main(pipe, *arguments)`. Use it as a context manager: it has ended afterwards.

    Signals are blocked in the child, but for SIGHUP and SIGTERM: a terminal sends Ctrl-C to all
    processes of the demo, and the parent decides what that means for a child.
    """

    patience: float = 0.0
    """Seconds that it is given to end when it is closed, before it is killed."""

    def __init__(self, main: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.pipe: Connection = ours
        self.process: SpawnProcess = context.Process(
            target=_run, args=(main, theirs, *arguments), daemon=True
        )
        with undisturbed():
            self.process.start()
        theirs.close()
        self.pid: int = self.process.pid or 0
        self.is_gone: bool = False

    def hear(self) -> Any:
        """Its next report, waiting for it; None if it has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.is_gone = True
            self.process.join()
            return None

    def tell(self, message: object) -> None:
        """Send it a message. If it has died, the end of the pipe tells."""
        try:
            self.pipe.send(message)
        except ConnectionError:
            pass

    def kill(self) -> None:
        """SIGKILL, and wait until it has ended."""
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        """End it. Idempotent."""
        self.pipe.close()
        self.process.join(self.patience)
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _run(main: Callable[..., None], pipe: Connection, *arguments: object) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
    os.environ.update(
        {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    )  # servers are on this host
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        main(pipe, *arguments)
    except (EOFError, ConnectionError):  # nobody is left to talk to
        os._exit(1)
