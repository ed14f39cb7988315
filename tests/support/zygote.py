"""Interpreters that have imported what others need, and fork these others.

A fresh `python` takes half a second of a processor to import this library, and more for the command
line. A fork takes some milliseconds. A forked interpreter is a process of its own all the same: it
shares no memory, no descriptor and no lock with the test, it can be killed and stopped, and at its
end Python does all that it does at an exit. It shares three things with its siblings: what has
been imported, the seed of `hash`, and the parent. A test of one of these starts a fresh one.

    test                              zygote                        forked interpreter
    sends what to call, and three
    descriptors
                                      forks                         takes the descriptors as its
                                                                    standard input, output, error
                                      tells the pid                 calls the function, and ends
    sees the end by a pidfd
    asks for the exit code
                                      waits for the process, and
                                      tells its status

A pid means the same process until the zygote waits for it, and that it does only when asked.

    ROLES       forks the interpreters of `interpreters.Interpreter`
    COMMANDS    forks `shmstream ...`, where all warnings are errors
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
_ONCE = ("PYTHON", "LD_", "MALLOC_", "LC_", "LANG", "TZ")
"""Variables that begin so are heeded once, when an interpreter starts, ..."""
_GIVEN = {"PYTHONPATH", "PYTHONWARNINGS"}
"""... but these are the same for all: the zygote has this folder in its path, and its own flags."""
_LENGTH = struct.Struct("!I")


class Forked:
    """A forked interpreter, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self._pidfd = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
                status = self._zygote.order({"wait": self.pid})
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._pidfd)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(pause)  # as `Popen.wait` does: another thread may close the pidfd
            pause = min(pause * 2, 0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """An interpreter that forks others, as the tests see it. It is not there before `begin`."""

    def __init__(self, *flags: str, imports: Sequence[str]) -> None:
        """`imports`: modules that start no thread, and open no descriptor."""
        self._flags = flags
        self._imports = imports
        self._lock = threading.Lock()
        self._owner = 0  # the process that may use it: a forked child has a copy of this object

    def begin(self) -> None:
        """Start it. Does not wait for its imports: the first `fork` does."""
        self._environment = _heeded_once(os.environ)
        self._channel, theirs = socket.socketpair()
        program = "from tests.support.zygote import fork_others; fork_others()"
        with theirs:
            number = theirs.fileno()
            process = subprocess.Popen(
                [sys.executable, *self._flags, "-c", program, str(number), *self._imports],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                pass_fds=[number],
                stdin=subprocess.PIPE,  # the kind of files that a fresh interpreter has
                stdout=subprocess.PIPE,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        self._process = process
        self._owner = os.getpid()

    def can_fork(self, environment: Mapping[str, str]) -> bool:
        """Whether a fresh interpreter with these variables would be like a forked one."""
        is_mine = self._owner == os.getpid()
        return is_mine and _heeded_once(environment) == self._environment

    def fork(
        self,
        call: str,
        *arguments: str,
        files: Sequence[int],
        environment: Mapping[str, str],
        folder: Path = ROOT,
    ) -> Forked:
        """Fork an interpreter that calls "a.module:function". The arguments are its `sys.argv[1:]`.

        `files`: its standard input, output and error.
        """
        os.umask(mask := os.umask(0o077))
        order = {"call": call, "arguments": arguments, "folder": str(folder), "umask": mask}
        return Forked(self, self.order(order | {"environment": dict(environment)}, files))

    def order(self, order: dict[str, Any], files: Sequence[int] = ()) -> int:
        """Give an order; the answer."""
        said = json.dumps(order).encode()
        with self._lock:
            socket.send_fds(self._channel, [_LENGTH.pack(len(said))], files)
            self._channel.sendall(said)
            return int(_LENGTH.unpack(_receive(self._channel, _LENGTH.size))[0])

    def close(self) -> None:
        """End it; what it has forked goes on."""
        self._channel.shutdown(socket.SHUT_RDWR)  # a forked child may have the channel, too
        self._channel.close()
        self._process.wait()


ROLES = Zygote(
    "-X", "dev",
    imports=("tests.support.roles", "tests.support.flights", "shmstream.sources.http"),
)  # fmt: skip
COMMANDS = Zygote(
    "-X", "dev", "-W", "error",
    imports=(
        "shmstream.cli", "shmstream.sources.http", "shmstream.registry.server.serve",
    ),
)  # fmt: skip


@contextmanager
def pipes(*ours_write: bool) -> Iterator[tuple[list[int], list[int]]]:
    """The ends of pipes for the test, and for a process; these are closed at the end."""
    ours: list[int] = []
    theirs: list[int] = []
    for writes in ours_write:
        reading, writing = os.pipe()
        ours.append(writing if writes else reading)
        theirs.append(reading if writes else writing)
    try:
        yield ours, theirs
    finally:
        for each in theirs:
            os.close(each)


def read_all(files: Sequence[IO[bytes]], patience: float) -> list[bytes]:
    """What comes from these pipes until they end."""
    deadline = time.monotonic() + patience
    read = [b"" for _ in files]
    with selectors.DefaultSelector() as selector:
        for number, file in enumerate(files):
            selector.register(file, selectors.EVENT_READ, number)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired("a forked interpreter", patience)
            for key, _ in ready:
                if data := os.read(key.fd, 65536):
                    read[key.data] += data
                else:
                    selector.unregister(key.fileobj)
    return read


def _heeded_once(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_ONCE) and name not in _GIVEN
    }


def _receive(channel: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = channel.recv(count - len(data))
        if not more:
            raise EOFError("the other side has gone")
        data += more
    return data


def fork_others() -> None:
    """Fork interpreters until the test process ends; returns in each of them, and at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the test ends, and then this process
    number, *imports = sys.argv[1:]
    for module in imports:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    channel = socket.socket(fileno=int(number))
    while True:
        head, files, _, _ = socket.recv_fds(channel, _LENGTH.size, 3)
        if not head:  # the test process has ended
            channel.close()
            return
        head += _receive(channel, _LENGTH.size - len(head))
        order = json.loads(_receive(channel, _LENGTH.unpack(head)[0]))
        if "wait" in order:
            channel.sendall(_LENGTH.pack(os.waitpid(order["wait"], 0)[1]))
            continue
        if (pid := os.fork()) == 0:
            channel.close()
            _become(order, files)
            return
        for each in files:
            os.close(each)
        channel.sendall(_LENGTH.pack(pid))


def _become(order: dict[str, Any], files: list[int]) -> None:
    """Do what the order says, as a fresh interpreter would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    os.umask(order["umask"])
    sys.argv[1:] = order["arguments"]
    module, _, function = order["call"].partition(":")
    getattr(importlib.import_module(module), function)()
