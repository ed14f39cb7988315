"""Which status an error means, where nothing but the error is known."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store, errors
from shmstream.asgi.response import InFlightResponse
from shmstream.asgi.statuses import shortage, status_of

STATUSES: list[tuple[errors.ShmstreamError, int]] = [
    (errors.BlobNotFound("k", "f"), 404),
    (errors.WriterStalled("n", 0, 60), 504),
    (errors.SourceError("s", 0, "r", status=404), 404),
    (errors.SourceFailed("n", 0, "r", status=410), 404),
    (errors.SourceFailed("n", 0, "r", status=403), 502),
    (errors.SourceFailed("n", 0, "r"), 502),
    (errors.ContentChanged("n", 0, "r"), 502),
    (errors.DigestMismatch("n", 0, "r", "a", "b"), 502),
    (errors.SizeMismatch("n", 0, "r", 5, 6), 502),
    (errors.OutOfRoom("n", 0, "r"), 503),
    (errors.TooManyFlights("n", 3), 503),
    (errors.NoFreeSlot("n", 3), 503),
    (errors.BlobAborted("n", 0, "OSError: the disk of this machine"), 503),
    (errors.DamagedPartial("n", 0, "p", "was truncated"), 503),
    (errors.WriterDied("n", 0, "pid 1"), 503),
    (errors.OutOfResources("n", "threads", 11, "no"), 503),
    (errors.StoreUnusable("f", "it is read-only"), 503),
    (errors.DamagedBlob("k", "p", "r"), 503),
    (errors.StreamClosed("n", "this process ends"), 503),
    (errors.ShmstreamError(), 500),
]


def test_statuses() -> None:
    for error, status in STATUSES:
        assert status_of(error) == status, error


def test_what_this_machine_lacks() -> None:
    lacking: list[BaseException] = [
        OSError(24, "Too many open files"),
        FileNotFoundError(2, "No such file"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        TimeoutError(),
    ]
    for error in lacking:
        found = shortage(error, "sha256:x")
        assert found is not None
        assert (status_of(found), found.name) == (503, "sha256:x")
    for other in (ValueError("x"), RuntimeError("x"), ConnectionResetError(), KeyError("x")):
        assert shortage(other, "k") is None


@pytest.mark.parametrize("is_file", [True, False])
def test_a_folder_that_is_gone(is_file: bool, tmp_path: Path) -> None:
    """Another file is at its place, or at the place of a folder above it."""
    folder = tmp_path / "above" / "store"
    store = Store(folder)
    store.fetch("name", [b"data"])
    gone = folder if is_file else folder.parent
    shutil.rmtree(gone)
    gone.touch()

    async def ask(method: str, key: str) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            await asyncio.Event().wait()

        scope = {"type": "http", "method": method, "headers": [], "extensions": {}}
        await InFlightResponse(store, key, [b"data"])(scope, receive, send)
        return [each["status"] for each in sent if "status" in each]

    for method in ("GET", "HEAD"):
        for key in ("name", "other", f"sha256:{'0' * 64}"):
            assert asyncio.run(ask(method, key)) == [503]
