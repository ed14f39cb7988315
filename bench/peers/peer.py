"""A peer: a program that stands between clients and an origin, and how one is run.

    peer.version()              what is installed; `Missing` says what is not
    peer.launches(seat)         write the configuration; the programs to start, the last one serves
    with Proxy(peer, seat) as proxy:
        proxy.port, proxy.cpu(), proxy.memory()

Each is started fresh, in an empty folder and on a port of its own, and counts as ready when it
serves and has come to rest. A peer knows its settings and nothing else; they are those of the table
in docs/benchmarks.md, each a module here.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from bench.closing import Closing
from bench.report import GIB
from bench.server import PATIENCE, NotServing, Port, Server, find_program, privately

WORKERS = 2
"""Of every peer that has any."""

PLENTY = 4 * GIB
"""Bytes that a cache may take where nothing else is said."""

_SAID = 2000  # characters of what a program says
_REST = 0.2  # s ...
_CALM = 0.02  # ... in which a program at rest uses less than so much CPU, in s


class Missing(Exception):
    """The peer is not installed, with how to do so."""


@dataclass(frozen=True)
class Seat:
    """What a peer is given.

    Attributes:
        folder: its own, empty, and anybody may write there, for some insist on not being root.
        port: where it is to serve.
        spare: another port that is its own.
        origin: the port of the origin.
        room: bytes that its cache may take.
    """

    folder: Path
    port: Port
    spare: Port
    origin: int
    room: int

    @property
    def is_small(self) -> bool:
        """Whether the cache is to be too small, as on a disk that is full."""
        return self.room < PLENTY

    def write(self, name: str, text: str) -> Path:
        """A file of this text in the folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def mkdir(self, name: str) -> Path:
        """A folder in the folder, where anybody may write."""
        path = self.folder / name
        path.mkdir(parents=True)
        path.chmod(0o777)
        return path


@dataclass(frozen=True)
class Launch:
    """A program to start: its command, where it serves, and what it is to find.

    `disks` are folders where it is to see an empty file system of so many bytes instead.
    """

    command: Sequence[str]
    port: Port
    environment: Mapping[str, str] = field(default_factory=dict)
    disks: Mapping[str, int] = field(default_factory=dict)


class Peer(Protocol):
    """A program that we know how to run."""

    @property
    def name(self) -> str:
        """For commands and files."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def settings(self) -> str:
        """What of its configuration matters here, for people."""

    def version(self) -> str:
        """What is installed.

        Raises:
            Missing: it is not.
        """

    def launches(self, seat: Seat) -> list[Launch]:
        """Write what it needs into the seat's folder; what to start, in this order."""


class Proxy(Closing):
    """A peer that runs. Use it as a context manager."""

    def __init__(self, peer: Peer, folder: Path, origin: int, room: int | None = None) -> None:
        """Start it in `folder`, which is made.

        Raises:
            NotServing: it does not start, or does not come to rest.
        """
        self._stack = ExitStack()
        self._servers: list[Server] = []
        self._folder = folder
        folder.mkdir()
        folder.chmod(0o777)
        with self._stack as stack:
            seat = Seat(
                folder=folder,
                port=stack.enter_context(Port()),
                spare=stack.enter_context(Port()),
                origin=origin,
                room=PLENTY if room is None else room,
            )
            for launch in peer.launches(seat):
                command = (
                    privately(launch.command, launch.disks) if launch.disks else launch.command
                )
                server = Server(command, launch.port, folder / "said", launch.environment)
                self._servers.append(stack.enter_context(server))
            self.port = seat.port.number
            self._come_to_rest()
            self._stack = stack.pop_all()

    def _come_to_rest(self) -> None:
        deadline = time.monotonic() + PATIENCE
        used = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(_REST)
            before, used = used, self.cpu()
            if used - before < _CALM:
                return
        raise NotServing("it does not come to rest")

    def cpu(self) -> float:
        """CPU seconds that all its processes have used, with those of the children that ended."""
        return sum(server.cpu() for server in self._servers)

    def memory(self) -> int:
        """Bytes that all its processes have, each shared page once (PSS)."""
        return sum(server.memory() for server in self._servers)

    def processes(self) -> list[psutil.Process]:
        """All of them, as of now."""
        return [each for server in self._servers for each in server.processes()]

    def said(self) -> str:
        """The last that its programs have said, for the message of a failure."""
        paths = [self._folder / name for name in ("said", "error.log")]
        return "".join(_end_of(path) for path in paths if path.exists())

    def close(self) -> None:
        """End it. Idempotent."""
        self._stack.close()


def _end_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-_SAID:]


def installed(program: str, package: str) -> str:
    """Where the program is.

    Raises:
        Missing: nowhere.
    """
    path = find_program(program)
    if path is None:
        raise Missing(f"{program} is not installed: apt-get install {package}")
    return path


def answer_of(*command: str) -> str:
    """What a command prints, wherever it does so."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def is_root() -> bool:
    """Whether we are, and a peer should become somebody else."""
    return os.geteuid() == 0
