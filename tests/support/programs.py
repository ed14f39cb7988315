"""Programs that we did not write: of Debian, and of its next release, in a folder of their own.

program("podman", "podman")                          its path
program("containerd", "containerd", newer=True)      `.ci/next-debian` has unpacked it
begin(command)                                       a client
begin_daemon(command, socket, log)                   a server, which dies with the test process
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.interpreters import wait_until

Client: TypeAlias = "subprocess.Popen[str]"
_NEXT = Path.home() / ".cache/shmstream-tests/next-debian"


def program(name: str, package: str, *, newer: bool = False) -> str:
    """The path of a program. Without it the test is skipped, or fails if it must run."""
    own = f"{os.environ.get('PATH', '')}:/usr/sbin"
    found = shutil.which(name, path=f"{_NEXT}/usr/bin:{_NEXT}/usr/sbin" if newer else own)
    if found is None:
        if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
            how = ".ci/next-debian" if newer else f"apt-get install {package}"
            pytest.fail(f"{name} is not installed: {how}")
        pytest.skip(f"{name} is not installed")
    return found


def begin(command: Sequence[str | Path], **environment: str) -> Client:
    """Start a client whose errors are kept; its environment is ours, and `environment`."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def begin_daemon(
    command: Sequence[str | Path], address: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Start a daemon as root, and wait until it listens.

    It dies with this process, even a killed one. What it mounts, and what it puts into /run, is its
    own, and ends with it. `address` is its socket, which is there before the daemon listens at it.
    """
    if os.geteuid() != 0 and os.environ.get("SHMSTREAM_REQUIRE_REAL") != "1":
        pytest.skip(f"{command[0]} runs as root only")
    dies = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount"]
    alone = ["sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [*dies, *alone, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        wait_until(lambda: _listens(address) or daemon.poll() is not None)
        assert daemon.poll() is None, log.read_text()
    except BaseException:
        daemon.kill()
        daemon.wait()
        raise
    return daemon


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(address)) == 0
