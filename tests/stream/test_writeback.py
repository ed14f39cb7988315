"""The disk begins to write a durable file while it grows; no appender waits for the disk."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from shmstream import BlobStreamer
from shmstream.stream import writeback
from shmstream.stream.writeback import STEP, Writeback
from shmstream.system import threads
from tests.support.interpreters import PATIENCE, wait_until

MIB = 1 << 20
HALF = b"h" * (STEP // 2)


class Disk:
    """In place of the kernel: notes what it is told to write, and hangs while it is shut."""

    def __init__(self, *, answer: bool = True) -> None:
        self.told: list[tuple[int, int]] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._answer = answer

    def __call__(self, fd: int, offset: int, count: int) -> bool:
        os.fstat(fd)  # it is open
        self.told.append((offset, count))
        assert self.goes_on.wait(PATIENCE)
        return self._answer


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(writeback, "begin_to_write", made)
    return made


def test_a_durable_file_is_written_while_it_grows(tmp_path: Path, disk: Disk) -> None:
    with BlobStreamer.create(tmp_path / "blob", durable=True) as streamer:

        def tells_when_it_grows(times: int) -> bool:
            streamer.append(b"x")  # the call before may just be ending
            return len(disk.told) == times

        streamer.append(HALF)
        assert disk.told == []
        for number in range(3):
            streamer.append(HALF)
            streamer.append(HALF)
            wait_until(partial(tells_when_it_grows, number + 1))
        assert disk.told == [(number * STEP, STEP) for number in range(3)]
        size = streamer.appended
        streamer.commit()
    assert (tmp_path / "blob").stat().st_size == size


def test_a_file_that_need_not_be_durable_is_left_to_the_kernel(tmp_path: Path, disk: Disk) -> None:
    with BlobStreamer.create(tmp_path / "blob") as streamer:
        for _ in range(4):
            streamer.append(HALF)
        streamer.commit()
    assert disk.told == []


def test_a_slow_disk_holds_nobody_up_but_the_end(tmp_path: Path, disk: Disk) -> None:
    disk.goes_on.clear()
    streamer = BlobStreamer.create(tmp_path / "blob", durable=True)
    for _ in range(8):
        streamer.append(HALF)
    wait_until(lambda: streamer.published == 4 * STEP)
    wait_until(lambda: disk.told == [(0, STEP)])
    streamer.commit()
    closing = threading.Thread(target=streamer.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive(), "the descriptor is in use"
    disk.goes_on.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert disk.told == [(0, STEP)]


@pytest.mark.parametrize("lacks", ["the call", "a thread"])
def test_where_it_cannot_be_told_the_sync_writes_all(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(answer=False)
    monkeypatch.setattr(writeback, "begin_to_write", disk)
    with BlobStreamer.create(tmp_path / "blob", durable=True) as streamer:
        with monkeypatch.context() as patch:
            if lacks == "a thread":
                patch.setattr(threads.Call, "start", _cannot)
            streamer.append(HALF + HALF)
            streamer.append(HALF + HALF)
        wait_until(lambda: lacks == "a thread" or len(disk.told) == 1)
        streamer.append(HALF + HALF)
        streamer.commit()
    assert len(disk.told) == (lacks == "the call")
    assert (tmp_path / "blob").stat().st_size == 3 * STEP


def _cannot(_self: threads.Call) -> None:
    raise RuntimeError("can't start new thread")


def test_the_kernel_writes_what_it_is_told(tmp_path: Path) -> None:
    """It counts the dirty pages of the file (`cachestat`, since Linux 6.5)."""
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * (2 * STEP + 1))
        file.flush()
        if _dirty(file.fileno()) in (None, 0):
            pytest.skip("this kernel does not count, or this file system has no disk")
        written = Writeback(file.fileno(), 0)
        written.update(2 * STEP + 1)
        wait_until(lambda: (_dirty(file.fileno()) or 0) <= MIB)
        written.close()


def _dirty(fd: int) -> int | None:
    """Bytes of the file that are in memory only, and not on their way; None if it is not known."""
    span, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    if ctypes.CDLL(None).syscall(451, fd, ctypes.byref(span), ctypes.byref(found), 0):
        return None
    return int(found[1]) * os.sysconf("SC_PAGE_SIZE")
