"""`Supply`: one of the sources of a blob that comes over several connections; how many it bears.

    at first              one connection, which shows that the source gives parts; of a source other
                          than the leader's, it also shows that the source has the same bytes
    then                  as many as it may have
    429, 503              it bears no more than it gave just then, and one more every half a minute.
                          New parts are asked for when the time is over that it told, or after a
                          second, and twice as late if it refuses again
    silent from the       likewise, without a pause, if others of its connections give. If it has
      first byte          never given a part, it can give none: after the third time
    any other failure     no new parts for a while, which grows: the others go on
    it can never give     it is not asked for parts again
    it is late            its next pieces are shorter; after the third time, as a failure. A piece
                          is as long as what it brings in 2 s, so a slow source brings little, and
                          a fast one more

All of it is called under the lock of `Lanes`.
"""

from __future__ import annotations

import logging
import math
import time

from shmstream.errors import SourceError
from shmstream.flight.shares import Share
from shmstream.sources.base import Source

_PIECE = 2.0  # s; so long a piece takes to come, if its source gives as before
_LEAST, _MOST = 1 << 20, 16 << 20  # bytes of a piece
CROWDED = (429, 503)
"""The statuses of a server that has too many requests, of this client or of all."""
_REST, _LONGEST_REST = 0.1, 10.0  # s
_DOUBLED = 7  # times at most
_OFTEN = 2  # times in a row that it may be late
_GROWS = 30.0  # s
_CROWDED_FOR, _LONGEST_CROWDED_FOR = 1.0, 30.0  # s, if it does not tell for how long
_LONGEST_RETRY_AFTER = 300.0  # s

_log = logging.getLogger("shmstream")


class Supply:
    """`source`, which may have `most` connections; `rate` is what one gives, in bytes a second.

    With a `share` it has no more than that says.
    """

    def __init__(
        self, source: Source, most: int, rate: float, *, is_first: bool, share: Share | None = None
    ) -> None:
        self.source = source
        self.share = share
        self.most: int = most
        self.rate: float = rate
        self.is_first = is_first
        """Whether the bytes of the partial file came from it."""
        self.active: int = 0
        """Connections that bring pieces."""
        self.lump: int = 0
        """Bytes that came at once, at most: so long it may be silent in between."""
        self.delay: float = 0.0
        """Seconds until the first byte of a piece came, at most."""
        self.gave: int = 0
        """Bytes of all pieces."""
        self.is_proved: bool = False
        """Whether it has shown that it gives parts, and the same bytes."""
        self.is_out: bool = False
        """Whether it can never give parts."""
        self._failures = 0
        self._refusals = 0  # of parts that it was asked for since it gave one
        self._refused_at = 0.0
        self._silences = 0  # before it has given any part
        self._rests_until = 0.0
        self._at_first = most
        self._grows_at = math.inf

    def is_resting(self, now: float) -> bool:
        """Whether it is asked for nothing new just now."""
        return now < self._rests_until

    @property
    def is_well(self) -> bool:
        """Whether what it was asked for last came in time."""
        return not self._failures

    def allowed(self, now: float, own: int) -> int:
        """How many connections it may have beside the leader's `own`."""
        if self.is_out or self.is_resting(now):
            return 0
        if now >= self._grows_at:
            self.most = min(self.most + 1, self._at_first)
            self._grows_at = now + _GROWS
        most = self.most if self.share is None else min(self.most, self.share.connections)
        return max((most if self.is_proved else min(most, 1 + own)) - own, 0)

    def length(self, most: int) -> int:
        """Bytes of its next piece, at most `most`."""
        return max(min(int(self.rate * _PIECE), _MOST, most), _LEAST)

    def answered(self, began: float) -> None:
        """It gives a piece, of which it was asked at `began`."""
        self.delay = max(self.delay, time.monotonic() - began)
        if began > self._refused_at:
            self._refusals = 0

    def brought(self, count: int, took: float) -> None:
        """It has given `count` bytes of a piece to its end, in `took` seconds."""
        self._failures = 0
        if took > 0 and count >= _LEAST // 2:
            rate = count / took
            self.rate = rate if not self.rate else 0.5 * self.rate + 0.5 * rate

    def failed(self, error: SourceError, own: int, key: str) -> None:
        """A connection has failed; `active` still counts it."""
        now, said = time.monotonic(), str(error)  # a record that is kept keeps no connection open
        if error.status in CROWDED:
            # What was asked at one time is refused at one time, and counts once.
            self._refusals += not self.is_resting(now)
            self._refused_at = now
            doubled = min(max(self._refusals - 1, 0), _DOUBLED)
            pause = min(_CROWDED_FOR * 2.0**doubled, _LONGEST_CROWDED_FOR)
            pause = min(error.retry_after or pause, _LONGEST_RETRY_AFTER)
            self._bears(self.active + own - 1, pause)
            _log.info("%s: %s; %d connections from now on", key, said, self.most)
        elif not error.retryable:
            self.is_out = True
            _log.log(
                logging.DEBUG if self.is_first else logging.WARNING,
                "%s: %s; it is asked for no parts", key, said,
            )  # fmt: skip
            return
        else:
            self._failures += 1
            pause = self._rest()
            _log.info("%s: %s; no new parts for %.1f s", key, said, pause)
        self._rests_until = max(self._rests_until, now + pause)

    def _bears(self, most: int, pause: float = 0.0) -> None:
        self.most = max(min(self.most, most), 1)
        self._grows_at = time.monotonic() + pause + _GROWS

    def was_silent(self, silent: int, own: int) -> None:
        """Of its connections, `silent` have given nothing; `active` still counts them."""
        giving = self.active + own - silent
        if self.is_proved and giving > 0:
            self._bears(giving)
            return
        self._silences += not self.is_proved
        self.is_out |= self._silences > _OFTEN
        self.was_late(self.rate)

    def was_late(self, rate: float) -> None:
        """A piece was taken from it, because it came too slowly: at `rate`."""
        self._failures += 1
        self.rate = min(self.rate / 2, rate)
        if self._failures > _OFTEN:
            pause = self._rest()
            self._rests_until = time.monotonic() + pause

    def _rest(self) -> float:
        # A source may fail any number of times: 2**1024 is too large for a float.
        return min(_REST * 2.0 ** min(self._failures, _DOUBLED), _LONGEST_REST)

    @property
    def may_come_again(self) -> bool:
        """Whether it can be asked for parts, now or later."""
        return not self.is_out and self.most > 0
