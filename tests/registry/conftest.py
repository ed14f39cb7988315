"""Fixtures of the registry's tests."""

from __future__ import annotations

import pytest

from tests.support.crowds import BLOB, SIZE
from tests.support.origin import Origin


@pytest.fixture
def upstream(origin: Origin) -> str:
    """Has one blob."""
    origin.serve(BLOB, seed=1, size=SIZE)
    return origin.url("").rstrip("/")
