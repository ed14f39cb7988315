"""Files that other programs may have put there: only files are opened, and nothing blocks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from shmstream.system.files import is_for_group, is_hollow, open_file, read_file, write_file


def test_only_a_file_is_opened(tmp_path: Path) -> None:
    fifo, folder, link = (str(tmp_path / each) for each in ("fifo", "folder", "link"))
    os.mkfifo(fifo)
    os.mkdir(folder)
    os.symlink("/etc/passwd", link)
    for path, reason in ((fifo, "no file"), (folder, "no file"), (link, "symbolic")):
        with pytest.raises(OSError, match=reason) as caught:
            open_file(path)
        assert caught.value.filename == path
    with pytest.raises(OSError, match="no file"):
        open_file(fifo, os.O_RDWR)
    with pytest.raises(OSError, match="Is a directory"):
        open_file(folder, os.O_RDWR)
    with pytest.raises(FileNotFoundError):
        open_file(str(tmp_path / "nothing"))


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size in (0, 1, 999, 1000):
        path.write_bytes(bytes(size))
        assert read_file(str(path), 1000) == bytes(size)
    for size in (1001, 1 << 43):
        path.touch()
        os.truncate(path, size)
        with pytest.raises(OSError, match="larger than 1000 bytes"):
            read_file(str(path), 1000)
    assert len(read_file("/proc/self/stat", 10_000)) > 100, "it says that it has no bytes"


def test_holes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size, holes in ((1 << 43, True), (1 << 20, False), (0, False)):
        path.touch()
        os.truncate(path, size)
        fd = open_file(str(path))
        assert is_hollow(fd) == holes
        os.close(fd)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    for durable, text in ((False, b"one\n"), (True, b"two\n" * 100_000)):
        write_file(str(path), text, durable=durable)
        assert path.read_bytes() == text

    def fails(*_paths: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        with pytest.raises(KeyboardInterrupt):
            write_file(str(path), b"three")
    assert path.read_bytes() == b"two\n" * 100_000
    assert list(tmp_path.iterdir()) == [path], "and no temporary file stays"
    with pytest.raises(FileNotFoundError):
        write_file(str(tmp_path / "none" / "file"), b"")


@pytest.mark.parametrize(
    ("mode", "shared"), [(0o2770, True), (0o2775, True), (0o770, False), (0o700, False)]
)
def test_what_is_made_in_a_groups_folder_is_the_groups(
    mode: int, shared: bool, tmp_path: Path
) -> None:
    tmp_path.chmod(mode)
    assert is_for_group(tmp_path.stat()) == shared
    path = tmp_path / "file"
    os.close(open_file(str(path), os.O_RDWR | os.O_CREAT))
    assert stat.S_IMODE(path.stat().st_mode) == (0o660 if shared else 0o600)
    path.chmod(0o600)
    os.close(open_file(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it was not made then"
    tmp_path.chmod(0o700)


def test_no_others_are_in_a_groups_folder(tmp_path: Path) -> None:
    for mode in (0o2777, 0o3770, 0o2772, 0o2750):
        tmp_path.chmod(mode)
        assert not is_for_group(tmp_path.stat())
    tmp_path.chmod(0o700)
