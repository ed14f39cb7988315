"""`Across`: what a download is part of beyond this host."""

from __future__ import annotations

from typing import Protocol

from shmstream.sources.base import Source


class Across(Protocol):
    """What the flight is part of beyond this host: `cluster/part.py`."""

    def source(self, upstream: Source) -> Source:
        """A source with the bytes of `upstream`, wherever they come from."""

    @property
    def used_peers(self) -> bool:
        """Whether some bytes did not come from the upstream."""

    def is_lie(self, size: int) -> bool:
        """Whether the last feed has told a size that is not the upstream's. If so, ask again."""

    def ended(self, error: BaseException | None) -> None:
        """The flight has ended here; with the complete blob if there is no `error`."""
