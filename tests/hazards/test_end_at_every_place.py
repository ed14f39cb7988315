"""SIGKILL or Ctrl-C at every place of every operation: nothing wrong or left, no progress lost.

Each operation (tests/support/operations.py) is killed at one line after the other, each time in a
process of its own. Then the next process must come to the right bytes, ask the source for no byte
that was published before, and leave nothing. Each operation is also interrupted at one point after
the other at which Python may run a signal handler. The process must then end in good order, and
soon, and the same must be true.

`SHMSTREAM_KILL_STRIDE=1` tries every place, some 80,000: 1.5 hours of processor time, 55 to 90 ms
for each, because all processes of a round are forks of one interpreter. The usual stride takes a
few places of each operation, others in each run; the seed that is printed repeats them.
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
@pytest.mark.parametrize("interrupts", [False, True], ids=["killed", "interrupted"])
def test_ended_at_every_place(
    interrupts: bool,
    operation: str,
    start: Callable[..., Interpreter],
    tmp_path: Path,
    origin: Origin,
) -> None:
    print(f"SHMSTREAM_KILL_SEED={SEED}")  # shown when it fails: the same places again
    url = origin.serve("/blob", seed=7, size=operations.SIZE)
    first = random.Random(f"{SEED} {operation}").randint(1, STRIDE)
    folder = str(tmp_path / "folder")
    ending = start(operations.end_at_places, operation, folder, url, first, STRIDE, interrupts)
    outcome = ending.hear(patience=7200)
    assert outcome["wrong"] == []
    assert outcome["rounds"] > 1 or STRIDE > 1
    ending.finish()
