"""`Starter`: starts the process of a worker, by fork from the supervisor or by exec.

To import all that a worker needs takes half a second of a processor, which the clients of a busy
host lack. So the supervisor imports it once (`prepare`), and a worker is a fork of the supervisor:
it begins after some milliseconds, and shares the memory of what was imported.

The forked child must be as a program that was just started. Its first steps, in this order:

    1 gc.freeze       no object of the supervisor is ever freed here. To free a socket would close
                      its descriptor, and that number soon belongs to another file. For the same
                      reason the child never returns from the call that it was forked in: it ends
                      with `os._exit`
    2 descriptors     the end of a pipe becomes descriptor 0, and everything is closed but 0, 1, 2,
                      the listening socket, and the two descriptors of the keeper. The child has
                      inherited the duplicates of all client connections, and the pipes of the other
                      workers: these would not end as long as this child lives
    3 the rest        its process group, the handlers of signals and of the log, what the supervisor
                      has to do at its own end, the environment

When `main` returns or raises, the child ends as a program does (`ending`).

`system.process` does at a fork what the package needs. The mask of signals stays, as with exec.

A child has no thread but the one that forked, and finds locked for ever what another thread had
locked. So the supervisor forks only if it has no thread but its own and that of the keeper, which
is still meanwhile. If the application's code, or a library, has started a thread, workers are
started by exec.

What happens at the same time:

    the keeper's thread has a message   the supervisor forks while it holds the keeper's lock. So
                                        that thread waits for a message, or for the lock. It holds
                                        no other lock that the child would find taken for ever
    a connection ends between the       its worker has shut it down, so the client sees the end at
    child's fork and step 2             once. A connection that was only closed ends after step 2
    the child is killed before its      the kernel closes what it has. The supervisor sees its end
    first message                       as that of any worker: it has a process id from the start
    the supervisor is killed after      the child has the other end of its own pipe until step 2.
    the fork                            Then it reads the end of the pipe, and ends. The same is
                                        true of the pipes of all other workers
    Ctrl-C in a terminal before the     the signal is blocked in the child. The supervisor sets the
    child has its process group         group as well, so this lasts for an instant only

After SIGHUP, `renew` compares the files of all imported code with what was imported. If a file has
changed, as at an upgrade, workers are started by exec from then on. This is also done where fork is
not possible.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, NoReturn

from shmstream.registry.server import ending

_ROOT = str(Path(__file__).parents[3])  # workers import the package from here
_DESCRIPTORS = "/proc/self/fd"
_THREADS = "/proc/self/task"

Facts = tuple[int, int, int] | None


class Forked:
    """A forked child, as `subprocess.Popen` is a program that was started. For one thread."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid: int = pid
        self.stdin: IO[bytes] = stdin
        """The child ends when this is closed."""
        self.returncode: int | None = None
        """The exit code; of a child that a signal has ended, that number, negative."""

    def poll(self) -> int | None:
        """The exit code; None if the child has not ended yet."""
        return self._look(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        code = self._look(0)
        assert code is not None
        return code

    def _look(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # the system keeps no exit codes: SIGCHLD is ignored
                self.returncode = 0
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, if it has not ended."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, likewise."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:  # as long as it is not waited for, no other process has its id
            os.kill(self.pid, number)


Process = subprocess.Popen[bytes] | Forked
"""The process of a worker."""


class Starter:
    """Starts workers. For the main thread."""

    def __init__(self, module: str, listener: int, environment: Mapping[str, str]) -> None:
        """`module` is run as a program, with the number of the worker and this descriptor.

        A forked worker is a call of its `main`, with the same `sys.argv`. Its `prepare`, if there
        is such a function, imports what a worker needs.
        """
        self._module = module
        self._listener = listener
        path = os.pathsep.join(filter(None, [_ROOT, environment.get("PYTHONPATH")]))
        self._environment = {**environment, "PYTHONPATH": path}
        self._main: Callable[[], object] | None = None  # None: no worker is forked
        self._code: dict[str, Facts] = {}

    def prepare(self) -> None:
        """Import what workers need, if they can be forked. Before there are threads."""
        if not _can_fork():
            return
        module = importlib.import_module(self._module)
        if hasattr(module, "prepare"):
            module.prepare()
        self._code = {each: _facts(each) for each in _files()}
        self._main = module.main
        gc.collect()
        gc.freeze()  # collections would write to these objects, and so copy memory for each worker

    def renew(self) -> None:
        """Start workers with the code as it is now."""
        if any(_facts(file) != facts for file, facts in self._code.items()):
            self._main = None

    def tell(self, variable: str, text: str) -> None:
        """Have workers that are started from now on find this in their environment."""
        self._environment[variable] = text

    def start(
        self, number: int, variables: Mapping[str, str], post: Sequence[int],
        still: AbstractContextManager[object] | None,
    ) -> Process:  # fmt: skip
        """Start a worker, which inherits the descriptors `post` and finds these variables.

        In `still`, the one other thread of this process holds no lock; None: there is none.

        Raises:
            OSError: there is no memory, there are no descriptors, or too many processes.
        """
        arguments = [str(number), str(self._listener)]
        environment = {**self._environment, **variables}
        kept = [self._listener, *post]
        threads = 1 if still is None else 2
        if self._main is None or len(os.listdir(_THREADS)) > threads:
            return self._execute(arguments, environment, kept)
        return _fork(self._main, arguments, environment, kept, still or nullcontext())

    def _execute(
        self, arguments: list[str], environment: dict[str, str], kept: list[int]
    ) -> Process:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, *arguments],
            stdin=subprocess.PIPE,
            stdout=None if sys.stdout is not None else subprocess.DEVNULL,
            stderr=None if sys.stderr is not None else subprocess.DEVNULL,
            pass_fds=kept,
            process_group=0,
            env=environment,
        )


