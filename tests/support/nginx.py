"""Debian's nginx as an origin that nobody here wrote: the folder that a test fills, over HTTP/1.1.

One per session, on a free port of 127.0.0.1, all its files in a folder of its own:

    nginx.folder / "blob"           what it serves
    nginx.url("blob")               at full speed
    nginx.url("blob", rate="1m")    at most so many bytes a second
    nginx.wait(2)                   the requests that it has served, from its access log

It is the origin of the benches (bench/origin.py), and ends with the test, even a killed one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from bench.nginx import PACKAGE
from bench.origin import Origin, Request
from bench.server import find_program
from tests.support.interpreters import wait_until


class Nginx(Origin):
    """A running nginx."""

    def wait(self, count: int) -> list[Request]:
        """Wait until it has served so many requests: a client is done a little earlier."""
        wait_until(lambda: len(self.over()) >= count)
        return self.over()

    def reset(self) -> None:
        """An empty folder, and nothing served."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.begin()


def needed() -> None:
    """Skip the test without nginx; with SHMSTREAM_REQUIRE_REAL=1, fail it."""
    if find_program("nginx") is None:
        if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
            pytest.fail(f"nginx is not installed: apt-get install {PACKAGE}")
        pytest.skip("nginx is not installed")


@pytest.fixture(scope="session")
def nginx_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    needed()
    with Nginx(tmp_path_factory.mktemp("nginx") / "origin") as server:
        yield server


@pytest.fixture
def nginx(nginx_process: Nginx, direct: None) -> Nginx:  # noqa: ARG001
    """nginx with an empty folder."""
    nginx_process.reset()
    return nginx_process
