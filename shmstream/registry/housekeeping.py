"""`Housekeeper`: what one process does for all workers of a store, now and then.

    preload      pull the images of the settings, at the start and every `preload_every`
    retention    remove images that were unused for `unused_for`, or that were here `kept_for`

All workers of all servers of a store try to take one turn (`Store.turns`). The kernel gives it to
one of them, and to another one when that worker ends. A thread does the work, and no client waits
for it.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from shmstream.errors import ShmstreamError
from shmstream.registry.images import Images
from shmstream.registry.pulling import Puller
from shmstream.registry.settings import Settings
from shmstream.registry.tables import Upstream as Told
from shmstream.registry.upstream.upstream import Upstream
from shmstream.store import Store
from shmstream.system.threads import Call
from shmstream.upstreams.counts import Counts

_TURN = "housekeeping"
_LOOK_EVERY = 5.0  # s; whether it is the turn of this process
_RETAIN_EVERY = 600.0  # s; at most, and a tenth of the shortest time
_AGAIN_AFTER = 60.0  # s; an image that could not be pulled is tried again

_Times = tuple[float | None, float | None]

_log = logging.getLogger("shmstream")


class Housekeeper:
    """The housekeeping of a store. One for each process; starts a thread if there is work."""

    def __init__(self, settings: Settings, store: Store, counts: Counts | None = None) -> None:
        """`counts` is told of questions to upstreams, and from which one bytes come."""
        self._counts = counts
        self._settings = settings
        self._store = store
        self._stopping = threading.Event()
        self._times = {"": (settings.unused_for, settings.kept_for)}
        self._patterns = []
        for each in sorted(settings.upstreams, key=lambda each: -len(each.namespace or "")):
            if each.is_pattern:
                self._patterns.append((each, self._times_of(each)))
            else:
                label = _label(each.namespace, each.addresses()[0].url)
                self._times[f"{label}/"] = self._times_of(each)
        found = [*self._times.values(), *(times for _, times in self._patterns)]
        waits = [each for times in found for each in times if each is not None]
        self._retain_every = min([_RETAIN_EVERY, *(each / 10 for each in waits)]) if waits else None

    def _times_of(self, upstream: Told) -> _Times:
        """How long its images are kept unused, and in all."""
        usual = self._settings
        return (
            usual.unused_for if upstream.unused_for is None else upstream.unused_for,
            usual.kept_for if upstream.kept_for is None else upstream.kept_for,
        )

    def start(self) -> None:
        """Begin, if there is anything to do. Does not block."""
        if self._settings.preload or self._retain_every is not None:
            with suppress(RuntimeError):  # no thread can be started: another worker does it
                Call(self._run, "shmstream-housekeeping").start()

    def stop(self) -> None:
        """End soon; a pull in progress is left to the next one. Idempotent."""
        self._stopping.set()

    def _run(self) -> None:
        if (problem := self._store.problem()) is not None:
            _log.error("no housekeeping: %s", problem)
            return
        turns = self._store.turns(0.0)
        while (turn := turns.take(_TURN)) is None:
            if self._stopping.wait(_LOOK_EVERY):
                return
        try:
            self._keep_house()
        finally:
            turn.close()

    def _keep_house(self) -> None:
        puller = Puller(self._settings, self._store, self._counts)
        waiting = dict.fromkeys(self._settings.preload, 0.0)  # by image, when it is due
        retain_at = float("-inf") if self._retain_every is not None else float("inf")
        while not self._stopping.is_set():
            for image in [each for each, due in waiting.items() if due <= time.monotonic()]:
                waiting[image] = time.monotonic() + self._pull(puller, image)
                if self._stopping.is_set():
                    return
            if retain_at <= time.monotonic():
                self.remove_outdated()
                retain_at = time.monotonic() + (self._retain_every or float("inf"))
            due = min([retain_at, *waiting.values()])
            self._stopping.wait(max(min(due - time.monotonic(), 3600.0), 0.0))

    def _pull(self, puller: Puller, image: str) -> float:
        """Pull an image; after how many seconds to do that again."""
        try:
            pulled = puller.pull(image, self._settings.preload_platforms)
        except (ShmstreamError, OSError, ValueError, RuntimeError) as error:
            _log.warning("%s cannot be preloaded: %s", image, error)
            return _AGAIN_AFTER
        _log.info("%s: preloaded, %d of its %d blobs anew", image, pulled.fetched, pulled.blobs)
        return self._settings.preload_every or float("inf")

    def remove_outdated(self) -> list[str]:
        """Remove images that are kept no longer; their names."""
        images = Images(self._store)
        found = images.all()
        doomed = [each for each in found if images.is_outdated(each, *self._of(each.name))]
        if doomed:
            removed = images.remove(doomed)
            _log.info(
                "%d images, with %d blobs, were kept for their time", len(doomed), len(removed)
            )
        return [str(each) for each in doomed]

    def _of(self, name: str) -> _Times:
        """How long an image of that name is kept unused, and in all."""
        if begins := max((each for each in self._times if name.startswith(each)), key=len):
            return self._times[begins]
        host = name.partition("/")[0]
        fitting = (times for each, times in self._patterns if each.fits(host))
        return next(fitting, self._times[""])


def _label(namespace: str | None, url: str) -> str:
    return Upstream(url, namespace).label
