"""Kill this very process at a line: SIGKILL before the n-th line of the library that it executes.

Lines of all threads count, also of threads that begin later. Lines of tests, of other libraries and
of the standard library do not count: what the kernel sees of those happens at a line of ours.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import shmstream

_HOUSE = os.path.dirname(shmstream.__file__) + os.sep


class Death:
    """SIGKILL at the `nth` line from `arm` on. Threads that began before this object are spared."""

    def __init__(self, nth: int) -> None:
        self._nth = nth
        self._count = itertools.count(1)
        self._is_armed = False
        threading.settrace(self._call)
        sys.settrace(self._call)

    def arm(self) -> None:
        """Count from here on."""
        self._is_armed = True

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_HOUSE) else None

    def _line(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line" and self._is_armed and next(self._count) == self._nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._line
