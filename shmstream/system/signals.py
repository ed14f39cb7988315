"""Ctrl-C, SIGTERM and SIGHUP end a program in good order: the first one raises an error."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_log = logging.getLogger("shmstream")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """The program was asked to stop, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


def interrupts(error: BaseException) -> bool:
    """Whether `error` may come from outside the code that was running: it is for the caller.

    A signal handler may have raised it, as Ctrl-C does, or a hub of greenlets, such as
    `gevent.Timeout`. Both are in the main thread only. In any other thread the code that was
    running has raised it by itself, as `sys.exit()` does.
    """
    is_from_outside = not isinstance(error, Exception | GeneratorExit)
    return is_from_outside and threading.get_native_id() == os.getpid()


@contextmanager
def listening(failed: str) -> Iterator[None]:
    """Inside, a listener is called, which is foreign code: its error is logged, and ends nothing.

    `failed` is what the log says, before the error.
    """
    try:
        yield
    except BaseException as error:
        if interrupts(error):
            raise
        _log.error("%s: %s", failed, repr(error))


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP raises `Stopped`; later ones are ignored.

    So the `with` blocks clean up on the way out, and a second Ctrl-C interrupts neither them nor
    the end of the interpreter. A signal that was ignored before, as under nohup, stays ignored. For
    the main thread only: Python allows no other thread to set a handler.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {each: signal.getsignal(each) for each in _STOPPING}
    before = {each: handler for each, handler in before.items() if handler != signal.SIG_IGN}
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) is stop:
                signal.signal(each, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, no `Stopped` is raised; a signal that arrives is held back to the end of the block.

    So a caller that makes something inside also notes it, and can undo it. Only the calling thread
    holds its signals back.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
