"""`rm`, `pin`, `unpin`, `cancel`: what is done to the blobs of some keys.

A key is given as `fetch` and `ls` show it; for a blob that was fetched without a digest that is its
URL, or the path of its file. `rm`, `pin` and `unpin` take the name of an image, too, for all that
belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import click

from shmstream.cli.exits import Command
from shmstream.cli.fetch import key_of
from shmstream.cli.options import existing_store, store_option, verbose_option
from shmstream.cli.printing import say
from shmstream.errors import ShmstreamError
from shmstream.registry.images import Image, Images
from shmstream.store import Store

F = TypeVar("F", bound=Callable[..., Any])


def _keys_option(command: F) -> F:
    return click.argument("keys", nargs=-1, required=True, metavar="KEY...")(command)


@click.command(cls=Command, short_help="Remove blobs.")
@_keys_option
@store_option
@verbose_option
@click.pass_context
def rm(ctx: click.Context, keys: Sequence[str], folder: str) -> None:
    """Remove the blobs of some keys, also pinned ones.

    Or images, by name: docker.io/library/debian:12, or debian for all tags of it. An image goes
    with all that no other image in the store needs.

    A process that has such a blob open goes on reading it. A flight goes on: see `cancel`. Exits
    with 1 if one of the keys has no blob.
    """
    store = existing_store(folder)

    def act(key: str) -> bool:
        if store.remove(key):
            return True
        images = Images(store)
        found = _images(images, key)
        images.remove(found)
        return bool(found)

    _for_each(ctx, store, keys, act, "removed", "is not in")


@click.command(cls=Command, short_help="Have blobs stay when room is made.")
@_keys_option
@store_option
@verbose_option
@click.pass_context
def pin(ctx: click.Context, keys: Sequence[str], folder: str) -> None:
    """Have the blobs of some keys stay when room is made, also blobs that are yet to come.

    Or images that are here, by name: docker.io/library/debian:12.

    Pinned blobs count for --max-bytes all the same. See `unpin` and `rm`.
    """
    store = existing_store(folder)

    def act(key: str) -> bool:
        for each in _all_of(store, key):
            store.pin(each)
        return True

    _for_each(ctx, store, keys, act, "pinned", "")


@click.command(cls=Command, short_help="Let pinned blobs go when room is made.")
@_keys_option
@store_option
@verbose_option
@click.pass_context
def unpin(ctx: click.Context, keys: Sequence[str], folder: str) -> None:
    """Let the blobs of some keys go when room is made. Exits with 1 if one was not pinned."""
    store = existing_store(folder)

    def act(key: str) -> bool:
        were_pinned = [store.unpin(each) for each in _all_of(store, key)]
        return any(were_pinned)

    _for_each(ctx, store, keys, act, "no longer pinned", "is not pinned in")


@click.command(cls=Command, short_help="End flights.")
@_keys_option
@store_option
@verbose_option
@click.pass_context
def cancel(ctx: click.Context, keys: Sequence[str], folder: str) -> None:
    """End the flights of some keys, whichever processes lead them.

    Their readers get an error that says so, and what came is removed. A complete blob stays. Exits
    with 1 if one of the keys has no flight.
    """
    store = existing_store(folder)
    _for_each(ctx, store, keys, store.cancel, "cancelled", "is not in flight in")


def _for_each(
    ctx: click.Context,
    store: Store,
    keys: Sequence[str],
    act: Callable[[str], bool],
    done: str,
    otherwise: str,
) -> None:
    failed = False
    for key in keys:
        try:
            known = _known_as(store, key)
            is_done = partial(act, known)()
        except ShmstreamError:
            raise
        except ValueError as error:
            raise click.UsageError(f"{error}.") from error
        failed |= not is_done
        say(f"{known}: {done}" if is_done else f"{key} {otherwise} {store.folder}")
    ctx.exit(1 if failed else 0)


def _images(images: Images, text: str) -> list[Image]:
    """The images that `text` means; none if it is no name of an image."""
    try:
        return images.matching(text)
    except ValueError:
        return []


def _all_of(store: Store, key: str) -> set[str]:
    """The key; or what belongs to an image of that name."""
    if key in store or store.is_pinned(key) or store.is_in_flight(key):
        return {key}
    images = Images(store)
    found = _images(images, key)
    return images.blobs_of(each.digest for each in found) if found else {key}


def _known_as(store: Store, key: str) -> str:
    """The key as `fetch` makes it of a URL or a path, if there is nothing under the key itself."""
    made = key_of(key)
    if made == key or key in store or store.is_in_flight(key) or store.is_pinned(key):
        return key
    return made if made in store or store.is_in_flight(made) or store.is_pinned(made) else key
