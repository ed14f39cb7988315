"""`check`, `gc`, `evict`: the commands that keep a store in order."""

from __future__ import annotations

from dataclasses import asdict

import click

from shmstream.cli.exits import Command
from shmstream.cli.formatting import plural
from shmstream.cli.options import (
    duration,
    existing_store,
    is_store,
    json_option,
    size,
    store_option,
    verbose_option,
)
from shmstream.cli.printing import say, show_json
from shmstream.errors import escaped
from shmstream.storage.gc import gc_of_shared_memory


@click.command(cls=Command, short_help="Report what is damaged or left over in a store.")
@store_option
@click.option(
    "--full", "hashed", flag_value="all", help="Hash every blob, whether it changed or not."
)
@click.option(
    "--quick", "hashed", flag_value="none", help="Hash no blob: wrong bytes are not found."
)
@json_option
@verbose_option
@click.pass_context
def check(ctx: click.Context, folder: str, hashed: str | None, as_json: bool) -> None:
    """Report what is not as it should be, in the folder of the store and in shared memory.

    The check hashes each blob that was changed or added since its last verification. With --full
    it hashes all blobs, and so also finds bytes that the disk has lost. It changes nothing: `gc`
    removes what is abandoned. A damaged blob can be removed by hand; the next fetch downloads it
    again. Exits with 1 if there is a finding. With --json: a list of objects with `kind`, `path`
    and `detail`.
    """
    store = existing_store(folder)
    findings = store.check(verify={"all": True, "none": False}.get(hashed or ""))
    if as_json:
        show_json([asdict(each) for each in findings])
    else:
        for each in findings:
            click.echo(escaped(str(each)))
    how = "looked at" if hashed == "none" else "verified"
    found = plural(len(findings), "finding") if findings else "all is well"
    say(f"{plural(findings.blobs, 'blob')} {how} in {store.folder}: {found}")
    ctx.exit(1 if findings else 0)


@click.command(cls=Command, short_help="Remove what dead processes have left.")
@store_option
@click.option(
    "--partial-age",
    type=duration,
    default="7d",
    show_default=True,
    metavar="DURATION",
    help="Keep partial files that a fetch could resume for that long: 90s, 30m, 12h, 7d.",
)
@verbose_option
def gc(folder: str, partial_age: float) -> None:
    """Remove what dead processes have left, and print what was removed.

    Dead processes leave shared memory and semaphores of this user on this host, partial files that
    no process continues, and files that belong to these. Nothing that a live process uses is
    touched. Where there is no store, only shared memory and semaphores are looked at.
    """
    if not is_store(folder):
        _tell_gone(gc_of_shared_memory(), "leftover", f"shared memory; no store in {folder}")
        return
    store = existing_store(folder)
    gone = store.gc(partial_age=partial_age)
    _tell_gone(gone, "leftover", store.folder)


@click.command(cls=Command, short_help="Remove the least recently used blobs.")
@click.option(
    "--max-bytes",
    type=size,
    required=True,
    metavar="SIZE",
    help="How much may stay: 10GiB, 500MB, or 0 for nothing.",
)
@store_option
@verbose_option
def evict(max_bytes: int, folder: str) -> None:
    """Remove the least recently used blobs until at most SIZE is left, and print their paths.

    A process that has such a blob open goes on reading it. Flights and pinned blobs stay.
    """
    store = existing_store(folder)
    _tell_gone(store.evict(max_bytes), "blob", store.folder)


def _tell_gone(gone: list[str], noun: str, folder: str) -> None:
    for each in gone:
        click.echo(escaped(each))
    say(f"{plural(len(gone), noun)} removed from {folder}")
