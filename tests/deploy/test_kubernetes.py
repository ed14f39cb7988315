"""The files for Kubernetes fit to its schemas, to each other, and to our commands.

`tests/docs/test_paths.py` builds the image, and runs it as they say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from shmstream.registry.settings import Settings
from tests.deploy.test_hosts import hosts

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "kubernetes"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def test_each_object_is_valid() -> None:
    kustomization = read("kustomization.yaml")
    files = {each.name for each in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(kustomization["resources"])
    for name in files:
        kubernetes_validate.validate(read(name), kubernetes_validate.latest_version(), strict=True)


def test_the_objects_fit_to_each_other(tmp_path: Path) -> None:
    template = read("daemonset.yaml")["spec"]["template"]
    spec = template["spec"]
    labels = template["metadata"]["labels"]
    assert read("daemonset.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert read("poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"] == labels
    volumes = {each["name"] for each in spec["volumes"]}
    everything = [*spec["initContainers"], *spec["containers"]]
    mounts = {mount["name"] for each in everything for mount in each["volumeMounts"]}
    assert mounts == volumes
    images = {each["image"] for each in everything}
    assert images == {each["name"] for each in read("kustomization.yaml")["images"]}
    file = tmp_path / "shmstream.toml"
    file.write_text(read("configmap.yaml")["data"]["shmstream.toml"])
    settings = Settings.from_file(str(file))
    [container] = spec["containers"]
    assert settings.address[1] == container["ports"][0]["containerPort"]
    assert settings.store in {each["mountPath"] for each in container["volumeMounts"]}
    assert settings.grace < spec["terminationGracePeriodSeconds"]
    told = next(each for each in spec["initContainers"] if each["name"] == "hosts")["args"]
    namespaces = {each.partition("=")[2] for each in told if each.startswith("--upstream")}
    assert namespaces == {each.namespace for each in settings.upstreams}
    assert told[0] == "hosts"
    assert hosts(tmp_path, *told[2:]).returncode == 0
