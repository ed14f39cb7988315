"""Fixtures of the tests of storage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstream.storage.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """The folder of a store, which may hold anything."""
    layout = Layout(tmp_path / "layout")
    yield layout
    shutil.rmtree(layout.folder)
