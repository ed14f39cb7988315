"""Prints results to standard output, and messages for people to standard error."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.text import Text

from shmstream.errors import escaped

PEOPLE = Console(stderr=True, highlight=False, emoji=False)
"""Standard error, where messages for people go."""


def say(text: str) -> None:
    """Print a message, with `?` for each character that the terminal cannot show."""
    shown = escaped(text).encode(PEOPLE.encoding, "replace").decode(PEOPLE.encoding)
    PEOPLE.print(Text(shown), soft_wrap=True)


def show_json(facts: object) -> None:
    """Print the result as JSON."""
    click.echo(json.dumps(facts, indent=2))
