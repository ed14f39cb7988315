"""Kill or interrupt this very process at a chosen place of the library's code.

Death           SIGKILL before the n-th line that is executed. Lines of all threads count, also
                of threads that begin later. Lines of tests, of other libraries and of the
                standard library do not count: what the kernel sees of those happens at a line
                of ours.
Interruption    Ctrl-C at the n-th point at which Python may run a signal handler. Only points
                of the calling thread count, which is the main one: Python runs the handlers in
                no other. Points inside the parts of the standard library that hold locks for
                the library count too.
"""

from __future__ import annotations

import _weakrefset
import contextlib
import dis
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

import shmstream

_HOUSE = os.path.dirname(shmstream.__file__) + os.sep
_HELPS = frozenset(each.__file__ for each in (threading, contextlib, _weakrefset))
_MAY_INTERRUPT = frozenset(
    dis.opmap[each] for each in ("CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME")
)
"""After these instructions Python looks whether a signal has arrived."""


class Fate(Protocol):
    """What happens to the process at its n-th place."""

    def arm(self) -> None:
        """Count from here on."""


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


class Interruption:
    """Ctrl-C at the `nth` point from `arm` on."""

    has_come = False
    """Whether there was such a point in this process."""

    def __init__(self, nth: int) -> None:
        self._nth = nth
        self._count = 0
        self._before: dict[int, int] = {}  # by frame: the instruction before this one

    def arm(self) -> None:
        """Count from here on."""
        sys.settrace(self._call)

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not (name.startswith(_HOUSE) or name in _HELPS):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "return":
            self._before.pop(id(frame), None)
        if event == "opcode":
            if self._before.get(id(frame)) in _MAY_INTERRUPT:
                self._count += 1
                if self._count == self._nth:
                    Interruption.has_come = True
                    raise KeyboardInterrupt
            self._before[id(frame)] = frame.f_code.co_code[frame.f_lasti]
        return self._step


@contextlib.contextmanager
def interrupted_at(nth: int) -> Iterator[None]:
    """Inside, Ctrl-C comes at the `nth` point of this thread, if there is one."""
    before = sys.gettrace()
    Interruption(nth).arm()
    try:
        yield
    finally:
        sys.settrace(before)
        Interruption.has_come = False
