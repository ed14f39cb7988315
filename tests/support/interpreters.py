"""Interpreters of their own, which talk with a test in lines over pipes.

A test starts a *role*, a function of a module, in a `python` that shares nothing with the test but
the arguments. The two talk in JSON lines: one side says a line, the other side hears it. Hearing
synchronises them; nothing sleeps. Every wait is bounded. If a role fails, the test shows its
traceback.

The interpreter is a fresh one, or a fork of the zygote (`zygote`), which has imported this library.
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psutil

from shmstream.system import threads
from tests.support.zygote import ROOT, Forked, Zygote, pipes

RUN = "tests.support.interpreters:run"
PATIENCE = 60.0  # s; a step of a test that takes longer has failed, however busy the machine is


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

    def hear_all(self) -> Iterator[Any]:
        """What the test says, one value after the other, until it has gone."""
        with suppress(EOFError):
            while True:
                yield self.hear()


class Interpreter:
    """One interpreter that runs one role."""

    def __init__(
        self,
        role: Callable[..., None],
        *arguments: Any,
        within: tuple[str, ...] = (),
        zygote: Zygote | None = None,
    ) -> None:
        """`within`: a command before the interpreter's own. `zygote`: forks it, if it can."""
        self.role = role.__name__
        command = role.__module__, role.__name__, json.dumps(arguments)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}  # `within` may change the folder
        self.process: subprocess.Popen[str] | Forked
        with pipes(True, False, False) as (ours, theirs):
            self.stdin = os.fdopen(ours[0], "w")
            self.stdout, self.stderr = os.fdopen(ours[1]), os.fdopen(ours[2])
            if zygote is not None and not within and zygote.can_fork(environment):
                self.process = zygote.fork(RUN, *command, files=theirs, environment=environment)
            else:
                program = "from tests.support.interpreters import run; run()"
                self.process = subprocess.Popen(
                    [*within, sys.executable, "-X", "dev", "-c", program, *command],
                    cwd=ROOT,
                    env=environment,
                    stdin=theirs[0],
                    stdout=theirs[1],
                    stderr=theirs[2],
                    text=True,
                )
        self.pid = self.process.pid
        self._heard = b""

    def say(self, value: Any) -> None:
        self.stdin.write(json.dumps(value) + "\n")
        self.stdin.flush()

    def hear(self, patience: float = PATIENCE) -> Any:
        """The next message. An AssertionError if the role ends or says nothing."""
        out = self.stdout.fileno()
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
        return f" (exit {self.process.returncode}):\n{self.stderr.read()}"

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
        self.stdin.close()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.role} does not end{self._autopsy()}") from None
        errors = self.stderr.read()
        assert code == 0, f"{self.role} ended with {code}:\n{errors}"
        return errors

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.stdin, self.stdout, self.stderr):
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
    """Run the role that the command line names; called in the interpreter."""
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
        if thread.is_alive() and not _waits_for_its_next_use(thread)
    ]


def _waits_for_its_next_use(thread: threading.Thread) -> bool:
    """Not if it was given a call, and has not begun it yet: the call gives it its name."""
    is_given = isinstance(thread, threads._Thread) and not thread.calls.empty()
    return thread.name == threads.IDLE and not is_given


def wait_until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until `condition` holds: for a fact that no process announces."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)
