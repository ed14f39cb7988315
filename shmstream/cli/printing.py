"""Prints results to standard output, and messages for people to standard error."""

from __future__ import annotations

import json
from types import NoneType

import click
from rich.console import Console
from rich.text import Text

from shmstream.errors import escaped

PEOPLE = Console(stderr=True, highlight=False, emoji=False)
"""Standard error, where messages for people go."""

_BATCH = 1000  # objects; to have the parts of many more in memory takes longer
_SCALARS = frozenset((str, int, float, bool, NoneType))


def say(text: str) -> None:
    """Print a message, with `?` for each character that the terminal cannot show."""
    shown = escaped(text).encode(PEOPLE.encoding, "replace").decode(PEOPLE.encoding)
    PEOPLE.print(Text(shown), soft_wrap=True)


def show_json(facts: object) -> None:
    """Print the result as JSON."""
    click.echo(_indented(facts))


def _indented(facts: object, margin: str = "\n") -> str:
    """As `json.dumps(facts, indent=2)`, which is slow, because it is written in Python."""
    inner = margin + "  "
    if not (facts and isinstance(facts, dict | list)):
        return json.dumps(facts)
    values = facts.values() if isinstance(facts, dict) else facts
    if not any(isinstance(each, dict | list) for each in values):
        parts = json.dumps(facts, separators=(f",{inner}", ": "))[1:-1]
    elif isinstance(facts, list) and all(map(_is_flat, facts)):
        batches = range(0, len(facts), _BATCH)
        parts = f",{inner}".join(_flat(facts[at : at + _BATCH], inner) for at in batches)
    elif isinstance(facts, dict):
        parts = f",{inner}".join(
            f"{json.dumps(name)}: {_indented(value, inner)}" for name, value in facts.items()
        )
    else:
        parts = f",{inner}".join(_indented(each, inner) for each in facts)
    return f"{{{inner}{parts}{margin}}}" if isinstance(facts, dict) else f"[{inner}{parts}{margin}]"


def _flat(facts: list[object], margin: str) -> str:
    """Objects without inner ones, all by one call: to begin a call takes as long as an object."""
    inner = margin + "  "
    parts = json.dumps(facts, separators=(f",{inner}", ": "))[2:-2]
    # No text of JSON has a line break in it.
    parts = parts.replace(f"}},{inner}{{", f"{margin}}},{margin}{{{inner}")
    return f"{{{inner}{parts}{margin}}}"


def _is_flat(facts: object) -> bool:
    """Whether it is an object that has members, and no member has members of its own."""
    if not (facts and isinstance(facts, dict)):
        return False
    return _SCALARS.issuperset(map(type, facts.values()))
