"""Short questions: how long they may take, and how often they are asked.

A question may pass through a redirect, a refusal, a token service and a second try. All of it
together has one bound, `Bounds.in_all`, so a server that gives one byte now and then blocks nobody
for longer. Inside that time a failure that may pass, such as a connection that is reset or a 503,
is no answer yet: the question is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shmstream.errors import FailureKind, SourceError

T = TypeVar("T")

_PAUSES = (0.1, 0.4)  # s; before the second and the third try
_LONGEST_PAUSE = 5.0  # s; a server that asks for a longer one is believed: its answer counts
_MAY_PASS = frozenset((408, 500, 502, 503, 504, *range(520, 525)))  # 52x: of networks in between


@dataclass(frozen=True)
class Bounds:
    """How long an upstream may take, in seconds.

    `first_byte`: until the head of an answer is there. `silence`: without a byte in the body.
    `in_all`: for a whole question, such as the meaning of a tag; a download may take longer.
    `connect`: for a connection; None: 5 s for a question, 10 s for a download.
    """

    first_byte: float = 60.0
    silence: float = 60.0
    in_all: float = 60.0
    connect: float | None = None


USUAL = Bounds()


def patiently(call: Callable[[], T], until: float) -> T:
    """What `call` returns or raises; it is called again if its failure may pass.

    `until`: the end of all tries, on the monotonic clock. Blocks for the pauses.

    Raises:
        SourceError: the last failure.
    """
    for least in _PAUSES:
        try:
            return call()
        except SourceError as error:
            pause = max(least, error.retry_after or 0.0)
            if not _may_pass(error) or pause > _LONGEST_PAUSE or time.monotonic() + pause >= until:
                raise
        time.sleep(pause)
    return call()


def _may_pass(error: SourceError) -> bool:
    """Whether to ask again. A server that is not there, or takes its time, was waited for."""
    if error.status is None:
        return error.retryable and error.kind is FailureKind.BROKEN
    return error.status in _MAY_PASS
