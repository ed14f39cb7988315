"""The registry in front of real ones, with real clients."""

from __future__ import annotations

from pathlib import Path

from tests import registries
from tests.docker_registry import DockerRegistry
from tests.images import image
from tests.interpreters import wait_until
from tests.registries import has_image, skopeo, succeeds

MIB = 1 << 20


def test_an_image_is_pulled_once(
    docker_registry: DockerRegistry, run_registry: registries.Run, tmp_path: Path
) -> None:
    """Eight clients at once, four workers: every blob comes from the upstream once."""
    pushed = docker_registry.push("once/app", "v1", image(1, [1024, 8 * MIB, 3 * MIB]))
    ours = run_registry(docker_registry.url, workers=4)
    docker_registry.reset()
    clients = [skopeo("once/app:v1", ours.host, tmp_path / f"{number}") for number in range(8)]
    for number, client in enumerate(clients):
        succeeds(client)
        assert has_image(tmp_path / f"{number}", pushed.layers)
    wait_until(lambda: len(docker_registry.requests("GET", "/blobs/")) == 4)
    got = [each.path for each in docker_registry.requests("GET")]
    assert len(got) == len(set(got)) == 5, "a manifest, a configuration, three layers"
    assert all(each.status == 200 for each in docker_registry.requests())
