"""A child of the demo: another interpreter, which does one piece of work and reports on it.

    the demo                                       python -m shmstream.demo.child
    the work, a function ---------------------->   calls it with its own end of the pipe
    what the work asks for -------------------->
                           <--------------------   what the work reports
    closes its end of the pipe, or dies ------->   sends itself SIGTERM

Only these two processes have the pipe open, so each learns at once when the other ends.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TypeAlias

from shmstream.system.signals import undisturbed

Work: TypeAlias = Callable[[Connection], None]

_PATIENCE = 15.0  # s; a child gets it to end by itself
_ROOT = Path(__file__).parents[2]  # a child finds this very package there
_DIRECTLY = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}  # to the origin on this host


class DemoFailed(Exception):
    """The demo cannot go on; the message tells why."""


class Child:
    """The demo's hand on a child. `exit_code` is None until the demo has heard of its end."""

    def __init__(self, undo: ExitStack, work: Work, log: IO[bytes] | None = None) -> None:
        """Start the child. `undo` closes the pipe and waits; a child that does not end is killed.

        It is born with SIGINT, SIGTERM and SIGHUP blocked: a terminal sends Ctrl-C to all of us,
        and it is for the demo to say what that means for a child. `log` gets its standard error.
        """
        self.exit_code: int | None = None
        with undisturbed():
            ours, theirs = Pipe()
            self.pipe: Connection = ours
            undo.callback(self.pipe.close)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "shmstream.demo.child", str(theirs.fileno())],
                    cwd=_ROOT,
                    env=os.environ | _DIRECTLY,
                    stdin=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                )
            undo.callback(self._end)
        self.pid: int = self._process.pid
        self.send(work)

    def send(self, order: object) -> None:
        """Send something to the child. If it has died, `receive` tells."""
        with suppress(BrokenPipeError):
            self.pipe.send(order)

    def receive(self) -> object:
        """Wait for the next report of the child; returns it, or None when the child has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.exit_code = self._process.wait()
            return None

    def kill(self) -> None:
        """Kill the child with SIGKILL, and wait until it has ended."""
        self._process.kill()
        self._process.wait()

    def _end(self) -> None:
        self.pipe.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            Child.kill(self)


def main() -> None:
    """Be a child; the only argument is the descriptor of its end of the pipe."""
    pipe = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_demo, args=[pipe.fileno()], daemon=True).start()
    try:
        pipe.recv()(pipe)  # the work
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the demo has gone
        sys.exit(1)


def _end_with_demo(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # only to be told that the other end is closed
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
