"""What PyPI gives to those that build or test: everything, and the tests run from it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def _is_ours(path: Path) -> bool:
    """Whether no line of .gitignore names it; `path` is relative to the root."""
    for line in [".git", *(_ROOT / ".gitignore").read_text().split()]:
        pattern = line.strip("/")
        if line.startswith("/"):
            if fnmatch(str(path), pattern):
                return False
        elif fnmatch(path.name, pattern):
            return False
    return True


def _files(folder: Path = _ROOT) -> Iterator[str]:
    """All files of the project, relative to the root."""
    for each in folder.iterdir():
        path = each.relative_to(_ROOT)
        if not _is_ours(path):
            continue
        if each.is_dir():
            yield from _files(each)
        else:
            yield str(path)


def _run(program: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_complete_and_its_tests_run(tmp_path: Path) -> None:
    files = sorted(_files())
    copy = tmp_path / "copy"  # a build writes into the folder
    for each in files:
        (copy / each).parent.mkdir(parents=True, exist_ok=True)
        (copy / each).write_bytes((_ROOT / each).read_bytes())
    _run(["-c", _BUILD, str(tmp_path)], copy)
    [archive] = tmp_path.glob("shmstream-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    assert [each for each in files if not (unpacked / each).is_file()] == []
    told = _run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_units.py"],
        unpacked,
        PYTHONPATH=str(unpacked),
    )
    assert " passed" in told
