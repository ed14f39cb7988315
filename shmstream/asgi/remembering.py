"""Functions that remember their results, up to a bound in bytes.

Clients and upstreams choose the texts of keys and headers. `lru_cache` bounds how many results it
keeps, but not how long their texts are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from sys import getsizeof
from typing import ParamSpec, TypeVar, cast

_MOST = 1 << 20  # bytes of arguments that one function remembers
_ENTRY = 256  # bytes that a result takes beside the texts of its arguments

_P = ParamSpec("_P")
_R = TypeVar("_R")


def remembered(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make `function` remember its results; its arguments are texts, bytes or None.

    It forgets all of them when their arguments take more than 1 MiB. Only a new result is counted,
    so a result that is remembered costs no more than with `cache`. Threads may call it. When two of
    them count at the same moment, one of the two results may not be counted.
    """
    held = 0

    @cache
    def recall(*given: _P.args, **named: _P.kwargs) -> _R:
        nonlocal held
        size = _ENTRY + sum(map(getsizeof, (*given, *named.values())))
        held += size
        if held > _MOST:
            recall.cache_clear()
            held = size
        return function(*given, **named)

    return cast(Callable[_P, _R], recall)
