"""A containerd of Debian, with a folder of its own: a client that writes its downloads to a store.

    containerd = Containerd(folder, {"docker.io": ours.host})
    containerd.fetching("docker.io/team/app:v1")     with `?ns=docker.io`

The daemon dies with the test, even a killed one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.docker_registry import program
from tests.support.interpreters import PATIENCE, wait_until

_CONFIGURATION = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{folder}/socket"
"""
_HOSTS = """
server = "http://127.0.0.1:1"
[host."http://{host}"]
capabilities = ["pull", "resolve"]
"""


class Containerd:
    """A running containerd. `folder` has a short path, as sockets need it."""

    def __init__(self, folder: str, mirrors: dict[str, str]) -> None:
        """`mirrors`: for each namespace, the host and port that is asked for it."""
        self._folder = Path(folder)
        self._socket = self._folder / "socket"
        path = self._folder / "config.toml"
        path.write_text(_CONFIGURATION.format(folder=folder))
        for namespace, host in mirrors.items():
            hosts = self._folder / "certs.d" / namespace
            hosts.mkdir(parents=True)
            (hosts / "hosts.toml").write_text(_HOSTS.format(host=host))
        daemon = program("containerd", "containerd")
        if os.geteuid() != 0 and os.environ.get("SHMSTREAM_REQUIRE_REAL") != "1":
            pytest.skip("containerd runs as root only")
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    daemon,
                    "--config",
                    self._folder / "config.toml",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self._socket.exists() or self._process.poll() is not None)
        assert self._process.poll() is None, (self._folder / "log").read_text()

    def fetching(self, name: str) -> subprocess.Popen[str]:
        """Begin to fetch an image."""
        hosts = ["--hosts-dir", str(self._folder / "certs.d"), "--platform", "linux/amd64"]
        command = [program("ctr", "containerd"), "--address", str(self._socket), "content", "fetch"]
        return subprocess.Popen(
            [*command, *hosts, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def has(self, digest: str) -> bool:
        """Whether it has that blob, which it has verified."""
        algorithm, _, name = digest.partition(":")
        store = self._folder / "root/io.containerd.content.v1.content/blobs" / algorithm
        return (store / name).is_file()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
