"""Events: what happens to the flights that this process leads, for metrics and progress.

A store calls its `on_event` with each event, at once, in the thread in which it happened. The log
has the same events for people. A listener must not block: the flight waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What happened, and which bytes the event's `count` has."""

    LED = "led"
    """A flight began in this process."""
    RESUMED = "resumed"
    """The flight goes on with the partial file of an earlier flight; counts the bytes kept."""
    TOOK_OVER = "took over"
    """This process succeeded a leader; counts the bytes that were published by then."""
    RECEIVED = "received"
    """Bytes came from a source; counts the bytes since the last such event."""
    FROM_PEER = "from a peer"
    """Bytes came from another node of the cluster; counts as `RECEIVED`."""
    GIVEN = "given"
    """Bytes went to another node of the cluster; counts the bytes since the last such event."""
    ASKED = "asked"
    """The directory of the cluster was asked, and has answered."""
    UNANSWERED = "unanswered"
    """The directory of the cluster was asked, and did not answer."""
    FAILED_OVER = "failed over"
    """A source was given up; the next source is asked."""
    COMMITTED = "committed"
    """The blob is complete and in the store; counts its size."""
    ABORTED = "aborted"
    """The flight was given up; counts the bytes that had come by then."""
    REFUSED = "refused"
    """The flight ended before its first byte: the source has no such blob, or does not give it."""
    HANDED_OVER = "handed over"
    """This process ended before the flight did; counts the bytes that had come by then."""
    EVICTED = "evicted"
    """A complete blob was removed to make room; counts the bytes freed."""
    PASSED_THROUGH = "passed through"
    """There is no room: one client gets the blob from its source; counts the bytes it had."""


@dataclass(frozen=True)
class Event:
    """Something happened to the blob of `key`. `count` is in bytes; see `EventKind`.

    `seconds`: of `TOOK_OVER`, how long readers had waited for bytes; of `ASKED` and `UNANSWERED`,
    for how long the directory has been away since the last such event.
    """

    kind: EventKind
    key: str
    count: int = 0
    seconds: float = 0.0
