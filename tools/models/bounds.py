"""The bounds within which the model is checked, and the deliberate bugs that the check must find.

A macro that is not named has the value at the beginning of stream.pml. Each scope leaves out what
other scopes look at, because all of it together has more states than a machine can keep.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """One check: what it looks at, in words, and the macros."""

    what: str
    bounds: dict[str, int]


WHOLE = [
    Scope(
        "2 readers wait; their writer is killed, and one of them succeeds",
        {
            "LEADERS": 2, "KILLS": 1, "VICTIMS": 1, "SIZE": 1, "HANDS_OVER": 0, "ABORTS": 0,
            "JOINED": 1, "LEAVING": 0,
        },
    ),
    Scope(
        "2 readers join, subscribe, wait; the writer commits or aborts",
        {"LEADERS": 1, "KILLS": 0, "SIZE": 2, "HANDS_OVER": 0, "LEAVING": 0},
    ),
    Scope(
        "2 readers leave and reap; the writer commits, aborts or hands over",
        {"LEADERS": 1, "KILLS": 0, "SIZE": 1, "JOINED": 1},
    ),
    Scope(
        "1 reader; any of the processes is killed while another sweeps",
        {
            "READERS": 1, "LEADERS": 2, "KILLS": 1, "SIZE": 1, "HANDS_OVER": 0, "ABORTS": 0,
            "SWEEPS": 1,
        },
    ),
    Scope(
        "1 reader, which may leave at any time; the writers hand over or abort",
        {"READERS": 1, "LEADERS": 2, "KILLS": 0, "SIZE": 1, "QUITS": 1},
    ),
    Scope(
        "1 reader; a download goes on with kept bytes; any process is killed",
        {
            "READERS": 1, "LEADERS": 2, "KILLS": 1, "SIZE": 2, "KEPT": 1, "HANDS_OVER": 0,
            "ABORTS": 0,
        },
    ),
    Scope(
        "1 reader; 3 writers, and 2 of all processes are killed",
        {"READERS": 1, "LEADERS": 3, "KILLS": 2, "SIZE": 1, "HANDS_OVER": 0, "ABORTS": 0},
    ),
    Scope(
        "1 reader; no digest, 2 chunks; any process is killed",
        {
            "READERS": 1, "LEADERS": 2, "KILLS": 1, "SIZE": 2, "GIVEN": 0, "HANDS_OVER": 0,
            "ABORTS": 0,
        },
    ),
]  # fmt: skip
"""What `make model` checks."""

_ONE_READER = {"READERS": 1, "KILLS": 0, "SIZE": 1, "LEADERS": 1, "ABORTS": 0, "HANDS_OVER": 0}

QUICK = [
    Scope("1 reader; commit and abort", _ONE_READER | {"ABORTS": 1}),
    Scope(
        "1 reader; the writer hands over, and no process succeeds", _ONE_READER | {"HANDS_OVER": 1}
    ),
    Scope("1 reader; one process is killed", _ONE_READER | {"KILLS": 1}),
]
"""What the suite checks."""

_SUCCESSION = _ONE_READER | {"LEADERS": 2, "KILLS": 1, "VICTIMS": 1}

BUGS = {
    "BUG_RINGS_BEFORE_IT_PUBLISHES": _ONE_READER | {"GIVEN": 0},
    "BUG_PUBLISHES_BEFORE_IT_WRITES": _ONE_READER | {"GIVEN": 0},
    "BUG_PUBLISHES_ALL_BEFORE_IT_MOVES": _ONE_READER,
    "BUG_LAST_CHUNK_NOT_WITHHELD": _ONE_READER,
    "BUG_COMMITTED_BEFORE_PUBLISHED": _ONE_READER,
    "BUG_ABORTED_BEFORE_ERROR": _ONE_READER | {"ABORTS": 1},
    "BUG_DOORBELL_AFTER_MEMBERSHIP": _ONE_READER | {"GIVEN": 0},
    "BUG_NO_LOOK_BEFORE_SLEEPING": _ONE_READER | {"GIVEN": 0},
    "BUG_NO_LOOK_AFTER_FORGETTING": _ONE_READER | {"HANDS_OVER": 1},
    "BUG_PUBLISHED_NOT_LOADED_AGAIN": _ONE_READER,
    "BUG_NO_REAP_AFTER_HANDOVER": _ONE_READER | {"HANDS_OVER": 1, "QUITS": 1},
    "BUG_SUCCESSOR_IGNORES_THE_LOCK": _SUCCESSION | {"KILLS": 0},
    "BUG_SUCCESSOR_DOES_NOT_LOOK_AGAIN": _SUCCESSION | {"KILLS": 0, "HANDS_OVER": 1, "LATE": 1},
    "BUG_SUCCESSOR_COUNTS_FROM_PUBLISHED": _SUCCESSION,
    "BUG_REAPER_IGNORES_THE_LOCK": _ONE_READER | {"SWEEPS": 1},
    "BUG_REAPER_DOES_NOT_LOOK_AGAIN": _ONE_READER | {"SWEEPS": 1, "HANDS_OVER": 1},
}
"""Deliberate bugs, and bounds within which spin finds each."""
