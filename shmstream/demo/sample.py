"""What the demo streams: a tar of files that every machine has, and an image with two such layers.

The files are modules of Python's standard library. If they are too few, they come again. Order,
times and owners are fixed, so the same machine makes the same bytes every time.
"""

from __future__ import annotations

import json
import os
import sysconfig
import tarfile
from itertools import chain, cycle
from pathlib import Path
from typing import NamedTuple

from shmstream.demo.pages import Page

NAME = "demo/sample"
TAG = "latest"

_OCI = "application/vnd.oci.image"
_LEAST = 2 << 20  # bytes of the largest layer, so that there is a middle
_SMALL = 256 << 10  # bytes, more or less, of the other one


def make_sample(path: Path, size: int, first: Path | None = None) -> str:
    """Write a tar of about `size` bytes, with the file `first`; returns a description of it.

    Raises:
        OSError: there is no space for it, or no file to put into it.
    """
    root = sysconfig.get_path("stdlib")
    if not (files := sorted(Path(root).glob("*.py"))):
        raise FileNotFoundError(f"no files were found in {root}: use --input")
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, file in enumerate(chain([first] if first else [], cycle(files))):
            if size <= 0:
                break
            with file.open("rb") as content:
                entry = tarfile.TarInfo(f"{number}/{file.name}")
                entry.size = os.fstat(content.fileno()).st_size
                tar.addfile(entry, content)
            size -= entry.size
    return f"a tar of {number:,} files of {root}"


class Image(NamedTuple):
    """An image, for a registry to serve and for clients to verify."""

    pages: dict[str, Page]  # what the registry serves, by path
    blobs: dict[str, int]  # digest -> size in bytes
    digests: tuple[str, ...]  # of the manifest and each blob, in the order in which they are pulled


def make_image(folder: Path, source: Path) -> Image:
    """Make an image of two layers in `folder`; the larger one has the file `source` in it."""
    small, large = folder / "small.tar", folder / "large.tar"
    make_sample(small, _SMALL)
    make_sample(large, _LEAST, source)
    layers = [Page(each, f"{_OCI}.layer.v1.tar") for each in (small, large)]
    rootfs = {"type": "layers", "diff_ids": [each.digest for each in layers]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    blobs = [_write(folder / "config.json", config, f"{_OCI}.config.v1+json"), *layers]
    media_type = f"{_OCI}.manifest.v1+json"
    told = [
        {"mediaType": each.media_type, "digest": each.digest, "size": each.size} for each in blobs
    ]
    content = {"schemaVersion": 2, "mediaType": media_type, "config": told[0], "layers": told[1:]}
    manifest = _write(folder / "manifest.json", content, media_type)
    pages = {f"/v2/{NAME}/blobs/{each.digest}": each for each in blobs}
    pages["/v2/"] = _write(folder / "api.json", {}, "application/json")
    pages |= {f"/v2/{NAME}/manifests/{name}": manifest for name in (TAG, manifest.digest)}
    sizes = {each.digest: each.size for each in blobs}
    return Image(pages, sizes, (manifest.digest, *sizes))


def _write(file: Path, content: object, media_type: str) -> Page:
    file.write_text(json.dumps(content))
    return Page(file, media_type)
