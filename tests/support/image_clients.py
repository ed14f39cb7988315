"""How clients of images ask: the headers and the order of requests of well-known ones.

    pull(ours, Kind.CONTAINERD, "docker.io", "team/app", "v1")      what it got, by digest

The texts of `Accept` are those that the clients send (docker 20.10, containerd 1.7, crane 0.19,
oras 1.1). skopeo and podman run themselves (`registries.skopeo`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.support.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, digest_of
from tests.support.registries import Answer, Registry

_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_UNSIGNED = "application/vnd.docker.distribution.manifest.v1+json"


@dataclass(frozen=True)
class Client:
    """`accept` of its first request; `heads`: that is a HEAD; `by_namespace`: it sends `?ns=`."""

    name: str
    accept: tuple[str, ...]
    heads: bool = False
    by_namespace: bool = False

    def pull(self, ours: Registry, namespace: str | None, name: str, tag: str) -> set[str]:
        """Pull an image, and check each digest; the digests that it got."""
        query = f"?ns={namespace}" if namespace and self.by_namespace else ""
        prefix = f"{namespace}/" if namespace and not self.by_namespace else ""
        here = f"/v2/{prefix}{name}"
        accept = {"Accept": ", ".join(self.accept)}
        answer = ours.get(
            f"{here}/manifests/{tag}{query}", "HEAD" if self.heads else "GET", **accept
        )
        assert answer.status == 200, (self.name, answer)
        digest = answer.headers["docker-content-digest"]
        if self.heads:
            answer = ours.get(f"{here}/manifests/{digest}{query}", **accept)
        got = {digest}
        if answer.headers["content-type"] in (OCI_INDEX, DOCKER_LIST):
            (each, *_) = json.loads(_checked(answer, digest))["manifests"]
            accept = {"Accept": f"{each['mediaType']}, */*"}
            answer = ours.get(f"{here}/manifests/{each['digest']}{query}", **accept)
            digest = each["digest"]
            got.add(digest)
        manifest = json.loads(_checked(answer, digest))
        for each in [manifest["config"], *manifest["layers"]]:
            _checked(ours.get(f"{here}/blobs/{each['digest']}{query}"), each["digest"])
            got.add(each["digest"])
        return got


def _checked(answer: Answer, digest: str) -> bytes:
    assert answer.status == 200, answer
    assert digest_of(answer.body) == digest
    return answer.body


DOCKER = Client(
    "docker",
    (OCI_INDEX, DOCKER_LIST, _SIGNED, "application/json", DOCKER_MANIFEST, OCI_MANIFEST),
)
CONTAINERD = Client(
    "containerd",
    (DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"),
    heads=True,
    by_namespace=True,
)
CRANE = Client("crane", (_UNSIGNED, _SIGNED, DOCKER_MANIFEST, OCI_MANIFEST, DOCKER_LIST, OCI_INDEX))
ORAS = Client("oras", (DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST), heads=True)
CLIENTS = (DOCKER, CONTAINERD, CRANE, ORAS)
