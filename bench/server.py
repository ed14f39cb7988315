"""A program that serves a port, as a child of ours: started, looked at with its family, ended.

    with Port() as port:                       a free port on the loopback, kept for a server
        with Server(command, port, errors):    waits until it listens
            server.cpu()                       seconds, of it and all that it has started
            server.memory()                    bytes, likewise

The program ends with this process, even if this process is killed: the kernel then sends it
SIGTERM, and it ends its own children. The kernel does so when the thread ends that started the
program, so start it in a thread that lives as long as the program.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from bench.closing import Closing

PATIENCE = 60.0  # s
_GRACE = 2.0  # s; how long a server may take to end when asked
_libc = ctypes.CDLL(None)
_GONE = (psutil.NoSuchProcess, psutil.ZombieProcess)


class NotServing(Exception):
    """The program does not start, or does not listen."""


def find_program(name: str) -> str | None:
    """Where the program is, also where an ordinary user's PATH does not look; None: nowhere."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


def privately(command: Sequence[str], folders: Mapping[str, int]) -> list[str]:
    """The command, with an empty file system of so many bytes at each folder, in this order.

    Only the command and its descendants see these file systems, which are gone with the last of
    them. Users other than root need a Linux that allows user namespaces.
    """
    steps = [
        f"mkdir -p {shlex.quote(folder)}; "
        f"mount -t tmpfs -o size={size},mode=1777 none {shlex.quote(folder)}; "
        for folder, size in folders.items()
    ]
    here = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    )
    again = [] if os.geteuid() == 0 else [
        "unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}",
    ]  # fmt: skip
    script = "".join(steps) + shlex.join(["exec", *again]) + ' "$@"'
    return [*here, "sh", "-ec", script, "sh", *command]


def _cpu(process: psutil.Process) -> float:
    """Seconds that a process has used, exactly, and its ended children, to a hundredth."""
    times = process.cpu_times()
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(process.pid, ctypes.byref(clock)):
        raise psutil.NoSuchProcess(process.pid)
    try:
        own = time.clock_gettime(clock.value)
    except OSError:
        raise psutil.NoSuchProcess(process.pid) from None
    return own + float(times.children_user + times.children_system)


class Port(Closing):
    """A free port on the loopback, kept for a server that we start."""

    def __init__(self) -> None:
        # Bound, but not listening: it keeps the port for a server, which may bind it as well.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.number: int = self._place.getsockname()[1]

    def is_served(self) -> bool:
        """Whether a program listens there."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.number)) == 0

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._place.close()


class Server(Closing):
    """A running program that listens at `port`. What it says goes to the file `said`."""

    def __init__(
        self,
        command: Sequence[str],
        port: Port,
        said: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Raises:
        NotServing: it ends, or does not listen in time.
        """
        with said.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + PATIENCE
        while not port.is_served():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                words = said.read_text(encoding="utf-8", errors="replace")
                raise NotServing(f"{shlex.join(command)} does not start: {words}")
            time.sleep(0.01)

    @property
    def is_running(self) -> bool:
        """Whether the program itself is; its children are another matter."""
        return self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """The program and all that descend from it, as of now."""
        with suppress(*_GONE):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def cpu(self) -> float:
        """Seconds that all of them have used, with those of the children that have ended."""
        total = 0.0
        for each in self.processes():
            with suppress(*_GONE):
                total += _cpu(each)
        return total

    def memory(self) -> int:
        """Bytes that they have, each shared page once (PSS)."""
        total = 0
        for each in self.processes():
            with suppress(*_GONE):
                total += each.memory_full_info().pss
        return total

    def close(self) -> None:
        """End it, and whatever descends from it. Idempotent."""
        family = self.processes()
        with suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(_GRACE)
        for each in family:
            with suppress(*_GONE):
                each.kill()  # psutil looks first whether it still is the same one
        self._process.wait()
        psutil.wait_procs(family, timeout=PATIENCE)
