"""Fixtures for the tests of `shmstream::`."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import fsspec.asyn
import pytest
from fsspec.implementations.http import HTTPFileSystem

from shmstream.filesystem import ShmstreamFileSystem
from tests.support.filesystems import register


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_fsspec() -> None:
    """It runs as long as this process, and so does the thread in which it looks for names."""
    loop = fsspec.asyn.get_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    fsspec.asyn.sync(loop, asyncio.to_thread, int)


@pytest.fixture(autouse=True)
def protocol(as_found: None) -> Iterator[None]:  # noqa: ARG001
    """`shmstream::` is known, and no file system is kept after the test."""
    register()
    yield
    for system in list(HTTPFileSystem._cache.values()):
        if system._session is not None:
            fsspec.asyn.sync(system.loop, system._session.close)
    caches: tuple[Any, ...] = (ShmstreamFileSystem, HTTPFileSystem)
    for each in caches:
        each.clear_instance_cache()
    gc.collect()
    for _ in range(3):  # what was closed is gone after the next turn of the loop
        fsspec.asyn.sync(fsspec.asyn.get_loop(), asyncio.sleep, 0)


@pytest.fixture
def options(folder: str) -> dict[str, Any]:
    """Options with which a URL of `shmstream::` uses the store of the test."""
    return {"shmstream": {"store": folder}}
