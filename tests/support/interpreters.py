"""Interpreters of their own, which talk with a test in lines over pipes.

A test starts a *role*, a function of a module, in a fresh `python` that shares nothing with the
test but the arguments. The two talk in JSON lines: one side says a line, the other side hears it.
Hearing synchronises them; nothing sleeps. Every wait is bounded. If a role fails, the test shows
its traceback.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from shmstream.system import threads

PATIENCE = 60.0  # s; a step of a test that takes longer has failed, however busy the machine is
_ROOT = Path(__file__).parents[2]


class Link:
    """The role's side of the line."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # a stray print is no message

    def close(self) -> None:
        self._out.close()

    def say(self, value: Any) -> None:
        self._out.write(json.dumps(value) + "\n")

    def hear(self) -> Any:
        line = sys.stdin.readline()
        if not line:
            raise EOFError("the test has gone")
        return json.loads(line)


class Interpreter:
    """One interpreter that runs one role."""

    def __init__(
        self, role: Callable[..., None], *arguments: Any, within: tuple[str, ...] = ()
    ) -> None:
        self.role = role.__name__
        self.process = subprocess.Popen(
            [
                *within,
                sys.executable,
                "-X",
                "dev",
                "-c",
                "from tests.support.interpreters import run; run()",
                role.__module__,
                role.__name__,
                json.dumps(arguments),
            ],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},  # `within` may change the folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self._heard = b""

    def say(self, value: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def hear(self, patience: float = PATIENCE) -> Any:
        """The next message. An AssertionError if the role ends or says nothing."""
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        while b"\n" not in self._heard:
            if not select.select([out], [], [], patience)[0]:
                raise AssertionError(f"{self.role} said nothing for {patience} s{self._autopsy()}")
            more = os.read(out, 65536)
            if not more:
                raise AssertionError(f"{self.role} ended without a word{self._autopsy()}")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def _autopsy(self) -> str:
        self.kill()
        assert self.process.stderr is not None
        return f" (exit {self.process.returncode}):\n{self.process.stderr.read()}"

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Send SIGSTOP, and wait until the process has stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end of the process."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def wait_killed(self) -> None:
        """Wait until the process has ended by SIGKILL."""
        if self.process.wait(PATIENCE) != -signal.SIGKILL:
            raise AssertionError(f"{self.role} was not killed{self._autopsy()}")

    def finish(self) -> str:
        """End the role's input, and wait for its clean end; what it wrote to standard error."""
        assert self.process.stderr is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.role} does not end{self._autopsy()}") from None
        errors = self.process.stderr.read()
        assert code == 0, f"{self.role} ended with {code}:\n{errors}"
        return errors

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def run() -> None:
    """Run the role that the command line names; called in the fresh interpreter."""
    module, name, arguments = sys.argv[1:]
    role = getattr(importlib.import_module(module), name)
    link = Link()
    role(link, *json.loads(arguments))
    link.close()


def live_threads() -> list[str]:
    """The names of the threads of this process, without those that wait for their next use."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.is_alive() and thread.name != threads.IDLE
    ]


def wait_until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until `condition` holds: for a fact that no process announces."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)
