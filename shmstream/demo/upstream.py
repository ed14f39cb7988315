"""The upstream of the demo's third act: a small registry with one image, on this host only.

Any client of registries can pull from it. It serves an OCI image layout, a folder, at a given rate.
Of the first answer with the largest blob it never sends the last quarter, as origin.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from shmstream.demo.origin import Answer, Origin, Server

NAME = "demo/sample"
TAG = "latest"

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_PATH = re.compile(rf"/v2/{NAME}/(manifests|blobs)/(latest|sha256:[0-9a-f]{{64}})")


class Upstream(Origin):
    """The parent's hand on it."""

    module = "shmstream.demo.upstream"


@dataclass(frozen=True)
class Image:
    """What was put into the folder: digests with sizes in bytes."""

    manifest: str
    blobs: dict[str, int]

    @property
    def size(self) -> int:
        """Of all blobs."""
        return sum(self.blobs.values())

    @property
    def largest(self) -> str:
        """Its digest."""
        return max(self.blobs, key=lambda digest: self.blobs[digest])


def make_image(folder: Path, layers: list[Path]) -> Image:
    """Write an image of these tars to `folder`, which is made."""
    shelf = folder / "blobs" / "sha256"
    shelf.mkdir(parents=True)
    entries = []
    for tar in layers:
        with tar.open("rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        (shelf / digest[7:]).hardlink_to(tar)
        entries.append(_entry("application/vnd.oci.image.layer.v1.tar", digest, tar.stat().st_size))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in entries]},
    }
    facts = _put(shelf, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _entry("application/vnd.oci.image.config.v1+json", *facts),
        "layers": entries,
    }
    digest, _ = _put(shelf, json.dumps(manifest).encode())
    (folder / TAG).write_text(digest)
    return Image(digest, {str(each["digest"]): int(str(each["size"])) for each in entries} | {
        facts[0]: facts[1]
    })  # fmt: skip


def wrap(file: Path, tar: Path) -> Path:
    """A tar with that file in it."""
    with tarfile.open(tar, "w") as archive:
        archive.add(file, file.name)
    return tar


def _entry(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _put(shelf: Path, data: bytes) -> tuple[str, int]:
    hexadecimal = hashlib.sha256(data).hexdigest()
    (shelf / hexadecimal).write_bytes(data)
    return f"sha256:{hexadecimal}", len(data)


# The server's side.


class _Answer(Answer):
    def do_HEAD(self) -> None:  # noqa: N802  its name is given
        """Answer."""
        self.answer()

    def answer(self) -> None:
        """Send what the path names; or only say what it is."""
        if self.path == "/v2/":
            self._say(200, b"{}")
            return
        found = _PATH.fullmatch(self.path)
        digest = found[2] if found else ""
        if digest == TAG:
            digest = (self.server.what / TAG).read_text()
        file = self.server.what / "blobs" / "sha256" / digest[7:]
        if found is None or not file.is_file():
            self._say(404, b'{"errors":[{"code":"NOT_FOUND","message":"it is not here"}]}')
            return
        media_type = _MANIFEST if found[1] == "manifests" else "application/octet-stream"
        headers = {"Docker-Content-Digest": digest, "Content-Type": media_type}
        if self.command == "HEAD":
            self._say(200, b"", headers | {"Content-Length": str(file.stat().st_size)})
            return
        largest = max(file.parent.iterdir(), key=lambda each: each.stat().st_size)
        self.give(file, self.path, headers, holds=file == largest)

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (told | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Be the upstream of the folder and the rate that the arguments say."""
    with Server(_Answer, Path(sys.argv[1]), float(sys.argv[2])) as server:
        server.run()


if __name__ == "__main__":
    main()
