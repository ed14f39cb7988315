"""Where texts go: results to standard output, everything that is for people to standard error."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.text import Text

from shmstream.cli.formatting import printable

PEOPLE = Console(stderr=True, highlight=False, emoji=False)
"""Standard error, where everything is for people."""


def say(text: str) -> None:
    """Tell people a line, with `?` for what their terminal cannot show."""
    shown = printable(text).encode(PEOPLE.encoding, "replace").decode(PEOPLE.encoding)
    PEOPLE.print(Text(shown), soft_wrap=True)


def show_json(facts: object) -> None:
    """The result, for programs."""
    click.echo(json.dumps(facts, indent=2))
