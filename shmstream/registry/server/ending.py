"""A forked child calls a function as Python runs a program, and ends as a program does.

Python has no call for this. If the child returned from the call that it was forked in, it would do
what its parent does at its end. So these are the steps of Python, one after the other:

    1 the function                its SystemExit tells the exit code. What else it raises is told by
                                  `sys.excepthook`, with exit code 1
    2 threads                     those that are not daemons are waited for
    3 atexit, weakref.finalize    the functions that were registered since `forget`
    4 standard output, error      what is not written yet is written. If that fails: exit code 120
    5 the end                     KeyboardInterrupt ends the process by SIGINT

`os._exit` in any of these steps ends the process at once, as always.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import util
from typing import IO

_NOT_WRITTEN = 120
_INTERRUPTED = -signal.SIGINT

_freed_never: list[object] = []


def forget() -> None:
    """Forget what the parent is to do at its end, such as to remove a folder that it has made."""
    atexit._clear()
    known = weakref.finalize
    _freed_never.append(known._registry)  # type: ignore[attr-defined]
    known._registry = {}  # type: ignore[attr-defined]
    atexit.register(known._exitfunc)  # type: ignore[attr-defined]
    of_python = logging.shutdown, util._exit_function  # type: ignore[attr-defined]
    for each in of_python:
        atexit.register(each)


def run(function: Callable[[], object]) -> int:
    """Call `function` as a program; the exit code. The caller ends the process at once."""
    code = _call(function)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    is_written = _flush(sys.stdout), _flush(sys.stderr)
    if not all(is_written):
        return _NOT_WRITTEN
    if code == _INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return 128 + signal.SIGINT  # the signal is blocked
    return code


def _call(function: Callable[[], object]) -> int:
    try:
        function()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:  # noqa: BLE001  the end of a program
        sys.excepthook(type(error), error, error.__traceback__)
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _flush(file: IO[str] | None) -> bool:
    """Whether all was written, or the file was closed before."""
    try:
        if file is not None and not getattr(file, "closed", False):
            file.flush()
    except Exception as error:  # noqa: BLE001  whatever file it is
        if file is sys.stdout:
            with suppress(Exception):
                told = f"Exception ignored in: {file!r}\n{type(error).__name__}: {error}\n"
                sys.stderr.write(told)
        return False
    return True
