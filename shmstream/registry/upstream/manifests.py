"""What the bytes of a manifest or an index tell: media type, layers, referrers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from shmstream.stream.digest import is_digest

LARGEST = 4 << 20  # bytes; registries must accept as many (distribution specification)
INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
IMAGES = (IMAGE, "application/vnd.docker.distribution.manifest.v2+json")
INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
KNOWN = (IMAGES[0], INDEXES[0], IMAGES[1], INDEXES[1])
"""The media types that we accept from an upstream."""
SIGNED = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
"""The media types of the first kind of manifests, whose digest is not that of all their bytes."""

UNTOLD = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"application/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@dataclass(frozen=True)
class Manifest:
    """What is known of a manifest: digest, media type, size in bytes; None if not known."""

    digest: str
    media_type: str | None = None
    size: int | None = None


def media_type(text: object) -> str | None:
    """The media type of a manifest, without parameters; None if `text` is no such media type.

    The author of an image may choose the text, and clients get it. So only types are accepted that
    no browser takes for a page.
    """
    if not isinstance(text, str):
        return None
    plain = text.partition(";")[0].strip()
    return plain if _MEDIA_TYPE.fullmatch(plain) else None


def parsed(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; an empty one if there is none."""
    try:
        found = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def declared(manifest: dict[str, Any]) -> str | None:
    """The media type that a manifest names, or that its structure shows; None if neither."""
    if (told := media_type(manifest.get("mediaType"))) is not None:
        return told
    if isinstance(manifest.get("manifests"), list):
        return INDEX
    if isinstance(manifest.get("layers"), list) and isinstance(manifest.get("config"), dict):
        return IMAGE
    return None


def is_signed(manifest: dict[str, Any]) -> bool:
    """Whether it is of the first kind of Docker's manifests."""
    return manifest.get("schemaVersion") == 1 and "fsLayers" in manifest


def layers(manifest: dict[str, Any]) -> list[str]:
    """The digests of an image's layers, without layers that lie outside its repository."""
    entries = manifest.get("layers")
    found = []
    for each in entries if isinstance(entries, list) else ():
        digest = each.get("digest") if isinstance(each, dict) else None
        if isinstance(digest, str) and is_digest(digest) and not each.get("urls"):
            found.append(digest)
    return list(dict.fromkeys(found))


def named(manifest: dict[str, Any]) -> set[str]:
    """The digests of all that a manifest or an index consists of, wherever these lie."""
    found = set()
    for each in (manifest.get("config"), *_entries(manifest, "layers", "manifests", "blobs")):
        digest = each.get("digest") if isinstance(each, dict) else None
        if isinstance(digest, str) and is_digest(digest):
            found.add(digest)
    return found


def _entries(manifest: dict[str, Any], *fields: str) -> list[object]:
    lists = (manifest.get(each) for each in fields)
    return [entry for each in lists if isinstance(each, list) for entry in each]


def referrers(index: dict[str, Any], artifact_type: str | None) -> bytes:
    """The index of referrers for a client: of one artifact type, or of all for None."""
    entries = index.get("manifests")
    found = [
        each
        for each in (entries if isinstance(entries, list) else ())
        if isinstance(each, dict) and artifact_type in (None, each.get("artifactType"))
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": found}).encode()
