"""Room for descriptors: there from the beginning, in a fork too, and as large as allowed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOM = textwrap.dedent(
    """
    import os, re, resource, sys, threading
    from shmstream import Store

    def places():
        return int(re.search(r"FDSize:\\s*(\\d+)", open("/proc/self/status").read())[1])

    if allowed := int(sys.argv[2]):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    before, opened = places(), set(os.listdir("/proc/self/fd"))
    Store(sys.argv[1])
    assert set(os.listdir("/proc/self/fd")) == opened
    Store(sys.argv[1])
    told = [before, places()]
    if (child := os.fork()) == 0:
        print(*told, places(), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
)


@pytest.mark.parametrize(("allowed", "room"), [(0, 4096), (300, 300), (20, 64)])
def test_there_is_room_for_descriptors(tmp_path: Path, allowed: int, room: int) -> None:
    command = [sys.executable, "-c", ROOM, str(tmp_path / "store"), str(allowed)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    before, there, in_child = map(int, told.split())
    assert before < 300
    assert there >= room
    assert in_child >= room
