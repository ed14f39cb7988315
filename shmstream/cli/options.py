"""What several commands take: sizes, durations, keys, the store, and how much to tell."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from shmstream import units
from shmstream.cli.formatting import say
from shmstream.store import Store
from shmstream.stream.digest import is_digest

F = TypeVar("F", bound=Callable[..., Any])


def size(text: str) -> int:
    """A number of bytes, see `units.size`."""
    try:
        return units.size(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def duration(text: str) -> float:
    """A time in seconds, see `units.duration`."""
    try:
        return units.duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def digest(text: str) -> str:
    """`sha256:<hex>` or `sha512:<hex>`, or as sha256sum prints it: the bare hex digits."""
    told = text.strip().lower()
    if ":" not in told:
        told = f"sha256:{told}"
    if not is_digest(told):
        what = "sha256: and 64 hex digits, or sha512: and 128"
        raise click.BadParameter(f"{text!r} is no digest: {what}.")
    return told


def default_store() -> str:
    """Where a store is when nobody says: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # empty, or to be ignored by its specification
        cache = os.path.expanduser("~/.cache")
    return os.path.join(cache, "shmstream")


def existing_store(folder: str) -> Store:
    """The store that is there: a typing mistake is not to make a new one.

    Raises:
        ClickException: there is none.
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
    """Shows events on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _be_verbose(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:  # noqa: ARG001
    logger = logging.getLogger("shmstream")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # errors are told once, by those who end with one
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
