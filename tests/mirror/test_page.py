"""What docs/mirrors.md and the example say is what there is."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields

import pytest

from shmstream.errors import SourceError
from shmstream.mirror.settings import KINDS, Mirror
from shmstream.registry.settings import Settings
from shmstream.sources.http import HTTPSource
from tests.support.commands import ROOT
from tests.support.quirks import Quirks

PAGE = (ROOT / "docs/mirrors.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "examples/mirrors/shmstream.toml").read_text(encoding="utf-8")


def test_every_kind_is_told_and_every_file_is_valid() -> None:
    texts = [*re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL), EXAMPLE]
    tables: list[dict[str, object]] = [{"store": "/s", **tomllib.loads(each)} for each in texts]
    seen = [each.kind for table in tables for each in Settings.from_table(table).mirrors]
    assert set(seen) == set(KINDS)
    for kind in KINDS:
        assert f"`{kind}`\n" in PAGE


def test_every_setting_is_told() -> None:
    table = PAGE[PAGE.index("| setting |") : PAGE.index("A mirror is open to all")]
    told = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert told == [each.name for each in fields(Mirror)]


def test_a_server_outside_names_nothing_inside(quirks: Quirks) -> None:
    """Such as a package index on the internet whose page has a link to a service of this host."""
    source = HTTPSource(f"{quirks.url}/a", named_by="http://192.0.2.1/simple")
    with pytest.raises(SourceError, match="private address"):
        source.open()
    assert not quirks.asked
