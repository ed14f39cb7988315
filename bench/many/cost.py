"""What some work costs this process and its children: CPU time, and time on the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple


class Cost(NamedTuple):
    """Microseconds of CPU, of all threads and ended children, and on the clock."""

    cpu: float
    clock: float

    def __truediv__(self, count: int) -> Cost:
        """Of one, where this is of `count`."""
        return Cost(self.cpu / count, self.clock / count)


def cost_of(work: Callable[[], object]) -> Cost:
    """What it costs to do the work once."""
    cpu, clock = _cpu(), time.monotonic()
    work()
    return Cost((_cpu() - cpu) * 1e6, (time.monotonic() - clock) * 1e6)


def _cpu() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system
