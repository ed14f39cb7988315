"""A Python package index with the wheels of a test: pages in HTML and JSON, and files elsewhere.

index.add("some-pkg", "1.0", requires=["other-pkg"])       one more wheel; its bytes
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence

import pytest

from tests.support.quirks import Asked, Quirks, Reply, ranged

JSON = "application/vnd.pypi.simple.v1+json"


def wheel(project: str, version: str, requires: Sequence[str] = (), size: int = 0) -> bytes:
    """A wheel that pip installs, with one module and `size` bytes of data."""
    name = project.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = {f"{name}.py": f"VERSION = {version!r}\n".encode(), f"{info}/METADATA": metadata(
        project, version, requires
    )}  # fmt: skip
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if size:
        files[f"{name}_data.bin"] = hashlib.shake_128(name.encode()).digest(size)
    record = "".join(f"{each},,\n" for each in [*files, f"{info}/RECORD"])
    files[f"{info}/RECORD"] = record.encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for each, data in files.items():
            archive.writestr(zipfile.ZipInfo(each), data)
    return made.getvalue()


def metadata(project: str, version: str, requires: Sequence[str]) -> bytes:
    lines = ["Metadata-Version: 2.1", f"Name: {project}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), ""]).encode()


class PackageIndex:
    """The index is at `/simple/` of `quirks`; the files are at another server."""

    def __init__(self, quirks: Quirks, files: Quirks) -> None:
        self.quirks, self.files = quirks, files
        self.pages: dict[str, dict[str, tuple[bytes, bytes]]] = {}
        self.password: str | None = None
        quirks.script, files.script = self._answer, self._give

    def add(self, project: str, version: str, requires: Sequence[str] = (), size: int = 0) -> bytes:
        name = f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
        data = wheel(project, version, requires, size)
        self.pages.setdefault(project, {})[name] = (data, metadata(project, version, requires))
        return data

    def _answer(self, asked: Asked) -> Reply:
        if self.password is not None and asked.authorization != self.password:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="index"'})
        if asked.path == "/simple/":
            text = "".join(f'<a href="/simple/{each}/">{each}</a>\n' for each in self.pages)
            return Reply(200, {"Content-Type": "text/html"}, text.encode())
        found = re.fullmatch(r"/simple/([a-z0-9-]+)/", asked.path)
        if found is None or found[1] not in self.pages:
            return Reply(404, {"Content-Type": "text/plain"}, b"404 Not Found")
        files = self.pages[found[1]]
        is_json = asked.headers.get("accept", "").startswith(JSON)
        body = self._json(found[1], files) if is_json else self._html(files)
        told = {
            "Content-Type": JSON if is_json else "text/html; charset=UTF-8",
            "Cache-Control": "max-age=600, public",
            "Vary": "Accept, Accept-Encoding",
            "ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"',
            "X-PyPI-Last-Serial": "7",
        }
        if asked.headers.get("if-none-match") == told["ETag"]:
            return Reply(304, told)
        return Reply(200, told, body)

    def _url(self, name: str) -> str:
        return f"{self.files.url}/packages/aa/bb/{name}"

    def _json(self, project: str, files: dict[str, tuple[bytes, bytes]]) -> bytes:
        entries = [
            {
                "filename": name,
                "url": self._url(name),
                "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
                "core-metadata": {"sha256": hashlib.sha256(about).hexdigest()},
                "requires-python": ">=3.7",
                "size": len(data),
                "upload-time": "2024-01-01T00:00:00.000000Z",
                "yanked": False,
            }
            for name, (data, about) in files.items()
        ]
        meta = {"api-version": "1.1"}
        versions = [name.split("-")[1] for name in files]
        page = {"meta": meta, "name": project, "versions": versions, "files": entries}
        return json.dumps(page).encode()

    def _html(self, files: dict[str, tuple[bytes, bytes]]) -> bytes:
        lines = ["<!DOCTYPE html><html><head><title>Links &amp; more</title></head><body>"]
        for name, (data, about) in files.items():
            href = f"{self._url(name)}#sha256={hashlib.sha256(data).hexdigest()}"
            told = f'data-core-metadata="sha256={hashlib.sha256(about).hexdigest()}"'
            python = f'data-requires-python="{html.escape(">=3.7")}"'
            lines.append(f'<a href="{href}" {python} {told}>{name}</a><br />')
        return "\n".join([*lines, "</body></html>", ""]).encode()

    def _give(self, asked: Asked) -> Reply:
        name = asked.path.rpartition("/")[2]
        for files in self.pages.values():
            data, about = files.get(name.removesuffix(".metadata"), (None, b""))
            if data is not None:
                body = about if name.endswith(".metadata") else data
                told = {"Content-Type": "binary/octet-stream", "ETag": f'"{len(body)}"'}
                return ranged(asked, Reply(200, told, body))
        return Reply(404)

    def gets(self, name: str) -> list[Asked]:
        """The GET requests for a file so far."""
        return [each for each in self.files.asked
                if each.method == "GET" and each.path.endswith(f"/{name}")]  # fmt: skip


@pytest.fixture
def index(quirks: Quirks, cdn_process: Quirks) -> Iterator[PackageIndex]:
    yield PackageIndex(quirks, cdn_process)
    cdn_process.reset()