def _can_fork() -> bool:
    """Whether a forked child can close what it must not have, and 0, 1 and 2 are the usual ones."""
    return os.path.isdir(_DESCRIPTORS) and None not in (sys.stdin, sys.stdout, sys.stderr)


def _files() -> set[str]:
    """The files of all that was imported."""
    found = (getattr(each, "__dict__", {}).get("__file__") for each in [*sys.modules.values()])
    return {each for each in found if isinstance(each, str)}


def _facts(file: str) -> Facts:
    """What changes if a file is written or replaced; None if there is no such file."""
    try:
        facts = os.stat(file)
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _fork(
    main: Callable[[], object],
    arguments: list[str],
    environment: dict[str, str],
    kept: list[int],
    still: AbstractContextManager[object],
) -> Forked:
    """Fork a child that calls `main`, and has these descriptors beside 0, 1 and 2."""
    for each in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # it is full, or closed
            each.flush()  # the child would write the same once more
    end, stdin = os.pipe()
    try:
        with still, warnings.catch_warnings():
            # From Python 3.12 on it warns of threads: they may hold locks. Here they hold none.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    except OSError:
        os.close(end)
        os.close(stdin)
        raise
    if pid == 0:
        _be_worker(main, arguments, environment, end, kept)
    os.close(end)
    with suppress(OSError):  # it has ended
        os.setpgid(pid, pid)
    return Forked(pid, os.fdopen(stdin, "wb", buffering=0))


def _be_worker(
    main: Callable[[], object],
    arguments: list[str],
    environment: dict[str, str],
    end: int,
    kept: list[int],
) -> NoReturn:
    """Become a new process, in the forked child. The docstring of the module has the order."""
    code = 1
    try:
        gc.freeze()
        os.dup2(end, 0)
        _close_all_but(kept)
        os.setpgid(0, 0)
        _reset_signals()
        _freed_never, logging.root.handlers = logging.root.handlers, []
        ending.forget()
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
        code = ending.run(main)
    except BaseException:  # noqa: BLE001  a step has failed: nobody else would tell
        traceback.print_exc()
    finally:
        os._exit(code)


def _close_all_but(kept: Sequence[int]) -> None:
    """Close all descriptors but these, and 0, 1 and 2."""
    highest = max(map(int, os.listdir(_DESCRIPTORS)))
    before = 2
    for each in [*sorted(kept), highest + 1]:
        if before + 1 < each:
            os.closerange(before + 1, each)
        before = each


def _reset_signals() -> None:
    """As exec does: no function of the supervisor handles a signal."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)
