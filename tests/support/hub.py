"""A Hub of Hugging Face, and its CDN, as `huggingface_hub` sees them, with their real heads.

    hub.add("org/model", {"config.json": b"{}", "model.bin": large(...)}, ...)    one more commit

Files that are larger than `LFS` bytes lie at the CDN, which is another origin: the Hub redirects to
a signed URL there. Other files are behind a relative redirect. Gated repositories need `TOKEN`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.quirks import Asked, Quirks, Reply, ranged

LFS = 10_000  # bytes; larger files lie at the CDN
TOKEN = "hf_" + "t" * 34
_SIGNED = "Signature=abc~def"
_JSON = {"Content-Type": "application/json; charset=utf-8"}


@dataclass
class Repo:
    """One repository: its files by commit, and what its branches mean."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False


class Hub:
    """The Hub, whose script `quirks` has, and the CDN, a server of its own."""

    def __init__(self, quirks: Quirks, cdn: Quirks) -> None:
        self.quirks, self.cdn = quirks, cdn
        self.repos: dict[str, Repo] = {}
        quirks.script, cdn.script = self._answer, self._give

    def add(self, name: str, files: dict[str, bytes], *, is_gated: bool = False) -> str:
        """One more commit on `main`; its name."""
        repo = self.repos.setdefault(name, Repo(is_gated=is_gated))
        text = f"{name} {len(repo.commits)}"
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        repo.commits[commit] = files
        repo.branches["main"] = commit
        return commit

    def _answer(self, asked: Asked) -> Reply:
        path = unquote(urlsplit(asked.path).path)
        of_api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        cached = re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", path)
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = of_api or cached or resolved
        if found is None:
            return self._refuse(404, "", "Sorry, we can't find the page you are looking for.")
        repo = self.repos.get(found[1])
        if repo is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if repo.is_gated and asked.authorization != f"Bearer {TOKEN}":
            return self._refuse(401, "GatedRepo", f"Access to model {found[1]} is restricted.")
        revision = found[3] if of_api else found[2]
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if of_api:
            return self._tell(asked, found[1], found[2], commit)
        if found[3] not in repo.commits[commit]:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._resolve(asked, found[1], commit, found[3], is_there=bool(cached))

    @staticmethod
    def _refuse(status: int, code: str, message: str) -> Reply:
        told: dict[str, str | list[str] | None] = {"X-Error-Message": message, **_JSON}
        if code:
            told["X-Error-Code"] = code
        return Reply(status, told, json.dumps({"error": message}).encode())

    def _tell(self, asked: Asked, name: str, what: str, commit: str) -> Reply:
        files = self.repos[name].commits[commit]
        if what == "revision":
            siblings = [{"rfilename": each} for each in files]
            facts = {"private": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
            body = {"_id": "1", "id": name, "modelId": name, "sha": commit, **facts}
            return Reply(200, {**_JSON, "ETag": f'W/"{commit[:8]}"'}, json.dumps(body).encode())
        names, page = sorted(files), "cursor=2" in asked.path
        half = (len(names) + 1) // 2
        told: dict[str, str | list[str] | None] = {**_JSON, "ETag": f'W/"{commit[:8]}{page}"'}
        if not page and names[half:]:
            following = f"{self.quirks.url}/api/models/{name}/tree/{commit}?recursive=true&cursor=2"
            told["Link"] = f'<{following}>; rel="next"'
        entries = [_entry(each, files[each]) for each in (names[half:] if page else names[:half])]
        return Reply(200, told, json.dumps(entries).encode())

    def _resolve(self, asked: Asked, name: str, commit: str, file: str, *, is_there: bool) -> Reply:
        data = self.repos[name].commits[commit][file]
        told: dict[str, str | list[str] | None] = {
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Disposition": f"inline; filename*=UTF-8''{file}; filename=\"{file}\";",
            "Vary": "Origin, Accept",
            "Access-Control-Expose-Headers": "X-Repo-Commit,ETag,X-Linked-Size,X-Linked-ETag",
        }
        if len(data) > LFS:
            digest = hashlib.sha256(data).hexdigest()
            told |= {
                "Location": f"{self.cdn.url}/repos/aa/bb/{digest}?Expires=1999&{_SIGNED}",
                "ETag": f'"{digest}"',
                "X-Linked-ETag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "X-Xet-Hash": digest[::-1],
                "Link": f'<{self.quirks.url}/api/models/{name}/xet-read-token>; rel="xet-auth"',
                "Content-Type": "text/plain; charset=utf-8",
                "Cache-Control": "no-store",
            }
            return Reply(302, told, b"Found. Redirecting")
        etag = f'"{_oid(data)}"'
        if not is_there:
            there = f"/api/resolve-cache/models/{name}/{commit}/{file}?%2F=&etag=%22{_oid(data)}%22"
            return Reply(
                307, {**told, "Location": there, "Content-Type": "text/plain"}, b"Temporary"
            )
        if asked.headers.get("if-none-match") == etag:
            return Reply(304, {**told, "ETag": etag})
        return ranged(asked, Reply(200, {**told, "ETag": etag, "Content-Type": "text/plain"}, data))

    def _give(self, asked: Asked) -> Reply:
        digest = urlsplit(asked.path).path.rpartition("/")[2]
        if _SIGNED not in asked.path or asked.authorization is not None:
            return Reply(403, {"Content-Type": "application/xml"}, b"<Error>AccessDenied</Error>")
        for repo in self.repos.values():
            for files in repo.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == digest:
                        told = {"ETag": f'"{digest[:32]}"', "Content-Type": "binary/octet-stream",
                                "Cache-Control": "max-age=604800, s-maxage=604800"}  # fmt: skip
                        return ranged(asked, Reply(200, told, data))
        return Reply(404)

    def gets(self, part: str) -> list[Asked]:
        """The GET requests for the bytes of a file so far, at the Hub or the CDN."""
        return [each for each in [*self.quirks.asked, *self.cdn.asked]
                if each.method == "GET" and part in each.path]  # fmt: skip


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "oid": _oid(data), "size": len(data), "path": name}
    if len(data) > LFS:
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        entry["xetHash"] = digest[::-1]
    return entry


@pytest.fixture(scope="session")
def cdn_process() -> Iterator[Quirks]:
    server = Quirks()
    yield server
    server.close()


@pytest.fixture
def hub(quirks: Quirks, cdn_process: Quirks) -> Iterator[Hub]:
    yield Hub(quirks, cdn_process)
    cdn_process.reset()
