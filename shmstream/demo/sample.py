"""What the demo streams: a tar of files that every machine has, and an image with two such layers.

The files are those of Python's standard library. If they are too few, they come again. Order, times
and owners are fixed, so the same machine makes the same bytes every time.
"""

from __future__ import annotations

import json
import os
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shmstream.demo.origin import Page

NAME = "demo/sample"
TAG = "latest"

_OCI = "application/vnd.oci.image"
_LEAST = 2 << 20  # bytes of the largest layer, so that there is a middle
_SMALL = 256 << 10  # bytes, more or less, of the other one
_LARGEST_FILE = 8 << 20  # bytes; larger ones are skipped, so that the tar stays near its size
_SKIPPED = ("__pycache__", "site-packages", "dist-packages")


def make_sample(path: Path, size: int, first: Path | None = None) -> str:
    """Write a tar of about `size` bytes, with the file `first`; returns a description of it.

    Raises:
        OSError: there is no space for it, or no file to put into it.
    """
    root, count, turn = sysconfig.get_path("stdlib"), 0, 0
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        if first is not None:
            size -= _add(tar, first, first.name)
        while True:
            for file in _files(root):
                if size <= 0:
                    return f"a tar of {count:,} files of {root}"
                size -= _add(tar, file, f"{turn}{file}")
                count += 1
            turn += 1
            if not count:
                raise FileNotFoundError(f"no files were found in {root}: use --input")


def _files(root: str) -> Iterator[Path]:
    """Every plain file below `root` that is neither empty nor huge, and that we may read."""
    for here, folders, names in os.walk(root):
        folders[:] = sorted(set(folders).difference(_SKIPPED))
        for file in (Path(here, name) for name in sorted(names)):
            is_plain = file.is_file() and not file.is_symlink() and os.access(file, os.R_OK)
            if is_plain and 0 < file.stat().st_size <= _LARGEST_FILE:
                yield file


def _add(tar: tarfile.TarFile, file: Path, name: str) -> int:
    """Put a file into the tar; returns how many bytes it has."""
    with file.open("rb") as content:
        entry = tarfile.TarInfo(name)
        entry.size = os.fstat(content.fileno()).st_size
        tar.addfile(entry, content)
    return entry.size


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
    for name in (TAG, manifest.digest):
        pages[f"/v2/{NAME}/manifests/{name}"] = manifest
    sizes = {each.digest: each.size for each in blobs}
    return Image(pages, sizes, (manifest.digest, *sizes))


def _write(file: Path, content: object, media_type: str) -> Page:
    file.write_text(json.dumps(content))
    return Page(file, media_type)
