"""Greenlets in place of threads: whether this process has them, and how one of them pauses.

gevent and eventlet can replace the threads of a process by greenlets, which take turns in one
thread of the system; `gunicorn -k gevent` does that. Most of this library need not know: locks,
events, sockets and `time.sleep` are replaced, too. But a call that waits in the C library stops all
greenlets, and with them the leader that it waits for. So a reader that waits for its semaphore asks
here: if there are greenlets, it looks at the semaphore now and then, and pauses in between. And a
greenlet that computes for long, or copies without waiting, gives way to the others now and then.

The modules may be patched after this library was imported. So nothing is remembered, and the parts
of the standard library that are replaced are looked up when they are used.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Collection
from typing import Any, cast


def pausing() -> Callable[[float], object] | None:
    """The function with which a greenlet pauses for some seconds; None if there are only threads.

    Takes less than a microsecond.
    """
    if "gevent.monkey" in sys.modules:
        gevent = _module("gevent.monkey")
        if gevent is not None and any(map(gevent.is_module_patched, ("threading", "time"))):
            return _sleep_of("gevent")
    if "eventlet.patcher" in sys.modules:
        eventlet = _module("eventlet.patcher")
        if eventlet is not None and any(map(eventlet.is_monkey_patched, ("thread", "time"))):
            return _sleep_of("eventlet")
    return None


def _module(name: str) -> Any:
    return sys.modules.get(name)


def _sleep_of(package: str) -> Callable[[float], object]:
    return cast("Callable[[float], object]", _module(package).sleep)


def give_way() -> None:
    """Let other greenlets run, if there are any. Threads need no such thing."""
    if (pause := pausing()) is not None:
        pause(0)


def wait_until_ready(fd: int, timeout: float | None, *, writable: bool = False) -> bool:
    """Wait until `fd` can be read or written, or has failed; False after `timeout` seconds.

    eventlet replaces only `select.select`, and removes `select.poll`.
    """
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLOUT if writable else select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))
    wanted: tuple[list[int], list[int]] = ([], [fd]) if writable else ([fd], [])
    return any(select.select(*wanted, [fd], timeout))


def readable(fds: Collection[int], timeout: float) -> list[int]:
    """Those of `fds` that can be read, or have ended; waits for one, at most `timeout` seconds."""
    if hasattr(select, "poll"):
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(timeout * 1000)]
    return select.select(fds, [], [], timeout)[0]
