"""Temporary folders: gone after their use, and after the death of their process by the next one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from shmstream.system.temporary import TemporaryFolder

HOLD = """
import sys
from shmstream.system.temporary import TemporaryFolder
folder = TemporaryFolder("test-folder-")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary folders, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_inside(there: Path) -> None:
    with closing(TemporaryFolder("test-folder-")) as folder:
        assert Path(folder.path).parent == there
        assert Path(folder.path).name.startswith("test-folder-")
        (Path(folder.path) / "file").write_text("data")
    assert list(there.iterdir()) == []


def test_what_is_in_use_stays_and_what_a_killed_process_left_goes(there: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            theirs = process.stdout.readline().strip()
            with closing(TemporaryFolder("test-folder-")) as mine:
                assert sorted(map(str, there.iterdir())) == sorted([mine.path, theirs])
        finally:
            process.kill()
    with closing(TemporaryFolder("test-folder-")) as mine:
        assert list(map(str, there.iterdir())) == [mine.path]


def test_a_folder_without_a_lock_is_left_for_a_while(there: Path) -> None:
    new, old, other = (there / name for name in ("test-folder-1", "test-folder-2", "other-1"))
    for each in (new, old, other):
        each.mkdir()
        os.utime(each, (1000, 1000))
    os.utime(new)
    with closing(TemporaryFolder("test-folder-")) as mine:
        assert sorted(there.iterdir()) == sorted([new, other, Path(mine.path)])


def test_a_folder_that_is_removed_is_made_anew(there: Path) -> None:
    """Many systems remove old files from /tmp, and then the folders that they were in."""
    with closing(TemporaryFolder("test-folder-")) as mine:
        assert not mine.restore()
        (Path(mine.path) / "lock").unlink()
        assert not mine.restore()
        shutil.rmtree(mine.path)
        assert mine.restore()
        os.utime(mine.path, (1000, 1000))
        with closing(TemporaryFolder("test-folder-")):
            assert Path(mine.path).is_dir(), "its lock is there again"
        shutil.rmtree(mine.path)
        Path(mine.path).symlink_to(there)
        with pytest.raises(FileExistsError):
            mine.restore()
        Path(mine.path).unlink()
    assert list(there.iterdir()) == []
