"""Real clients at once, through four workers, while the leading worker, then the upstream, dies."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from tests.registry.test_registry_faults import serve_manifest
from tests.support import registries
from tests.support.containerd import Containerd
from tests.support.dockerd import Dockerd
from tests.support.image_clients import CLIENTS
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Image, artifact, digest_of, image, index
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.programs import Client
from tests.support.registries import (
    Podman,
    Registry,
    crane,
    has_image,
    oras,
    oras_of_python,
    skopeo,
)

MIB = 1 << 20
SIZE = 12 * MIB
STEP = 4 * MIB  # so much comes before the upstream waits for the test
NAME = "storm/app"


def serve_image(origin: Origin, folder: Path) -> Image:
    """An index of one image, whose layer stalls after `STEP` of each answer.

    The tag `file` is an artifact with this layer as its file.
    """
    what = image(700, [SIZE])
    many = index({"amd64": what})
    serve_manifest(origin, NAME, "v1", many.manifest.decode(), OCI_INDEX)
    serve_manifest(origin, NAME, what.digest, what.manifest.decode(), OCI_MANIFEST)
    config, layer = what.blobs
    file = artifact({"layer": layer})
    serve_manifest(origin, NAME, "file", file.manifest.decode(), OCI_MANIFEST)
    origin.serve(f"/v2/{NAME}/blobs/{digest_of(config)}", text=config.decode())
    (folder / "layer").write_bytes(layer)
    path = f"/v2/{NAME}/blobs/{digest_of(layer)}"
    origin.serve(path, file=str(folder / "layer"), stall_after=STEP)
    return what


def wait_for_all(ours: Registry, clients: dict[str, Client], published: int) -> None:
    """Wait until all clients wait for the same bytes of the layer."""

    def wait() -> bool:
        for name, each in clients.items():
            assert each.poll() is None, (name, each.communicate(timeout=PATIENCE))
        flights = [each.published for each in ours.store.flights()]
        return flights == [published] and ours.serving.metric("shmstream_clients") == len(clients)

    try:
        wait_until(wait)
    except AssertionError as error:
        error.add_note(f"{ours.store.flights()}\n{ours.serving.log}")
        raise


def end(client: Client) -> None:
    with client:
        client.kill()


def test_the_leader_and_then_the_upstream_die(
    run_registry: registries.Run, origin: Origin, tmp_path: Path
) -> None:
    """No client is started twice: their connections outlive the worker, and the wait is ours."""
    what = serve_image(origin, tmp_path)
    [layer] = what.layers
    path = f"/v2/{NAME}/blobs/{layer}"
    ours = run_registry({None: origin.url(""), "named.test": origin.url("")}, workers=4)
    with ExitStack() as keeping:
        keeping.callback(origin.release)
        short = [keeping.enter_context(tempfile.TemporaryDirectory()) for _ in range(4)]
        podman = Podman(short[0])
        mirrors = {"named.test": ours.host}
        first = keeping.enter_context(closing(Containerd(short[1], mirrors)))
        second = keeping.enter_context(closing(Containerd(short[2], mirrors, newer=True)))
        docker = keeping.enter_context(closing(Dockerd(short[3], ours.host, second)))
        clients = {
            "containerd 1": first.fetching(f"named.test/{NAME}:v1"),
            "containerd 2": second.pulling(f"named.test/{NAME}:v1"),
            "docker": docker.pulling(f"{NAME}:v1"),
            "podman": podman.pulling(f"{ours.host}/{NAME}:v1"),
            "skopeo": skopeo(f"{NAME}:v1", ours.host, tmp_path / "skopeo"),
            "crane": crane(f"{NAME}:v1", ours.host, tmp_path / "crane"),
            "oras": oras(f"{NAME}:file", ours.host, tmp_path / "oras"),
            "oras of Python": oras_of_python(f"{NAME}:file", ours.host, tmp_path / "python"),
        }
        for each in clients.values():
            keeping.callback(end, each)
        wait_for_all(ours, clients, STEP)
        leader = ours.store.flights()[0].leader
        assert leader is not None
        os.kill(leader.pid, signal.SIGKILL)
        wait_for_all(ours, clients, 2 * STEP)
        origin.change(path, first=2, stall_after=None)
        origin.refuse()  # all its connections end, and it takes none
        wait_until(lambda: "the next is in" in ours.serving.log)
        origin.accept()
        origin.release()
        errors = {name: each.communicate(timeout=PATIENCE)[1] for name, each in clients.items()}
        assert {each.returncode for each in clients.values()} == {0}, errors
        assert first.has(layer)
        assert second.has(layer)
        assert docker.layers(f"{NAME}:v1") == what.layers
        assert podman.layers(f"{ours.host}/{NAME}:v1") == what.layers
        assert has_image(tmp_path / "skopeo", what.layers)
        assert has_image(tmp_path / "crane/blobs/sha256", what.layers)
        for folder in ("oras", "python"):
            assert digest_of((tmp_path / folder / "layer").read_bytes()) == layer
    asked = [each.range for each in origin.requests(path) if each.method == "GET"]
    assert asked == [None, f"bytes={STEP}-", f"bytes={2 * STEP}-"], "each byte came once"
    origin.refuse()
    for client in CLIENTS:  # and from now on every kind of client has it without the upstream
        assert layer in client.pull(ours, "named.test", NAME, "v1")
