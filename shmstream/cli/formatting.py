"""How blobs and flights are told: to people in lines and columns, to programs as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from shmstream.storage.flights import FlightInfo, followers_of, state_of
from shmstream.storage.layout import Entry
from shmstream.units import amount

PEOPLE = Console(stderr=True, highlight=False, emoji=False)
"""Standard error, where everything is for people."""


def say(text: str) -> None:
    """Tell people a line, with `?` for what their terminal cannot show."""
    shown = printable(text).encode(PEOPLE.encoding, "replace").decode(PEOPLE.encoding)
    PEOPLE.print(Text(shown), soft_wrap=True)


def show_json(facts: object) -> None:
    """The result, for programs."""
    click.echo(json.dumps(facts, indent=2))


def printable(text: str) -> str:
    """A key or a command may hold anything; what would move the cursor is told as its escape."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def per_second(rate: float | None) -> str:
    """A rate in bytes a second for people."""
    return "" if rate is None else f"{amount(rate)}/s"


def left(seconds: float | None) -> str:
    """A time to go: `0:04`, `1:02:03`."""
    if seconds is None:
        return ""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def plural(count: int, noun: str) -> str:
    """`1 blob`, `2 blobs`."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def in_columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Rows as lines; all cells of a column are as wide as its widest, never cut off."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


# Blobs.


def moment(seconds: float) -> datetime:
    """A time stamp of a file."""
    return datetime.fromtimestamp(seconds, UTC)


def blob_facts(key: str | None, entry: Entry) -> dict[str, Any]:
    """A complete blob, for programs."""
    return {
        "key": key,
        "size": entry.size,
        "last_used": moment(entry.used).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "path": entry.path,
    }


# Flights.


def flight_facts(flight: FlightInfo) -> dict[str, Any]:
    """A flight, for programs."""
    leader = flight.leader
    return {
        "key": flight.key,
        "state": state_of(flight),
        "size": flight.size,
        "published": flight.published,
        "epoch": flight.epoch,
        "leader": None if leader is None else {"pid": leader.pid, "process": str(leader)},
        "followers": [
            {
                "pid": each.identity.pid,
                "process": str(each.identity),
                "position": each.position,
                "lag": each.lag,
            }
            for each in followers_of(flight)
        ],
        "path": flight.path,
        "stream": flight.stream,
    }


def named(key: str | None) -> str:
    """A key for people."""
    return "(its key is not known)" if key is None else printable(key)
