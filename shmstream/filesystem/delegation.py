"""Methods that the target has: the file system calls them with the target's paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from fsspec.utils import stringify_path

Method: TypeAlias = Callable[..., Any]

MARKS: tuple[str, ...] = ("shmstream::", "shmstream://")
"""What stands before a path of the target."""


def of_target(name: str, *, writes: bool = False) -> Method:
    """A method that the target has; all its paths may begin with `shmstream::`.

    After a method that `writes`, nothing is remembered of any file.
    """

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        stripped = [_stripped(each) for each in args]
        named = {each: _stripped(value) for each, value in kwargs.items()}
        if writes:
            self.forget()
        return getattr(self.fs, name)(*stripped, **named)

    method.__name__ = name
    method.__doc__ = "As the target."
    return method


def _stripped(value: Any) -> Any:
    """`value` without `shmstream::`, if it is a path that has it."""
    if isinstance(value, list | tuple):
        return [_stripped(each) for each in value]
    if isinstance(value, str | os.PathLike):
        text = stringify_path(value)
        for mark in MARKS:
            if isinstance(text, str) and text.startswith(mark):
                return text.removeprefix(mark)
    return value
