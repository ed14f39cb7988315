"""`all_of`: several steps that are all taken, whatever fails on the way."""

from __future__ import annotations

from collections.abc import Callable


def all_of(*steps: Callable[[], object]) -> None:
    """Call all of them in order. If some fail, raise the error of the last one that has failed.

    As an `ExitStack` with so many callbacks, for a fifth of the calls.

    Raises:
        BaseException: what a step raises; errors of the steps before are its context.
    """
    left = iter(steps)
    try:
        for step in left:
            step()
    except BaseException:
        all_of(*left)
        raise
