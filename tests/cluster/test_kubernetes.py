"""The files for a cluster on Kubernetes fit to each other, and to our settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from shmstream.cli import command
from shmstream.registry.server import serve as module
from shmstream.registry.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "cluster"


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_the_settings_are_those_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `shmstream serve --config` takes them, in an environment as that of the pod."""
    [patch] = read("configmap.yaml")
    file = tmp_path / "shmstream.toml"
    file.write_text(patch["data"]["shmstream.toml"])
    [daemon] = read("daemonset.yaml")
    spec = daemon["spec"]["template"]["spec"]
    [container] = spec["containers"]
    environment = {each["name"]: each.get("value", "10.0.0.7") for each in container["env"]}
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("$(HOST_IP)", environment["HOST_IP"]))
    seen: list[Settings] = []

    def look(settings: Settings, *_: object, **__: object) -> bool:
        seen.append(settings)
        return True

    monkeypatch.setattr(module, "serve", look)
    done = CliRunner().invoke(command, ["serve", "--config", str(file)])
    assert done.exit_code == 0, done.output
    [settings] = seen
    cluster = settings.cluster
    assert cluster is not None
    assert cluster.advertise == "10.0.0.7:5001"
    ports = {each["name"]: each for each in container["ports"]}
    assert cluster.listen == f":{ports['nodes']['containerPort']}"
    assert ports["nodes"]["hostPort"] == int(cluster.advertise.rpartition(":")[2])
    assert "hostIP" not in ports["nodes"], "other nodes reach it"
    assert ports["http"]["hostIP"] == "127.0.0.1", "clients are on the node"
    [mount], [volume] = container["volumeMounts"], spec["volumes"]
    assert mount["name"] == volume["name"]
    assert Path(cluster.secret_file) == Path(mount["mountPath"]) / "secret"
    service, deployment, policy = read("redis.yaml")
    assert (
        cluster.url
        == f"redis://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    [kustomization] = read("kustomization.yaml")
    files = {each.name for each in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert {*kustomization["resources"], *(e["path"] for e in kustomization["patches"])} - {
        "../kubernetes"
    } == files
