"""Signals at random moments to leaders and followers: nothing wrong, nothing hung, nothing left.

`SHMSTREAM_SIGNALS=10000` is a long storm: some three minutes. The seed that is printed repeats the
choices of a storm, though not the moments at which the processes are hit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import storm
from tests.support.interpreters import Interpreter
from tests.support.origin import Origin

SIGNALS = int(os.environ.get("SHMSTREAM_SIGNALS", "60"))
SEED = os.environ.get("SHMSTREAM_KILL_SEED") or os.urandom(4).hex()


@pytest.mark.timeout(7200)
def test_a_storm_of_signals(
    start: Callable[..., Interpreter], tmp_path: Path, origin: Origin
) -> None:
    print(f"SHMSTREAM_KILL_SEED={SEED}")  # shown when it fails
    url = origin.serve("/blob", seed=storm.HTTP_SEED, size=storm.SIZE, rate=16 << 20)
    folder = str(tmp_path / "store")
    blowing = start(storm.storm, folder, url, SEED, SIGNALS)
    outcome = blowing.hear(patience=7200)
    told = blowing.finish()
    assert outcome["wrong"] == [], told
    assert outcome["read"] > 0
