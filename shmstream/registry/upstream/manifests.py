"""What can be told from the bytes of a manifest: its media type, its layers, its referrers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from shmstream.stream.digest import is_digest

LARGEST = 4 << 20  # bytes; what the distribution specification has registries accept
INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
KNOWN = (
    IMAGE,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
"""What an upstream is told to be acceptable where a client does not matter."""

UNTOLD = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"application/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@dataclass(frozen=True)
class Manifest:
    """What is known of a manifest: what it is, and its size in bytes; None for what is not."""

    digest: str
    media_type: str | None = None
    size: int | None = None


def media_type(text: object) -> str | None:
    """The media type of a manifest, without parameters; None if that is no such media type.

    It may come from whoever made the image, and is sent to clients: it is nothing that a browser
    would take for a page.
    """
    if not isinstance(text, str):
        return None
    plain = text.partition(";")[0].strip()
    return plain if _MEDIA_TYPE.fullmatch(plain) else None


def parsed(data: bytes) -> dict[str, Any]:
    """The JSON object that it is; an empty one if it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def declared(manifest: dict[str, Any]) -> str | None:
    """The media type that a manifest says it has, or that its structure shows; None without."""
    if (told := media_type(manifest.get("mediaType"))) is not None:
        return told
    if isinstance(manifest.get("manifests"), list):
        return INDEX
    if isinstance(manifest.get("layers"), list) and isinstance(manifest.get("config"), dict):
        return IMAGE
    return None


def layers(manifest: dict[str, Any]) -> list[str]:
    """The digests of an image's layers, without those that lie elsewhere than in its repository."""
    entries = manifest.get("layers")
    found = []
    for each in entries if isinstance(entries, list) else ():
        digest = each.get("digest") if isinstance(each, dict) else None
        if isinstance(digest, str) and is_digest(digest) and not each.get("urls"):
            found.append(digest)
    return list(dict.fromkeys(found))


def referrers(index: dict[str, Any], artifact_type: str | None) -> bytes:
    """The index of referrers, of one artifact type or of all, as a client gets it."""
    entries = index.get("manifests")
    found = [
        each
        for each in (entries if isinstance(entries, list) else ())
        if isinstance(each, dict) and artifact_type in (None, each.get("artifactType"))
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": found}).encode()
