"""What an argument may be: looked at where it is given, so that a mistake is told at once.

A wrong type is a `TypeError`, a value out of range a `ValueError`. Both tell the name of the
argument, what it may be, and what was given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Set
from itertools import chain
from numbers import Real
from typing import SupportsIndex, TypeVar

T = TypeVar("T")

_MOST = 1 << 63


def _told(name: str, what: str, value: object) -> str:
    return f"{name} is {what}, not {value!r:.200}"


def whole(name: str, value: object, what: str, least: int = 0, most: int = _MOST - 1) -> int:
    """`value`, a whole number from `least` to `most`; `what` tells people what it may be.

    Raises:
        TypeError, ValueError: it is none.
    """
    if type(value) is int:  # to ask an abstract class takes longer than all the rest
        number = value
    elif isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(_told(name, what, value))
    else:
        number = value.__index__()
    if not least <= number <= most:
        raise ValueError(_told(name, what, value))
    return number


def seconds(
    name: str, value: object, what: str = "a number of seconds", most: float = math.inf
) -> float:
    """`value`, a time of 0 to `most` seconds.

    Raises:
        TypeError, ValueError: it is none.
    """
    if type(value) is float:  # most are, and to look further takes longer than all the rest
        number = value
    elif isinstance(value, bool) or not isinstance(value, float | int | Real):  # `Real` is slow
        raise TypeError(_told(name, what, value))
    else:
        try:
            number = float(value)
        except OverflowError:  # an int of hundreds of digits
            number = math.nan
    if not 0 <= number <= most:  # so NaN is none
        raise ValueError(_told(name, what, value))
    return number


def flag(name: str, value: object) -> bool:
    """`value`, which is True or False, or a number that is equal to one of them.

    Raises:
        TypeError: it is neither.
    """
    if value is True or value is False:
        return value
    if isinstance(value, SupportsIndex | Real) and value in (0, 1):
        return bool(value)
    raise TypeError(_told(name, "True or False", value))


def text(name: str, value: object, what: str) -> str:
    """`value`, a text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(_told(name, what, value))
    return value


def path(name: str, value: object) -> str | os.PathLike[str]:
    """`value`, a path as text or `os.PathLike`, which is not empty.

    Raises:
        TypeError, ValueError: it is none.
    """
    told = "a path, as text or os.PathLike"
    if not isinstance(value, str | os.PathLike):
        raise TypeError(_told(name, told, value))
    spelled = os.fspath(value)
    if not isinstance(spelled, str):
        raise TypeError(_told(name, told, value))
    if not spelled or "\0" in spelled:
        raise ValueError(_told(name, told, value))
    return value


def in_order(value: object, what: str) -> None:
    """Refuse a dict and a set, which are iterable, and no list of anything.

    `what` tells what `value` may be instead. The value itself is not told: it may be a secret.

    Raises:
        TypeError: it is one.
    """
    if isinstance(value, Mapping | Set):
        raise TypeError(f"{what}; not {type(value).__name__}: pass a list or a tuple")


def headers(name: str, value: object) -> None:
    """Require a mapping of texts to texts. The value is not told: it may be a secret.

    Raises:
        TypeError: it is none.
    """
    told = f"{name} is a mapping of texts, such as {{'X-Name': 'value'}}, not"
    if not isinstance(value, Mapping):
        raise TypeError(f"{told} {type(value).__name__}")
    for each in chain.from_iterable(value.items()):
        if not isinstance(each, str):
            raise TypeError(f"{told} of {type(each).__name__}")


def function(name: str, value: T, what: str) -> T:
    """`value`, which can be called.

    Raises:
        TypeError: it cannot.
    """
    if not callable(value):
        raise TypeError(_told(name, what, value))
    return value


def instance(name: str, value: object, kind: type[T], what: str) -> T:
    """`value`, an object of that class.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, kind) or isinstance(value, type):
        raise TypeError(_told(name, what, value))
    return value


def optional(check: Callable[..., T], name: str, value: object, *rest: object) -> T | None:
    """None, or what `check` gives for `value`.

    Raises:
        TypeError, ValueError: as `check`.
    """
    return None if value is None else check(name, value, *rest)
