"""Real clients of images, which pull one image again and again: skopeo, and containerd by `ctr`.

    with Pulls(folder, port, name, 4.0) as pulls:    each client that is installed begins to pull
        pulls.clients                           their names
        pulls.stop()                            after the pull that each is at; what became of all

skopeo gives up at the first connection that is cut. Both verify each digest. A client that fails
ends with what it has said.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.closing import Closing
from bench.origin import Origin
from bench.report import CheckFailed, progress

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PATIENCE = 120.0  # s
_CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{folder}/socket"
[ttrpc]
  address = "{folder}/ttrpc"
"""


@dataclass
class Told:
    """What a client has seen: how often it has succeeded; what it said when it failed."""

    client: str
    right: int = 0
    failures: list[str] = field(default_factory=list)


def make_image(origin: Origin, repository: str, tag: str, layers: dict[str, int]) -> None:
    """Have the origin serve an image of blobs that it has: digest -> size."""
    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    folder = origin.folder / "v2" / repository
    path = folder / "blobs" / "new"
    path.write_bytes(config)
    digest = f"sha256:{_sha256(path)}"
    path.rename(folder / "blobs" / digest)
    described = {"mediaType": _CONFIG, "digest": digest, "size": len(config)}
    manifest = folder / "manifests" / tag
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described,
                "layers": [
                    {"mediaType": _LAYER, "digest": each, "size": size}
                    for each, size in layers.items()
                ],
            }
        )
    )
    shutil.copy(manifest, manifest.with_name(f"sha256:{_sha256(manifest)}"))


def _sha256(path: Path) -> str:
    return subprocess.run(
        ["sha256sum", path], check=True, capture_output=True, text=True
    ).stdout.split()[0]


class Pulls(Closing):
    """Clients of a registry at `port`; each pulls `name`, with its tag, again and again.

    `between`: seconds from the end of a pull to the next one.
    """

    def __init__(self, folder: Path, port: int, name: str, between: float) -> None:
        self._folder = folder
        self._between = between
        self._name = f"127.0.0.1:{port}/{name}"
        self._stopped = threading.Event()
        self._daemon: subprocess.Popen[bytes] | None = None
        ways: dict[str, Callable[[], list[list[str]]]] = {}
        if shutil.which("skopeo"):
            ways["skopeo"] = self._skopeo
        if shutil.which("containerd") and shutil.which("ctr"):
            self._start_containerd()
            ways["containerd"] = self._ctr
        self.clients: list[str] = list(ways)
        self._told = [Told(each) for each in ways]
        self._threads = [
            threading.Thread(target=self._pull, args=(told, ways[told.client]))
            for told in self._told
        ]
        for each in self._threads:
            each.start()

    def _skopeo(self) -> list[list[str]]:
        to = self._folder / "copy"
        shutil.rmtree(to, ignore_errors=True)
        copy = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--quiet"]
        return [[*copy, f"docker://{self._name}", f"dir:{to}"]]

    def _ctr(self) -> list[list[str]]:
        ctr = ["ctr", "--address", str(self._folder / "containerd" / "socket")]
        fetch = [*ctr, "content", "fetch", "--plain-http", self._name]
        return [fetch, [*ctr, "images", "remove", "--sync", self._name]]

    def _start_containerd(self) -> None:
        folder = self._folder / "containerd"
        folder.mkdir()
        (folder / "config.toml").write_text(_CONTAINERD.format(folder=folder))
        command = ["containerd", "--config", str(folder / "config.toml"), "--log-level", "error"]
        with (folder / "said").open("wb") as said:
            self._daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command], stdout=said, stderr=said
            )
        for _ in range(600):
            if (folder / "socket").exists():
                return
            if self._daemon.poll() is not None:
                break
            self._stopped.wait(0.1)
        self.close()
        raise CheckFailed(f"containerd does not start: {(folder / 'said').read_text()}")

    def _pull(self, told: Told, way: Callable[[], list[list[str]]]) -> None:
        while not self._stopped.is_set():
            for command in way():
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_PATIENCE, check=False
                )
                if done.returncode:
                    said = (done.stderr or done.stdout)[-500:]
                    progress(f"{told.client}: {said}")
                    told.failures.append(said)
                    break
            else:
                told.right += 1
            self._stopped.wait(self._between)

    def stop(self) -> list[Told]:
        """End after the pull that each client is at."""
        self._stopped.set()
        for each in self._threads:
            each.join()
        return self._told

    def close(self) -> None:
        """End all. Idempotent."""
        self.stop()
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(_PATIENCE)


__all__ = ["MANIFEST", "Pulls", "Told", "make_image"]
