"""A file system in user space whose locks are as bad as a test wants them.

The kernel asks this file system for every lock. Its files lie in a folder. Its answers are:

    ENOSYS, ENOLCK, EOPNOTSUPP   it refuses each lock, with that error
    everybody                    it grants every lock to everybody
    for ever                     it frees a lock when it is told to, and never by itself: when the
                                 holder closes the file, or dies, the kernel tells the file system
                                 of classic locks only
    until release                as it should be: it also frees a lock when the file is released on
                                 which the lock was taken

It runs in an interpreter of its own, with the fuse3 library of Debian.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.interpreters import Interpreter, Link
from tests.support.root import unmount

ANSWERS = ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "everybody", "for ever", "until release")

Mount = Callable[[str], "Fuse"]


class Fuse:
    """A mounted file system, and the folder that it shows."""

    def __init__(self, mounted: Path, folder: Path, server: Interpreter) -> None:
        self.mounted = mounted
        self.folder = folder
        self._server = server

    def locks(self) -> list[list[Any]]:
        """What it was asked so far: command, kind, start, length, owner. Holders are owners."""
        self._server.say("locks")
        asked: list[list[Any]] = self._server.hear()
        return asked


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Mount]:
    """A function that mounts a file system which answers as told."""
    require()
    with ExitStack() as mounted:
        yield lambda answer: mounted.enter_context(_mount(tmp_path, answer))


def require() -> None:
    """Skip the test where there is no FUSE; fail it where there must be."""
    try:
        import mfusepy  # noqa: F401  # looks for the library
    except OSError as error:
        reason = f"{error}: apt-get install fuse3"
    else:
        if os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK):
            return
        reason = "only root can mount a file system, and only where there is /dev/fuse"
    if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def _mount(tmp_path: Path, answer: str) -> Iterator[Fuse]:
    folder, mounted = tmp_path / "behind", tmp_path / "mounted"
    folder.mkdir()
    mounted.mkdir()
    with Interpreter(serve, str(folder), str(mounted), answer) as server:
        assert server.hear() == "mounted"
        try:
            yield Fuse(mounted, folder, server)
        finally:
            unmount(mounted)
        server.finish()


def serve(link: Link, folder: str, mounted: str, answer: str) -> None:
    """The file system: it passes everything but the locks through to `folder`."""
    import threading

    import mfusepy

    asked: list[list[Any]] = []

    class Through(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def __init__(self) -> None:
            self.held: list[tuple[str, int, int, int, int]] = []

        def at(self, path: str) -> str:
            return folder + path

        def init(self, path: str) -> None:  # noqa: ARG002
            threading.Thread(target=answer_test, daemon=True).start()
            link.say("mounted")

        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:  # noqa: ARG002
            facts = os.lstat(self.at(path))
            names = ("st_mode", "st_size", "st_uid", "st_gid", "st_nlink", "st_ino")
            return {
                **{each: getattr(facts, each) for each in names},
                "st_atime": facts.st_atime_ns,
                "st_mtime": facts.st_mtime_ns,
            }

        def readdir(self, path: str, fh: Any) -> list[str]:  # noqa: ARG002
            return [".", "..", *os.listdir(self.at(path))]

        def mkdir(self, path: str, mode: int) -> None:
            os.mkdir(self.at(path), mode)

        def rmdir(self, path: str) -> None:
            os.rmdir(self.at(path))

        def unlink(self, path: str) -> None:
            os.unlink(self.at(path))

        def rename(self, old: str, new: str) -> None:
            os.rename(self.at(old), self.at(new))

        def create(self, path: str, mode: int, fi: Any = None) -> None:
            fi.fh = os.open(self.at(path), os.O_RDWR | os.O_CREAT, mode)

        def open(self, path: str, fi: Any) -> None:
            fi.fh = os.open(self.at(path), os.O_RDWR)

        def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:  # noqa: ARG002
            return os.pread(fi.fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:  # noqa: ARG002
            return os.pwrite(fi.fh, data, offset)

        def truncate(self, path: str, length: int, fh: Any = None) -> None:  # noqa: ARG002
            os.truncate(self.at(path), length)

        def fsync(self, path: str, datasync: int, fi: Any) -> None:  # noqa: ARG002
            os.fsync(fi.fh)

        def fsyncdir(self, path: str, datasync: int, fi: Any) -> None:
            """Do nothing: no file outlives the test."""

        def utimens(self, path: str, times: tuple[int, int]) -> None:
            os.utime(self.at(path), ns=times)

        def release(self, path: str, fi: Any) -> None:  # noqa: ARG002
            if answer == "until release":
                self.held = [each for each in self.held if each[3] != fi.fh]
            os.close(fi.fh)

        def lock(self, path: str, fi: Any, command: int, lock: Any) -> None:
            wanted = lock.contents
            if fi.flush:  # the kernel frees all classic locks, even if there are none
                return
            kind, start, length, owner = wanted.l_type, wanted.l_start, wanted.l_len, fi.lock_owner
            asked.append([command, kind, start, length, owner])
            if answer.startswith("E"):
                raise OSError(getattr(errno, answer), "as the test wants it")
            end = start + length if length else 1 << 63
            taken = answer != "everybody" and any(
                path == other and start < until and since < end and owner != holder
                for other, since, until, _, holder in self.held
            )
            if command == fcntl.F_GETLK:
                if not taken:
                    wanted.l_type = fcntl.F_UNLCK
            elif kind == fcntl.F_UNLCK:
                mine = (path, start, end, fi.fh, owner)
                self.held = [each for each in self.held if each != mine]
            elif taken:
                raise OSError(errno.EAGAIN, "taken")
            else:
                self.held.append((path, start, end, fi.fh, owner))

    def answer_test() -> None:
        try:
            while link.hear() == "locks":
                link.say(asked)
        except EOFError:
            return

    mfusepy.FUSE(Through(), mounted, raw_fi=True, foreground=True, nothreads=True, fsname="test")
