"""Real clients at once, through four workers, while the leading worker, then the upstream, dies."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from tests.registry.test_registry_faults import serve_manifest
from tests.support import registries
from tests.support.containerd import Containerd
from tests.support.image_clients import CLIENTS
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Image, digest_of, image, index
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.registries import Podman, Registry, has_image, skopeo

MIB = 1 << 20
SIZE = 12 * MIB
STEP = 4 * MIB  # so much comes before the upstream waits for the test
NAME = "storm/app"


def serve_image(origin: Origin, folder: Path) -> Image:
    """An index of one image, whose layer stalls after `STEP` of each answer."""
    what = image(700, [SIZE])
    many = index({"amd64": what})
    serve_manifest(origin, NAME, "v1", many.manifest.decode(), OCI_INDEX)
    serve_manifest(origin, NAME, what.digest, what.manifest.decode(), OCI_MANIFEST)
    config, layer = what.blobs
    origin.serve(f"/v2/{NAME}/blobs/{digest_of(config)}", text=config.decode())
    (folder / "layer").write_bytes(layer)
    path = f"/v2/{NAME}/blobs/{digest_of(layer)}"
    origin.serve(path, file=str(folder / "layer"), stall_after=STEP)
    return what


class Trying:
    """A client in a thread; `run` is called until it tells of no error, a few times at most.

    skopeo and podman do not go on by themselves when their connection is cut; people and scripts
    start them again. containerd does go on.
    """

    def __init__(self, run: Callable[[], str]) -> None:
        self.errors: list[str] = []
        self._run = run
        self._thread = threading.Thread(target=self._try)
        self._thread.start()

    def _try(self) -> None:
        while (error := self._run()) and len(self.errors) < 3:
            self.errors.append(error)
        if error:
            self.errors.append("and it was not started again")

    def end(self) -> None:
        self._thread.join()
        assert len(self.errors) < 4, self.errors


def errors_of(client: subprocess.Popen[str]) -> str:
    _, errors = client.communicate(timeout=PATIENCE)
    return errors if client.returncode else ""


def copy(ours: Registry, folder: Path) -> str:
    """What skopeo tells of errors."""
    return errors_of(skopeo(f"{NAME}:v1", ours.host, folder, "--retry-times", "3"))


def wait_for_all(ours: Registry, clients: int, published: int) -> None:
    """Wait until all clients wait for the same bytes of the layer."""
    wait_until(lambda: ours.serving.metric("shmstream_clients") == clients)
    wait_until(lambda: [each.published for each in ours.store.flights()] == [published])


def test_the_leader_and_then_the_upstream_die(
    run_registry: registries.Run, origin: Origin, tmp_path: Path
) -> None:
    what = serve_image(origin, tmp_path)
    [layer] = what.layers
    path = f"/v2/{NAME}/blobs/{layer}"
    ours = run_registry({None: origin.url(""), "named.test": origin.url("")}, workers=4)
    with ExitStack() as keeping, ExitStack() as ending:
        short, other = (keeping.enter_context(tempfile.TemporaryDirectory()) for _ in range(2))
        podman, folders = Podman(short), [tmp_path / "a", tmp_path / "b"]
        containerd = keeping.enter_context(closing(Containerd(other, {"named.test": ours.host})))
        fetching = Trying(lambda: errors_of(containerd.fetching(f"named.test/{NAME}:v1")))
        trying = [fetching, Trying(lambda: podman.errors(f"{ours.host}/{NAME}:v1"))]
        trying += [Trying(partial(copy, ours, folder)) for folder in folders]
        for each in trying:
            ending.callback(each.end)
        ending.callback(origin.release)
        ending.callback(origin.accept)
        wait_for_all(ours, 4, STEP)
        leader = ours.store.flights()[0].leader
        assert leader is not None
        os.kill(leader.pid, signal.SIGKILL)
        wait_for_all(ours, 4, 2 * STEP)
        origin.change(path, first=2, stall_after=None)
        origin.refuse()  # all its connections end, and it takes none
        wait_until(lambda: "the next is in" in ours.serving.log)
        ending.close()
        assert fetching.errors == []
        assert containerd.has(layer)
        assert all(has_image(each, what.layers) for each in folders)
    asked = [each.range for each in origin.requests(path) if each.method == "GET"]
    assert asked == [None, f"bytes={STEP}-", f"bytes={2 * STEP}-"], "each byte came once"
    origin.refuse()
    for client in CLIENTS:  # and from now on every kind of client has it without the upstream
        assert layer in client.pull(ours, "named.test", NAME, "v1")
