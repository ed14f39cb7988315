"""What the test process does once, before any test: it parts from the machine around it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from multiprocessing import forkserver, resource_tracker

_NEW_NAMESPACE = 0x20000  # CLONE_NEWNS
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE


def take_own_shared_memory() -> None:
    """Mount a /dev/shm for this process and its children alone. Needs root; else does nothing.

    Then the tests neither see nor touch the streams of other programs. Without root they share
    /dev/shm, and a program that streams at the same time may make a test fail.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEW_NAMESPACE) == 0:
            libc.mount(b"none", b"/", None, _PRIVATE, None)
            libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"mode=1777")


def heed_signals() -> None:
    """Let signals act as usual: a job in the background ignores some, and its children do, too."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


def start_helpers_of_multiprocessing() -> None:
    """Start its resource tracker and its fork server, which live as long as this process."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    process.close()
