"""Where a peer's time goes: `perf` looks at all its processes while the clients are served.

    with Profile() as profile:
        profile.start()             from now on
        ...
        profile.shares(pids)        what each kind of work took of the CPU time of these processes

1,000 times a second `perf` notes what each processor does. What the kernel does for a system call
belongs to that call: on the loopback, `sendfile` also delivers the packets. Needs root, and
`apt-get install linux-perf`.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

from bench.closing import Closing
from bench.report import CheckFailed

SENDS, RECEIVES, WAITS, FILES = "sends", "receives", "waits", "files"
KERNEL, HASHES, PROGRAM = "other kernel", "SHA-256", "the program itself"
KINDS = (SENDS, RECEIVES, WAITS, FILES, KERNEL, HASHES, PROGRAM)
"""Kinds of work. The program itself: its own code, its interpreter, its libraries."""

_CALLS = {
    SENDS: "sendfile64 sendfile sendto sendmsg write writev",
    RECEIVES: "recvfrom recvmsg read readv splice tee accept accept4",
    WAITS: "futex poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2 epoll_ctl "
    "clock_nanosleep nanosleep sched_yield",
    FILES: "open openat openat2 close stat lstat fstat newfstatat statx rename renameat renameat2 "
    "unlink unlinkat link linkat mkdir mkdirat ftruncate fallocate pread64 preadv preadv2 pwrite64 "
    "pwritev pwritev2 lseek fsync fdatasync sync_file_range getdents64 flock fcntl fadvise64 "
    "copy_file_range fchmod fchmodat access faccessat faccessat2 utimensat fsetxattr fgetxattr",
}
_KIND_OF = {call: kind for kind, calls in _CALLS.items() for call in calls.split()}
_CALL = re.compile(r"(?:__(?:x64_|arm64_|do_|se_)?sys_|ksys_|do_)(\w+)")
_HEAD = re.compile(r"\s*(\d+)\s*$")
_FRAME = re.compile(r"\s*[0-9a-f]+ (.*) \(([^()]*(?:\([^()]*\))?)\)$")
_PATIENCE = 60.0  # s


@cache
def is_possible() -> bool:
    """Whether there is `perf`, and the kernel lets us look at all processes."""
    command = ["perf", "record", "--all-cpus", "--quiet", "--output", os.devnull, "true"]
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Profile(Closing):
    """A `perf` that is ready to look. Use it as a context manager.

    Raises:
        CheckFailed: it does not start.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="shmstream-perf-")
        self._data = Path(self._folder.name) / "data"
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        command = ["perf", "record", "--all-cpus", "--freq", "997", "-g", "--quiet"]
        control = [f"--control=fd:{orders},{answers}", "--delay=-1", "--output", str(self._data)]
        self._perf = subprocess.Popen(
            [*command, *control], pass_fds=(orders, answers), stderr=subprocess.DEVNULL
        )
        for each in (orders, answers):
            os.close(each)

    def start(self) -> None:
        """Look from now on."""
        self._order(b"enable\n")

    def shares(self, pids: Collection[int]) -> dict[str, float]:
        """Look no more; the part of their CPU time that these processes spent with each kind."""
        self._order(b"disable\n")
        self._end()
        command = ["perf", "script", "--input", str(self._data), "-F", "pid,ip,sym,dso"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as script:
            assert script.stdout is not None
            found = Counter(
                kind_of(stack) for pid, stack in stacks_of(script.stdout) if pid in pids
            )
        total = found.total()
        if not total:
            raise CheckFailed("perf saw none of these processes")
        return {kind: found[kind] / total for kind in KINDS}

    def _order(self, order: bytes) -> None:
        os.write(self._orders, order)
        if not select.select([self._answers], [], [], _PATIENCE)[0] or not os.read(
            self._answers, 64
        ):
            raise CheckFailed("perf does not answer")

    def _end(self) -> None:
        self._perf.terminate()
        self._perf.wait(_PATIENCE)

    def close(self) -> None:
        """End it. Idempotent."""
        if self._perf.poll() is None:
            self._perf.kill()
            self._perf.wait()
        if self._orders >= 0:
            os.close(self._orders)
            os.close(self._answers)
            self._orders = -1
        self._folder.cleanup()


Stack = list[tuple[str, str]]
"""Names of functions and of the files that they are from, the innermost function first."""


def stacks_of(lines: Iterable[str]) -> Iterator[tuple[int, Stack]]:
    """The samples that `perf script` prints: a line with the process id, then its functions."""
    pid: int | None = None
    stack: Stack = []
    for line in lines:
        if head := _HEAD.match(line):
            if pid is not None:
                yield pid, stack
            pid, stack = int(head[1]), []
        elif frame := _FRAME.match(line):
            stack.append((frame[1], frame[2]))
    if pid is not None:
        yield pid, stack


def kind_of(stack: Stack) -> str:
    """What kind of work it was."""
    calls = [found[1] for name, _ in stack if (found := _CALL.fullmatch(name))]
    known = [kind for call in calls if (kind := _KIND_OF.get(call))]
    if known:
        return known[-1]  # of the outermost: `sendfile` calls `splice`
    name, place = stack[0] if stack else ("", "")
    if "kernel" in place:
        return KERNEL
    is_hashing = "libcrypto" in place or "sha256" in name.lower()
    return HASHES if is_hashing else PROGRAM
