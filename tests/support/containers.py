"""Containers that share a folder, and have a /dev/shm and process ids of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from tests.support.interpreters import Interpreter, wait_until

_SETUP = "mount -t tmpfs tmpfs /dev/shm && touch /dev/shm/ready && exec sleep infinity"


class Container:
    """A mount namespace and a pid namespace, until it is closed."""

    def __init__(self) -> None:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen([*command, "sh", "-c", _SETUP])
        wait_until(self._is_ready)
        [init] = psutil.Process(self._process.pid).children()
        self.within: tuple[str, ...] = ("nsenter", f"--target={init.pid}", "--mount", "--pid")
        """The command before each command that is to run in it."""

    def _is_ready(self) -> bool:
        assert self._process.poll() is None
        inside = psutil.Process(self._process.pid).children()
        return bool(inside) and os.path.exists(f"/proc/{inside[0].pid}/root/dev/shm/ready")

    def streams(self) -> list[str]:
        """What its /dev/shm has."""
        [init] = psutil.Process(self._process.pid).children()
        return sorted(set(os.listdir(f"/proc/{init.pid}/root/dev/shm")) - {"ready"})

    def close(self) -> None:
        """Kill all processes of the container."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def containers() -> Iterator[tuple[Container, Container]]:
    """Two containers. Needs root."""
    pair = Container(), Container()
    yield pair
    for each in pair:
        each.close()


def send(interpreter: Interpreter, number: int) -> None:
    """Send a signal to the process that runs in a container, and wait until it has acted."""
    [process] = psutil.Process(interpreter.pid).children()
    process.send_signal(number)
    if number == signal.SIGKILL:
        wait_until(lambda: interpreter.process.poll() is not None)
    elif number == signal.SIGSTOP:
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    elif number == signal.SIGCONT:
        interpreter.resume()  # `nsenter` stops when its child does
