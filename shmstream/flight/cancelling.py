"""Cancelling a flight from any process: its partial file is removed, and its writer notices.

    process that cancels            process that writes
    removes the partial file
                                    a thread looks four times a second whether the partial file of
                                      each flight of this process is still at its place; if it is
                                      not, the flight can never commit: it is aborted
    waits until the stream has
      ended

Whichever program removes the file, the flight ends at once, and not only at its commit. The thread
ends when this process has had no flight for some seconds, so that few flights start a thread. It
sleeps nearly always, and has the name of threads that wait for their next use.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from shmstream.errors import ShmstreamError
from shmstream.storage.journal import Journal
from shmstream.storage.layout import Place
from shmstream.stream.control_block import TERMINAL, State
from shmstream.stream.partial import is_written, remove_partial
from shmstream.stream.stream import Stream
from shmstream.system import threads
from shmstream.system.process import PerProcess

REASON = "it was cancelled: its partial file was removed"
"""What readers get as the reason."""

_TICK = 0.25  # s; from look to look
_IDLE = 20  # ticks without a flight, after which the thread ends
_PATIENCE = 5.0  # s; a writer that lives ends in less


_log = logging.getLogger("shmstream")


class Cancellable(Protocol):
    """A flight of this process: a leader or a producer."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""

    @property
    def is_cut_off(self) -> bool:
        """Whether its partial file is not at its place any more."""

    def cancel(self) -> None:
        """Abort. From any thread."""


class _Watch:
    """The flights of this process. `thread` is the one that looks at them."""

    def __init__(self) -> None:
        self.flights: weakref.WeakSet[Cancellable] = weakref.WeakSet()
        self.thread: threads.Call | None = None


_watch: PerProcess[_Watch] = PerProcess(_Watch)


def watch(flight: Cancellable) -> None:
    """Cancel `flight` when its partial file is gone, until it is over."""
    with _watch.lock:
        found = _watch.value
        found.flights.add(flight)
        if found.thread is None:
            thread = threads.Call(_look, threads.IDLE)
            with suppress(RuntimeError):  # no thread can be started: it is noticed at the commit
                thread.start()
                found.thread = thread


def _look() -> None:
    idle = 0
    while True:
        time.sleep(_TICK)
        with _watch.lock:
            found = _watch.value
            flights = _going_on(found)
            idle = 0 if flights else idle + 1
            if idle == _IDLE:
                found.thread = None
                return
        while flights:
            _look_at(flights.pop())


def _going_on(found: _Watch) -> list[Cancellable]:
    """The flights that are not over; the others are forgotten.

    A flight need not say that it is over: the garbage collector may end it at any line, also here.
    """
    flights = list(found.flights)
    for each in flights:
        if each.is_over:
            found.flights.discard(each)
    return [each for each in flights if not each.is_over]


def _look_at(flight: Cancellable) -> None:
    try:
        if flight.is_cut_off:
            flight.cancel()
    except (ShmstreamError, OSError) as error:  # it ends just now by itself
        _log.debug("cannot cancel: %s", str(error))


def cancel(place: Place) -> bool:
    """End the flight of `place`, in whatever process of this host. False if there was none.

    Waits until it has ended; of a writer that is stopped, 5 s at most. What an earlier flight has
    kept for the next one is removed, too.
    """
    was_ended = _end(place)
    was_kept = os.path.lexists(place.partial) and remove_partial(place.partial)
    if was_kept:
        Journal(place.journal, place.algorithm).forget()
        Path(place.ahead).unlink(missing_ok=True)
        if place.is_named and not os.path.lexists(place.path):
            Path(place.record).unlink(missing_ok=True)
    return was_ended or was_kept


def _end(place: Place) -> bool:
    """End the flight that a live process leads; False if there is none."""
    if (stream := Stream.find(place.stream)) is None:
        # Perhaps the leader has another /dev/shm.
        if not is_written(place.partial):
            return False
        Path(place.partial).unlink(missing_ok=True)
        return True
    with stream:
        until = time.monotonic() + _PATIENCE
        is_going_on = False
        while stream.state not in TERMINAL and not stream.is_orphaned():
            is_going_on = True
            # Again and again, because a leader that is just beginning may take another file.
            Path(place.partial).unlink(missing_ok=True)
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return is_going_on and stream.state != State.COMMITTED
