"""Names for a blob where files can share blocks: on a btrfs and an xfs that the test makes."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstream import Store
from shmstream.storage.placing import place_file
from tests.support.commands import Running
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.root import MKFS, mounted_image, needs_root
from tests.support.stores import digest

SIZE = 3_000_000  # no multiple of a block
DATA = content(1, SIZE)
KEY = digest(1, SIZE)

# `struct fiemap` and `struct fiemap_extent` of linux/fiemap.h.
_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_SYNC = 1
_SHARED = 0x2000
_MOST = 512


def extents(path: str | Path) -> list[tuple[int, int, int, bool]]:
    """Where the disk has the bytes of a file: offset, place, length, and whether it is shared."""
    request = bytearray(_HEAD.size + _MOST * _EXTENT.size)
    _HEAD.pack_into(request, 0, 0, 1 << 62, _SYNC, 0, _MOST, 0)
    with open(path, "rb") as file:
        fcntl.ioctl(file, _FIEMAP, request)
    count = _HEAD.unpack_from(request)[3]
    told = [_EXTENT.unpack_from(request, _HEAD.size + _EXTENT.size * n) for n in range(count)]
    return [(*each[:3], bool(each[5] & _SHARED)) for each in told]


@pytest.fixture(params=MKFS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with mounted_image(tmp_path, request.param) as mounted:
        yield mounted


@needs_root
def test_a_name_shares_the_blocks_of_the_blob(disk: Path, origin: Origin, tmp_path: Path) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    store = Store(disk / "store")
    by_fetch = disk / "model.bin"
    assert store.fetch(KEY, url, link=by_fetch) == str(by_fetch)
    store.snapshot(disk / "folder", {"weights/a.bin": (KEY, None)})
    by_command = disk / "out.bin"
    options = ("--digest", KEY, "-o", str(by_command), "--link", "--store", store.folder)
    command = Running("fetch", "-q", url, *options, cwd=tmp_path)
    assert command.finish() == (0, b"", "")
    command.close()
    there = extents(path := store.path(KEY))
    assert there
    for name in (by_fetch, disk / "folder/weights/a.bin", by_command):
        assert extents(name) == there, "the same places of the disk"
        assert all(is_shared for *_, is_shared in there)
        assert not name.samefile(path), "a file of its own"
        assert name.read_bytes() == DATA
    by_fetch.write_bytes(b"mine")  # it may be written to: the store keeps its bytes
    assert store.check(verify=True) == []
    assert store.remove(KEY)
    assert by_command.read_bytes() == DATA
    assert len(origin.requests("/blob")) == 1
    elsewhere = tmp_path / "elsewhere"
    with by_command.open("rb") as file:
        assert place_file(file.fileno(), elsewhere) == "copy", "another file system"
        by_command.unlink()
        assert place_file(file.fileno(), disk / "again.bin") == "reflink", "it has no name any more"
    assert elsewhere.read_bytes() == (disk / "again.bin").read_bytes() == DATA
    assert not [name for name in os.listdir(disk) if name.startswith(".shmstream-")]
