"""A dockerd of Debian's next release, which pulls from a mirror of Docker Hub into its own folder.

    docker = Dockerd(folder, ours.host, containerd)
    docker.pulling("team/app:v1")          without a namespace, as Docker asks a mirror

It sets up no network, and has no containers. The daemon dies with the test, even a killed one.
"""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

from tests.support.containerd import Containerd
from tests.support.interpreters import PATIENCE
from tests.support.programs import Client, begin, begin_daemon, program

_NO_NETWORK = {
    "bridge": "none",
    "iptables": False,
    "ip6tables": False,
    "ip-forward": False,
    "ip-masq": False,
    "userland-proxy": False,
}


class Dockerd:
    """A running dockerd. `folder` has a short path, as sockets need it."""

    def __init__(self, folder: str, mirror: str, containerd: Containerd) -> None:
        """`mirror`: the host and port that is asked for images of Docker Hub.

        A dockerd wants a containerd, and does not use it for pulling here.
        """
        self._folder = Path(folder)
        self._socket = self._folder / "docker.socket"
        settings = {
            **_NO_NETWORK,
            "registry-mirrors": [f"http://{mirror}"],
            "containerd": containerd.address,
            "storage-driver": "vfs",
            "data-root": f"{folder}/docker",
            "exec-root": f"{folder}/docker-run",
            "pidfile": f"{folder}/docker.pid",
            "hosts": [f"unix://{self._socket}"],
        }
        path = self._folder / "daemon.json"
        path.write_text(json.dumps(settings))
        daemon = program("dockerd", "docker.io", newer=True)
        log = self._folder / "docker.log"
        self._process = begin_daemon([daemon, "--config-file", path], self._socket, log)
        try:
            assert b" 200 " in self._ping(), log.read_text()
        except BaseException:
            self.close()
            raise

    def _ping(self) -> bytes:
        """What it answers. It takes connections before it is ready, and answers then."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self._socket))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return connection.recv(1024)

    def _command(self, *arguments: str) -> list[str]:
        own = ["--config", f"{self._folder}/docker-client", "--host", f"unix://{self._socket}"]
        return [program("docker", "docker-cli", newer=True), *own, *arguments]

    def pulling(self, name: str) -> Client:
        """Begin to pull an image."""
        return begin(self._command("pull", "--platform", "linux/amd64", name))

    def layers(self, name: str) -> list[str]:
        """The digests of the unpacked layers of an image that it has."""
        told = subprocess.run(
            self._command("image", "inspect", "--format", "{{json .RootFS.Layers}}", name),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        found: list[str] = json.loads(told.stdout)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
