"""Whether an upstream is well: what ends a problem that operators are told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmstream.errors import SourceError
from shmstream.upstreams import health
from shmstream.upstreams.health import Reach
from shmstream.upstreams.notes import Notes


def test_what_a_probe_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 503 for one repository goes on, whatever `/v2/` answers; one for all ends with it."""
    monkeypatch.setattr(health, "_PROBE_EVERY", 0.0)
    reach, other = (Reach("http://a", "a.io", Notes(str(tmp_path), "reach")) for _ in range(2))
    failure = SourceError("it", 0, "it answered 503", status=503)

    reach.failed(failure, 0.0)
    assert other.wants_probe()
    other.probed()
    assert "503" in (other.problem or "")
    assert not other.wants_probe(), "it tells nothing of this problem"
    assert reach.wants_probe(), "another worker has not asked"
    reach.failed(failure, 0.0, is_probe=True)
    reach.failed(failure, 0.0)
    reach.probed()
    assert other.problem is None

    reach.failed(SourceError("it", 0, "it is away"), 0.0)
    assert other.wants_probe()
    other.probed()
    assert reach.problem is None

    reach.failed(SourceError("it", 0, "slow down", status=429), 0.0)
    assert not reach.wants_probe(), "it wants to be left alone"
