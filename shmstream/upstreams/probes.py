"""`Probes`: upstreams that have failed are asked again, so that operators see when they are well.

Each is asked in a thread of its own, and a few are asked at one time. The upstream that was asked
longest ago comes first: one that takes a minute to fail keeps no other one waiting for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from shmstream.system.threads import Call
from shmstream.upstreams.health import Reach

_AT_ONCE = 4


class Probed(Protocol):
    """What can be asked whether it answers; `reach` is what is known of that."""

    reach: Reach

    def probe(self) -> None:
        """Ask, and tell `reach` of it. Blocks, and raises nothing."""


class Probes:
    """The probes of one process. Any thread may use it."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def problems(self, upstreams: Iterable[Probed]) -> list[str]:
        """What is wrong with these upstreams, as the workers have last seen them. Reads files.

        Those that have failed are asked again meanwhile, so that their problems can end.
        """
        found = {each: each.reach.problem for each in upstreams}
        self.begin([each for each, problem in found.items() if problem is not None])
        return [problem for problem in found.values() if problem is not None]

    def begin(self, failing: Iterable[Probed]) -> None:
        """Begin to ask these upstreams, as far as they are due. Does not block; reads files."""
        for each in sorted(failing, key=lambda each: each.reach.probed):
            if not self._places.acquire(blocking=False):
                return
            try:
                is_begun = self._begin(each)
            except BaseException:
                self._places.release()
                raise
            if not is_begun:
                self._places.release()

    def _begin(self, upstream: Probed) -> bool:
        """Whether a thread asks the upstream now."""
        if not upstream.reach.begin_probe():
            return False
        try:
            Call(partial(self._probe, upstream), "shmstream-probe").start()
        except RuntimeError:  # no thread can be started: a later look tries
            upstream.reach.end_probe()
            return False
        return True

    def _probe(self, upstream: Probed) -> None:
        try:
            upstream.probe()
        finally:
            upstream.reach.end_probe()
            self._places.release()
