"""SIGKILL at every line of every operation: nothing wrong, nothing left, no progress lost.

Each operation (tests/support/operations.py) is killed at one line after the other, each time in a
process of its own. Then the next process must come to the right bytes, ask the source for no byte
that was published before, and leave nothing.

`SHMSTREAM_KILL_STRIDE=1` tries every line: an hour. The usual stride takes a few lines
of each operation, others in each run; the seed that is printed repeats them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import operations
from tests.support.interpreters import Interpreter
from tests.support.operations import OPERATIONS
from tests.support.origin import Origin

STRIDE = int(os.environ.get("SHMSTREAM_KILL_STRIDE", "400"))
SEED = os.environ.get("SHMSTREAM_KILL_SEED") or os.urandom(4).hex()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_line(
    operation: str, start: Callable[..., Interpreter], tmp_path: Path, origin: Origin
) -> None:
    print(f"SHMSTREAM_KILL_SEED={SEED}")  # shown when it fails: the same lines again
    url = origin.serve("/blob", seed=7, size=operations.SIZE)
    first = random.Random(f"{SEED} {operation}").randint(1, STRIDE)
    folder = str(tmp_path / "folder")
    killer = start(operations.kill_at_lines, operation, folder, url, first, STRIDE)
    outcome = killer.hear(patience=7200)
    assert outcome["wrong"] == []
    assert outcome["rounds"] > 1 or STRIDE > 1
    killer.finish()
