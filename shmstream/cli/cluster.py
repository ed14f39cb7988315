"""`cluster`: the nodes of a cluster, and from which node each node gets its blobs."""

from __future__ import annotations

from pathlib import Path

import click

from shmstream.cli.exits import Command
from shmstream.cli.formatting import plural
from shmstream.cli.options import json_option
from shmstream.cli.printing import say, show_json
from shmstream.cluster.overview import Spread, spreads


@click.command(cls=Command, short_help="Show from which node each node gets its blobs.")
@click.argument("url")
@click.option(
    "--password-file",
    type=click.Path(dir_okay=False, exists=True),
    metavar="FILE",
    help="A file with the password for Redis.",
)
@json_option
def cluster(url: str, password_file: str | None, as_json: bool) -> None:
    """Show the blobs in flight in a cluster, each as a tree, and how many nodes have others.

    URL is that of the cluster's Redis or Valkey, such as redis://redis:6379. Below each node are
    the nodes that were told to get the bytes from it; the node that leads gets them from the
    upstream. With --json: a list with `key`, `leader`, `parents` and `holders` of each digest.
    """
    password = None if password_file is None else Path(password_file).read_text().strip()
    try:
        found = spreads(url, password)
    except ValueError as error:  # of redis-py
        raise click.BadParameter(str(error), param_hint="URL") from error
    if as_json:
        show_json([vars(each) for each in found])
        return
    flights = [each for each in found if each.parents]
    for each in flights:
        click.echo("\n".join(_lines(each)))
    nodes = {node for each in found for node in (*each.parents, *each.holders)}
    complete = sum(not each.parents for each in found)
    told = f"{plural(len(flights), 'blob')} in flight, {plural(complete, 'other blob')} complete"
    say(f"{told}, on {plural(len(nodes), 'node')}")


def _lines(spread: Spread) -> list[str]:
    """A digest, and the tree of the nodes that have it in flight."""
    holders = f", {plural(len(spread.holders), 'node')} complete" if spread.holders else ""
    lines = [f"{spread.key}: {plural(len(spread.parents), 'node')} in flight{holders}"]
    shown: set[str] = set()

    def show(parent: str, depth: int) -> None:
        for node, its in spread.parents.items():
            if its == parent and node not in shown:
                shown.add(node)
                lines.append(f"{'  ' * depth}{node}{' leads' if node == spread.leader else ''}")
                show(node, depth + 1)

    for root in ("upstream", *spread.holders, "nobody", *spread.parents, *spread.parents.values()):
        children = [node for node, its in spread.parents.items() if its == root]
        if children and not set(children) <= shown and root not in shown:
            lines.append(f"  {root}")
            show(root, 2)
    return lines
