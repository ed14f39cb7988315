"""A worker is killed at one line after the other of what it does with a kept connection.

`SHMSTREAM_KILL_STRIDE=1` tries every line. The usual stride takes some of them, others in each run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.support import kept_workers
from tests.support.interpreters import Interpreter

STRIDE = int(os.environ.get("SHMSTREAM_KILL_STRIDE", "400")) // 4 or 1
SEED = os.environ.get("SHMSTREAM_KILL_SEED") or os.urandom(4).hex()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("is_narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("lives", [1, 2])
def test_killed_at_every_line(
    lives: int, is_narrow: bool, start: Callable[..., Interpreter]
) -> None:
    """One worker, or also the one that adopts its connection, at the same line.

    If the way to the client is narrow, the kernel takes a part of each response only.
    """
    print(f"SHMSTREAM_KILL_SEED={SEED}")  # shown when it fails: the same lines again
    first = random.Random(f"{SEED} {lives}").randint(1, STRIDE)
    killer = start(kept_workers.die_at_lines, first, STRIDE, lives, is_narrow)
    outcome = killer.hear(patience=7200)
    assert outcome["wrong"] == []
    assert outcome["rounds"] > 1
    killer.finish()
