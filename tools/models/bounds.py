"""The bounds within which each model is checked, and the deliberate bugs that the check must find.

A macro that is not named has the value at the beginning of the model. Each scope leaves out what
other scopes look at, because all of it together has more states than a machine can keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.models import CONNECTIONS, STREAM


@dataclass(frozen=True)
class Scope:
    """One check: what it looks at, in words, and the macros."""

    what: str
    bounds: dict[str, int]


@dataclass(frozen=True)
class Model:
    """A model: what `make model` checks, what the suite checks, and the bugs, with their bounds."""

    path: Path
    whole: list[Scope]
    quick: list[Scope]
    bugs: dict[str, dict[str, int]]


_WHOLE = [
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

_ONE_READER = {"READERS": 1, "KILLS": 0, "SIZE": 1, "LEADERS": 1, "ABORTS": 0, "HANDS_OVER": 0}

_QUICK = [
    Scope("1 reader; commit and abort", _ONE_READER | {"ABORTS": 1}),
    Scope(
        "1 reader; the writer hands over, and no process succeeds", _ONE_READER | {"HANDS_OVER": 1}
    ),
    Scope("1 reader; one process is killed", _ONE_READER | {"KILLS": 1}),
]

_SUCCESSION = _ONE_READER | {"LEADERS": 2, "KILLS": 1, "VICTIMS": 1}

_BUGS = {
    "BUG_RINGS_BEFORE_IT_PUBLISHES": _ONE_READER | {"GIVEN": 0},
    "BUG_PUBLISHES_BEFORE_IT_WRITES": _ONE_READER | {"GIVEN": 0},
    "BUG_PUBLISHES_ALL_BEFORE_IT_MOVES": _ONE_READER,
    "BUG_LAST_CHUNK_NOT_WITHHELD": _ONE_READER,
    "BUG_COMMITTED_BEFORE_PUBLISHED": _ONE_READER,
    "BUG_ABORTED_BEFORE_ERROR": _ONE_READER | {"ABORTS": 1},
    "BUG_DOORBELL_AFTER_MEMBERSHIP": _ONE_READER | {"GIVEN": 0},
    "BUG_NO_LOOK_AFTER_SUBSCRIBING": _ONE_READER | {"GIVEN": 0, "LATE": 1},
    "BUG_FORGETS_RINGS_BEFORE_IT_SLEEPS": _ONE_READER | {"GIVEN": 0},
    "BUG_NO_LOOK_AFTER_MANY_RINGS": _ONE_READER | {"HANDS_OVER": 1, "SIZE": 2},
    "BUG_LOADS_BEFORE_ALL_RINGS_ARE_TAKEN": _ONE_READER | {"GIVEN": 0, "HANDS_OVER": 1, "SIZE": 2},
    "BUG_PUBLISHED_NOT_LOADED_AGAIN": _ONE_READER,
    "BUG_NO_REAP_AFTER_HANDOVER": _ONE_READER | {"HANDS_OVER": 1, "QUITS": 1},
    "BUG_SUCCESSOR_IGNORES_THE_LOCK": _SUCCESSION | {"KILLS": 0},
    "BUG_SUCCESSOR_DOES_NOT_LOOK_AGAIN": _SUCCESSION | {"KILLS": 0, "HANDS_OVER": 1, "LATE": 1},
    "BUG_SUCCESSOR_COUNTS_FROM_PUBLISHED": _SUCCESSION,
    "BUG_REAPER_IGNORES_THE_LOCK": _ONE_READER | {"SWEEPS": 1},
    "BUG_REAPER_DOES_NOT_LOOK_AGAIN": _ONE_READER | {"SWEEPS": 1, "HANDS_OVER": 1},
}

_ONE_REQUEST = {"REQUESTS": 1, "WORKERS": 2, "KILLS": 1, "WAITS": 0}
_ONE_LEAVES = _ONE_REQUEST | {"KILLS": 0, "LEAVES": 1}
_TWO_REQUESTS = {"WORKERS": 2, "KILLS": 1, "WAITS": 0, "BEGUN": 1}

MODELS = [
    Model(STREAM, _WHOLE, _QUICK, _BUGS),
    Model(
        CONNECTIONS,
        [
            Scope(
                "2 requests; 2 of the 3 workers are killed, one after the other",
                {"KILLS": 2, "WORKERS": 3},
            ),
            Scope(
                "2 requests; a worker is replaced, and one is killed",
                {"KILLS": 1, "LEAVES": 1, "WORKERS": 3, "WAITS": 0},
            ),
            Scope(
                "2 requests in pieces, and the client may leave; a worker is killed",
                {"KILLS": 1, "WORKERS": 2, "PIECES": 1, "QUITS": 1},
            ),
            Scope(
                "1 request in pieces; a worker is replaced, and one is killed",
                {
                    "REQUESTS": 1, "KILLS": 1, "LEAVES": 1, "WORKERS": 3, "PIECES": 1, "QUITS": 1,
                    "WAITS": 0,
                },
            ),
            Scope(
                "2 requests; no room for a duplicate; a worker is replaced, and one is killed",
                {"KILLS": 1, "LEAVES": 1, "WORKERS": 3, "MOST": 0, "WAITS": 0},
            ),
            Scope(
                "1 request; workers are stuck, one is replaced, and one is killed",
                {
                    "REQUESTS": 1, "KILLS": 1, "LEAVES": 1, "WORKERS": 3, "BACK": 1, "QUITS": 1,
                },
            ),
            Scope(
                "2 clients of 1 request, with long heads; a worker is killed",
                {
                    "CLIENTS": 2, "REQUESTS": 1, "KILLS": 1, "WORKERS": 2, "LONG": 1, "BEGUN": 1,
                    "WAITS": 0,
                },
            ),
            Scope(
                "2 clients of 1 request, room for 1 duplicate; a worker is killed",
                {
                    "CLIENTS": 2, "REQUESTS": 1, "KILLS": 1, "WORKERS": 2, "MOST": 1, "BEGUN": 1,
                    "WAITS": 0,
                },
            ),
        ],
        [
            Scope("1 request; a worker is killed", _ONE_REQUEST),
            Scope("1 request; a worker is replaced", _ONE_LEAVES),
            Scope("2 requests; a worker is killed", _TWO_REQUESTS),
            Scope("1 request; a worker is stuck, and one is killed", _ONE_REQUEST | {"BACK": 1}),
        ],
        {
            "BUG_TURN_BEFORE_RESPONSE": _TWO_REQUESTS,
            "BUG_ONE_RESPONSE_IN_A_RECORD": _TWO_REQUESTS,
            "BUG_WRITES_BEFORE_IT_NOTES": _ONE_REQUEST,
            "BUG_TAKES_REQUEST_FIRST": _ONE_REQUEST | {"TEXTS": 0},
            "BUG_CLOSED_IS_NOT_TOLD": _ONE_REQUEST | {"KILLS": 0},
            "BUG_LAST_WORDS_ARE_NOT_HEARD": _ONE_REQUEST,
            "BUG_RESET_IS_THE_END": _ONE_LEAVES | {"KILLS": 1, "WORKERS": 3},
            "BUG_WRITES_AFTER_HAND_OVER": _ONE_LEAVES,
            "BUG_CONNECTION_IS_NOT_SENT_AGAIN": _ONE_LEAVES | {"MOST": 0},
            "BUG_TAKES_BACK_WHAT_WAS_RECEIVED": _ONE_REQUEST | {"BACK": 1},
            "BUG_TOUCHES_BEFORE_ADOPTED_IS_SENT": _ONE_REQUEST | {
                "WORKERS": 3, "WAITS": 1, "BEGUN": 2,
            },
            "BUG_RECORD_FREE_BEFORE_CLOSED_IS_SENT": _ONE_REQUEST | {
                "CLIENTS": 2, "LONG": 1, "WAITS": 1, "BEGUN": 1,
            },
        },
    ),
]  # fmt: skip
