"""What clients of a registry read, so that they pull through it: written, and taken back.

    containerd    DIR/<namespace>/hosts.toml, `_default` for `*`
    podman        DIR/shmstream.conf, in registries.conf.d, for podman, skopeo, buildah and CRI-O
    docker        `registry-mirrors` in daemon.json, for Docker Hub alone

To write again what is there changes nothing. A file of somebody else is never replaced or removed:
our own files begin with a mark. Of daemon.json only our entry is changed. Each file is written as a
whole and then renamed, so a client never reads half of it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shmstream.registry.tables import Upstream
from shmstream.registry.upstream.credentials import is_hub

_MARK = "# Made by `shmstream hosts`; `shmstream hosts --remove` removes it.\n"
_HUB = "https://registry-1.docker.io"
_DEFAULT = "_default"


class ForeignFile(Exception):
    """A file is of somebody else, and stays as it is."""


@dataclass(frozen=True)
class Cache:
    """Where the registry is, and for which upstreams: `url` as clients reach it."""

    url: str
    upstreams: tuple[Upstream, ...]

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.url.partition("://")[2].rstrip("/")

    @property
    def is_plain(self) -> bool:
        """Whether it is reached without TLS."""
        return self.url.startswith("http://")


def _named(upstreams: Iterable[Upstream]) -> list[tuple[str, str]]:
    """The namespace and the URL of each; Docker Hub for an upstream that has neither."""
    return [(each.namespace or _host(each.url), each.url) for each in upstreams]


def _host(url: str) -> str:
    host = url.partition("://")[2].partition("/")[0]
    return "docker.io" if is_hub(host) else host


# containerd.


def containerd(folder: Path, cache: Cache, *, remove: bool = False) -> list[Path]:
    """Write or remove the files of containerd; those that have changed.

    Raises:
        ForeignFile: there is a file of somebody else.
        OSError: a file cannot be written.
    """
    changed = []
    for namespace, url in _named(cache.upstreams):
        name = _DEFAULT if namespace == "*" else namespace
        path = folder / name / "hosts.toml"
        lines = [_MARK]
        if namespace != "*":
            lines.append(f"server = {json.dumps(_HUB if is_hub(_host(url)) else url)}\n")
        lines.append(f"\n[host.{json.dumps(cache.url.rstrip('/'))}]\n")
        lines.append('capabilities = ["pull", "resolve"]\n')
        if _put(path, None if remove else "".join(lines)):
            changed.append(path)
        if remove:
            with suppress(OSError):  # it is not empty, or is not there
                path.parent.rmdir()
    return changed


# podman, skopeo, buildah, CRI-O.


def podman(folder: Path, cache: Cache, *, remove: bool = False) -> list[Path]:
    """Write or remove the file of podman; it, if it has changed.

    Raises:
        ForeignFile, OSError: as `containerd`.
    """
    lines = [_MARK]
    for namespace, _ in _named(cache.upstreams):
        if "*" in namespace:
            continue  # a mirror there is for one registry
        lines.append(f"\n[[registry]]\nprefix = {json.dumps(namespace)}\n")
        lines.append(f"location = {json.dumps(namespace)}\n\n[[registry.mirror]]\n")
        lines.append(f"location = {json.dumps(f'{cache.address}/{namespace}')}\n")
        if cache.is_plain:
            lines.append("insecure = true\n")
    path = folder / "shmstream.conf"
    return [path] if _put(path, None if remove else "".join(lines)) else []


# Docker.


def docker(path: Path, cache: Cache, *, remove: bool = False) -> list[Path]:
    """Write our mirror of Docker Hub into daemon.json, or remove it; the file, if it has changed.

    Raises:
        ForeignFile: the file is no JSON object.
        OSError: it cannot be read or written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if text.strip() else {}
        mirrors = settings.get("registry-mirrors", [])
        if not isinstance(mirrors, list):
            raise TypeError
    except FileNotFoundError:
        settings, mirrors = {}, []
    except (ValueError, TypeError, AttributeError) as error:
        raise ForeignFile(f"{path} is not the JSON of dockerd's settings") from error
    url = cache.url.rstrip("/")
    others = [each for each in mirrors if not isinstance(each, str) or each.rstrip("/") != url]
    is_there = len(others) != len(mirrors)
    if is_there is not remove:
        return []
    settings["registry-mirrors"] = others if remove else [url, *others]
    if not settings["registry-mirrors"]:
        del settings["registry-mirrors"]
    if settings:
        _write(path, json.dumps(settings, indent=2) + "\n")
    else:
        path.unlink()
    return [path]


# Files.


def _put(path: Path, text: str | None) -> bool:
    """Have the file have this text, or not be there for None; whether that was a change."""
    try:
        before = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        before = None
    if before == text:
        return False
    if before is not None and not before.startswith(_MARK):
        if text is None:
            return False
        raise ForeignFile(f"{path} is there, and was not made by shmstream: move it away first")
    if text is None:
        path.unlink()
    else:
        _write(path, text)
    return True


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
