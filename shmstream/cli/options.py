"""Options of several commands, and parsers for their values: sizes, durations and digests.

Each option has an environment variable, too: SHMSTREAM_FETCH_MAX_BYTES is `--max-bytes` of `fetch`.
Three are the same for all commands, and for `Store()`: SHMSTREAM_STORE, SHMSTREAM_MAX_BYTES and
SHMSTREAM_SHARED_GROUP.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import click

from shmstream import units
from shmstream.cli.printing import say
from shmstream.storage.folder import default_folder, mark_at
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


def existing_store(folder: str) -> Store:
    """Open a store that exists: a typing mistake must not make a new store.

    Raises:
        ClickException: there is no store in `folder`.
        StoreUnusable: as `Store`.
    """
    if not is_store(folder):
        raise click.ClickException(f"there is no store in {folder!r}; `shmstream fetch` makes one")
    return Store(folder, shared_group=is_shared())


def is_store(folder: str) -> bool:
    """Whether there is a store in the folder."""
    return os.path.isfile(mark_at(os.path.expanduser(folder)))


_SHARED = "shmstream.shared_group"


def is_shared() -> bool:
    """Whether the command that runs was given `--shared-group`."""
    return bool(click.get_current_context().meta.get(_SHARED))


def _note_shared(ctx: click.Context, param: click.Parameter, shared: bool) -> None:  # noqa: ARG001
    ctx.meta[_SHARED] = shared


def store_option(command: F) -> F:
    """`--store DIR`, and `--shared-group`: see `is_shared`."""
    command = click.option(
        "--shared-group",
        is_flag=True,
        envvar="SHMSTREAM_SHARED_GROUP",
        expose_value=False,
        callback=_note_shared,
        help="The users of the folder's group share the store, and trust each other; its mode must "
        "be 2770.",
    )(command)
    return click.option(
        "--store",
        "folder",
        type=click.Path(file_okay=False),
        envvar="SHMSTREAM_STORE",
        default=default_folder,
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


class _Retries(_Events):
    """Prints that a source fails for longer than a second: people would wait and not know why."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "is_retry", False) and record.levelno >= logging.WARNING:
            super().emit(record)


def show_retries() -> None:
    """Print the retries of this command on standard error, unless `--verbose` does."""
    logger = logging.getLogger("shmstream")
    if not any(isinstance(each, _Events) for each in logger.handlers):
        logger.addHandler(_Retries())


def _be_verbose(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:  # noqa: ARG001
    logger = logging.getLogger("shmstream")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # a command that fails prints its error itself
    if verbose and not any(type(each) is _Events for each in logger.handlers):
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


class Line(click.types.StringParamType):
    """A text that may have spaces in it; in an environment variable, each line is one."""

    envvar_list_splitter: ClassVar[str | None] = "\n"


def name_by_environment(command: click.Command) -> None:
    """Give each option of a command that has none its environment variable."""
    for option in command.params:
        is_switch = isinstance(option, click.Option) and not isinstance(option.flag_value, str)
        if isinstance(option, click.Option) and is_switch and option.envvar is None:
            long = next((each for each in option.opts if each.startswith("--")), None)
            if long is not None:
                word = long.removeprefix("--").upper().replace("-", "_")
                names = [f"SHMSTREAM_{(command.name or '').upper()}_{word}"]
                if word == "MAX_BYTES":
                    names.append("SHMSTREAM_MAX_BYTES")
                option.envvar = names
