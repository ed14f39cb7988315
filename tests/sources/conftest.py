"""Fixtures for the tests of sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.feeds import BLOB, use


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How the bytes that an origin gives are taken."""
    way: str = getattr(request, "param", "by hand")
    use(way)
    yield way
    use("by hand")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that has an origin runs once for each way to take its bytes."""
    if {"origin", "tls_origin", "nginx"} & set(metafunc.fixturenames):
        metafunc.parametrize("way", ["by hand", "by kernel", "by kernel, no pipe"], indirect=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(BLOB)
    return path
