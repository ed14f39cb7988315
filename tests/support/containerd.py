"""A containerd of Debian, with a folder of its own: a client that writes its downloads to a store.

    containerd = Containerd(folder, {"docker.io": ours.host})
    containerd.fetching("docker.io/team/app:v1")     with `?ns=docker.io`

The daemon dies with the test, even a killed one.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.interpreters import PATIENCE
from tests.support.programs import Client, begin, begin_daemon, program

_CONFIGURATION = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
]
[grpc]
address = "{folder}/socket"
"""
_PARTS = """
[plugins."io.containerd.transfer.v1.local"]
concurrent_layer_fetch_buffer = {part}
"""
_HOSTS = """
server = "http://127.0.0.1:1"
[host."http://{host}"]
capabilities = ["pull", "resolve"]
"""


class Containerd:
    """A running containerd. `folder` has a short path, as sockets need it."""

    def __init__(
        self, folder: str, mirrors: dict[str, str], *, newer: bool = False, part: int = 0
    ) -> None:
        """`mirrors`: for each namespace, the host and port that is asked for it.

        `newer`: containerd 2, else 1. Its `pulling` gets several parts of this size at a time.
        """
        self._newer = newer
        self._folder = Path(folder)
        self._socket = self._folder / "socket"
        path = self._folder / "config.toml"
        told = _CONFIGURATION + (_PARTS if part else "")
        path.write_text(told.format(folder=folder, part=part))
        for namespace, host in mirrors.items():
            hosts = self._folder / "certs.d" / namespace
            hosts.mkdir(parents=True)
            (hosts / "hosts.toml").write_text(_HOSTS.format(host=host))
        daemon = program("containerd", "containerd", newer=newer)
        log = self._folder / "log"
        self._process = begin_daemon([daemon, "--config", path], self._socket, log)

    @property
    def address(self) -> str:
        """Where it takes requests: a path."""
        return str(self._socket)

    def _ctr(self, *arguments: str) -> Client:
        command = [program("ctr", "containerd", newer=self._newer), "--address", self.address]
        return begin([*command, *arguments])

    def _of(self, name: str) -> list[str]:
        return ["--hosts-dir", f"{self._folder}/certs.d", "--platform", "linux/amd64", name]

    def fetching(self, name: str) -> Client:
        """Begin to fetch an image: the client asks the registry, and the daemon stores."""
        return self._ctr("content", "fetch", *self._of(name))

    def pulling(self, name: str) -> Client:
        """Begin to pull an image: in containerd 2 the daemon asks the registry, and unpacks."""
        return self._ctr("images", "pull", *self._of(name))

    def has(self, digest: str) -> bool:
        """Whether it has that blob, which it has verified."""
        algorithm, _, name = digest.partition(":")
        store = self._folder / "root/io.containerd.content.v1.content/blobs" / algorithm
        return (store / name).is_file()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
