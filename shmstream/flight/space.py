"""`Space`: takes disk space for a blob while its bytes come, and has the store make room for them.

The steps grow with the blob, so a slow source does not keep much from others. Only the space of a
blob of known size is reserved, because that never has to be given back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shmstream.errors import OutOfResources, OutOfRoom

if TYPE_CHECKING:
    from shmstream.storage.eviction import Upkeep
    from shmstream.stream.described_writer import DescribedStreamer

_LEAST, _MOST = 1 << 20, 16 << 20  # bytes; so much space is taken ahead of what has come
_FREEING = 0.05  # s; another process frees the space of a file that it has removed in less


class Space:
    """The disk space for the blob that `streamer` brings to `path`."""

    def __init__(self, streamer: DescribedStreamer, upkeep: Upkeep, path: str) -> None:
        self._streamer = streamer
        self._upkeep = upkeep
        self._path = path
        self._taken = 0  # bytes of the blob for which there is space

    def require_fit(self, size: int) -> None:
        """Require that the store can keep a blob of so many bytes, if it evicts all it may.

        Raises:
            OutOfRoom: it cannot. Nothing was evicted.
        """
        if (reason := self._upkeep.misfit(size, self._path)) is not None:
            raise OutOfRoom(self._streamer.name, self._streamer.appended, reason)

    def take(self, count: int) -> None:
        """Before `count` more bytes: have space for them, and for some that come after them.

        Raises:
            OutOfRoom, OutOfResources: there is no room for them.
        """
        streamer, size = self._streamer, self._streamer.size
        end = streamer.appended + count
        end = end if size is None else min(end, size)
        if end <= self._taken:
            return
        upto = max(end, streamer.appended + min(max(streamer.appended, _LEAST), _MOST))
        most = size
        if size is None:
            self.require_fit(end)
            most = self._upkeep.max_bytes
        upto = upto if most is None else min(upto, most)
        sure = upto if size is not None else end
        for tries_left in (2, 1, 0):
            more = upto - max(streamer.appended, self._taken)
            self._upkeep.expect(sure, self._path, more)
            try:
                if size is not None:
                    streamer.reserve(upto)
                break
            except OutOfResources:  # another flight was faster, or another process is evicting
                if not tries_left:
                    raise
                time.sleep(0 if tries_left == 2 else _FREEING)
        self._taken = upto
