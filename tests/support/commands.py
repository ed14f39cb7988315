"""`shmstream ...`, run as a user runs it: with pipes, or in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import secrets
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from shmstream.stream import doorbell, segment
from tests.support.interpreters import PATIENCE
from tests.support.zygote import COMMANDS, Forked, pipes, read_all

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable, "-X", "dev", "-W", "error"]
_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def begin(
    *arguments: str, cwd: Path, environment: Mapping[str, str], files: Sequence[int]
) -> subprocess.Popen[bytes] | Forked:
    """Begin `shmstream ...`, in a forked interpreter if that makes no difference.

    `files`: its standard output and error.
    """
    customized = any(
        Path(each, "sitecustomize.py").exists()
        for each in environment.get("PYTHONPATH", "").split(":")
    )
    if not customized and COMMANDS.can_fork(environment):
        with open(os.devnull, "rb") as nothing:
            return COMMANDS.fork(
                "shmstream.__main__:main",
                *arguments,
                files=[nothing.fileno(), *files],
                environment=environment,
                folder=cwd,
            )
    return subprocess.Popen(
        [*PYTHON, "-m", "shmstream", *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=files[0],
        stderr=files[1],
    )


class Running:
    """`shmstream ...` with pipes for its output."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        with pipes(False, False) as (ours, theirs):
            self.stdout, self.stderr = (os.fdopen(each, "rb", 0) for each in ours)
            self.process = begin(*arguments, cwd=cwd, environment=os.environ, files=theirs)

    def read(self, count: int) -> bytes:
        """Wait for the next `count` bytes of standard output; fewer only at its end."""
        data = b""
        while len(data) < count and (more := os.read(self.stdout.fileno(), count - len(data))):
            data += more
        return data

    def finish(self) -> tuple[int, bytes, str]:
        """Wait until it ends; returns its exit code, standard output and standard error."""
        out, errors = read_all([self.stdout, self.stderr], PATIENCE)
        told = errors.decode()
        assert "Traceback" not in told, told
        assert "Warning" not in told, told
        return self.process.wait(PATIENCE), out, told

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        self.stderr.close()


class Command:
    """`shmstream ...`, in a terminal of 100 columns, or with one pipe for all of its output.

    All of its processes have a mark in their environment; a process that is left is found by it.
    """

    def __init__(self, folder: Path, *arguments: str, terminal: bool) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self._mark = secrets.token_hex(8)
        self._seen = b""
        command = [*PYTHON, "-m", "shmstream", *arguments]
        if terminal:
            self._out, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))
            command = [sys.executable, "-c", _IN_TERMINAL, *command]
        else:
            self._out, theirs = os.pipe()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "SHMSTREAM_TEST_MARK": self._mark,
                "TERM": "xterm-256color",
                "TMPDIR": str(self.temporary),
            },
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    @property
    def output(self) -> str:
        """What it has printed so far, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen.decode()).replace("\r\n", "\n")

    @property
    def is_plain(self) -> bool:
        return b"\x1b" not in self._seen

    def _look(self) -> bool:
        """Wait for more output; False at the end of the output."""
        if not select.select([self._out], [], [], PATIENCE)[0]:
            raise AssertionError(f"nothing more came after:\n{self.output}")
        try:
            data = os.read(self._out, 65536)
        except OSError:  # no process has the terminal open any more
            data = b""
        self._seen += data
        return bool(data)

    def wait_for(self, pattern: str) -> str:
        """Wait until the output matches `pattern`; returns its last group, or the whole match."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.output)):
            more = self._look() and time.monotonic() < deadline
            assert more, f"{pattern!r} was never seen in:\n{self.output}"
        return found.group(found.lastindex or 0)

    def press(self, key: bytes) -> None:
        os.write(self._out, key)

    def finish(self) -> int:
        """Wait until it ends; returns its exit code."""
        while self._look():
            pass
        return self.process.wait(PATIENCE)

    def processes(self) -> list[int]:
        """Its processes that are alive."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SHMSTREAM_TEST_MARK") == self._mark:
                    found.append(process.pid)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found

    def check(self, name: str | None = None, token: int | None = None) -> None:
        """Assert that nothing is left of it, nor of its stream."""
        assert self.processes() == []
        assert list(self.temporary.iterdir()) == []
        assert "Traceback" not in self.output
        assert name is None or name not in segment.names()
        assert token is None or list(doorbell.names(token)) == []

    def close(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        os.close(self._out)
