"""The blob that the demo streams when it is given none: a tar of files that every machine has.

First come the files of Python's standard library, then the packages that are installed beside it,
then the libraries of the system. Order, times and owners are fixed, so the same machine makes the
same bytes every time.
"""

from __future__ import annotations

import itertools
import os
import sysconfig
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_LARGEST_FILE = 8 << 20  # bytes; larger files are skipped, so that the tar stays near its size
_SKIPPED = ("__pycache__", "site-packages", "dist-packages")


def make_sample(path: Path, size: int) -> str:
    """Write a tar of a little more than `size` bytes to `path`; what it is, in words.

    Raises:
        OSError: there is no space for it, or no file to put into it.
    """
    used: Counter[Path] = Counter()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for turn in itertools.count():
            for folder, file in _files():
                if added := _add(tar, file, f"{turn}{file}"):
                    used[folder] += 1
                    size -= added
                if size <= 0:
                    told = (f"{count:,} files of {folder}" for folder, count in used.items())
                    return "a tar of " + ", ".join(told)
            if not used:
                raise FileNotFoundError("no files to make a blob of were found: use --input")
    raise AssertionError("it has returned")


def _files() -> Iterator[tuple[Path, Path]]:
    """Every file that may be used, after the folder that it is of."""
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/lib"):
        for here, folders, files in os.walk(root):
            folders[:] = sorted(set(folders).difference(_SKIPPED))
            yield from ((Path(root), Path(here, file)) for file in sorted(files))


def _add(tar: tarfile.TarFile, file: Path, name: str) -> int:
    """Put one file into the tar; how many bytes, 0 for what is no plain file of a sensible size."""
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > _LARGEST_FILE:
            return 0
        content = file.open("rb")
    except OSError:  # not ours to read, or just removed: there are others
        return 0
    with content:
        entry = tarfile.TarInfo(name)
        entry.size = os.fstat(content.fileno()).st_size
        tar.addfile(entry, content)
    return entry.size
