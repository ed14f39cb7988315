"""The ways in which the processes of a host get one file, each with its defaults.

Each process calls `Way.open`, reads the first line, then the rest. All processes of a run share one
folder, where the way keeps the file.

    fsspec      `shmstream::` beside the caches of fsspec
    fetchers    `Store.open` beside libraries and a program that fetch files

A way may need a server, which `Way.serve` starts: it gives the address to ask instead of the
origin's.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pooch
import requests  # noqa: F401  not in the time that is measured: pooch imports it late
from huggingface_hub import hf_hub_download

import shmstream.http_source  # noqa: F401  likewise
from bench.registry import Registry
from bench.report import CheckFailed
from bench.server import PATIENCE, Port, find_program
from shmstream import Store
from shmstream.filesystem import ShmstreamFileSystem

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_SHARED_BLOBS": "1",  # else a file of an earlier run is linked
}
"""What `huggingface_hub` reads when it is imported."""
_REPOSITORY = "org/model"
_WORKERS = 2  # of the mirror


@dataclass(frozen=True)
class Order:
    """What a process is to get: a file at `base`. Its name is its SHA-256, in hex."""

    base: str
    name: str
    folder: Path

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.base}/{self.name}"


Open = Callable[[Order], AbstractContextManager[Any]]
Serve = Callable[[Path, str], AbstractContextManager[str]]


@contextmanager
def _directly(folder: Path, base: str) -> Iterator[str]:  # noqa: ARG001
    yield base


@dataclass(frozen=True)
class Way:
    """A way, as the table names it."""

    title: str
    open: Open
    serve: Serve = _directly
    program: str = ""

    def look(self) -> None:
        """Raises:
        CheckFailed: its program is not installed.
        """
        if self.program and find_program(self.program) is None:
            package = self.program.removesuffix("c")
            raise CheckFailed(f"{self.program} is not installed: apt-get install {package}")


def _fsspec(protocol: str) -> Open:
    def opened(order: Order) -> AbstractContextManager[Any]:
        fsspec.register_implementation("shmstream", ShmstreamFileSystem, clobber=True)
        of_ours = {"store": _store_of(order)}
        of_fsspec = {"cache_storage": str(order.folder)}
        options: dict[str, Any] = {protocol: of_ours if protocol == "shmstream" else of_fsspec}
        file: AbstractContextManager[Any] = fsspec.open(f"{protocol}::{order.url}", "rb", **options)
        return file

    return opened


def _store_of(order: Order) -> Store:
    """A file comes over one connection, as it does to the others."""
    return Store(order.folder, connections=1)


def _store(order: Order) -> AbstractContextManager[Any]:
    return _store_of(order).open(f"sha256:{order.name}", order.url)


def _pooch(order: Order) -> AbstractContextManager[Any]:
    pooch.get_logger().setLevel("ERROR")
    hashed = f"sha256:{order.name}"
    path = pooch.retrieve(order.url, hashed, fname="file", path=str(order.folder))
    return Path(path).open("rb")


def _hub(order: Order) -> AbstractContextManager[Any]:
    path = hf_hub_download(
        _REPOSITORY, order.name, endpoint=order.base, cache_dir=order.folder, token=False
    )
    return Path(path).open("rb")


def _hub_alone(order: Order) -> AbstractContextManager[Any]:
    """With a cache of its own, as in a container of its own."""
    folder = order.folder / f"cache-{os.getpid()}"
    return _hub(replace(order, folder=folder))


@contextmanager
def _mirror(folder: Path, base: str) -> Iterator[str]:
    """`shmstream serve` before the origin, when its workers serve."""
    place = folder.with_name(f"{folder.name}-mirror")
    place.mkdir()
    settings = place / "settings.toml"
    mirror = {"path": "/hf", "kind": "huggingface", "url": base}
    told = "\n".join(f"{name} = {json.dumps(value)}" for name, value in mirror.items())
    settings.write_text(f"[[mirror]]\n{told}\n", encoding="utf-8")
    options = ("--config", str(settings), "--workers", str(_WORKERS), "--connections", "1")
    with Port() as port, Registry(place, base, port, *options) as server:
        server.wait_for(_WORKERS, PATIENCE)
        yield f"http://127.0.0.1:{port.number}/hf"


def _aria2c(order: Order) -> AbstractContextManager[Any]:
    path = order.folder / "file"
    _run(_aria2c_to(order, path.name))
    return path.open("rb")


def _aria2c_in_turn(order: Order) -> AbstractContextManager[Any]:
    """The first process downloads to another name, and the others wait for its lock."""
    path, lock = order.folder / "file", str(order.folder / "lock")
    script = 'test -e "$0" || { "$@" && mv "$0.part" "$0"; }'
    _run(["flock", lock, "sh", "-c", script, str(path), *_aria2c_to(order, "file.part")])
    return path.open("rb")


def _aria2c_to(order: Order, name: str) -> list[str]:
    return [
        "aria2c", "--no-conf", "--quiet", "--continue", "--auto-save-interval=1",
        f"--checksum=sha-256={order.name}", f"--dir={order.folder}", f"--out={name}", order.url,
    ]  # fmt: skip


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"{command[0]} ends with {done.returncode}: {done.stdout[-500:]!r}")


FSSPEC = {
    name: Way(f"`{name}::`", _fsspec(name))
    for name in ("shmstream", "filecache", "simplecache", "blockcache")
}
FETCHERS = {
    "shmstream": Way("`Store.open`", _store),
    "hub": Way("`huggingface_hub`", _hub),
    "hub-alone": Way("`huggingface_hub`, a cache for each process", _hub_alone),
    "hub-mirror": Way("`huggingface_hub` through `shmstream serve`", _hub_alone, _mirror),
    "pooch": Way("`pooch.retrieve`", _pooch),
    "aria2c": Way("`aria2c`", _aria2c, program="aria2c"),
    "aria2c-flock": Way("`flock`, `aria2c`", _aria2c_in_turn, program="aria2c"),
}
FAMILIES = {"fsspec": FSSPEC, "fetchers": FETCHERS}
"""By their name on the command line; the first way of each is ours, beside which the others are."""
