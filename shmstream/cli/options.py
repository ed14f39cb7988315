"""Options of several commands, and parsers for their values: sizes, durations and digests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from shmstream import units
from shmstream.cli.printing import say
from shmstream.store import Store
from shmstream.stream.digest import require_digest

F = TypeVar("F", bound=Callable[..., Any])


def size(text: str) -> int:
    """A number of bytes, as `units.size` reads it; BadParameter if `text` is none."""
    try:
        return units.size(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def duration(text: str) -> float:
    """A time in seconds, as `units.duration` reads it; BadParameter if `text` is none."""
    try:
        return units.duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def digest(text: str) -> str:
    """A digest in its one spelling, from any spelling that a key may have.

    Raises:
        BadParameter: `text` is no digest, or cannot be verified.
    """
    try:
        return require_digest(text.strip())
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def default_store() -> str:
    """The folder of the store if none is given: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # empty, or relative, which the XDG specification says to ignore
        cache = os.path.expanduser("~/.cache")
    return os.path.join(cache, "shmstream")


def existing_store(folder: str) -> Store:
    """Open a store that exists: a typing mistake must not make a new store.

    Raises:
        ClickException: there is no store in `folder`.
        StoreUnusable: as `Store`.
    """
    if not os.path.isfile(os.path.join(folder, ".shmstream")):
        raise click.ClickException(f"there is no store in {folder!r}; `shmstream fetch` makes one")
    return Store(folder)


def store_option(command: F) -> F:
    """`--store DIR`."""
    return click.option(
        "--store",
        "folder",
        type=click.Path(file_okay=False),
        envvar="SHMSTREAM_STORE",
        default=default_store,
        metavar="DIR",
        help="The store's folder.  [default: $SHMSTREAM_STORE, or shmstream in ~/.cache]",
    )(command)


def json_option(command: F) -> F:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="JSON, sizes in bytes, times in UTC."
    )(command)


class _Events(logging.Handler):
    """Prints log records on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _be_verbose(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:  # noqa: ARG001
    logger = logging.getLogger("shmstream")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # a command that fails prints its error itself
    if verbose and not any(isinstance(each, _Events) for each in logger.handlers):
        events = _Events()
        events.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        logger.addHandler(events)
        logger.setLevel(logging.DEBUG)


def verbose_option(command: F) -> F:
    """`--verbose`."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_be_verbose,
        help="Show on standard error what happens.",
    )(command)
