"""Kernel locks on byte ranges of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmstream.system.locks import WHOLE_FILE, KernelLock


def test_locks_on_ranges(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    one = KernelLock(str(path))
    two = KernelLock.reopen(one.fd)
    assert one.try_acquire((0, 10))
    assert one.try_acquire((0, 10)), "again is fine"
    assert not two.try_acquire((5, 10))
    assert two.try_acquire((10, 10))
    assert two.is_held_elsewhere((9, 1))
    assert not two.is_held_elsewhere((10, 100)), "only by itself"
    assert not two.try_acquire(WHOLE_FILE)
    one.release((0, 10))
    assert two.try_acquire(WHOLE_FILE)
    assert one.is_held_elsewhere((1 << 40, 1))
    assert two.is_at(str(path))
    path.rename(tmp_path / "moved")
    assert not two.is_at(str(path))
    path.touch()
    assert not two.is_at(str(path)), "another file of that name"
    two.close()
    two.close()
    assert not one.is_held_elsewhere(WHOLE_FILE)
    one.close()


def test_the_very_end_of_an_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is freed after its module has lost its names says nothing, and is freed."""
    lock, other = (KernelLock(str(tmp_path / "lock"), os.O_CREAT) for _ in range(2))
    assert lock.try_acquire(WHOLE_FILE)
    with monkeypatch.context() as ending:
        ending.setattr("shmstream.system.locks.sys", None)
        KernelLock.__del__(lock)
    assert lock.fd == -1
    assert other.try_acquire(WHOLE_FILE)
    other.close()
