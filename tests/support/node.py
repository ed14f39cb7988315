"""kubectl where there is no cluster: podman runs what one node of a cluster would run.

    python -m tests.support.node apply -k FOLDER
    python -m tests.support.node --namespace NAME rollout status daemonset/NAME
    python -m tests.support.node delete -k FOLDER

The real kubectl puts the objects together. Each is compared with the schema of its kind. Then the
containers of the DaemonSet run one after another, with their users, rights, folders and settings.
What this file does not know in the description of a container is an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import kubernetes_validate
import yaml

from tests.support.interpreters import wait_until

HERE = Path("/run/node")
OBJECTS = HERE / "objects.yaml"
_KNOWN = {
    "name", "image", "command", "args", "securityContext", "volumeMounts", "ports", "resources",
    "startupProbe", "livenessProbe", "readinessProbe",
}  # fmt: skip
_RIGHTS = {
    "runAsNonRoot", "runAsUser", "runAsGroup", "readOnlyRootFilesystem", "capabilities",
    "allowPrivilegeEscalation", "seccompProfile",
}  # fmt: skip
_SIZES = {"Mi": "m", "Gi": "g"}


def objects() -> dict[str, dict[str, Any]]:
    """All objects by their kind, of which there is one each."""
    found = list(yaml.safe_load_all(OBJECTS.read_text()))
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


def podman(*arguments: str) -> str:
    done = subprocess.run(["podman", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def together(folder: str) -> str:
    """All objects, as the real kubectl puts them together."""
    command = [os.environ["KUBECTL"], "kustomize", folder]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def apply(folder: str) -> None:
    """Run the pod."""
    HERE.mkdir()
    OBJECTS.write_text(together(folder))
    known = objects()
    for each in known.values():
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    names = {each["metadata"].get("namespace") for each in known.values()}
    assert names == {None, known["Namespace"]["metadata"]["name"]}
    pod = known["DaemonSet"]["spec"]["template"]["spec"]
    for each in pod["initContainers"]:
        podman("run", "--rm", *options(each, pod))
    [container] = pod["containers"]
    podman("run", "--detach", f"--name={container['name']}", *options(container, pod))


def options(container: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    """What podman is to be told of a container."""
    assert not container.keys() - _KNOWN
    told = ["--network=host", "--pull=always", *rights(container["securityContext"])]
    volumes = {each["name"]: each for each in pod["volumes"]}
    told += [volume(volumes[each["name"]], each) for each in container["volumeMounts"]]
    if "command" in container:
        told.append(f"--entrypoint={json.dumps(container['command'])}")
    return [*told, container["image"], *container.get("args", [])]


def rights(context: dict[str, Any]) -> list[str]:
    assert not context.keys() - _RIGHTS
    assert not (context["runAsNonRoot"] and context["runAsUser"] == 0)
    told = [f"--user={context['runAsUser']}:{context.get('runAsGroup', 0)}"]
    if context.get("readOnlyRootFilesystem"):
        told += ["--read-only", "--read-only-tmpfs=false"]
    if context.get("allowPrivilegeEscalation") is False:
        told.append("--security-opt=no-new-privileges")
    dropped = context.get("capabilities", {}).get("drop", [])
    return told + [f"--cap-drop={each}" for each in dropped]


def volume(described: dict[str, Any], mount: dict[str, Any]) -> str:
    """The option for one folder of a container."""
    assert not mount.keys() - {"name", "mountPath", "readOnly"}
    to = mount["mountPath"]
    if "emptyDir" in described:
        assert described["emptyDir"]["medium"] == "Memory"
        limit = described["emptyDir"]["sizeLimit"]
        size = limit[:-2] + _SIZES[limit[-2:]]
        return f"--shm-size={size}" if to == "/dev/shm" else f"--tmpfs={to}:size={size},mode=1777"
    if "configMap" in described:
        settings = objects()["ConfigMap"]
        assert settings["metadata"]["name"] == described["configMap"]["name"]
        source = HERE / settings["metadata"]["name"]
        source.mkdir(exist_ok=True)
        for name, text in settings["data"].items():
            (source / name).write_text(text)
    else:
        source = Path(described["hostPath"]["path"])
        if described["hostPath"]["type"] == "DirectoryOrCreate":
            source.mkdir(parents=True, exist_ok=True)
        assert source.is_dir()
    return f"--volume={source}:{to}" + (":ro" if mount.get("readOnly") else "")


def wait_until_ready() -> None:
    """Ask as the node asks, until the pod is ready."""
    [container] = objects()["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    path = container["readinessProbe"]["httpGet"]["path"]

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port['hostPort']}{path}", timeout=10):
                return True
        except (URLError, ConnectionError):
            return False

    try:
        wait_until(is_ready)
    except AssertionError:
        print(podman("logs", container["name"]))
        raise


def delete() -> None:
    """End the pod as the node does, within its grace period."""
    pod = objects()["DaemonSet"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    name = container["name"]
    podman("stop", f"--time={pod['terminationGracePeriodSeconds']}", name)
    print(podman("logs", name))
    code = podman("inspect", "--format={{.State.ExitCode}}", name)
    assert code == "0", f"it ended with {code}"
    podman("rm", name)


def main() -> None:
    match sys.argv[1:]:
        case ["apply", "-k", folder]:
            apply(folder)
        case ["kustomize", folder]:
            print(together(folder))
        case ["--namespace", _, "rollout", "status", _]:
            wait_until_ready()
        case ["--namespace", _, "get", "pods", *_]:
            print(podman("ps"))
        case ["delete", "-k", _]:
            delete()
        case other:
            sys.exit(f"kubectl {' '.join(other)}: not known here")


if __name__ == "__main__":
    main()
