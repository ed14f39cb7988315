"""Notes: whole or absent, private, bounded in number."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from shmstream.upstreams.notes import Notes
from tests.support.root import GROUP, as_user, make_shared, mount, needs_root, unmount


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
    monkeypatch.setattr("shmstream.upstreams.notes._MOST", 10)
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


WRITES = """
from shmstream.upstreams.notes import Notes
notes = Notes(sys.argv[1], "tags")
before = notes.read(("a",))
notes.write(("a",), str(os.getuid()))
notes.write((str(os.getuid()),), "")
print(before and before.text, notes.read(("a",)).text)
"""


@needs_root
def test_notes_of_a_store_that_a_group_shares(for_all: Path) -> None:
    """Any user of the group writes them, and goes on with those of another one."""
    store = for_all / "store"
    make_shared(store)
    assert as_user(1001, GROUP, str(store), WRITES) == "None 1001"
    assert as_user(1002, GROUP, str(store), WRITES) == "1001 1002"
    notes = Notes(str(store), "tags")
    notes.tidy()
    for path in store.rglob("*"):
        facts = path.stat()
        assert facts.st_gid == GROUP, path
        assert stat.S_IMODE(facts.st_mode) == (0o2770 if path.is_dir() else 0o660), path
    os.chown(store / "registry" / "tags", 1001, 1001)
    with pytest.raises(PermissionError):
        Notes(str(store), "tags")


READS = """
from shmstream.upstreams.notes import Notes
notes = Notes(sys.argv[1], sys.argv[1][-4:])
notes.write(("a",), "other")
notes.remove(("a",))
print(notes.read(("a",)) and notes.read(("a",)).text)
"""


@needs_root
def test_notes_of_a_store_that_can_only_be_read(
    for_all: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are read, if there are any; to write none is no failure."""
    for name, expected in (("none", "None"), ("tags", "one")):
        store = for_all / name
        store.mkdir()
        if name == "tags":
            Notes(str(store), "tags").write(("a",), "one")
        subprocess.run(["chmod", "-R", "a+rX", store], check=True)
        assert as_user(1234, 1234, str(store), READS) == expected
    disk = for_all / "disk"
    mount(disk)
    try:
        (disk / ".shmstream").touch()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        notes = Notes(str(disk), "tags")
        notes.write(("a",), "one")
        assert notes.read(("a",)) is None
    finally:
        unmount(disk)
    assert not caplog.records
