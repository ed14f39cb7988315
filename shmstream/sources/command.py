"""Sources that are processes: `CommandSource` starts a command, `ProcessSource` has one given.

A pipe ends in the same way whether its process has written everything or was killed halfway. So a
bare pipe as a source would pass half a blob off as the whole. These sources look at the exit code
before they say that the blob is complete:

    exit code 0           the blob is complete
    another exit code     `SourceError` with the last lines of standard error
    a signal              the same; to try again may help
    an unknown exit code  `SourceError`: SIGCHLD is ignored, or other code has waited for it

A command is started anew for each feed, so a feed begins at 0. It gets a process group of its own,
which ends when the feed is closed: SIGTERM, and after a second SIGKILL. If this process is killed,
the command gets SIGPIPE when it writes the next time.

    thread that iterates                        thread that closes
    1 hold `_lock`; if closed, fail             1 note that it is closed; SIGTERM to the group
    2 wait for output, 0.25 s at most; read     2 hold `_lock`: nobody waits for the pipes now
    3 let go of `_lock`, give the bytes           close them
                                                3 wait for the end; SIGKILL to what is left; reap

The process stays a zombie until 3, so no other group can have its number while signals are sent.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

from shmstream.errors import SourceError, escaped
from shmstream.sources.base import Feed, check_offset, checked, explain
from shmstream.system import greenlets
from shmstream.system.buffers import buffers
from shmstream.system.process import fork_lock

if TYPE_CHECKING:
    import subprocess

    from typing_extensions import Buffer

_READ_SIZE = 128 * 1024  # bytes; a buffer of this size stays in the processor's cache
_SLICE = 0.25  # s; the longest wait before a thread looks whether the feed was closed
_GRACE = 1.0  # s; from SIGTERM to SIGKILL, and from SIGKILL to giving up
_SHOWN = 500  # characters of standard error that an error quotes, from at most three lines

_log = logging.getLogger("shmstream")


class CommandSource:
    """The standard output of a command: `CommandSource(["ffmpeg", "-i", "a.mkv", ...])`.

    The blob is complete only if the command ends with exit code 0. It is started anew whenever the
    source is opened, without a shell and without standard input. A pipeline needs a shell that
    fails if any of its commands fails: `["bash", "-o", "pipefail", "-c", "pg_dump db | zstd"]`.

    Args:
        command: the program and its arguments, each a text of its own.
        cwd: the folder in which it runs; None: that of this process.
        env: its environment; None: that of this process.

    Raises:
        TypeError: `command` is one text, or has something in it that is neither text nor path.
        ValueError: `command` is empty.
    """

    is_live: bool = True

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(command, str | bytes):
            raise TypeError("a command is a list, as ['ffmpeg', '-i', 'a.mkv']; no shell reads it")
        self._command = [os.fspath(each) for each in command]
        if not self._command:
            raise ValueError("a command has at least the name of a program")
        self._cwd = cwd
        self._env = None if env is None else dict(env)
        self.name: str = _name_of(self._command)

    def __repr__(self) -> str:
        return f"CommandSource({self.name!r})"  # an argument may be a secret

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        """Start the command; the feed begins at 0. See `Source.open`. Waits for no output."""
        import subprocess

        check_offset(offset)
        try:
            with fork_lock:  # a child that is forked now would keep the pipes open for ever
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    cwd=self._cwd,
                    env=self._env,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            raise explain(error, offset, name=self.name) from error
        running = _Running(process, self.name)
        explained = partial(explain, name=self.name)
        return Feed(checked(running.output(), 0, None, explained), close=running.close)


class _Running:
    """A command that runs, for one thread that iterates, and any thread that closes."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._out, self._err = process.stdout, process.stderr
        self._name = name
        self._position = 0
        self._said = b""  # the end of its standard error
        self._open = [self._out.fileno(), self._err.fileno()]  # pipes that have not ended
        self._lock = threading.Lock()  # held while a thread waits for the pipes, or closes them
        self._ending = threading.RLock()  # held by the thread that ends the process
        self._is_closed = self._is_over = False
        self._owner = os.getpid()

    # For the thread that iterates.

    def output(self) -> Iterator[Buffer]:
        """Its output, as it comes. An error unless it ends with exit code 0."""
        buffer = bytearray(_READ_SIZE)
        view = memoryview(buffer)
        while (count := self._read(view)) != 0:
            if count is not None:
                self._position += count
                yield view[:count]
            elif _has_failed(self._process):  # and another process has its output open
                break
        pause = 0.001
        while (code := _exit_code(self._process)) is None:  # it has closed its output before
            self._read(view[:0], wait=False)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        self._read(view[:0], wait=False)
        if code != 0:
            raise _failure(self._name, self._position, code, _last_lines(self._said))

    def _read(self, view: memoryview, *, wait: bool = True) -> int | None:
        """Read output into `view`; 0 at its end, None if there is none now. Keeps the errors."""
        with self._lock:
            if self._is_closed:
                raise SourceError(self._name, self._position, "it was closed", retryable=False)
            ready = greenlets.readable(self._open, _SLICE if wait else 0.0)
            if self._err.fileno() in ready:
                data = os.read(self._err.fileno(), _READ_SIZE)
                self._said = (self._said + data)[-8 * _SHOWN :]
                if not data:
                    self._open.remove(self._err.fileno())
            if self._out.fileno() not in ready:
                return None
            count = os.readv(self._out.fileno(), [view]) if len(view) else 0
            if not count:
                self._open.remove(self._out.fileno())
            return count

    # For any thread.

    def close(self) -> None:
        """End the process and its group. Idempotent. Blocks for two seconds at most."""
        import subprocess

        if os.getpid() != self._owner:
            return  # a forked child: the process is the parent's
        self._is_closed = True
        with self._ending:
            if self._is_over:
                return
            self._is_over = True
            self._signal(signal.SIGTERM)
            with self._lock:
                self._out.close()
                self._err.close()
            _wait_for_end(self._process, _GRACE)
            self._signal(signal.SIGKILL)
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                _log.warning("%s: pid %d does not end", self._name, self._process.pid)

    def _signal(self, number: signal.Signals) -> None:
        try:
            _exit_code(self._process)
            os.killpg(self._process.pid, number)
        except (_UnknownCode, ProcessLookupError, PermissionError):
            pass  # it is gone, or it runs as another user


