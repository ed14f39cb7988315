"""Errors and logs of a flight name the key, which people know, and not the stream."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shmstream.errors import DamagedSegment, Explained, ShmstreamError

if TYPE_CHECKING:
    from shmstream.storage.layout import Place


def naming(place: Place) -> Explained:
    """Have every error of the stream of `place` that is raised inside name the key."""
    return Explained(partial(name_key, place=place))


def name_key(error: BaseException, place: Place) -> None:
    """Have `error` name the key, if it names the stream of `place`."""
    if not isinstance(error, ShmstreamError) or getattr(error, "name", None) != place.stream:
        return
    if isinstance(error, DamagedSegment):  # its text names the file to remove, by the stream's name
        error.reason = f"{error.reason} (it is that of {place.key[:200]!r})"
    else:
        error.name = place.key  # type: ignore[attr-defined]


def told(error: BaseException, place: Place) -> str:
    """The text of `error` for a line of the log that begins with the key."""
    return str(error).replace(repr(place.stream), "it")
