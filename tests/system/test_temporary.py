"""Temporary folders: gone after their use, and after the death of their process by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shmstream.system.temporary import temporary_folder

HOLD = """
import sys
from shmstream.system.temporary import temporary_folder
with temporary_folder("test-folder-") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary folders, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_inside(there: Path) -> None:
    with temporary_folder("test-folder-") as folder:
        assert Path(folder).parent == there
        assert Path(folder).name.startswith("test-folder-")
        (Path(folder) / "file").write_text("data")
    assert list(there.iterdir()) == []


def test_what_is_in_use_stays_and_what_a_killed_process_left_goes(there: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            theirs = process.stdout.readline().strip()
            with temporary_folder("test-folder-") as mine:
                assert sorted(map(str, there.iterdir())) == sorted([mine, theirs])
        finally:
            process.kill()
    with temporary_folder("test-folder-") as mine:
        assert list(map(str, there.iterdir())) == [mine]


def test_a_folder_without_a_lock_is_left_for_a_while(there: Path) -> None:
    new, old, other = (there / name for name in ("test-folder-1", "test-folder-2", "other-1"))
    for each in (new, old, other):
        each.mkdir()
        os.utime(each, (1000, 1000))
    os.utime(new)
    with temporary_folder("test-folder-") as mine:
        assert sorted(there.iterdir()) == sorted([new, other, Path(mine)])
