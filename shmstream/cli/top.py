"""`top`: a live view of a store's flights.

A `Watch` looks at the flights. On a terminal they are drawn as a live page; elsewhere they are
printed once, as lines or as JSON.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from shmstream.cli.exits import Command
from shmstream.cli.facts import flight_facts
from shmstream.cli.formatting import left, named, per_second, plural
from shmstream.cli.options import existing_store, json_option, store_option, verbose_option
from shmstream.cli.printing import show_json
from shmstream.cluster.account import Account, Pull, of_node
from shmstream.errors import escaped
from shmstream.storage.flights import Sight, Watch, followers_of, state_of
from shmstream.stream.subscribers import Subscriber
from shmstream.system.signals import Stopped
from shmstream.units import amount


@click.command(cls=Command, short_help="Watch the flights of a store, live.")
@store_option
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between two looks.",
)
@click.option("--once", is_flag=True, help="Look twice, print the second look, and end.")
@json_option
@verbose_option
def top(folder: str, interval: float, once: bool, as_json: bool) -> None:
    """Watch the flights of a store: the rate, the time left, the leader and the followers of each.

    Ends with q or Ctrl-C. With --once, with --json and without a terminal, the flights are printed
    once. With --json: a list of flights as in `ls --json`, each with `rate` (bytes a second) and
    `eta` (seconds); in a cluster also with `parent`, `from_peers`, `from_upstream` (bytes) and
    `children`.

    In a cluster: where the bytes of each flight come from, the nodes that get it from this one, and
    the sums of the processes of this node since they began.
    """
    store = existing_store(folder)
    watch = Watch(store.flights)
    console = Console(highlight=False, emoji=False)
    if once or as_json or not (console.is_terminal and console.is_interactive):
        _tell_once(watch, store.folder, interval, as_json=as_json)
        return
    try:
        _show(watch, store.folder, console, interval)
    except Stopped as stop:
        if stop.number != signal.SIGINT:
            raise


def _tell_once(watch: Watch, folder: str, interval: float, *, as_json: bool) -> None:
    sights = watch.look()
    if sights:
        time.sleep(interval)  # a rate needs two looks
        sights = watch.look()
    if as_json:
        account = of_node(folder)
        show_json(
            [
                flight_facts(each.flight)
                | {"rate": each.rate, "eta": each.eta}
                | _across_hosts(account, each.flight.key)
                for each in sights
            ]
        )
        return
    account = of_node(folder)
    click.echo("\n".join([_title(folder, sights), *_of_cluster(account)]))
    for each in sights:
        click.echo("\n" + "\n".join(_lines(each, account)))


def _show(watch: Watch, folder: str, console: Console, interval: float) -> None:
    with (
        Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live,
        _keys() as wait_for_q,
    ):
        while True:
            live.update(_page(folder, watch.look()), refresh=True)
            if wait_for_q(interval):
                return


class _Keys:
    """Waits for the key q; without a terminal (`fd` is None) it only waits."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, seconds: float) -> bool:
        """Wait for `seconds`, or until q is pressed or the terminal is closed: True then."""
        deadline = time.monotonic() + seconds
        while (patience := deadline - time.monotonic()) > 0:
            if self._fd is None:
                time.sleep(patience)
            elif select.select([self._fd], [], [], patience)[0]:
                keys = os.read(self._fd, 1024)
                if not keys or b"q" in keys.lower():
                    return True
        return False


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Inside, each key is read when it is pressed, and is not shown."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield _Keys(None)
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


# What is shown.


def _title(folder: str, sights: list[Sight]) -> str:
    total = sum(each.rate or 0.0 for each in sights)
    told = plural(len(sights), "flight") + (f", {per_second(total)}" if sights else "")
    return f"{told}, in {folder}"


def _page(folder: str, sights: list[Sight]) -> RenderableType:
    title = Text(f"shmstream top: {_title(folder, sights)}", style="bold", no_wrap=True)
    account = of_node(folder)
    parts: list[RenderableType] = [title, *map(Text, _of_cluster(account))]
    parts.append(Text("q ends", style="dim"))
    for each in sights:
        flight = each.flight
        key, *others = (
            Text(line, no_wrap=True, overflow="ellipsis") for line in _lines(each, account)
        )
        bar = ProgressBar(total=flight.size or 1, completed=flight.published, width=60)
        parts += [Text(), key]
        parts += [Padding(bar, (0, 0, 0, 2))] if flight.size else []
        parts += others
    return Group(*parts)


def _of_cluster(account: Account | None) -> list[str]:
    """What the node has of its cluster, as a line; and why the directory is away, if it is."""
    if account is None:
        return []
    calls = plural(account.calls, "directory call")
    told = (
        f"node {account.node or 'that gives nothing'}: {amount(account.from_peers)} from peers, "
        f"{amount(account.from_upstream)} from upstreams, {amount(account.given)} given; "
        f"{calls}, {account.failures} failed, away for {account.away:.1f} s"
    )
    return [told, *([f"the directory is away: {escaped(account.trouble)}"] * bool(account.trouble))]


def _across_hosts(account: Account | None, key: str | None) -> dict[str, object]:
    """From where the bytes of a flight come, and where they go, for programs."""
    if account is None:
        return {}
    children = list(account.children.get(key or "", ()))
    pull = account.pulls.get(key or "", Pull())
    return {**pull._asdict(), "parent": pull.parent or None, "children": children}


def _lines(sight: Sight, account: Account | None) -> list[str]:
    """A flight as lines: its key, how far it is, its leader, its followers, its other nodes."""
    flight = sight.flight
    facts = [state_of(flight), amount(flight.published)]
    if flight.size is not None:
        facts[-1] += f" of {amount(flight.size)}"
        if flight.size:
            facts.append(f"{flight.published * 100 // flight.size} %")
    if sight.rate is not None:
        facts.append(per_second(sight.rate))
    if sight.eta is not None:
        facts.append(f"{left(sight.eta)} left")
    if flight.epoch:
        facts.append(f"taken over {flight.epoch} x")
    leader = "nobody, just now" if flight.leader is None else escaped(str(flight.leader))
    lines = [named(flight.key), "  " + ", ".join(facts), f"  leads    {leader}"]
    lines += [
        f"  follows  {escaped(str(each.identity))}, {_lag(each)}" for each in followers_of(flight)
    ]
    if account is not None and flight.key is not None:
        pull = account.pulls.get(flight.key, Pull())
        if pull.parent:
            got = (
                f"{amount(pull.from_peers)} from peers, {amount(pull.from_upstream)} from upstreams"
            )
            lines.append(f"  parent   {escaped(pull.parent)}, {got}")
        lines += [f"  child    {escaped(each)}" for each in account.children.get(flight.key, ())]
    return lines


def _lag(follower: Subscriber) -> str:
    """How far a follower is behind. A follower that only waits for the whole blob reads nothing."""
    return f"lag {amount(follower.lag)}" if follower.position else "has read nothing"
