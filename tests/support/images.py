"""Images for tests: real ones, with layers that any client can unpack, made of random bytes.

    image(1, [1000, 5 * MIB])      one with two layers; `seed` decides the bytes
    index([...])                   one of several platforms
    push(url, "team/app", "v1", image)

What is made is pushed by plain HTTP, as the distribution specification has it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import ssl
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from tests.support.roles import content

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_MEDIA_TYPES = {
    OCI_MANIFEST: (
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar",
    ),
    DOCKER_MANIFEST: (
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar",
    ),
}


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@dataclass(frozen=True)
class Image:
    """A manifest, the blobs that it names, and the images that it names if it is an index."""

    manifest: bytes
    media_type: str
    blobs: tuple[bytes, ...] = ()
    images: tuple[Image, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def layers(self) -> list[str]:
        return [digest_of(data) for data in self.blobs[1:]]


@lru_cache(32)
def layer(seed: int, size: int) -> bytes:
    """A tar file with one file of `size` random bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(f"data-{seed}")
        entry.size = size
        tar.addfile(entry, io.BytesIO(content(seed, size)))
    return out.getvalue()


def image(
    seed: int,
    sizes: Iterable[int],
    media_type: str = OCI_MANIFEST,
    *,
    architecture: str = "amd64",
    mentions_media_type: bool = True,
) -> Image:
    """An image with a layer of about each of the sizes (bytes)."""
    plain = [layer(100 * seed + number, size) for number, size in enumerate(sizes)]
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in plain]},
        }
    ).encode()
    config_type, layer_type = _MEDIA_TYPES[media_type]
    facts = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor(config, config_type),
        "layers": [_descriptor(data, layer_type) for data in plain],
    }
    if not mentions_media_type:
        del facts["mediaType"]
    return Image(json.dumps(facts).encode(), media_type, (config, *plain))


def index(images: dict[str, Image], media_type: str = OCI_INDEX) -> Image:
    """An index of images by architecture."""
    entries = [
        {
            **_descriptor(each.manifest, each.media_type),
            "platform": {"architecture": architecture, "os": "linux"},
        }
        for architecture, each in images.items()
    ]
    facts = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    return Image(json.dumps(facts).encode(), media_type, (), tuple(images.values()))


def artifact(files: dict[str, bytes]) -> Image:
    """An artifact as oras makes it: files by name, and no configuration."""
    empty = b"{}"
    facts = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.test.files",
        "config": _descriptor(empty, "application/vnd.oci.empty.v1+json"),
        "layers": [
            {
                **_descriptor(data, "application/octet-stream"),
                "annotations": {"org.opencontainers.image.title": name},
            }
            for name, data in files.items()
        ],
    }
    return Image(json.dumps(facts).encode(), OCI_MANIFEST, (empty, *files.values()))


def _descriptor(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


# Pushing.


def push(
    url: str,
    repository: str,
    tag: str,
    what: Image,
    auth: str | None = None,
    context: ssl.SSLContext | None = None,
) -> None:
    """Push to the registry at `url`; `auth` is user:password, or the text of a bearer token."""
    pusher = _Pusher(url, auth, context)
    try:
        pusher.push(repository, tag, what)
    finally:
        pusher.close()


def push_blob(url: str, repository: str, data: bytes, auth: str | None = None) -> str:
    """Push bytes that belong to no image; their digest."""
    pusher = _Pusher(url, auth, None)
    try:
        pusher.push_blob(repository, data)
    finally:
        pusher.close()
    return digest_of(data)


class _Pusher:
    def __init__(self, url: str, auth: str | None, context: ssl.SSLContext | None) -> None:
        place = urlsplit(url)
        assert place.hostname is not None
        self._connection = (
            HTTPConnection(place.hostname, place.port)
            if context is None
            else HTTPSConnection(place.hostname, place.port, context=context)
        )
        self._headers = {}
        if auth is not None and ":" in auth:
            encoded = base64.b64encode(auth.encode()).decode()
            self._headers = {"Authorization": f"Basic {encoded}"}
        elif auth is not None:
            self._headers = {"Authorization": f"Bearer {auth}"}

    def close(self) -> None:
        self._connection.close()

    def _ask(self, method: str, path: str, status: int, data: bytes, kind: str) -> HTTPResponse:
        headers = {**self._headers, "Content-Type": kind}
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        said = response.read()
        assert response.status == status, (method, path, response.status, said)
        return response

    def push(self, repository: str, tag: str, what: Image) -> None:
        for each in what.images:
            self.push(repository, each.digest, each)
        for data in what.blobs:
            self.push_blob(repository, data)
        path = f"/v2/{repository}/manifests/{tag}"
        self._ask("PUT", path, 201, what.manifest, what.media_type)

    def push_blob(self, repository: str, data: bytes) -> None:
        begin = self._ask("POST", f"/v2/{repository}/blobs/uploads/", 202, b"", "text/plain")
        place = urlsplit(begin.headers["Location"])
        path = f"{place.path}?{place.query}&digest={digest_of(data)}"
        self._ask("PUT", path, 201, data, "application/octet-stream")
