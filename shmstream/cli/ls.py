"""`ls`: the blobs and the flights of a store."""

from __future__ import annotations

import click

from shmstream.cli.exits import Command
from shmstream.cli.facts import blob_facts, flight_facts, image_facts
from shmstream.cli.formatting import in_columns, local_time, named, plural, side_by_side
from shmstream.cli.options import existing_store, json_option, store_option, verbose_option
from shmstream.cli.printing import say, show_json
from shmstream.errors import escaped
from shmstream.registry.images import Images
from shmstream.storage.flights import FlightInfo, followers_of, state_of
from shmstream.storage.stock import StoredBlob
from shmstream.store import Store
from shmstream.units import amount


@click.command(cls=Command, short_help="List the blobs and flights of a store.")
@store_option
@json_option
@click.option("--images", "by_image", is_flag=True, help="List images, by name.")
@verbose_option
def ls(folder: str, as_json: bool, by_image: bool) -> None:
    """List the blobs of a store, the least recently used first, and its flights.

    Of each blob `ls` shows its key and the source that it came from, and * if it is pinned.

    A flight is a download in progress on this host. For each flight, `ls` shows which process leads
    it, how many processes follow, and how many bytes are published. With --json: an object with
    `store`, `blobs` and `flights`.

    With --images: the images that the registry has given to clients, or that `pull` has brought,
    and how much of each is here.
    """
    store = existing_store(folder)
    if by_image:
        _list_images(store, as_json=as_json)
        return
    flights, blobs = store.flights(), [blob for _, blob in store.blobs()]
    if as_json:
        show_json(
            {
                "store": store.folder,
                "blobs": [blob_facts(each) for each in blobs],
                "flights": [flight_facts(each) for each in flights],
            }
        )
        return
    if blobs:
        click.echo(_blob_lines(blobs))
    if flights:
        click.echo(("\n" if blobs else "") + _flight_lines(flights))
    total = amount(sum(each.size for each in blobs))
    told = f"{plural(len(blobs), 'blob')} of {total}, {plural(len(flights), 'flight')}"
    say(f"{told} in {store.folder}")


def _list_images(store: Store, *, as_json: bool) -> None:
    images = Images(store)
    found = [(each, *images.size_of(each)) for each in images.all()]
    if as_json:
        show_json({"store": store.folder, "images": [image_facts(*each) for each in found]})
        return
    rows = [("SIZE", "BLOBS", "LAST USED", "IMAGE", "DIGEST")]
    for each, count, size in found:
        digest = each.digest if each.is_tagged else ""
        rows.append((amount(size), str(count), local_time(each.used), escaped(str(each)), digest))
    if found:
        click.echo(in_columns(rows, right=[0, 1]))
    say(f"{plural(len(found), 'image')} in {store.folder}")


def _blob_lines(blobs: list[StoredBlob]) -> str:
    columns = {
        "SIZE": [amount(each.size) for each in blobs],
        "LAST USED": [local_time(each.used) for each in blobs],
        "PIN": ["*" if each.is_pinned else "" for each in blobs],
        "BLOB": [named(each.key) for each in blobs],
        "SOURCE": [_source(each) for each in blobs],
    }
    shown = [[head, *cells] for head, cells in columns.items() if any(cells)]
    return side_by_side(shown, right=[0])


def _source(blob: StoredBlob) -> str:
    """Where a blob came from, unless its key tells it: a URL may be its own key."""
    source = blob.source or ""
    return "" if source == blob.key else escaped(source)


def _flight_lines(flights: list[FlightInfo]) -> str:
    rows = [("PUBLISHED", "OF", "STATE", "EPOCH", "LEADER", "FOLLOWERS", "FLIGHT")]
    for each in flights:
        of = "?" if each.size is None else amount(each.size)
        leader = "" if each.leader is None else str(each.leader.pid)
        followers = str(len(followers_of(each)))
        told = (amount(each.published), of, state_of(each), str(each.epoch), leader, followers)
        rows.append((*told, named(each.key)))
    return in_columns(rows, right=[0, 1, 3, 4, 5])
