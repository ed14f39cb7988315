"""Notes: whole or absent, private, bounded in number."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from shmstream.registry.notes import Notes


def test_notes(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path), "tags")
    key = ("../../etc", "\0", "a" * 10_000)
    assert notes.read(key) is None
    notes.write(key, "one")
    notes.write(("other",), "two")
    found = notes.read(key)
    assert found is not None
    assert (found.text, found.age < 60) == ("one", True)
    notes.write(key, "three")
    again = Notes(str(tmp_path), "tags").read(key)
    assert again is not None
    assert again.text == "three"
    folder = tmp_path / "registry" / "tags"
    assert len(list(folder.iterdir())) == 2
    for path in (folder.parent, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.name) == 64
    notes.remove(key)
    notes.remove(key)
    assert notes.read(key) is None


def test_notes_that_cannot_be_read(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path), "tags")
    notes.write(("a",), "x")
    (path,) = (tmp_path / "registry" / "tags").iterdir()
    path.write_bytes(b"\xff\xfe")
    assert notes.read(("a",)) is not None
    path.write_bytes(b"x" * 5000)
    assert notes.read(("a",)) is None
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert notes.read(("a",)) is None
    notes.write(("a",), "x")
    assert not path.is_symlink()
    path.unlink()
    path.mkdir()
    assert notes.read(("a",)) is None
    notes.write(("a",), "x")  # fails, and is logged only
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_notes_are_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes(str(tmp_path), "grants")
    folder = tmp_path / "registry" / "grants"
    for number in range(20):
        notes.write((str(number),), "")
    month = time.time() - 31 * 24 * 3600
    (folder / ("f" * 64 + ".12345678")).touch()
    paths = sorted(each for each in folder.iterdir() if "." not in each.name)
    for path in paths[:5]:
        os.utime(path, (month, month))
    notes.tidy()
    assert len(list(folder.iterdir())) == 16, "what is about to be renamed stays"
    os.utime(folder / ("f" * 64 + ".12345678"), (month, month))
    monkeypatch.setattr("shmstream.registry.notes._MOST", 10)
    old = time.time() - 1000
    for path in paths[5:10]:
        os.utime(path, (old, old))
    notes.tidy()
    assert sorted(folder.iterdir()) == paths[10:], "the oldest went"


def test_notes_are_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        Notes(str(tmp_path), "tags")
    folder.rmdir()
    folder.symlink_to("/tmp")
    with pytest.raises(PermissionError):
        Notes(str(tmp_path), "tags")