class ProcessSource:
    """The standard output of a process that runs: a `subprocess.Popen` with `stdout=PIPE`.

    The blob is complete only if the process ends with exit code 0. It can be opened once. The
    process belongs to the caller: closing the feed does not end it. Read its standard error, or
    send it elsewhere: a process waits when that pipe is full.

    Raises:
        TypeError: it is no `Popen`, or its output is text.
        ValueError: its output is no pipe.
    """

    is_live: bool = True

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        given: object = process
        if not is_process(given):
            raise TypeError(f"a process is a subprocess.Popen, not {type(given).__name__}")
        if process.stdout is None:
            raise ValueError("the output of the process is no pipe: give stdout=subprocess.PIPE")
        buffers(process.stdout)
        self._process = process
        self._out = process.stdout
        self._is_opened = self._is_closed = False
        args = process.args
        self.name: str = "<sh>" if isinstance(args, str | bytes) else _name_of(args)

    def __repr__(self) -> str:
        return f"ProcessSource({self.name!r})"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        """Read the output from its beginning, once; see `Source.open`."""
        check_offset(offset)
        if self._is_opened:
            raise SourceError(self.name, offset, "it can be read only once", retryable=False)
        self._is_opened = True
        explained = partial(explain, name=self.name, retryable=False)
        return Feed(checked(self._output(), 0, None, explained), close=self._close)

    def _output(self) -> Iterator[Buffer]:
        position = 0
        for data in buffers(self._out):
            position += memoryview(data).nbytes
            yield data
        while (code := _exit_code(self._process)) is None:
            if self._is_closed:
                raise SourceError(self.name, position, "it was closed", retryable=False)
            _wait_for_end(self._process, _SLICE)
        if code != 0:
            raise _failure(self.name, position, code, "", retryable=False)

    def _close(self) -> None:
        self._is_closed = True


# What both share.


def is_process(thing: object) -> TypeGuard[subprocess.Popen[bytes]]:
    """Whether it is a `subprocess.Popen`. There is none if nobody has imported that module."""
    module = sys.modules.get("subprocess")
    return module is not None and isinstance(thing, module.Popen)


class _UnknownCode(ValueError):
    """Nobody can know the exit code of a process any more; `Popen.wait` would say 0."""


def _name_of(args: object) -> str:
    """The program alone, because an argument may be a secret."""
    first = args[0] if isinstance(args, Sequence) and args else args
    program = os.fsdecode(first) if isinstance(first, str | bytes | os.PathLike) else "process"
    return f"<{escaped(os.path.basename(program) or program)}>"


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Its exit code, or -N for signal N; None while it runs. Does not reap it.

    Raises:
        _UnknownCode: it has ended, and its exit code is lost.
    """
    if (known := _noted_code(process)) is not None:
        return known
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError as error:
        if (known := _noted_code(process)) is not None:  # another thread has just reaped it
            return known
        reason = "its exit code is not known: SIGCHLD is ignored, or it was waited for elsewhere"
        raise _UnknownCode(reason) from error
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _noted_code(process: subprocess.Popen[bytes]) -> int | None:
    return process.returncode


def _has_failed(process: subprocess.Popen[bytes]) -> bool:
    return _exit_code(process) not in (None, 0)


def _wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the end of a process, without reaping it, at most so long."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    try:
        while _exit_code(process) is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(pause * 2, 0.02)
    except _UnknownCode:
        return


def _failure(
    name: str, offset: int, code: int, said: str, *, retryable: bool = True
) -> SourceError:
    if code > 0:
        how, retryable = f"it ended with exit code {code}", False
    else:
        how = f"{_signal_name(-code)} ended it"
    return SourceError(name, offset, f"{how}: {said}" if said else how, retryable)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _last_lines(said: bytes) -> str:
    """The last lines that were written to standard error."""
    lines = re.split(r"[\r\n]+", said.decode("utf-8", "backslashreplace"))
    told = " | ".join(escaped(each.strip()) for each in [it for it in lines if it.strip()][-3:])
    return told if len(told) <= _SHOWN else "..." + told[-_SHOWN:]
