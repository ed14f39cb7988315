"""Counts the calls of functions, in Python and in C, that a process needs for something.

A count is no time: it does not depend on the machine, and hardly on what else the machine does.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

from shmstream.flight import flight
from tests.support.flights import make_store
from tests.support.interpreters import Link


class Calls:
    """Counts the calls of this thread, and of all threads that begin after its construction."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self._counts = False
        threading.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self._counts:
            return
        if event == "call":
            self.of[f"{frame.f_code.co_filename[-40:]} {frame.f_code.co_name}"] += 1
        elif event == "c_call":
            self.of[f"in C: {getattr(argument, '__qualname__', argument)}"] += 1

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()  # a collection calls what belongs to objects of other work
        sys.setprofile(self._note)
        self._counts = True

    def __exit__(self, *_error: object) -> None:
        self._counts = False
        sys.setprofile(None)
        threading.setprofile(None)
        gc.enable()


def count_a_beginning(link: Link, folder: str, warm: str, loses: bool) -> None:
    """It downloads `warm`, so that all is imported. Then it opens the blob of a [key, source] that
    it hears, and says how many calls that took until the first byte, and which ones.

    `loses`: its first look for a flight finds none, as if another process began it just then.
    """
    calls, store = Calls(), make_store(folder, {})
    store.fetch("warm", warm)
    store.fetch("also warm", warm)
    if loses:
        _find_nothing_at_first()
    link.say("ready")
    key, source = next(link.hear_all())
    with calls:
        blob = store.open(key, source)
        first = blob.read1(1)
    made = blob._flight.sources._sources is not None
    link.say(
        {
            "role": blob.role,
            "first": len(first),
            "made": made,
            "calls": calls.of.total(),
            "of": calls.of.most_common(60),
        }
    )
    blob.close()


def _find_nothing_at_first() -> None:
    find, looks = flight.Flight._find, list[float]()

    def look(self: flight.Flight, patience: float) -> flight.Reader | None:
        looks.append(patience)
        return None if len(looks) == 1 else find(self, patience)

    flight.Flight._find = look  # type: ignore[method-assign]


def count_a_flight(link: Link, folder: str) -> None:
    """It fetches blobs, and says on the average how many calls each took after the first ones.

    It hears how many are not counted, then a list of all [key, source].
    """
    calls, store = Calls(), make_store(folder, {"hash_named": False})
    warm, flights = link.hear()
    for key, source in flights[:warm]:
        store.fetch(key, source)
    with calls:
        for key, source in flights[warm:]:
            store.fetch(key, source)
    counted = len(flights) - warm
    of = [[round(count / counted, 1), name] for name, count in calls.of.most_common(80)]
    looks = calls.of["in C: lseek"] / counted
    link.say({"calls": calls.of.total() / counted, "looks": looks, "of": of})
