"""What happens to the flights that this process leads, for whoever counts or watches.

A store tells its `on_event` each of these, as they happen, from whatever thread they happen in;
the log tells them to people. A listener must not block: a flight waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What happened, and what an event of that kind counts (in bytes)."""

    LED = "led"
    """A flight began here."""
    RESUMED = "resumed"
    """It goes on with what an earlier one has left; counts the bytes kept."""
    TOOK_OVER = "took over"
    """We succeeded a leader; counts the bytes that were published by then."""
    RECEIVED = "received"
    """Bytes came from a source; counts those since the event before."""
    FAILED_OVER = "failed over"
    """A source was given up for the next one."""
    COMMITTED = "committed"
    """The blob is complete and in the store; counts its size."""
    ABORTED = "aborted"
    """The flight was given up; counts the bytes that were there."""
    HANDED_OVER = "handed over"
    """We ended before the flight did; counts the bytes that were there."""
    EVICTED = "evicted"
    """A complete blob was removed to make room; counts the bytes freed."""
    PASSED_THROUGH = "passed through"
    """A client gets it straight from its source, for want of room; counts what it had already."""


@dataclass(frozen=True)
class Event:
    """Something happened to the blob of `key`. `count` is in bytes, see `EventKind`."""

    kind: EventKind
    key: str
    count: int = 0
