"""Offers: the sources that the readers of this process have for one flight, beside its leader's.

A reader may have a better source than the leader: a URL that was signed a moment ago, while the
leader's has expired. So before a leader gives up, other readers' sources are asked:

    in this process      the leader finds their offers here, and goes on with them
    in other processes   each reader's slot has its *crew*, a number that only processes with the
                         same sources have. If there is another crew, the leader leaves its last
                         words in the control block and hands over; see `last_words`

A process that follows needs its sources only when it takes over. To import what URLs need takes
some 70 ms, for which all readers would wait. So a thread imports it a moment after the process has
begun to follow, when its reader has its first bytes.

Readers who ask for another digest or size than the leader (`Place.asked`) offer it nothing: their
sources would not help, and some can be read only once.

An offer lasts until its reader is closed, or is in memory no more.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import threading
import time
import weakref
from collections.abc import Collection, Set
from contextlib import suppress
from functools import cached_property, partial

from shmstream.sources.base import Source
from shmstream.sources.select import (
    AnySource,
    as_sources,
    fingerprint,
    fingerprints,
    missing_modules,
)
from shmstream.system import threads
from shmstream.system.process import PerProcess, fork_lock

_A_MOMENT = 0.2  # s

_log = logging.getLogger("shmstream")


class Offer:
    """The sources of one reader; call it to get them. They are made when they are first needed."""

    def __init__(self, source: AnySource | None) -> None:
        self._source = source
        self._lock = threading.Lock()  # the leader's thread may ask at the same time as the reader
        self._sources: list[Source] | None = [] if source is None else None
        self.room: _Room | None = None

    def __call__(self) -> list[Source]:
        """The sources, always the same objects.

        Raises:
            TypeError, ValueError, ImportError: as `as_sources`.
        """
        with self._lock:
            if self._sources is None and self._source is not None:
                self._sources = as_sources(self._source)
            return self._sources or []

    @property
    def are_given(self) -> bool:
        """Whether there are sources. Makes none of them."""
        return self._source is not None

    def get_ready(self) -> None:
        """Have imported soon, by another thread, what the sources need. Never fails."""
        if self._sources is not None or self._source is None:
            return
        with _importing.lock:
            missing = missing_modules(self._source) - _importing.value
            _importing.value.update(missing)
        if missing:
            with suppress(RuntimeError):  # no thread can be started: a takeover takes longer
                threads.Call(partial(_import, missing), threads.IDLE).start()

    @cached_property
    def fingerprints(self) -> list[str]:
        """What tells the sources apart. Computed without making them."""
        return [] if self._source is None else fingerprints(self._source)


_importing: PerProcess[set[str]] = PerProcess(set)
"""The modules that a thread imports, or has imported."""


def _import(modules: set[str]) -> None:
    time.sleep(_A_MOMENT)
    for module in modules:
        # A child that was forked in the middle of an import could never import that module.
        with fork_lock, suppress(ImportError):  # the extra is missing: the takeover tells that
            importlib.import_module(module)


class _Room:
    """All offers of this process for one stream. It lasts as long as one of them."""

    def __init__(self) -> None:
        self.offers: weakref.WeakSet[Offer] = weakref.WeakSet()
        self.crew: int | None = 0  # None: an offer has come since it was computed


_Rooms = weakref.WeakValueDictionary[str, _Room]
_rooms: PerProcess[_Rooms] = PerProcess(weakref.WeakValueDictionary)  # by the name of the stream


def add(stream: str, offer: Offer) -> None:
    """Offer sources for the flight of that stream. Idempotent."""
    with _rooms.lock:
        rooms = _rooms.value
        room = rooms.get(stream)
        if room is None:
            room = rooms[stream] = _Room()
        if offer.room is not room:
            offer.room = room
            room.offers.add(offer)
            room.crew = None


def withdraw(offer: Offer) -> None:
    """Offer these sources no more. Idempotent."""
    with _rooms.lock:
        if offer.room is not None:
            offer.room.offers.discard(offer)
            offer.room.crew = None
            offer.room = None


def _offers(stream: str) -> tuple[_Room | None, list[Offer]]:
    with _rooms.lock:
        rooms = _rooms.value
        room = rooms.get(stream)
        return room, [] if room is None else list(room.offers)


def has_readers(stream: str) -> bool:
    """Whether this process has readers for that stream; those of asyncio take no slot in it."""
    return bool(_offers(stream)[1])


def crew_of(fingerprints: Set[str]) -> int:
    """The number of a process that offers the sources with these fingerprints, and no others."""
    if not fingerprints:
        return 0
    digest = hashlib.blake2b(" ".join(sorted(fingerprints)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) | 1


def crew(stream: str) -> int:
    """A number that another process has only if it offers the same sources; 0: it offers none."""
    with _rooms.lock:
        rooms = _rooms.value
        room = rooms.get(stream)
        if room is None:
            return 0
        if room.crew is not None:
            return room.crew
        offers = list(room.offers)
        room.crew = 0  # first: an offer that comes meanwhile sets it to None again
    number = crew_of({each for offer in offers for each in offer.fingerprints})
    if room.crew == 0:
        room.crew = number
    return number


def has(stream: str, source: str) -> bool:
    """Whether the source with that fingerprint is offered here."""
    return any(source in offer.fingerprints for offer in _offers(stream)[1])


def untried(stream: str, tried: Collection[str]) -> list[Source]:
    """The sources that are offered here and are not in `tried`, which has fingerprints."""
    found: dict[str, Source] = {}
    for offer in _offers(stream)[1]:
        if all(each in tried for each in offer.fingerprints):
            continue
        try:
            sources = offer()
        except (TypeError, ValueError, ImportError) as error:  # its own reader is told
            _log.debug("a reader's source is of no use: %s", error)
            continue
        for source in sources:
            if (its := fingerprint(source)) not in tried:
                found.setdefault(its, source)
    return list(found.values())
