"""What real registries answer: a plain client gets it, so the clients of ours get it, too."""

from __future__ import annotations

from pathlib import Path

from tests.support.images import image
from tests.support.quirks import Quirks, copied, plain
from tests.support.registries import Registry


def test_an_upstream_without_quirks(through: Registry, quirks: Quirks, tmp_path: Path) -> None:
    quirks.script = plain(image(300, [10_000]))
    for host, folder in ((f"127.0.0.1:{quirks.port}", "straight"), (through.host, "through")):
        assert copied("none/app:v1", host, tmp_path / folder) is None
    assert {each.name for each in (tmp_path / "straight").iterdir()} == {
        each.name for each in (tmp_path / "through").iterdir()
    }
