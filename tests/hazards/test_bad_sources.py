"""Sources that fail in their own ways, and flights that still bring the right blob."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shmstream import Retries, SourceFailed
from tests.support.flights import make_store
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 300_000
HALF = 150_000
ONCE = Retries(attempts=1, first_pause=0.0)

BROKEN_RANGES: dict[str, dict[str, Any]] = {
    **{str(status): {"range_status": status} for status in (400, 403, 404, 405, 500, 501)},
    "no Content-Range": {"content_range": ""},
    "an earlier part": {"content_range": f"bytes 0-{SIZE - 1}/{SIZE}"},
    "a part of something": {"content_range": f"bytes {HALF}-{SIZE - 1}/*"},
    "the rest as the whole": {"rest_is_all": True},
    "reset": {"range_resets": True},
}


@pytest.mark.parametrize("how", BROKEN_RANGES)
def test_a_server_with_broken_ranges(how: str, folder: str, origin: Origin) -> None:
    """Its first answer breaks off. A plain request is right, in this try and in later ones."""
    store = make_store(folder, {})
    for seed, key in enumerate(["name 0", "name 1", digest(2, SIZE), digest(3, SIZE)]):
        url = origin.serve(f"/{seed}", seed=seed, size=SIZE)
        origin.change(f"/{seed}", **BROKEN_RANGES[how])
        origin.change(f"/{seed}", first=0, count=1, close_after=HALF)
        if seed % 2:
            with pytest.raises(SourceFailed):
                make_store(folder, {"retries": ONCE}).fetch(key, url)
            wait_until(lambda: store.flights() == [])
        assert Path(store.fetch(key, url)).read_bytes() == content(seed, SIZE)
