"""What a source says of its blob without giving its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmstream import Description, SourceError
from shmstream.sources.base import describe
from shmstream.sources.http import HTTPSource
from shmstream.sources.local import IterableSource, PathSource
from tests.support.origin import Origin


def test_a_source_is_described_without_its_bytes(origin: Origin, tmp_path: Path) -> None:
    url = origin.serve("/blob", seed=1, size=1000, media_type="application/x-test")
    assert HTTPSource(url).describe() == Description(1000, '"1-1000"', "application/x-test")
    [request] = origin.requests("/blob")
    assert (request.method, request.sent) == ("HEAD", 0)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert PathSource(path).describe().size == 10
    assert describe([IterableSource([b"x"])]) is None
    missing = HTTPSource(origin.url("/missing"))
    with pytest.raises(SourceError) as caught:
        describe([missing])
    assert caught.value.status == 404
    found = describe([missing, IterableSource([b"x"]), HTTPSource(url)])
    assert found is not None
    assert found.size == 1000
    with pytest.raises(SourceError, match="regular"):
        PathSource(tmp_path).describe()
